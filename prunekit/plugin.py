"""What authors of plugins need: hooks, rules, axes, layouts, layer types, criteria, costs, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit_core.door import open_door

if TYPE_CHECKING:
    from prunekit_core import (
        ELEMENTWISE as ELEMENTWISE,
        HOOKS as HOOKS,
        INTERFACE as INTERFACE,
        Addition as Addition,
        AdditiveCriterion as AdditiveCriterion,
        Alignment as Alignment,
        Analysis as Analysis,
        ArgumentError as ArgumentError,
        Axis as Axis,
        AxisMismatchError as AxisMismatchError,
        Blame as Blame,
        Branch as Branch,
        BranchCriterion as BranchCriterion,
        BranchGroup as BranchGroup,
        BranchKind as BranchKind,
        BusyModelError as BusyModelError,
        Centring as Centring,
        CheckpointError as CheckpointError,
        Chooser as Chooser,
        Compiled as Compiled,
        Concat as Concat,
        Config as Config,
        CostModel as CostModel,
        Counts as Counts,
        Dependency as Dependency,
        Entry as Entry,
        Example as Example,
        Explanation as Explanation,
        Fixed as Fixed,
        Graph as Graph,
        GreedyCriterion as GreedyCriterion,
        Group as Group,
        Kept as Kept,
        KeywordError as KeywordError,
        Kind as Kind,
        LayerType as LayerType,
        Layout as Layout,
        Limits as Limits,
        Member as Member,
        MemberView as MemberView,
        NothingToPruneError as NothingToPruneError,
        Number as Number,
        Opaque as Opaque,
        OpCall as OpCall,
        Operands as Operands,
        Operation as Operation,
        OpRule as OpRule,
        PartialCriterion as PartialCriterion,
        Plan as Plan,
        PlanError as PlanError,
        Plugin as Plugin,
        PluginError as PluginError,
        Polynomial as Polynomial,
        Preview as Preview,
        Product as Product,
        PrunekitError as PrunekitError,
        Pruner as Pruner,
        Reading as Reading,
        Reason as Reason,
        ReasonKind as ReasonKind,
        Recording as Recording,
        RecordingError as RecordingError,
        Registry as Registry,
        RehearsalError as RehearsalError,
        Replacement as Replacement,
        Report as Report,
        Resizing as Resizing,
        Role as Role,
        Rule as Rule,
        RuleOrigin as RuleOrigin,
        Scaling as Scaling,
        Scope as Scope,
        Settings as Settings,
        Site as Site,
        Sizer as Sizer,
        Sizes as Sizes,
        StorageError as StorageError,
        SymbolicSizer as SymbolicSizer,
        TensorArgument as TensorArgument,
        TensorRef as TensorRef,
        Tie as Tie,
        Trace as Trace,
        UnitGroup as UnitGroup,
        Units as Units,
        UnitsError as UnitsError,
        UnsupportedModelError as UnsupportedModelError,
        Verb as Verb,
        VerificationError as VerificationError,
        as_polynomial as as_polynomial,
        auto_alignment as auto_alignment,
        check_indices as check_indices,
        compile_polynomials as compile_polynomials,
        compile_sum as compile_sum,
        concat as concat,
        cut as cut,
        default_registry as default_registry,
        find_config as find_config,
        group_sizes as group_sizes,
        groups_of as groups_of,
        hookimpl as hookimpl,
        is_pinned as is_pinned,
        is_sharded as is_sharded,
        linear_scheduler as linear_scheduler,
        look_up as look_up,
        multiplied as multiplied,
        named_tensors as named_tensors,
        nearest as nearest,
        new_size as new_size,
        operation_name as operation_name,
        pin as pin,
        prefix as prefix,
        product as product,
        regroup as regroup,
        resolve as resolve,
        select_positions as select_positions,
        shrink_layer as shrink_layer,
        shrink_tensor as shrink_tensor,
        size_of as size_of,
        split as split,
        tie as tie,
        whole_tensor as whole_tensor,
        write_text as write_text,
    )
    from prunekit_plugins.budgets import (
        Budget as Budget,
        Choice as Choice,
        Curve as Curve,
        Family as Family,
        Problem as Problem,
        RatioFamily as RatioFamily,
        Sensitivity as Sensitivity,
        Solver as Solver,
    )
    from prunekit_plugins.calibration import (
        AddedBranch as AddedBranch,
        Batches as Batches,
        BranchGatherer as BranchGatherer,
        BranchNeed as BranchNeed,
        DemandingCriterion as DemandingCriterion,
        ExpertStatistics as ExpertStatistics,
        FrugalCriterion as FrugalCriterion,
        MeanOverRows as MeanOverRows,
        Moments as Moments,
        SeenBranch as SeenBranch,
        SiteStatistics as SiteStatistics,
        StatisticalCriterion as StatisticalCriterion,
        Statistics as Statistics,
    )
    from prunekit_plugins.checkpoints import Protocol as Protocol
    from prunekit_plugins.classic import (
        BasePruner as BasePruner,
        CustomizedPruner as CustomizedPruner,
        DependencyGraph as DependencyGraph,
        Removal as Removal,
    )
    from prunekit_plugins.compensation import (
        Compensation as Compensation,
        LayerFit as LayerFit,
        LayerRepair as LayerRepair,
        Repair as Repair,
    )
    from prunekit_plugins.prune import ServingEngine as ServingEngine, ServingProfile as ServingProfile

_HOMES = {
    "prunekit_core": (
        "Addition AdditiveCriterion Alignment Analysis ArgumentError Axis AxisMismatchError Blame Branch "
        "BranchCriterion BranchGroup BranchKind BusyModelError Centring CheckpointError Chooser Compiled Concat "
        "Config CostModel Counts Dependency ELEMENTWISE Entry Example Explanation Fixed Graph GreedyCriterion "
        "Group HOOKS INTERFACE Kept KeywordError Kind LayerType Layout Limits Member MemberView "
        "NothingToPruneError Number OpCall OpRule Opaque Operands Operation PartialCriterion Plan PlanError Plugin "
        "PluginError Polynomial Preview Product PrunekitError Pruner Reading Reason ReasonKind Recording "
        "RecordingError Registry RehearsalError Replacement Report Resizing Role Rule RuleOrigin Scaling Scope "
        "Settings Site Sizer Sizes StorageError SymbolicSizer TensorArgument TensorRef Tie Trace UnitGroup Units "
        "UnitsError UnsupportedModelError Verb VerificationError as_polynomial auto_alignment check_indices "
        "compile_polynomials compile_sum concat cut default_registry find_config group_sizes groups_of hookimpl "
        "is_pinned is_sharded linear_scheduler look_up multiplied named_tensors nearest new_size operation_name pin "
        "prefix product regroup resolve select_positions shrink_layer shrink_tensor size_of split tie "
        "whole_tensor write_text"
    ),
    "prunekit_plugins.budgets": "Budget Choice Curve Family Problem RatioFamily Sensitivity Solver",
    "prunekit_plugins.calibration": (
        "AddedBranch Batches BranchGatherer BranchNeed DemandingCriterion ExpertStatistics FrugalCriterion "
        "MeanOverRows Moments SeenBranch SiteStatistics StatisticalCriterion Statistics"
    ),
    "prunekit_plugins.checkpoints": "Protocol",
    "prunekit_plugins.classic": "BasePruner CustomizedPruner DependencyGraph Removal",
    "prunekit_plugins.compensation": "Compensation LayerFit LayerRepair Repair",
    "prunekit_plugins.prune": "ServingEngine ServingProfile",
}
"""Where each name comes from: a package is imported when one of its names is asked for."""

__all__, __getattr__, __dir__ = open_door(__name__, _HOMES)
