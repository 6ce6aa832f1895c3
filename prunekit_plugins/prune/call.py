"""The short way: one call that prunes a model to a ratio or to a target."""

from __future__ import annotations

import contextlib
import html
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import nn

from prunekit_core.algebra import layout as layouts
from prunekit_core.arguments import check_keywords, forms_checked, keywords_of
from prunekit_core.check.verification import AUTO, Verification, confirm_cut, outputs_of_copy, verify_cut
from prunekit_core.choose.criterion import Criterion
from prunekit_core.choose.pruner import Pruner
from prunekit_core.choose.settings import Ratios
from prunekit_core.errors import ArgumentError
from prunekit_core.graph.graph import Graph
from prunekit_core.groups.costs import compiled_cost, cost_model
from prunekit_core.groups.report import Report
from prunekit_core.modules.exclusive import on_exclusive
from prunekit_core.modules.transaction import Transaction
from prunekit_core.modules.tree import Layer
from prunekit_core.plans.optimizers import Optimizers
from prunekit_core.plans.plan import Plan, Preview
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.record.recorder import check_recordable
from prunekit_plugins.budgets.allocation import Solver
from prunekit_plugins.budgets.budget import Budget, OutOfReachError, Target, unit_notes
from prunekit_plugins.budgets.curves import Sensitivity
from prunekit_plugins.budgets.inference.latency_table import LatencyTable, latencies_from
from prunekit_plugins.budgets.knapsack import Problem
from prunekit_plugins.budgets.targets import Selector, plan_to_target
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.checkpoints.provenance import Protocol, make_protocol
from prunekit_plugins.classic.graph import DependencyGraph
from prunekit_plugins.classic.pruner import BasePruner
from prunekit_plugins.compensation.repair import Compensator
from prunekit_plugins.compensation.run import Compensation, Repaired
from prunekit_plugins.depth.settings import BOTH, WIDTH
from prunekit_plugins.prune.allotment import Allotment
from prunekit_plugins.prune.by_both import by_both
from prunekit_plugins.prune.by_depth import Decided, by_depth
from prunekit_plugins.prune.calibrated import CRITERIA, CalibratedPath, check_informed
from prunekit_plugins.prune.experts import about_experts, check_reach
from prunekit_plugins.prune.kind_scales import agreed
from prunekit_plugins.prune.reach import name_profile
from prunekit_plugins.prune.serving import Served, ServingProfile, serving_profile
from prunekit_plugins.prune.settings import COMPENSATION, PruneSettings
from prunekit_plugins.prune.tradeoffs import Solved, Tradeoffs, tradeoffs_of
from prunekit_plugins.prune.whole_heads import about_heads

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from prunekit_plugins.classic.options import FurtherOptions

LATENCY = "latency"
"""The cost that a table may say."""


