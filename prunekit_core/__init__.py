"""prunekit's core: any PyTorch model in, a proven smaller model out.

Importing it loads no plugin and changes nothing; plugins are loaded when the first registry is made.
"""

from prunekit_core.algebra.axes import (
    Axis,
    AxisMismatchError,
    Reason,
    concat,
    cut,
    is_pinned,
    pin,
    product,
    regroup,
    resolve,
    split,
    tie,
)
from prunekit_core.algebra.layout import Concat, Fixed, Kept, Layout, Product, Sizer, Units, groups_of, new_size, prefix
from prunekit_core.algebra.polynomial import (
    Number,
    Polynomial,
    Sizes,
    SymbolicSizer,
    as_polynomial,
    compile_polynomials,
    multiplied,
    size_of,
)
from prunekit_core.budgets.allocation import Solver
from prunekit_core.budgets.curves import Curve, Sensitivity
from prunekit_core.budgets.families import Family, RatioFamily
from prunekit_core.budgets.knapsack import Choice, Problem
from prunekit_core.budgets.measuring import sensitivity
from prunekit_core.budgets.targets import Budget, plan_to_target
from prunekit_core.calibration.batches import Batches
from prunekit_core.calibration.calibrate import calibrate
from prunekit_core.calibration.demand import DemandingCriterion, FrugalCriterion, StatisticalCriterion
from prunekit_core.calibration.moments import Moments
from prunekit_core.calibration.statistics import SiteStatistics, Statistics
from prunekit_core.check.exactness import ExactCheck, check_exact
from prunekit_core.checkpoints.checkpoint import load, read_plan, read_protocol, save
from prunekit_core.checkpoints.conversion import prune_checkpoint
from prunekit_core.checkpoints.provenance import Protocol
from prunekit_core.choose.alignment import Alignment, auto_alignment
from prunekit_core.choose.candidates import Limits, Scope
from prunekit_core.choose.chooser import Chooser, Counts, Tie
from prunekit_core.choose.criterion import AdditiveCriterion
from prunekit_core.choose.pruner import BasePruner
from prunekit_core.choose.schedule import linear_scheduler
from prunekit_core.compensation.compensate import Compensation, compensate
from prunekit_core.compensation.layer_fit import LayerFit
from prunekit_core.compensation.repair import LayerRepair, Repair
from prunekit_core.errors import (
    ArgumentError,
    BusyModelError,
    CheckpointError,
    KeywordError,
    NothingToPruneError,
    PlanError,
    PluginError,
    PrunekitError,
    RecordingError,
    RehearsalError,
    StorageError,
    UnitsError,
    UnsupportedModelError,
    VerificationError,
    nearest,
)
from prunekit_core.files import write_text
from prunekit_core.graph.channels import check_indices
from prunekit_core.graph.constants import absorb_constants
from prunekit_core.graph.graph import DependencyGraph
from prunekit_core.graph.group import Dependency, Group, MemberView
from prunekit_core.graph.history import Removal
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.costs import Compiled, CostModel, compile_sum, group_sizes
from prunekit_core.groups.recording import Recording
from prunekit_core.groups.report import Explanation, Report
from prunekit_core.groups.unit_group import Member, UnitGroup
from prunekit_core.groups.zeros import Operands
from prunekit_core.modules.sharding import is_sharded, whole_tensor
from prunekit_core.modules.surgery import named_tensors, select_positions, shrink_layer, shrink_tensor
from prunekit_core.plans.plan import Plan, Preview
from prunekit_core.plugins.config import Config
from prunekit_core.plugins.custom_layers import CustomizedPruner
from prunekit_core.plugins.hookspecs import hookimpl
from prunekit_core.plugins.layers import LayerType, Replacement, Resizing
from prunekit_core.plugins.opaque import Opaque
from prunekit_core.plugins.registry import HOOKS, Entry, Plugin, Registry, RuleOrigin, default_registry
from prunekit_core.program.calls import operation_name
from prunekit_core.program.examples import Example
from prunekit_core.program.linear_forms import Addition, Centring, Reading, Site, adds, centres, reads
from prunekit_core.program.rules import (
    ELEMENTWISE,
    Kind,
    OpCall,
    Role,
    Rule,
    TensorArgument,
    Verb,
    numbers_along,
    output_like,
    scales,
    sized_by,
    zero_where,
)
from prunekit_core.program.scaling import Scaling
from prunekit_core.program.trace import Operation, TensorRef, Trace
from prunekit_core.prune.prune import PruneResult, prune

__all__ = [
    "ELEMENTWISE",
    "HOOKS",
    "Addition",
    "AdditiveCriterion",
    "Alignment",
    "Analysis",
    "ArgumentError",
    "Axis",
    "AxisMismatchError",
    "BasePruner",
    "Batches",
    "Budget",
    "BusyModelError",
    "Centring",
    "CheckpointError",
    "Choice",
    "Chooser",
    "Compensation",
    "Compiled",
    "Concat",
    "Config",
    "CostModel",
    "Counts",
    "Curve",
    "CustomizedPruner",
    "DemandingCriterion",
    "Dependency",
    "DependencyGraph",
    "Entry",
    "ExactCheck",
    "Example",
    "Explanation",
    "Family",
    "Fixed",
    "FrugalCriterion",
    "Group",
    "Kept",
    "KeywordError",
    "Kind",
    "LayerFit",
    "LayerRepair",
    "LayerType",
    "Layout",
    "Limits",
    "Member",
    "MemberView",
    "Moments",
    "NothingToPruneError",
    "Number",
    "OpCall",
    "Opaque",
    "Operands",
    "Operation",
    "Plan",
    "PlanError",
    "Plugin",
    "PluginError",
    "Polynomial",
    "Preview",
    "Problem",
    "Product",
    "Protocol",
    "PruneResult",
    "PrunekitError",
    "RatioFamily",
    "Reading",
    "Reason",
    "Recording",
    "RecordingError",
    "Registry",
    "RehearsalError",
    "Removal",
    "Repair",
    "Replacement",
    "Report",
    "Resizing",
    "Role",
    "Rule",
    "RuleOrigin",
    "Scaling",
    "Scope",
    "Sensitivity",
    "Site",
    "SiteStatistics",
    "Sizer",
    "Sizes",
    "Solver",
    "StatisticalCriterion",
    "Statistics",
    "StorageError",
    "SymbolicSizer",
    "TensorArgument",
    "TensorRef",
    "Tie",
    "Trace",
    "UnitGroup",
    "Units",
    "UnitsError",
    "UnsupportedModelError",
    "Verb",
    "VerificationError",
    "absorb_constants",
    "adds",
    "as_polynomial",
    "auto_alignment",
    "calibrate",
    "centres",
    "check_exact",
    "check_indices",
    "compensate",
    "compile_polynomials",
    "compile_sum",
    "concat",
    "cut",
    "default_registry",
    "group_sizes",
    "groups_of",
    "hookimpl",
    "is_pinned",
    "is_sharded",
    "linear_scheduler",
    "load",
    "multiplied",
    "named_tensors",
    "nearest",
    "new_size",
    "numbers_along",
    "operation_name",
    "output_like",
    "pin",
    "plan_to_target",
    "prefix",
    "product",
    "prune",
    "prune_checkpoint",
    "read_plan",
    "read_protocol",
    "reads",
    "regroup",
    "resolve",
    "save",
    "scales",
    "select_positions",
    "sensitivity",
    "shrink_layer",
    "shrink_tensor",
    "size_of",
    "sized_by",
    "split",
    "tie",
    "whole_tensor",
    "write_text",
    "zero_where",
]
