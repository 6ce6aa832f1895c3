"""prunekit's core: any PyTorch model in, a proven smaller model out.

Importing it loads no plugin and changes nothing; plugins are loaded when the first registry is made.
"""

from prunekit_core.alignment import Alignment, auto_alignment
from prunekit_core.allocation import Solver
from prunekit_core.analysis import Analysis, Member, Recording, UnitGroup
from prunekit_core.api import PruneResult, prune
from prunekit_core.axes import (
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
from prunekit_core.batches import Batches
from prunekit_core.calibration import calibrate
from prunekit_core.calls import operation_name
from prunekit_core.checkpoint import load, read_plan, read_protocol, save
from prunekit_core.chooser import Chooser, Counts, Tie
from prunekit_core.compensation import Compensation, compensate
from prunekit_core.config import Config
from prunekit_core.constants import absorb_constants
from prunekit_core.consumers import Addition, Centring, Reading, Site, adds, centres, reads
from prunekit_core.conversion import prune_checkpoint
from prunekit_core.costs import Compiled, CostModel, compile_sum, group_sizes
from prunekit_core.criterion import AdditiveCriterion
from prunekit_core.curves import Curve, Sensitivity
from prunekit_core.custom_layers import CustomizedPruner
from prunekit_core.demand import DemandingCriterion, FrugalCriterion, StatisticalCriterion
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
from prunekit_core.exactness import ExactCheck, check_exact
from prunekit_core.examples import Example
from prunekit_core.families import Family, RatioFamily
from prunekit_core.files import write_text
from prunekit_core.graph import DependencyGraph
from prunekit_core.group import Dependency, Group, MemberView
from prunekit_core.history import Removal
from prunekit_core.hookspecs import hookimpl
from prunekit_core.knapsack import Choice, Problem
from prunekit_core.layer_fit import LayerFit
from prunekit_core.layers import LayerType, Replacement, Resizing
from prunekit_core.layout import Concat, Fixed, Kept, Layout, Product, Sizer, Units, groups_of, new_size, prefix
from prunekit_core.measuring import sensitivity
from prunekit_core.moments import Moments
from prunekit_core.numbering import check_indices
from prunekit_core.opaque import Opaque
from prunekit_core.plan import Plan, Preview
from prunekit_core.polynomial import (
    Number,
    Polynomial,
    Sizes,
    SymbolicSizer,
    as_polynomial,
    compile_polynomials,
    multiplied,
    size_of,
)
from prunekit_core.protocol import Protocol
from prunekit_core.pruner import BasePruner
from prunekit_core.registry import HOOKS, Entry, Plugin, Registry, RuleOrigin, default_registry
from prunekit_core.repair import LayerRepair, Repair
from prunekit_core.report import Explanation, Report
from prunekit_core.rules import (
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
from prunekit_core.scaling import Scaling
from prunekit_core.schedule import linear_scheduler
from prunekit_core.selection import Limits, Scope
from prunekit_core.sharding import is_sharded, whole_tensor
from prunekit_core.statistics import SiteStatistics, Statistics
from prunekit_core.surgery import named_tensors, select_positions, shrink_layer, shrink_tensor
from prunekit_core.targets import Budget, plan_to_target
from prunekit_core.trace import Operation, TensorRef, Trace
from prunekit_core.zeros import Operands

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