@attrs.frozen(eq=False, repr=False)
class PruneResult:
    """What `prune` did.

    Attributes:
        model: The pruned model (the one that was passed in).
        plan: The decision, as data.
        report: What was pruned, left on purpose, not understood, untouched.
        preview: Parameters, bytes and costs before and after.
        layers: Parameter to (shape before, shape after), for every parameter that changed.
        protocol: How the result came about: versions, seed, arguments, costs before and after.
        graph: The analysed model: its groups, what ties them, what pins them.
        compensation: What was done with calibration data; None without them.
        repaired: For a model on the meta device, the weights that compensation changed, by their names in the
            checkpoint: give them to `prune_checkpoint`. A tensor is read when it is asked for, from temporary files
            that go with this. Empty for a model in memory, which has them.
        verification: What the pruned model was compared with, or why it wasn't.
        tradeoffs: What each part of the model could have saved, what it would have cost, and what was taken, where
            damages were weighed against costs; else None.
    """

    model: nn.Module
    plan: Plan
    report: Report
    preview: Preview
    layers: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    protocol: Protocol
    graph: Graph
    compensation: Compensation | None = None
    repaired: Mapping[str, torch.Tensor] = attrs.field(factory=dict)
    verification: Verification = attrs.field(factory=Verification)
    tradeoffs: Tradeoffs | None = None

    def __repr__(self) -> str:
        p, gone = self.preview, len(self.report.absent)
        units = f"{len(self.report.pruned)} groups" + (f" and {gone} branches" if gone else "")
        share = p.params_after / max(1, p.params_before)
        return (
            f"PruneResult({type(self.model).__name__}: {p.params_before:,} -> {p.params_after:,} parameters "
            f"({share:.1%} kept), {units} pruned; print(result) says what and why)"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: costs before and after, and the report folded up."""
        costs = {"params": (self.preview.params_before, self.preview.params_after), **self.preview.costs}
        cells = [
            (html.escape(name), f"{before:,.0f}", f"{after:,.0f}", f"{after / before:.1%}")
            for name, (before, after) in costs.items()
            if before
        ]
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
        return (
            f"<b>{html.escape(type(self.model).__name__)}</b><table><tr><th>cost</th><th>before</th><th>after</th>"
            f"<th>left</th></tr>{rows}</table><details><summary>what went, what stayed and why</summary>"
            f"<pre>{html.escape(str(self))}</pre></details>"
        )

    def __str__(self) -> str:
        p = self.preview
        lines = [
            f"params  {p.params_before:>14,} -> {p.params_after:>14,}  ({p.params_after / p.params_before:.1%} kept)"
        ]
        for name, (before, after) in p.costs.items():
            if name != "params" and before:
                lines.append(f"{name:<7} {before:>14,.0f} -> {after:>14,.0f}  ({after / before:.1%} kept)")
        lines.append(str(self.report))
        if self.tradeoffs is not None:
            lines.append(str(self.tradeoffs))
        if self.plan.rescales:
            lines.append("rescaled, because a constant of the program follows a size:")
            factors = dict.fromkeys((rescale.parameter, rescale.factor) for rescale in self.plan.rescales)
            lines.extend(f"  {name}: rows x {factor:.4g}" for name, factor in factors)
        if self.compensation is not None:
            lines.append(str(self.compensation))
        if self.repaired:
            lines.append("the weights are on disk: prune_checkpoint(..., repaired=result.repaired) puts these in")
        return "\n".join(lines)


@forms_checked
@on_exclusive
def prune(
    model: nn.Module,
    example_inputs: Any,
    ratio: float | None = None,
    *,
    target: Target | None = None,
    importance: Criterion | str | None = None,
    expert_importance: Criterion | str | None = None,
    calibration: Iterable[Any] | Batches | None = None,
    compensation: Sequence[str | Compensator] | str | None = COMPENSATION,
    reestimate_batchnorm: bool = True,
    stages: int | None = None,
    global_pruning: bool = False,
    allocation: str | Solver | None = None,
    sensitivity: Sensitivity | None = None,
    max_pruning_ratio: float = 1.0,
    ignored_layers: Sequence[Layer] | None = None,
    round_to: int | None = None,
    align: str | None = None,
    pruning_ratio_dict: Ratios | None = None,
    branch_ratio: float | None = None,
    branches: Sequence[str] | None = None,
    branch_importance: Criterion | str | None = None,
    by: str = WIDTH,
    keep_first: int = 0,
    keep_last: int = 0,
    keep_names: bool = False,
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    registry: Registry | None = None,
    optimizer: Optimizers | None = None,
    verify: str = AUTO,
    serve: Served | None = None,
    workload: Mapping[str, int] | None = None,
    latency_table: str | os.PathLike[str] | LatencyTable | None = None,
    **options: Unpack[FurtherOptions],
) -> PruneResult:
    """Prunes a model in place.

    Args:
        model: Any module whose forward runs.
        example_inputs: A tensor, a tuple or list of positional inputs, or a dict of keyword inputs.
        ratio: Fraction of the units of every group to remove, in [0, 1); 0.5 if neither it nor a target is given, and
            0 where ``branch_ratio`` or ``branches`` is given, or a target is met by depth.
        target: Instead of a ratio, what should be left: cost model to a fraction of the original (up to 1) or an
            absolute value (above 1, or a text with a unit, ``"90MB"``): ``{"macs": 0.5}``. The largest model that
            meets all targets is chosen.
        importance: A criterion or its registered name; None for ``"magnitude"``, and for ``"calibrated"`` where there
            are calibration data.
        expert_importance: A criterion for experts or its registered name: they may leave then, at the ratio of other
            units if ``expert_pruning_ratio`` says no other. None: with calibration data, ``"rerouting"`` where there is
            a target or an ``expert_pruning_ratio``; else experts stay, or are scored like all units.
        calibration: Batches of data, see `calibrate`: units, experts and branches are chosen by what they do on them,
            and the weights that stay make up for what goes.
        compensation: Compensators or their names, which take calibration data; None for none.
        reestimate_batchnorm: Whether batch norms are estimated anew on calibration data.
        stages: In how many stages layers are compensated; see `compensate`.
        global_pruning: Rank all units together instead of taking the ratio in each group.
        allocation: How a target is shared out among the groups: ``"uniform"`` (the same ratio for all), ``"global"``
            (one ranking of all units, which is ``global_pruning=True``), ``"greedy"`` (step by step what does least
            damage for what it saves), ``"dp"`` (dynamic programming over damages), ``"estimated"`` (the same with
            damages from the scores), or a callable ``(Problem) -> picked options``, see
            `prunekit_plugins.budgets.knapsack`. None: ``"uniform"``; with calibration data ``"estimated"``, or
            ``"global"`` where scores don't add up to damages.
        sensitivity: Measured damages for ``"greedy"`` and ``"dp"``. None: they are measured on the calibration data,
            after compensation; without such data they come from the scores.
        max_pruning_ratio: Largest fraction that any group loses.
        ignored_layers: Layers (modules, names or types) whose outputs are left alone.
        round_to: Sizes are kept at multiples of this.
        align: ``"auto"`` finds out the multiple that suits the device and dtype of the model; the report says it.
        pruning_ratio_dict: Ratios for single layers; they hold whatever the target.
        branch_ratio: Fraction of the branches to remove (operands of sums that can be switched off: attention,
            feed-forwards, residual blocks), in [0, 1): of those of each structure, with ``global_pruning`` of all
            together. None removes none. ``ignored_layers`` and ``max_pruning_ratio`` hold for branches as well.
        branches: Names of the branches to remove, or of modules that hold them (a layer), instead of a ratio; see
            `Graph.branches`.
        branch_importance: A criterion for branches or its registered name; None for ``"output_change"`` with
            calibration data, and for ``"magnitude"``, a weak guess, without.
        by: What meets a target: ``"width"`` (units), ``"depth"`` (branches alone) or ``"both"``: one knapsack over
            sizes of groups, whole heads (unless ``prune_num_heads=False`` or a serving profile keeps them), branches
            and experts, whose choices are measured on held-out calibration data.
        keep_first: So many branches stay at the start of the program, whatever their scores.
        keep_last: So many branches stay at its end.
        keep_names: Whether a layer that loses all its branches stays in its ``ModuleList`` or ``Sequential``, as a
            module that hands on what it is given, so that all others keep their names. By default it leaves, and those
            behind it are numbered anew, where the program goes on without it.
        forward_fn: Called as ``forward_fn(model, example_inputs)`` instead of the model.
        registry: Where plugins are found; None for the default registry.
        optimizer: An optimizer that trains the model, or several; their state (momentum, averages) is cut along.
        verify: Whether the pruned model is compared by numbers with the original that has the removed units zeroed, on
            the example inputs, before anything is changed: ``"auto"`` does where that is expected to take at most
            a tenth of a second, ``"always"`` wherever it is possible, ``"never"``. What became of it is in the result.
        serve: Where the model is to be served: ``"transformers"`` for a model that the stock class loads from a folder.
            Arguments that aren't given follow from it (``uniform``, ``prune_head_dims``, ``free_outputs``), layers
            stay whole whose sizes nothing could say, and ``round_to`` is a multiple of what it asks for. With options a
            table, ``{"name": "vllm", "tensor_parallel": 2}``. Or a function ``(model, example_inputs, registry)`` that
            returns a `ServingProfile`.
        workload: The calls at which costs are counted, where they aren't one call on the example inputs:
            ``{"batch": 8, "length": 512, "decode": 128}``, or some of these. MACs and latency are those of a call on so
            many examples of so many tokens, and of decoding so many more with the cache; caches are as long as all of
            it, ``memory`` is that of the first call.
        latency_table: A file that ``prunekit bench --latency-table`` or `write_latency_table` wrote on the device
            where the model is to run: a target on latency is met by what it says, and nothing is timed here.
        options: Further arguments of `BasePruner`, such as ``uniform``, ``free_outputs``, ``head_pruning_ratio``, or
            ``weights`` for a model on the meta device; all but those about steps.

    Returns:
        The result; print it for a report.

    Raises:
        ArgumentError: An argument is wrong; nothing was traced.
        NothingToPruneError: No unit may go; the message says what pinned what.
        VerificationError: The pruned model computes something else; the model is untouched.
        PrunekitError: Anything else that stands in the way; the model is untouched.
    """
    given = {**locals(), **options}
    _check_options(options)
    settings = PruneSettings.of(given)
    registry = registry or default_registry()
    allotment, path = Allotment.of(settings, registry), CalibratedPath.of(settings, registry)
    settings.check_names(registry)
    told = settings.without_data(registry.config) if path is None else path.notes
    profile = None if serve is None else serving_profile(serve, model, example_inputs, registry)
    if profile is not None:
        settings = PruneSettings.of(profile.under(settings.given))
    wanted = settings.pruner(example_inputs, ranks=global_pruning or allotment.ranks)
    pruner = Pruner(**wanted.analysed(model, example_inputs, DependencyGraph(registry), registry))
    criteria = {name: getattr(pruner, name) for name in CRITERIA}
    with latencies_from(settings.latency_table):
        with _naming_profile(pruner, settings):
            decided = _decided(pruner, settings, allotment, path, profile)
        read = _about_costs(settings, pruner.graph, decided.plan)
    pruner, plan = decided.pruner, decided.plan
    if profile is not None and profile.check is not None:
        profile.check(pruner.graph, plan)
    doubts = (*read, *told, *(profile.notes if profile else ()), *decided.notes)
    preview = _with_target_costs(plan.preview(), pruner.graph, plan, settings.target or {})
    shared = settings.depth.by == BOTH or not settings.depth.requested
    taken = allotment.settled(pruner).chosen if shared else allotment.chosen
    arguments = settings.recorded(taken, experts=pruner.has_experts)
    protocol = make_protocol(check_recordable(model), pruner.registry, arguments, preview.costs)
    for name, criterion in criteria.items():  # statistics take more memory than the model, and nobody reads them now
        setattr(pruner, name, criterion)
    verification = _verification(pruner, plan, verify)
    repaired = None if decided.path is None else decided.path.repair(pruner.graph, plan)
    if decided.path is not None:
        protocol = attrs.evolve(protocol, calibration=decided.path.provenance(repaired))
    result = PruneResult(model, plan, pruner.report(), preview, _changes(plan), protocol, pruner.graph)
    result = attrs.evolve(result, verification=verification, tradeoffs=decided.tradeoffs)
    return _cut(pruner, result, optimizer, repaired, (*doubts, *verification.notes(verify)))


def _about_costs(settings: PruneSettings, graph: Graph, plan: Plan) -> list[str]:
    """Says how targets were read, what costs are counted for, and where latencies are from."""
    notes = unit_notes(settings.target, graph.registry) if settings.target else []
    if settings.workload is not None:
        notes.append(f"costs are counted for a workload: {settings.workload}")
    table = settings.latency_table
    if table is not None:
        model = cost_model(graph.registry.named("prunekit_budgets", LATENCY))
        before, after = map(model.text, _spent(LATENCY, graph, plan))
        where = table.machine.get("device")
        notes.append(
            f"latency: predicted {after} of {before}, by a table that was measured on {where}; nothing was timed here"
        )
    return notes


def _spent(name: str, graph: Graph, plan: Plan) -> tuple[float, float]:
    """What a model costs before a plan and after it, as its cost model predicts."""
    left = graph.analysis_after(plan) if plan.absent else graph.analysis
    sizes = {cut.group: len(cut.kept) for cut in plan.cuts}
    return compiled_cost(graph.registry, name, graph.analysis)({}), compiled_cost(graph.registry, name, left)(sizes)


def _with_target_costs(preview: Preview, graph: Graph, plan: Plan, target: Target) -> Preview:
    """Adds the costs that a target names and previews leave out; not those that are measured, which the plan notes."""
    models = {name: cost_model(graph.registry.named("prunekit_budgets", name)) for name in target}
    missing = [name for name, model in models.items() if name not in preview.costs and not model.measured]
    found = {name: _spent(name, graph, plan) for name in missing}
    return attrs.evolve(preview, costs={**preview.costs, **found}) if found else preview


@contextlib.contextmanager
def _naming_profile(pruner: Pruner, settings: PruneSettings) -> Iterator[None]:
    """Lets an error about the target say where a serving profile stands in the way."""
    try:
        yield
    except OutOfReachError as error:
        if settings.target is not None and settings.demands.source:
            name_profile(error, pruner, settings.depth, settings.target)
        raise


def _decided(
    pruner: Pruner,
    settings: PruneSettings,
    allotment: Allotment,
    path: CalibratedPath | None,
    profile: ServingProfile | None,
) -> Decided:
    """Decides what goes: units, branches, or both."""
    depth, target = settings.depth, settings.target
    if depth.by == BOTH and target is not None:
        return by_both(pruner, depth, target, path, allotment)
    doubts: Sequence[str] = ()
    if settings.widths or not depth.requested:
        if path is None:
            for criterion in filter(None, (pruner.importance, pruner.expert_importance)):
                check_informed(criterion, pruner.registry)
        elif target is not None and not depth.requested:
            check_reach(pruner, target)
        doubts = () if path is None else path.inform(pruner)
    if depth.requested:
        decided = by_depth(pruner, depth, settings.width_ratio, path)
        return attrs.evolve(decided, notes=(*doubts, *decided.notes))
    scores = None if target is None else pruner.scores(pruner.scopes())

    def solve(allotment: Allotment) -> tuple[Plan, Problem | None]:
        problems: list[Problem] = []
        plan = _decide(pruner, target, allotment.selector(pruner, path, problems.append), scores)
        return plan, problems[-1] if problems else None

    found = agreed(pruner, allotment.settled(pruner).informed(pruner, path), path, solve)
    weighed = None if found.problem is None else _weighed(pruner, found.plan, found.allotment, found.problem)
    notes = [*doubts, *found.notes, *about_experts(pruner, found.plan)]
    if target is not None and scores is not None and path is not None and "prune_num_heads" not in settings.given:
        notes += about_heads(pruner, target, found, scores, None if profile is None else profile.counts)
    return Decided(pruner, found.plan, path, notes, weighed)


def _weighed(pruner: Pruner, plan: Plan, allotment: Allotment, problem: Problem) -> Tradeoffs | None:
    """What each group could have saved, and what was taken of it."""
    solved = Solved(lambda absent: problem, {cut.group: len(cut.kept) for cut in plan.cuts})
    return tradeoffs_of(solved, pruner.graph.analysis.groups, allotment.metric(pruner))


def _check_options(options: Mapping[str, Any]) -> None:
    """Raises `ArgumentError` for arguments that `prune` doesn't pass on to its pruner."""
    stepwise = [name for name in options if name.startswith("iterative_")]
    if stepwise:
        raise ArgumentError("prune() cuts once.", why=f"got {stepwise[0]}", hint="use BasePruner to prune in steps")
    check_keywords(options, _KEYWORDS, "prune")


def _cut(
    pruner: Pruner,
    decided: PruneResult,
    optimizer: Optimizers | None,
    repaired: Repaired | None,
    doubts: Sequence[str],
) -> PruneResult:
    """Cuts the model and gives it the repaired weights when the result is there, or not at all."""
    values = repaired.values if repaired else {}
    on_disk = repaired is not None and repaired.on_disk
    analysis, check = pruner.graph.analysis, decided.verification.check
    expected = None
    if check is not None and not values:  # repaired weights compute something else on purpose
        expected = outputs_of_copy(check_recordable(pruner.model), decided.plan, analysis, pruner.registry)
    transaction = Transaction()
    try:
        with transaction:
            pruner.graph.apply_within(transaction, decided.plan, optimizer, values={} if on_disk else values)
            if check is not None and expected is not None:
                confirm_cut(expected, check_recordable(pruner.model), analysis, pruner.registry, check.tolerance)
            return attrs.evolve(
                decided,
                report=_report(pruner, doubts),
                compensation=None if repaired is None else repaired.result,
                repaired=values if on_disk else {},
            )
    except BaseException:  # an interrupt that was held back, too: without the result nobody could use the model
        transaction.undo()
        raise


def _verification(pruner: Pruner, plan: Plan, wish: str) -> Verification:
    """Compares the cut by numbers, before anything is changed."""
    model, costs = check_recordable(pruner.model), plan.preview().costs
    return verify_cut(model, plan, pruner.graph.analysis, pruner.registry, wish=wish, costs=costs)


def _report(pruner: Pruner, doubts: Sequence[str]) -> Report:
    """The report of what the pruner did, with what speaks against the statistics that it was given."""
    report = pruner.report()
    return attrs.evolve(report, notes=(*report.notes, *doubts))


def _decide(
    pruner: Pruner, target: Target | None, select: Selector | None, scores: Mapping[str, torch.Tensor] | None
) -> Plan:
    """Makes the plan; an empty one only where nothing was asked for."""
    plan = pruner.plan() if target is None else plan_to_target(pruner, target, select=select, scores=scores)
    if target is not None and not plan.cuts and Budget.of(pruner, target).fits({}):
        return attrs.evolve(plan, notes=(*plan.notes, "the model meets the target as it is: nothing was removed"))
    wanted = target is not None or pruner.doubts or any(scope.ratio > 0 for scope in pruner.scopes())
    if wanted or not pruner.scopes():
        pruner.require_something(plan)
    return plan


def _changes(plan: Plan) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes before and after of every parameter that changes."""
    kept = plan.kept
    return {
        cut.parameter: (cut.shape, tuple(layouts.new_size(dim, kept) for dim in cut.dims)) for cut in plan.parameters
    }


_KEYWORDS = tuple(
    name for name in keywords_of(prune, BasePruner) if name != "pruning_ratio" and not name.startswith("iterative_")
)
"""What `prune` takes; the pruner's ratio goes by another name here."""
