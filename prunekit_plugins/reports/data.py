"""What a report says, as one structure of plain data that all renderers share."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from prunekit import PruneResult
from prunekit.plugin import Analysis, ArgumentError, Graph, Plan, Preview, Report, Sensitivity, Sizer, UnitGroup
from prunekit_plugins.budgets.counts import operation_macs, whole_macs
from prunekit_plugins.prune.tradeoffs import Tradeoffs, measured_tradeoffs

FORMAT = 1
Curves = Mapping[str, Mapping[float, float]]
"""Group to (fraction of its units removed to what was lost)."""
Figures = Mapping[str, tuple[float, float]]
"""What was measured, in words with its unit, to (before, after)."""


@attrs.frozen
class LayerRow:
    """A layer that has parameters or does multiply-accumulates.

    Attributes:
        name: Dotted path of the module.
        kind: Its class.
        before, after: Shape of its largest parameter; None where it has none, or it is gone.
        params: (before, after), its own parameters only.
        macs: (before, after), of the operations that run in it.
    """

    name: str
    kind: str
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None
    params: tuple[int, int]
    macs: tuple[int, int]


@attrs.frozen
class MemberRow:
    """A parameter dim that holds units of a group.

    Attributes:
        parameter: Dotted name.
        dim: The dim.
        role: ``"out"`` (produces the units), ``"in"`` (consumes them) or ``"along"``.
        shape: Shape of the parameter before.
        removed: Runs ``(start, stop)`` of positions of the dim that leave with the group, where the dim isn't simply
            its units one after another (heads times head dims, packed projections); None where it is.
    """

    parameter: str
    dim: int
    role: str
    shape: tuple[int, ...]
    removed: tuple[tuple[int, int], ...] | None = None


@attrs.frozen
class GroupRow:
    """Units that can only leave together.

    Attributes:
        name: Name of the group.
        kind: What the units are: channels, neurons, heads, ...
        before, after: Units.
        why: Why it was left whole; empty where it lost units.
        mixes: Operations whose result depends on the number of units; empty: removal is exact.
        members: What holds the units.
        ties: The operations that tie them, in order.
        kept: Units that stay, ascending, where the group lost some; empty otherwise.
    """

    name: str
    kind: str
    before: int
    after: int
    why: str
    mixes: tuple[str, ...]
    members: tuple[MemberRow, ...]
    ties: tuple[str, ...]
    kept: tuple[int, ...]


@attrs.frozen
class BranchRow:
    """An operand of a sum that could be switched off.

    Attributes:
        name: Name of the branch.
        kind: How it is related to what it is added to: ``"residual"``, ``"fork"`` or ``"other"``.
        sums: In how many places it is added.
        params: Parameters that only it reads.
        macs: Multiply-accumulates that are done for it only.
        gone: Whether it was removed.
        why: Why it stays, or can't go; empty for one that is gone, or may go.
    """

    name: str
    kind: str
    sums: int
    params: int
    macs: int
    gone: bool
    why: str


@attrs.frozen
class RepairRow:
    """A layer whose weights were fitted to calibration data after the cut, or that was left as it was cut.

    Attributes:
        name: What the layer multiplies by.
        method: The compensator; empty where it was left alone.
        before, after: Mean squared error of its outputs on the data, relative to the variance of what they were before
            the cut; None where it was left alone.
        detail: What was chosen, or why it was left alone.
    """

    name: str
    method: str
    before: float | None
    after: float | None
    detail: str


@attrs.frozen
class ReportData:
    """Everything that a report says.

    Attributes:
        title: What was pruned or inspected.
        pruned: Whether it was pruned; otherwise "after" is what a trial would leave, or the same as before.
        costs: Cost model to (before, after).
        units: Cost model to what it is counted in, where it isn't a plain number.
        layers: Layers, in the order of the model.
        groups: Groups, in the order of the model.
        branches: Branches, in the order of the program; empty where a model was pruned and none was to go.
        pinned: Parameter dim to what pins it.
        not_understood: Operations that were pinned for want of a rule.
        untouched: Parameters that no recording touched.
        notes: Anything else worth knowing.
        sensitivity: Group to (fraction removed to what was lost), where it was measured.
        metric: What was lost, in words.
        protocol: How the result came about: versions, seed, arguments.
        repairs: What calibration data were used for, layer by layer.
        output_error: Mean squared error of the model's outputs on the calibration data, relative to their size, right
            after the cut and after compensation; None without.
        made: The day, as YYYY-MM-DD.
        measured: What was measured, in words with its unit, to (before, after): accuracy, latency.
        verification: How the cut was compared with the original by numbers, or why it wasn't; empty if nobody asked.
        random_weights: Whether the weights were random, so that nothing is said about the quality of a trained model.
        tradeoffs: What each part of the model could save and what that would cost, where it was weighed or measured.
    """

    title: str
    pruned: bool
    costs: Mapping[str, tuple[float, float]]
    units: Mapping[str, str]
    layers: tuple[LayerRow, ...]
    groups: tuple[GroupRow, ...]
    pinned: Mapping[str, str]
    not_understood: tuple[str, ...]
    untouched: tuple[str, ...]
    notes: tuple[str, ...]
    sensitivity: Curves
    metric: str
    protocol: Mapping[str, Any]
    repairs: tuple[RepairRow, ...] = ()
    output_error: tuple[float, float] | None = None
    branches: tuple[BranchRow, ...] = ()
    made: str = attrs.field(factory=lambda: datetime.date.today().isoformat())
    measured: Figures = attrs.field(factory=dict)
    verification: str = ""
    random_weights: bool = False
    tradeoffs: Tradeoffs | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the data as dicts, lists, numbers and texts, as JSON can hold them."""
        return {"format": FORMAT, **attrs.asdict(self, value_serializer=_plain)}


