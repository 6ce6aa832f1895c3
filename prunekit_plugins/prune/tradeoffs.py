"""Trade-offs: what each part of a model could save and what the model would lose by it, and what was taken of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import attrs

from prunekit_core.graph.graph import Graph
from prunekit_core.groups.costs import compiled_cost
from prunekit_core.groups.unit_group import UnitGroup
from prunekit_core.program.op_call import Kind
from prunekit_plugins.budgets.curves import Curve, Sensitivity
from prunekit_plugins.budgets.knapsack import Choice, Picked, Problem
from prunekit_plugins.depth.nesting import Absent, Offer

BRANCHES = "branches"
"""The axis of what goes whole; the other axes are kinds of groups."""
_POINTS = 17
"""Options of one curve that are kept, at most."""
_LITTLE = 1e-12
"""A part of a cost that is none."""
_PLAIN_COST = "macs"
"""The cost that is weighed against measured damages where there is no target."""


@attrs.frozen
class Tradeoff:
    """What a branch, or groups that shrink together, could save, and what the model would lose.

    Attributes:
        name: The branch, or the groups.
        axis: What goes: ``"branches"``, or the kind of the groups: ``"neurons"``, ``"heads"``, ``"experts"``, ...
        saved: For options from nothing to all that may go, which part of the cost each saves alone, in [0, 1].
        damages: What the model loses with each; ascending from 0.
        taken: Number of the option that is nearest to what was taken, 0 for nothing.
        last: Damage of the last step that was taken for each percent of the cost that it saves, beside all else that
            goes: the most expensive of the steps that could be taken back. None where nothing was taken.
        next: The same of the next step: the cheapest of those that could be taken. None where nothing more can go.
    """

    name: str
    axis: str
    saved: tuple[float, ...]
    damages: tuple[float, ...]
    taken: int = 0
    last: float | None = None
    next: float | None = None


@attrs.frozen
class AxisShare:
    """What one axis contributed to a saving.

    Attributes:
        axis: As for a `Tradeoff`.
        items: How many branches or groups it has.
        used: Of how many of them something was taken.
        saved: Which part of the cost it saved: the mean over all orders in which the axes could be cut (the Shapley
            value), so that the parts of all axes add up to what was saved.
        damage: What the model loses by what was taken of it.
        last, next: The largest and the smallest of its items; see `Tradeoff`.
    """

    axis: str
    items: int
    used: int
    saved: float
    damage: float
    last: float | None
    next: float | None


@attrs.frozen
class Tradeoffs:
    """The trade-offs of a model, by estimate.

    Attributes:
        cost: The cost that is saved; of several the mean of their parts.
        metric: What the damage is.
        items: One for each branch that could go, and for all groups that shrink together, in the order of the model;
            those in branches that went are left out.
        axes: What each axis contributed; empty where nothing was taken.
    """

    cost: str
    metric: str
    items: tuple[Tradeoff, ...]
    axes: tuple[AxisShare, ...] = ()

    def __str__(self) -> str:
        lines = [f"what each axis gave, by estimate (of {self.cost}; damage: {self.metric}):"]
        for axis in self.axes:
            gave = f"saved {axis.saved:.1%} for a damage of {axis.damage:.2g}" if axis.used else "nothing was taken"
            rates = [
                f"{word} {rate:.2g}" for word, rate in (("last", axis.last), ("next", axis.next)) if rate is not None
            ]
            each = f"; for each percent: {', '.join(rates)}" if rates else f"; {self._no_more(axis.axis)}"
            lines.append(f"  {axis.axis} ({axis.used} of {axis.items}): {gave}{each}")
        return "\n".join(lines)

    def _no_more(self, axis: str) -> str:
        """Why there is no next step."""
        saves = any(item.saved[-1] > _LITTLE for item in self.items if item.axis == axis)
        return "no more can go" if saves else "it saves nothing of this cost"


@attrs.frozen(eq=False)
class Solved:
    """A knapsack with the solution that was carried out.

    Attributes:
        problem: Numbers of the offers that are taken to what is left to choose then.
        offers: The branches that may go, with their damages on the scale of the problem.
        absent: Numbers of those that go.
        units: Sizes of the groups that are left.
        outermost: Leaves offers out that others contain.
    """

    problem: Callable[[Absent], Problem]
    units: Mapping[str, int]
    offers: Sequence[Offer] = ()
    absent: Absent = frozenset()
    outermost: Callable[[Iterable[int]], Absent] = frozenset


def tradeoffs_of(solved: Solved, groups: Mapping[str, UnitGroup], metric: str) -> Tradeoffs | None:
    """Computes the trade-offs around a solution; None where the model met its target as it was.

    Args:
        solved: The solution.
        groups: The groups of the model, by name.
        metric: What the damages are.
    """
    weighed = _Weighed(solved)
    if not weighed.costs:
        return None
    axes = [axis_of(choice, groups) for choice in weighed.whole.choices]
    places = [place for place in range(len(axes)) if not weighed.is_gone(place)]
    items = [*weighed.of_branches(), *(weighed.of_choice(place, axes[place]) for place in places)]
    order = {axis: place for place, axis in enumerate([BRANCHES, *(kind.value for kind in Kind)])}
    items.sort(key=lambda item: order[item.axis])
    return Tradeoffs(", ".join(weighed.costs), metric, tuple(items), tuple(weighed.axes(items, axes)))


def axis_of(choice: Choice, groups: Mapping[str, UnitGroup]) -> str:
    """Returns the kind of the groups of a choice; of several kinds that which comes first in `Kind`."""
    kinds = {groups[name].kind for name in choice.options[0]}
    return next(kind.value for kind in Kind if kind in kinds)


class _Weighed:
    """Parts of the cost and damages, of all options around a solution."""

    def __init__(self, solved: Solved) -> None:
        self._solved = solved
        self._problems: dict[Absent, Problem] = {}
        self.whole = self._without(frozenset())
        dense = self.whole.spent(self.whole.units(self.whole.whole))
        self.costs = {name: dense[name] for name, most in self.whole.allowed.items() if dense[name] > most}
        self._problem = self._without(solved.absent)
        self._picked = tuple(_nearest(choice, solved.units) for choice in self._problem.choices)
        self._now = self._part(solved.absent, self._picked) if self.costs else 0.0

    def _without(self, absent: Absent) -> Problem:
        if absent not in self._problems:
            self._problems[absent] = self._solved.problem(absent)
        return self._problems[absent]

    def _part(self, absent: Absent, picked: Sequence[int]) -> float:
        """Which part of the cost is left."""
        problem = self._without(absent)
        at = _within(problem, picked)
        spent = problem.spent(problem.units(at))
        return sum(spent[name] / dense for name, dense in self.costs.items()) / len(self.costs)

    def _damage(self, absent: Absent, picked: Sequence[int]) -> float:
        problem = self._without(absent)
        return problem.damage(_within(problem, picked)) + sum(self._solved.offers[number].damage for number in absent)

    # -- items

    def is_gone(self, place: int) -> bool:
        """Whether the branches go that groups are in: there is nothing to say of them then."""
        return len(self._problem.choices[place].options) < len(self.whole.choices[place].options)

    def of_choice(self, place: int, axis: str) -> Tradeoff:
        """Returns the trade-off of groups that shrink together."""
        choice, option = self.whole.choices[place], self._picked[place]
        shown = _thinned(len(choice.options), option)
        saved = tuple(1 - self._part(frozenset(), _moved(self.whole.whole, place, one)) for one in shown)
        name = " + ".join(choice.options[0])
        damages = tuple(choice.damages[one] for one in shown)
        return Tradeoff(name, axis, saved, damages, shown.index(option), *self._rates(place))

    def _rates(self, place: int) -> tuple[float | None, float | None]:
        """What the last step cost, and the next one would, beside all else that goes."""
        choice, option = self._problem.choices[place], self._picked[place]
        back, on = [], []
        for other in _thinned(len(choice.options), option):
            less = self._now - self._part(self._solved.absent, _moved(self._picked, place, other))
            damage = choice.damages[other] - choice.damages[option]
            if other < option and -less > _LITTLE:
                back.append(damage / less / 100)
            elif other > option and less > _LITTLE:
                on.append(damage / less / 100)
        return max(back, default=None), min(on, default=None)

    def of_branches(self) -> Iterator[Tradeoff]:
        """Yields the trade-offs of branches."""
        absent = self._solved.absent
        lost = self._damage(absent, self._picked)
        for number, offer in enumerate(self._solved.offers):
            alone = 1 - self._part(frozenset([number]), self.whole.whole)
            taken = number in absent
            other = absent - {number} if taken else self._solved.outermost(absent | {number})
            rate = None
            less = abs(self._now - self._part(other, self._picked))
            if less > _LITTLE and (taken or number in other):
                rate = abs(self._damage(other, self._picked) - lost) / less / 100
            name, damages = " + ".join(offer.branches), (0.0, offer.damage)
            last, further = (rate, None) if taken else (None, rate)
            yield Tradeoff(name, BRANCHES, (0.0, alone), damages, int(taken), last, further)

    # -- axes

    def axes(self, items: Sequence[Tradeoff], axes: Sequence[str]) -> Iterator[AxisShare]:
        """Yields what each axis contributed."""
        saved = self._shapley(axes)
        damages = {BRANCHES: sum(self._solved.offers[number].damage for number in self._solved.absent)}
        for axis, choice, option in zip(axes, self._problem.choices, self._picked, strict=True):
            damages[axis] = damages.get(axis, 0.0) + choice.damages[option]
        for axis in dict.fromkeys(item.axis for item in items):
            own = [item for item in items if item.axis == axis]
            last = max((item.last for item in own if item.last is not None), default=None)
            further = min((item.next for item in own if item.next is not None), default=None)
            used = sum(item.taken > 0 for item in own)
            yield AxisShare(axis, len(own), used, saved.get(axis, 0.0), damages.get(axis, 0.0), last, further)

    def _shapley(self, axes: Sequence[str]) -> dict[str, float]:
        """The mean over all orders of axes of what each saves when it is cut after those before it."""
        used = {axis for axis, option in zip(axes, self._picked, strict=True) if option}
        used |= {BRANCHES} if self._solved.absent else set()
        players = sorted(used)
        left: dict[frozenset[str], float] = {}
        for size in range(len(players) + 1):
            for cut in map(frozenset, itertools.combinations(players, size)):
                picked = [option if axis in cut else 0 for axis, option in zip(axes, self._picked, strict=True)]
                left[cut] = self._part(self._solved.absent if BRANCHES in cut else frozenset(), picked)
        found = dict.fromkeys(players, 0.0)
        for axis, cut in itertools.product(players, left):
            if axis not in cut:
                before, after = len(cut), len(players) - len(cut) - 1
                weight = math.factorial(before) * math.factorial(after) / math.factorial(len(players))
                found[axis] += weight * (left[cut] - left[cut | {axis}])
        return found


def _within(problem: Problem, picked: Sequence[int]) -> Picked:
    """Returns the options picked, of which groups in branches that go have the first one only."""
    return tuple(min(one, len(choice.options) - 1) for one, choice in zip(picked, problem.choices, strict=True))


def _moved(picked: Picked, place: int, option: int) -> Picked:
    return (*picked[:place], option, *picked[place + 1 :])


def _nearest(choice: Choice, units: Mapping[str, int]) -> int:
    """Returns the number of the option whose sizes are nearest to those that groups have."""

    def distance(option: Mapping[str, int]) -> int:
        return sum(abs(size - units.get(name, choice.options[0][name])) for name, size in option.items())

    return min(range(len(choice.options)), key=lambda number: distance(choice.options[number]))


def _thinned(count: int, chosen: int) -> list[int]:
    """Lists numbers of options: the first, the last, the chosen one, its neighbours, and evenly spaced ones."""
    last = count - 1
    even = {round(step * last / (_POINTS - 1)) for step in range(_POINTS)}
    return sorted(even | {one for one in (chosen - 1, chosen, chosen + 1) if 0 <= one <= last})


def measured_tradeoffs(graph: Graph, sensitivity: Sensitivity, kept: Mapping[str, int]) -> Tradeoffs | None:
    """Computes the trade-offs of measured damages: which part of the MACs each group saves alone.

    None where nothing was measured of the groups of this model.

    Args:
        graph: The analysed model.
        sensitivity: What was measured.
        kept: Units that groups keep, where they lost some.
    """
    cost = compiled_cost(graph.registry, _PLAIN_COST, graph.analysis)
    dense = cost({}) or 1.0
    items = []
    for curve in sensitivity.curves:
        if not graph.analysis.groups.keys() >= set(curve.groups):
            continue
        options = _options(curve, sensitivity.sizes)
        damages = (0.0, *itertools.accumulate(curve.damages, max))
        choice = Choice(options, damages)
        saved = tuple(1 - cost(option) / dense for option in options)
        axis = axis_of(choice, graph.analysis.groups)
        items.append(Tradeoff(" + ".join(curve.groups), axis, saved, damages, _nearest(choice, kept)))
    return Tradeoffs(_PLAIN_COST, sensitivity.metric, tuple(items)) if items else None


def _options(curve: Curve, sizes: Mapping[str, int]) -> tuple[Mapping[str, int], ...]:
    """The sizes of groups that a curve was measured at, from all units on."""
    fractions = (0.0, *curve.removed)
    return tuple({name: round(sizes[name] * (1 - one)) for name in curve.groups} for one in fractions)
