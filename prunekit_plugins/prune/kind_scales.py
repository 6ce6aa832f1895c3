"""Damages of kinds of units held against each other: solved, measured, scaled, and solved again."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping

import attrs

from prunekit_core.choose.pruner import Pruner
from prunekit_core.errors import ArgumentError
from prunekit_core.plans.plan import Plan
from prunekit_core.program.op_call import Kind
from prunekit_plugins.budgets.allocation import ESTIMATED, Weight
from prunekit_plugins.budgets.knapsack import Problem
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.calibration.statistics import COVARIANCES, Statistics
from prunekit_plugins.prune.allotment import Allotment
from prunekit_plugins.prune.calibrated import CalibratedPath
from prunekit_plugins.prune.judge import Judge, Version
from prunekit_plugins.prune.masked_cut import masked_copy

Kinds = frozenset[Kind]
"""The kinds of groups that shrink together."""

Solve = Callable[[Allotment], tuple[Plan, Problem | None]]
"""Plans with an allotment; returns the problem that was solved last, too."""

APART = 3.0
"""By how much kinds may be off from each other and still count as on one scale: estimates are no better than that."""
ROUNDS = 3
"""Times that damages are scaled and the budget is shared out again, at most."""
_BETTER = 0.02
"""How much less outputs have to change for another round."""
_LEVEL = 0.05
"""How much more they may change with damages on one scale: where much is lost, all cuts look alike."""
_BY_VALUE = frozenset({Kind.EXPERTS, Kind.EXPERT_GROUPS})
"""Kinds whose units are chosen by value: a masked copy would choose others."""


@attrs.frozen(eq=False)
class Agreed:
    """A plan, and what it rests on.

    Attributes:
        plan: What goes.
        problem: What it is the solution of; None where no knapsack was solved.
        allotment: How the budget was shared out.
        notes: Lines for the report.
    """

    plan: Plan
    problem: Problem | None
    allotment: Allotment
    notes: tuple[str, ...] = ()


def agreed(pruner: Pruner, allotment: Allotment, path: CalibratedPath | None, solve: Solve) -> Agreed:
    """Plans, and holds the damages of kinds of units against each other where scores can be off.

    Args:
        pruner: The pruner; its criterion has its statistics.
        allotment: How the budget is shared out.
        path: What is done with calibration data.
        solve: Plans.

    Returns:
        The plan; the same as ``solve`` makes where units of one kind go, where scores are no damages, where the weights
        are on disk, or where what was measured agrees with the scores within a factor of `APART`.
    """
    first = Agreed(*solve(allotment), allotment)
    statistics = getattr(pruner.importance, "statistics", None)
    if path is None or allotment.chosen != ESTIMATED or not pruner.additive or not isinstance(statistics, Statistics):
        return first
    parts = _parts(pruner, first)
    if COVARIANCES not in statistics or len(parts) < 2 or any(kinds & _BY_VALUE for kinds in parts):
        return first
    if pruner.graph.current.stored is not None:
        told = f"damages of {_listed(parts)} weren't held against each other: the weights are on disk"
        return attrs.evolve(first, notes=(told,))
    try:
        return KindScales(pruner, statistics, path.batches.held_out()[1], solve).agree(first)
    except ArgumentError as error:  # nothing to measure: the model returns no real numbers
        told = f"damages of {_listed(parts)} weren't held against each other: {error.headline}"
        return attrs.evolve(first, notes=(told,))


class KindScales:
    """Finds what damages of each kind of units are worth, and plans by that.

    The score of a neuron, which another layer reads, and that of a dim of queries and keys, which are multiplied with
    each other, are estimates of one quantity, each with an error of its own: to second order, and sample by sample.
    Within a kind that changes little, between kinds it decides which of them goes. So a plan that removes units of
    several kinds is tried kind by kind, on masked copies and some of the data. Where what was measured, over what was
    expected, differs from kind to kind, damages are multiplied by it and the budget is shared out again, for as long
    as outputs change less for it.

    Args:
        pruner: The pruner.
        statistics: What its criterion knows, with covariances.
        batches: What masked copies are compared on.
        solve: Plans.
    """

    def __init__(self, pruner: Pruner, statistics: Statistics, batches: Batches, solve: Solve) -> None:
        self._pruner, self._statistics, self._solve = pruner, statistics, solve
        self._judge = Judge(pruner.graph, batches)

    def agree(self, first: Agreed) -> Agreed:
        """Returns the plan that damages on one scale lead to.

        Args:
            first: The plan that the scores lead to.

        Raises:
            ArgumentError: The model returns no real numbers to compare.
        """
        scales = dict(self._scales(first, {}))
        if len(scales) < 2 or max(scales.values()) <= APART * min(scales.values()):
            return first
        changes = [self._change(first.plan, None)]
        best = now = first
        for number in range(ROUNDS):
            weight = _weight(self._pruner, scales)
            allotment = attrs.evolve(first.allotment, weight=weight)
            found = Agreed(*self._solve(allotment), allotment)
            if found.plan == now.plan:
                break
            now = found
            change = self._change(now.plan, None)
            better = change < min(changes) * (1 - _BETTER)
            if better or (not number and change <= changes[0] * (1 + _LEVEL)):
                best, used = now, scales
            changes.append(change)
            if not better:
                break
            scales = {**scales, **dict(self._scales(now, scales))}
        if best is first:
            return first
        return attrs.evolve(best, notes=(_note(used, changes),))

    def _change(self, plan: Plan, chosen: Collection[str] | None) -> float:
        kept = {cut.group: cut.kept for cut in plan.cuts if chosen is None or cut.group in chosen}
        return self._judge.change(Version(masked_copy(self._pruner.graph, self._statistics, kept)))

    def _scales(self, planned: Agreed, known: Mapping[Kinds, float]) -> Iterator[tuple[Kinds, float]]:
        """Tries each kind of a plan alone: what was measured, over what the scores say."""
        for kinds, part in _parts(self._pruner, planned).items():
            found, expected = self._change(planned.plan, part.groups), part.damage / _scale(known, kinds)
            if expected > 0 and math.isfinite(found) and found > 0:
                yield kinds, found / expected


@attrs.define
class _Part:
    """What goes of the groups of some kinds.

    Attributes:
        groups: Their names.
        damage: The sum of what the problem says of them.
    """

    groups: set[str] = attrs.field(factory=set)
    damage: float = 0.0


def _parts(pruner: Pruner, planned: Agreed) -> dict[Kinds, _Part]:
    """Sorts what goes by kind; groups that weren't up for choice are left out."""
    sizes = {cut.group: len(cut.kept) for cut in planned.plan.cuts}
    parts: dict[Kinds, _Part] = {}
    for choice in () if planned.problem is None else planned.problem.choices:
        names = [name for name in choice.options[0] if name in sizes]
        if names:
            part = parts.setdefault(_kinds(pruner, choice.options[0]), _Part())
            fits = (n for n, units in enumerate(choice.options) if all(units[name] <= sizes[name] for name in names))
            part.groups.update(names)
            part.damage += choice.damages[next(fits, -1)]
    return parts


def _kinds(pruner: Pruner, names: Collection[str]) -> Kinds:
    groups = pruner.graph.analysis.groups
    return frozenset(groups[name].kind for name in names)


def _weight(pruner: Pruner, scales: Mapping[Kinds, float]) -> Weight:
    """Multiplies damages by the scale of their kinds."""
    return lambda names: _scale(scales, _kinds(pruner, names))


def _scale(scales: Mapping[Kinds, float], kinds: Kinds) -> float:
    """What damages of some kinds are multiplied by: the largest scale where they weren't measured; 1 without any."""
    return scales.get(kinds, max(scales.values(), default=1.0))


def _note(scales: Mapping[Kinds, float], changes: list[float]) -> str:
    least = min(scales.values())
    found = ", ".join(f"{_named(kinds)} {scale / least:.2g}" for kinds, scale in scales.items())
    changed = " -> ".join(f"{change:.3g}" for change in changes)
    return (
        f"damages were scaled by what the last quarter of the batches showed: {found} (its outputs change by {changed})"
    )


def _named(kinds: Kinds) -> str:
    return " with ".join(sorted(kind.value for kind in kinds))


def _listed(parts: Mapping[Kinds, _Part]) -> str:
    return " and ".join(sorted(map(_named, parts)))