def report_data(
    result: PruneResult,
    *,
    title: str = "",
    sensitivity: Sensitivity | Curves | None = None,
    metric: str = "",
    measured: Figures | None = None,
    random_weights: bool = False,
) -> ReportData:
    """Collects everything there is to say about a pruned model.

    Args:
        result: What `prune` returned.
        title: What was pruned; the class of the model if empty.
        sensitivity: What was measured, if it was: a `Sensitivity`, or group to (fraction removed to what was lost).
        metric: What was lost, in words; that of the `Sensitivity` if empty.
        measured: What you measured, in words with its unit, to (before, after): ``{"accuracy (%)": (91.2, 90.8)}``.
        random_weights: Whether the weights were random; the page then says so in red.

    Raises:
        ArgumentError: What was measured isn't two numbers.
    """
    preview = result.preview
    costs = {"params": (float(preview.params_before), float(preview.params_after)), **preview.costs}
    return ReportData(
        title=title or result.protocol.source or type(result.model).__name__,
        pruned=True,
        costs=costs,
        units=_cost_units(result.graph, costs),
        layers=_layers(result.graph, result.plan.kept, result.plan),
        groups=_groups(result.graph, result.plan.kept, result.report),
        branches=branch_rows(result.graph, result.report) if result.report.absent or result.report.branches else (),
        protocol=attrs.asdict(result.protocol),
        measured=_figures(measured or {}),
        verification=str(result.verification),
        random_weights=random_weights,
        tradeoffs=_tradeoffs(result.graph, sensitivity, result.plan.kept, result.tradeoffs),
        **{**_rest(result.report), **_curves(sensitivity, metric), **_repairs(result)},
    )


