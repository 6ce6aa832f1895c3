"""One knapsack over what a model may lose: every size of its groups, and every branch there or not, under one budget.

An item is a branch with the groups in it: all sizes of these, or the branch absent, and then they cost nothing and do
no damage. Branches in branches are items in items; groups that no branch contains (the residual stream, sizes that are
tied over several layers) are items by themselves. With costs and damages that add up over items it is the
multiple-choice knapsack, and solved exactly by dynamic programming over the tree of items. Costs of models are sums of
products: they are made linear around the best solution so far, as in `prunekit_plugins.budgets.knapsack`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from prunekit_core.graph.graph import Graph
from prunekit_plugins.budgets.knapsack import Choice, Load, Picked, Problem, finished, greedy, wide
from prunekit_plugins.budgets.options import Options
from prunekit_plugins.depth.costs import CostsWithout
from prunekit_plugins.depth.fronts import Front, either, joined
from prunekit_plugins.depth.nesting import Absent, Nesting, Offer

Damages = Callable[[Options], Sequence[float]]
"""Sizes of groups, from all units to the fewest, to what the model loses with each of them; ascending from 0."""

_ROUNDS = 24
"""Linearisations at most."""
_PENALTIES = 40
"""Trials for the damage per branch that keeps as many branches as have to stay."""


@attrs.frozen
class Scales:
    """What damages are multiplied by, to be on one scale.

    Attributes:
        width: Damages of units.
        depth: Damages of branches.
    """

    width: float = 1.0
    depth: float = 1.0


@attrs.frozen
class Solution:
    """What goes.

    Attributes:
        absent: Numbers of the offers that are taken; none of them is a part of another one.
        picked: The option that is picked of every choice; the first one in branches that go.
        damage: What the model loses by all.
    """

    absent: Absent
    picked: Picked
    damage: float


class Items:
    """The knapsack of one model.

    Args:
        graph: The analysed model.
        costs: What it costs without some branches.
        allowed: Cost to what may be spent.
        choices: Sizes of everything whose size is up for choice.
        damages: What the model loses with sizes of some groups.
        offers: The branches that may go.
        fixed: Sizes of groups that are not up for choice.
        most: How many branches may go.
    """

    def __init__(
        self,
        graph: Graph,
        costs: CostsWithout,
        allowed: Mapping[str, float],
        choices: Sequence[Options],
        damages: Damages,
        offers: Sequence[Offer],
        fixed: Mapping[str, int],
        most: int,
    ) -> None:
        self._costs, self._allowed, self._damages, self._fixed, self._most = costs, allowed, damages, fixed, most
        self.choices, self.offers = tuple(choices), tuple(offers)
        self._nesting = Nesting(graph, self.offers, self.choices)
        self._lost: dict[tuple[int, frozenset[str]], tuple[float, ...]] = {}
        whole = self.problem(frozenset())
        self._load = Load(whole)
        self._scales = Scales()

    def within(self, allowed: Mapping[str, float]) -> Items:
        """Returns the same knapsack under another budget: cost to what may be spent."""
        known = copy.copy(self)
        known._allowed = allowed
        known._load = Load(known.problem(frozenset()))
        return known

    # -- what a solution is worth

    def names(self, absent: Iterable[int]) -> tuple[str, ...]:
        """Returns the names of the branches of some offers."""
        return tuple(dict.fromkeys(name for number in sorted(absent) for name in self.offers[number].branches))

    def outermost(self, absent: Iterable[int]) -> Absent:
        """Leaves offers out that others contain."""
        return self._nesting.outermost(absent)

    def problem(self, absent: Absent, scale: float = 1.0) -> Problem:
        """Returns what is left to choose where some offers are taken: the sizes of the groups that stay.

        Args:
            absent: Numbers of the offers.
            scale: What damages of units are multiplied by.
        """
        dead = self._nesting.dead(absent)
        choices = []
        for number, options in enumerate(self.choices):
            if dead.issuperset(options[0]):
                choices.append(Choice(options[:1], (0.0,)))
            else:
                choices.append(Choice(options, tuple(scale * one for one in self._lost_of(number, dead))))
        return Problem(tuple(choices), self._costs.of(self.names(absent)), self._allowed, self._fixed)

    def parts(self, absent: Absent, units: Mapping[str, int]) -> tuple[float, float]:
        """Returns the damage by sizes of groups, and that by offers that are taken, before they are scaled."""
        dead, width = self._nesting.dead(absent), 0.0
        for options in self.choices:
            living = {name: units.get(name, size) for name, size in options[0].items() if name not in dead}
            if living:
                width += self._damages(({n: options[0][n] for n in living}, living))[1]
        return width, sum(self.offers[number].damage for number in absent)

    def _lost_of(self, number: int, dead: frozenset[str]) -> tuple[float, ...]:
        options = self.choices[number]
        key = number, dead.intersection(options[0])
        if key not in self._lost:
            living = [{name: size for name, size in option.items() if name not in dead} for option in options]
            self._lost[key] = tuple(self._damages(tuple(living)))
        return self._lost[key]

    def _valued(self, absent: Absent, problem: Problem, picked: Picked) -> Solution:
        depth = sum(self.offers[number].damage for number in absent)
        return Solution(absent, picked, problem.damage(picked) + self._scales.depth * depth)

    # -- solving

    def solve(self, scales: Scales | None = None) -> Solution | None:
        """Returns the least damage that meets the budget; None where nothing meets it.

        Args:
            scales: What damages are multiplied by.
        """
        self._scales = scales or Scales()
        starts = [self._by_width(), *self._by_depth()]
        known = [start for start in starts if self._fits(start)]
        if not known:
            found = self._met(self._allowed_many(starts[0], None))
            known = [] if found is None else [found]
        better = [self._improved(start) for start in sorted(known, key=lambda one: one.damage)]
        return min(better, key=lambda one: one.damage, default=None)

    def smallest(self) -> dict[str, float]:
        """Returns the costs of the smallest model: those of the fewest units, and of as many branches gone as may be.

        Of branches that may not all go those are taken that save most.
        """
        at = self.problem(frozenset()).smallest
        saved = {number: self._saved(number, at) for number in self._nesting.roots}
        taken: set[int] = set()
        for number in sorted(saved, key=lambda one: (-saved[one], one)):
            if saved[number] > 0 and len(self.names({*taken, number})) <= self._most:
                taken.add(number)
        problem = self.problem(frozenset(taken))
        return dict(problem.spent(problem.units(problem.smallest)))

    def _fits(self, found: Solution) -> bool:
        return len(self.names(found.absent)) <= self._most and self.problem(found.absent).fits(found.picked)

    def _by_width(self) -> Solution:
        problem = self.problem(frozenset(), self._scales.width)
        picked = greedy(problem) if problem.fits(problem.smallest) else problem.smallest
        return self._valued(frozenset(), problem, picked)

    def _by_depth(self) -> list[Solution]:
        """Takes offers, those first that do least damage for what they save, until the budget is met."""
        taken = frozenset[int]()
        whole = self.problem(taken).whole
        saved = {number: self._saved(number, whole) for number in self._nesting.roots}
        order = [number for number in saved if saved[number] > 0]
        for number in sorted(order, key=lambda one: (self.offers[one].damage / saved[one], one)):
            problem = self.problem(taken, self._scales.width)
            if problem.fits(problem.whole) or len(self.names({*taken, number})) > self._most:
                break
            taken |= {number}
        found = self._met((taken, whole)) if taken else None
        return [] if found is None else [found]

    def _improved(self, start: Solution) -> Solution:
        """Makes costs linear around a solution and solves, for as long as that finds something better."""
        best = start
        reach = max((len(options) for options in self.choices), default=1)
        for _ in range(_ROUNDS):
            found = self._met(self._allowed_many(best, reach))
            if found is not None and found.damage < best.damage * (1 - 1e-9):
                best = found
            elif reach <= 1:
                break
            else:
                reach = max(1, reach // 4)
        return best

    def _allowed_many(self, around: Solution, reach: int | None) -> tuple[Absent, Picked]:
        """Solves; where more branches would go than may, each counts as more damage until they don't."""
        found = self._linearised(around, reach, 0.0)
        if len(self.names(found[0])) <= self._most:
            return found
        low, high = 0.0, max((offer.damage * self._scales.depth for offer in self.offers), default=0.0) or 1e-12
        within = None
        for _ in range(_PENALTIES):
            middle = high if within is None else (low + high) / 2
            found = self._linearised(around, reach, middle)
            if len(self.names(found[0])) <= self._most:
                within, high = found, middle
            elif within is None:
                low, high = high, 4 * high
            else:
                low = middle
            if within is not None and len(self.names(within[0])) == self._most:
                break
        return within or (around.absent, around.picked)

    def _met(self, found: tuple[Absent, Picked]) -> Solution | None:
        """Makes a solution meet the budget by exact costs: fewer units, and where they aren't enough, more branches."""
        absent, picked = found
        while True:
            problem = self.problem(absent, self._scales.width)
            if problem.fits(problem.smallest):
                at = tuple(
                    min(one, len(choice.options) - 1) for one, choice in zip(picked, problem.choices, strict=True)
                )
                return self._valued(absent, problem, finished(problem, Load(problem), at, _every(problem)))
            more = self._next(absent, problem)
            if more is None:
                return None
            absent |= {more}
            absent = self._nesting.outermost(absent)

    def _next(self, absent: Absent, problem: Problem) -> int | None:
        """Returns the offer that does least damage for what it saves, and may go as well."""
        at = problem.smallest
        worth = {}
        for number, offer in enumerate(self.offers):
            grown = self._nesting.outermost(absent | {number})
            saved = self._saved(number, at)
            if number in grown and number not in absent and saved > 0 and len(self.names(grown)) <= self._most:
                worth[number] = offer.damage / saved
        return min(worth, key=lambda one: (worth[one], one), default=None)

    def _saved(self, number: int, at: Picked) -> float:
        """What an offer saves, as a part of what has to be saved."""
        sizes = self.problem(frozenset()).units(at)
        return self._load.of(self._costs.of(())(sizes)) - self._load.of(self._costs.of(self.names([number]))(sizes))

    # -- linear costs around a solution

    def _linearised(self, around: Solution, reach: int | None, penalty: float) -> tuple[Absent, Picked]:
        """Solves the knapsack whose costs are linear around a solution.

        Args:
            around: The solution.
            reach: How many options a choice may be away from it; None for any.
            penalty: Damage that each branch counts as besides.
        """
        front = _Linear(self, around, reach, penalty).front()
        picks, taken = front.pick(int(front.damages.argmin()))
        return frozenset(taken), tuple(picks.get(number, 0) for number in range(len(self.choices)))


