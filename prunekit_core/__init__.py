"""prunekit's core: any PyTorch model in, a proven smaller model out.

This is the door for those who embed the core; users have `prunekit`, authors of plugins `prunekit.plugin`. Importing it
loads neither torch nor a plugin, and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit_core.door import open_door

if TYPE_CHECKING:
    from prunekit_core.algebra.axes import (
        Axis as Axis,
        AxisMismatchError as AxisMismatchError,
        concat as concat,
        cut as cut,
        is_pinned as is_pinned,
        pin as pin,
        product as product,
        regroup as regroup,
        resolve as resolve,
        split as split,
        tie as tie,
    )
    from prunekit_core.algebra.layout import (
        Concat as Concat,
        Fixed as Fixed,
        Kept as Kept,
        Layout as Layout,
        Product as Product,
        Sizer as Sizer,
        Units as Units,
        groups_of as groups_of,
        new_size as new_size,
        prefix as prefix,
    )
    from prunekit_core.algebra.lookups import look_up as look_up
    from prunekit_core.algebra.polynomial import (
        Number as Number,
        Polynomial as Polynomial,
        Sizes as Sizes,
        SymbolicSizer as SymbolicSizer,
        as_polynomial as as_polynomial,
        compile_polynomials as compile_polynomials,
        multiplied as multiplied,
        size_of as size_of,
    )
    from prunekit_core.algebra.reasons import Reason as Reason, ReasonKind as ReasonKind
    from prunekit_core.branches.branch import Branch as Branch, BranchKind as BranchKind
    from prunekit_core.check.exactness import ExactCheck as ExactCheck, check_exact as check_exact
    from prunekit_core.choose.alignment import Alignment as Alignment, auto_alignment as auto_alignment
    from prunekit_core.choose.branch_group import (
        BranchCriterion as BranchCriterion,
        BranchGroup as BranchGroup,
        GreedyCriterion as GreedyCriterion,
    )
    from prunekit_core.choose.candidates import Limits as Limits, Scope as Scope
    from prunekit_core.choose.chooser import Chooser as Chooser, Counts as Counts, Tie as Tie
    from prunekit_core.choose.criterion import (
        AdditiveCriterion as AdditiveCriterion,
        PartialCriterion as PartialCriterion,
    )
    from prunekit_core.choose.pruner import Pruner as Pruner
    from prunekit_core.choose.schedule import linear_scheduler as linear_scheduler
    from prunekit_core.choose.settings import Settings as Settings
    from prunekit_core.errors import (
        ArgumentError as ArgumentError,
        BusyModelError as BusyModelError,
        CheckpointError as CheckpointError,
        KeywordError as KeywordError,
        NothingToPruneError as NothingToPruneError,
        PlanError as PlanError,
        PluginError as PluginError,
        PrunekitError as PrunekitError,
        RecordingError as RecordingError,
        RehearsalError as RehearsalError,
        StorageError as StorageError,
        UnitsError as UnitsError,
        UnsupportedModelError as UnsupportedModelError,
        VerificationError as VerificationError,
        nearest as nearest,
    )
    from prunekit_core.files import write_text as write_text
    from prunekit_core.graph.channels import check_indices as check_indices
    from prunekit_core.graph.constants import absorb_constants as absorb_constants
    from prunekit_core.graph.graph import Graph as Graph
    from prunekit_core.graph.group import Dependency as Dependency, Group as Group, MemberView as MemberView
    from prunekit_core.groups.analysis import Analysis as Analysis
    from prunekit_core.groups.costs import (
        Compiled as Compiled,
        CostModel as CostModel,
        compile_sum as compile_sum,
        group_sizes as group_sizes,
    )
    from prunekit_core.groups.recording import Recording as Recording
    from prunekit_core.groups.report import Explanation as Explanation, Report as Report
    from prunekit_core.groups.unit_group import Member as Member, UnitGroup as UnitGroup
    from prunekit_core.groups.zeros import Operands as Operands
    from prunekit_core.modules.sharding import is_sharded as is_sharded, whole_tensor as whole_tensor
    from prunekit_core.modules.surgery import (
        select_positions as select_positions,
        shrink_layer as shrink_layer,
        shrink_tensor as shrink_tensor,
    )
    from prunekit_core.modules.tree import named_tensors as named_tensors
    from prunekit_core.plans.plan import Plan as Plan, Preview as Preview
    from prunekit_core.plugins.blame import Blame as Blame
    from prunekit_core.plugins.entries import Entry as Entry, Plugin as Plugin, RuleOrigin as RuleOrigin
    from prunekit_core.plugins.hookspecs import (
        HOOKS as HOOKS,
        INTERFACE as INTERFACE,
        hookimpl as hookimpl,
    )
    from prunekit_core.plugins.layers import LayerType as LayerType, Replacement as Replacement, Resizing as Resizing
    from prunekit_core.plugins.opaque import Opaque as Opaque
    from prunekit_core.plugins.registry import Registry as Registry, default_registry as default_registry
    from prunekit_core.program.calls import operation_name as operation_name
    from prunekit_core.program.examples import Example as Example
    from prunekit_core.program.linear_forms import (
        Addition as Addition,
        Centring as Centring,
        Reading as Reading,
        Site as Site,
    )
    from prunekit_core.program.op_call import (
        Kind as Kind,
        OpCall as OpCall,
        Role as Role,
        TensorArgument as TensorArgument,
        Verb as Verb,
    )
    from prunekit_core.program.rules import ELEMENTWISE as ELEMENTWISE, OpRule as OpRule, Rule as Rule
    from prunekit_core.program.scaling import Scaling as Scaling
    from prunekit_core.program.trace import Operation as Operation, TensorRef as TensorRef, Trace as Trace
    from prunekit_core.projects.config import Config as Config, find_config as find_config

_HOMES = {
    "prunekit_core.algebra.lookups": "look_up",
    "prunekit_core.algebra.axes": "Axis AxisMismatchError concat cut is_pinned pin product regroup resolve split tie",
    "prunekit_core.algebra.layout": "Concat Fixed Kept Layout Product Sizer Units groups_of new_size prefix",
    "prunekit_core.algebra.polynomial": (
        "Number Polynomial Sizes SymbolicSizer as_polynomial compile_polynomials multiplied size_of"
    ),
    "prunekit_core.algebra.reasons": "Reason ReasonKind",
    "prunekit_core.branches.branch": "Branch BranchKind",
    "prunekit_core.check.exactness": "ExactCheck check_exact",
    "prunekit_core.choose.alignment": "Alignment auto_alignment",
    "prunekit_core.choose.branch_group": "BranchCriterion BranchGroup GreedyCriterion",
    "prunekit_core.choose.candidates": "Limits Scope",
    "prunekit_core.choose.chooser": "Chooser Counts Tie",
    "prunekit_core.choose.criterion": "AdditiveCriterion PartialCriterion",
    "prunekit_core.choose.pruner": "Pruner",
    "prunekit_core.choose.schedule": "linear_scheduler",
    "prunekit_core.choose.settings": "Settings",
    "prunekit_core.errors": (
        "ArgumentError BusyModelError CheckpointError KeywordError NothingToPruneError PlanError PluginError "
        "PrunekitError RecordingError RehearsalError StorageError UnitsError UnsupportedModelError "
        "VerificationError nearest"
    ),
    "prunekit_core.files": "write_text",
    "prunekit_core.graph.channels": "check_indices",
    "prunekit_core.graph.constants": "absorb_constants",
    "prunekit_core.graph.graph": "Graph",
    "prunekit_core.graph.group": "Dependency Group MemberView",
    "prunekit_core.groups.analysis": "Analysis",
    "prunekit_core.groups.costs": "Compiled CostModel compile_sum group_sizes",
    "prunekit_core.groups.recording": "Recording",
    "prunekit_core.groups.report": "Explanation Report",
    "prunekit_core.groups.unit_group": "Member UnitGroup",
    "prunekit_core.groups.zeros": "Operands",
    "prunekit_core.modules.sharding": "is_sharded whole_tensor",
    "prunekit_core.modules.surgery": "select_positions shrink_layer shrink_tensor",
    "prunekit_core.modules.tree": "named_tensors",
    "prunekit_core.plans.plan": "Plan Preview",
    "prunekit_core.plugins.blame": "Blame",
    "prunekit_core.projects.config": "Config find_config",
    "prunekit_core.plugins.entries": "Entry Plugin RuleOrigin",
    "prunekit_core.plugins.hookspecs": "HOOKS INTERFACE hookimpl",
    "prunekit_core.plugins.layers": "LayerType Replacement Resizing",
    "prunekit_core.plugins.opaque": "Opaque",
    "prunekit_core.plugins.registry": "Registry default_registry",
    "prunekit_core.program.calls": "operation_name",
    "prunekit_core.program.examples": "Example",
    "prunekit_core.program.linear_forms": "Addition Centring Reading Site",
    "prunekit_core.program.op_call": "Kind OpCall Role TensorArgument Verb",
    "prunekit_core.program.rules": "ELEMENTWISE OpRule Rule",
    "prunekit_core.program.scaling": "Scaling",
    "prunekit_core.program.trace": "Operation TensorRef Trace",
}
"""Where each name comes from: a package is imported when one of its names is asked for."""

__all__, __getattr__, __dir__ = open_door(__name__, _HOMES)