def inspection_data(
    graph: Graph,
    *,
    title: str = "",
    report: Report | None = None,
    preview: Preview | None = None,
    kept: Mapping[str, tuple[int, ...]] | None = None,
    sensitivity: Sensitivity | Curves | None = None,
    metric: str = "",
    random_weights: bool = False,
) -> ReportData:
    """Collects everything there is to say about a model that was analysed and not pruned.

    Args:
        graph: The analysed model.
        title: What was inspected; the class of the model if empty.
        report: Reasons for what stays; that of the graph if None.
        preview: What a trial would leave.
        kept: The units that the trial keeps.
        sensitivity, metric, random_weights: As for `report_data`.
    """
    found = report or graph.report()
    if preview is not None:
        costs = {"params": (float(preview.params_before), float(preview.params_after)), **preview.costs}
    else:
        size = float(sum(math.prod(p.shape) for p in graph.analysis.parameters.values() if not p.buffer))
        costs = {"params": (size, size)}
    return ReportData(
        title=title or type(graph.model).__name__,
        pruned=False,
        costs=costs,
        units=_cost_units(graph, costs),
        layers=_layers(graph, kept or {}),
        groups=_groups(graph, kept or {}, found),
        branches=branch_rows(graph, found),
        **_rest(found),
        **_curves(sensitivity, metric),
        protocol={},
        random_weights=random_weights,
        tradeoffs=_tradeoffs(graph, sensitivity, kept or {}, None),
    )


def _tradeoffs(
    graph: Graph,
    sensitivity: Sensitivity | Curves | None,
    kept: Mapping[str, Sequence[int]],
    weighed: Tradeoffs | None,
) -> Tradeoffs | None:
    """What was weighed when the model was pruned, else what was measured."""
    if weighed is not None or not isinstance(sensitivity, Sensitivity):
        return weighed
    return measured_tradeoffs(graph, sensitivity, {name: len(units) for name, units in kept.items()})


def _repairs(result: PruneResult) -> dict[str, Any]:
    found = result.compensation
    if found is None:
        return {}
    done = [RepairRow(r.consumer, r.method, r.before, r.after, r.detail) for r in found.layers]
    left = [RepairRow(name, "", None, None, why) for name, why in found.left.items()]
    left += [RepairRow("", name, None, None, f"undone: {why}") for name, why in found.undone.items()]
    notes = tuple(dict.fromkeys((*result.report.notes, *found.notes)))
    return {"repairs": (*done, *left), "output_error": found.output_error, "notes": notes}


def _rest(report: Report) -> dict[str, Any]:
    names = ("pinned", "not_understood", "untouched", "notes")
    return {name: getattr(report, name) for name in names}


def _figures(measured: Figures) -> Figures:
    for name, pair in measured.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(n, int | float) for n in pair):
            raise ArgumentError(
                "What was measured is two numbers, before and after.",
                where=f"measured[{name!r}]",
                why=f"got {pair!r}",
                hint='{"accuracy (%)": (91.2, 90.8)}',
            )
    return {name: (float(before), float(after)) for name, (before, after) in measured.items()}


def _curves(sensitivity: Sensitivity | Curves | None, metric: str) -> dict[str, Any]:
    if isinstance(sensitivity, Sensitivity):
        curves = {n: dict(zip(c.removed, c.damages, strict=True)) for c in sensitivity.curves for n in c.groups}
        return {"sensitivity": curves, "metric": metric or sensitivity.metric}
    return {"sensitivity": dict(sensitivity or {}), "metric": metric or "loss"}


def _cost_units(graph: Graph, costs: Iterable[str]) -> dict[str, str]:
    table = graph.registry.entries("prunekit_budgets")
    units = {name: getattr(table[name].value, "unit", "") for name in costs if name in table}
    return {name: unit for name, unit in units.items() if unit}


def branch_rows(graph: Graph, report: Report) -> tuple[BranchRow, ...]:
    """Lists the branches of a model, with what a report says of them, or else with what is known to hold them."""
    analysis, gone = graph.branch_analysis, set(report.absent)
    reasons = report.branches if gone or report.branches else graph.branch_obstacles()
    macs = whole_macs(analysis.recordings[0])
    rows = []
    for branch in graph.branches():
        own = [analysis.parameters[name] for name in branch.parameters if not analysis.parameters[name].buffer]
        rows.append(
            BranchRow(
                branch.name,
                branch.kind.value,
                len([one for one in branch.sums if one.recording == 0]),
                sum(math.prod(parameter.shape) for parameter in own),
                sum(macs.get(index, 0) for index in branch.operations(0)),
                branch.name in gone,
                "" if branch.name in gone else reasons.get(branch.name, branch.reason),
            )
        )
    return tuple(rows)