class _Linear:
    """The knapsack with costs that are linear around a solution."""

    def __init__(self, items: Items, around: Solution, reach: int | None, penalty: float) -> None:
        self._items, self._around, self._reach, self._penalty = items, around, reach, penalty
        self._nesting, self._scales = items._nesting, items._scales
        problem = items.problem(around.absent)
        self._sizes = items.problem(frozenset()).units(around.picked)
        self._now = items._load.of(problem.spent(self._sizes))
        self._whole = self._at(())
        self._dead = self._nesting.dead(around.absent)
        self._saves = {number: self._whole - self._at([number]) for number in range(len(items.offers))}

    def _at(self, absent: Iterable[int], option: Mapping[str, int] | None = None) -> float:
        sizes = self._sizes if option is None else {**self._sizes, **option}
        return self._items._load.of(self._items._costs.of(self._items.names(absent))(sizes))

    def front(self) -> Front:
        """Returns the best solutions of the whole problem within the budget."""
        roots = self._nesting.roots
        base = self._now + sum(self._saves[number] for number in self._around.absent)  # without what may go
        base -= sum(self._saves[number] for number in roots)
        parts = [*self._leaves(None), *(self._either(number) for number in roots)]
        return joined(parts, self._items._load.allowed - base)

    def _either(self, number: int) -> Front:
        """An offer that is taken, at no cost, or what is chosen in it where it stays."""
        children = self._nesting.children(number)
        inside = joined([*self._leaves(number), *(self._either(child) for child in children)], None)
        own = self._saves[number] - sum(self._saves[child] for child in children)
        damage = self._scales.depth * self._items.offers[number].damage + self._beside(number)
        damage += self._penalty * len(self._items.offers[number].branches)
        return either(Front(inside.costs + own, inside.damages, inside.pick), damage, number)

    def _beside(self, number: int) -> float:
        """The damage of sizes outside an offer that goes with it: of groups in it that are tied to others."""
        absent = self._around.absent
        less, more = self._nesting.dead(absent - {number}), self._nesting.dead(absent | {number})
        total = 0.0
        for choice in self._nesting.outside(number):
            option = self._around.picked[choice]
            total += self._items._lost_of(choice, more)[option] - self._items._lost_of(choice, less)[option]
        return self._scales.width * total

    def _leaves(self, home: int | None) -> list[Front]:
        return [self._leaf(number, home) for number in self._nesting.choices(home)]

    def _leaf(self, number: int, home: int | None) -> Front:
        """The options of a choice, with what they change, where the branch that contains it stays."""
        options, now = self._items.choices[number], self._around.picked[number]
        gone = self._dead.issuperset(options[0])
        if home is None and gone:  # in several branches, all of which go in the solution
            options = options[:1]
        reach = len(options) if self._reach is None or gone else self._reach
        near = range(max(0, now - reach), min(len(options), now + reach + 1))
        absent: Iterable[int] = () if home is not None and gone else self._around.absent
        start = self._whole if home is not None and gone else self._now
        lost = self._items._lost_of(number, frozenset() if gone else self._dead)
        costs = wide([self._at(absent, options[one]) - start for one in near])
        damages = wide([self._scales.width * lost[one] for one in near])

        return Front(costs, damages, lambda place: ({number: near[place]}, set()))


def _every(problem: Problem) -> list[range]:
    return [range(len(choice.options)) for choice in problem.choices]