def _layers(graph: Graph, kept: Mapping[str, tuple[int, ...]], plan: Plan | None = None) -> tuple[LayerRow, ...]:
    analysis = graph.analysis
    whole, left = Sizer({}), Sizer(kept)
    absent = set() if plan is None else set(plan.gone)
    smaller = analysis if plan is None else graph.analysis_after(plan)
    macs: dict[str, list[int]] = {}
    for column, (found, sizer) in enumerate(((analysis, whole), (smaller, left))):
        for path, count in _module_macs(found, sizer).items():
            macs.setdefault(path, [0, 0])[column] = count
    own: dict[str, list[tuple[tuple[int, ...], tuple[int, ...] | None]]] = {}
    for name, parameter in analysis.parameters.items():
        if not parameter.buffer:
            after = None if name in absent else tuple(left(dim) for dim in parameter.dims)
            own.setdefault(name.rpartition(".")[0], []).append((parameter.shape, after))
    before = graph.applied.renaming.before  # layers may have other numbers by now
    there = {before(path): type(module).__name__ for path, module in graph.model.named_modules()}
    kinds = {path: there.pop(path, type(module).__name__) for path, module in analysis.shadow.modules.items()} | there
    order = [*kinds, *(path for path in (*own, *macs) if path not in kinds)]
    rows = []
    for path in dict.fromkeys(order):
        shapes, counts = own.get(path, []), macs.get(path, [0, 0])
        if shapes or counts[0]:
            largest = max(shapes, key=lambda pair: math.prod(pair[0]), default=None)
            rows.append(
                LayerRow(
                    path,
                    kinds.get(path, ""),
                    largest[0] if largest else None,
                    largest[1] if largest else None,
                    (sum(math.prod(a) for a, _ in shapes), sum(math.prod(b) for _, b in shapes if b is not None)),
                    (counts[0], counts[1]),
                )
            )
    return tuple(rows)


def _module_macs(analysis: Analysis, sizer: Sizer) -> dict[str, int]:
    """The multiply-accumulates of the operations that run in each module, of all calls that count."""
    found: dict[str, float] = {}
    for recording, times in analysis.counted:
        for operation, count in operation_macs(recording, sizer):
            assert isinstance(count, int)  # a Sizer computes numbers
            found[operation.module] = found.get(operation.module, 0.0) + times * count
    return {path: round(count) for path, count in found.items()}


def _groups(graph: Graph, kept: Mapping[str, tuple[int, ...]], report: Report) -> tuple[GroupRow, ...]:
    analysis, uses = graph.analysis, graph.explain("").operations
    return tuple(
        GroupRow(
            group.name,
            group.kind.value,
            group.size,
            len(kept.get(group.name, range(group.size))),
            "" if group.name in kept else report.left.get(group.name, ""),
            group.inexact,
            _members(analysis, group, kept),
            uses.get(group.name, ()),
            tuple(kept.get(group.name, ())),
        )
        for group in analysis.groups.values()
    )


def _members(analysis: Analysis, group: UnitGroup, kept: Mapping[str, tuple[int, ...]]) -> tuple[MemberRow, ...]:
    alone = {group.name: kept[group.name]} if group.name in kept else {}
    rows = []
    for member in group.members:
        parameter = analysis.parameters[member.parameter]
        size, removed = parameter.shape[member.dim], None
        if size != group.size:
            stay = set(parameter.positions(alone)[member.dim].tolist()) if alone else set(range(size))
            removed = tuple(runs_of(position for position in range(size) if position not in stay))
        rows.append(MemberRow(member.parameter, member.dim, member.role.value, parameter.shape, removed))
    return tuple(rows)


def runs_of(positions: Iterable[int]) -> list[tuple[int, int]]:
    """Writes ascending positions as runs ``(start, stop)``."""
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and runs[-1][1] == position:
            runs[-1] = (runs[-1][0], position + 1)
        else:
            runs.append((position, position + 1))
    return runs


def _plain(instance: Any, attribute: Any, value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
