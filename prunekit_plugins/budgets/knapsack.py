"""Choosing one size for each of several groups so that a budget is met and as little damage is done as possible.

Damages add up over groups; costs are any function of all sizes (those of real models are sums of products, because a
layer's cost is its inputs times its outputs). With additive costs this is the multiple-choice knapsack problem: HALP
(Shen et al., NeurIPS 2022, eq. 5) solves it for latency, SPDY (Frantar and Alistarh, ICML 2022, eq. 4) for measured
damage.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence

import attrs
import torch

SLACK = 1 + 1e-9
"""What rounding may add to a cost that meets its budget exactly."""
FRONTIER = 2048
"""Partial solutions that dynamic programming keeps at once; below this number it is exact."""
_ROUNDS = 24
"""Linearisations at most."""

Spent = Callable[[Mapping[str, int]], Mapping[str, float]]
"""Sizes of groups to costs by name."""
SpentAfter = Callable[[Mapping[str, int], Sequence[Mapping[str, int]]], Sequence[Mapping[str, float]]]
"""Sizes of groups, and changes of some of them, to the costs after each change, without the others."""
Picked = tuple[int, ...]
"""The option that is picked of every choice."""


@attrs.frozen(eq=False)
class Choice:
    """Groups that shrink together, and what each of their sizes does to the model.

    Attributes:
        options: Sizes of the groups, from all units to the fewest.
        damages: What the model loses with each option; ascending, the first is 0.
    """

    options: tuple[Mapping[str, int], ...]
    damages: tuple[float, ...]


@attrs.frozen(eq=False)
class Problem:
    """What an allocation solves.

    Attributes:
        choices: What is to be chosen.
        spent: Sizes of all groups to the costs.
        allowed: Cost to what may be spent.
        fixed: Sizes of groups that are not up for choice.
        spent_after: Does what ``spent`` does for several changes of some sizes at once; None: one after the other.
    """

    choices: tuple[Choice, ...]
    spent: Spent
    allowed: Mapping[str, float]
    fixed: Mapping[str, int] = attrs.field(factory=dict)
    spent_after: SpentAfter | None = None

    def units(self, picked: Sequence[int]) -> dict[str, int]:
        """Returns the sizes of all groups for the options picked."""
        sizes = dict(self.fixed)
        for choice, option in zip(self.choices, picked, strict=True):
            sizes.update(choice.options[option])
        return sizes

    def damage(self, picked: Sequence[int]) -> float:
        """Returns the sum of the damages of the options picked."""
        return sum(choice.damages[option] for choice, option in zip(self.choices, picked, strict=True))

    def damage_of(self, units: Mapping[str, int]) -> float:
        """Returns the sum of the damages of some sizes, each choice counted by the first option that is as small."""
        total = 0.0
        for choice in self.choices:
            fits = (
                n for n, sizes in enumerate(choice.options) if all(sizes[g] <= units.get(g, sizes[g]) for g in sizes)
            )
            total += choice.damages[next(fits, -1)]
        return total

    def fits(self, picked: Sequence[int]) -> bool:
        """Tells whether the options picked meet the budget."""
        spent = self.spent(self.units(picked))
        return all(spent[name] <= allowed * SLACK for name, allowed in self.allowed.items())

    @property
    def whole(self) -> Picked:
        """The options with all units."""
        return (0,) * len(self.choices)

    @property
    def smallest(self) -> Picked:
        """The options with the fewest units."""
        return tuple(len(choice.options) - 1 for choice in self.choices)


class Load:
    """One number for all costs: each divided by what has to be saved of it; 0 for those met from the start.

    Args:
        problem: What has to be saved is what its whole options cost above the budget.

    Attributes:
        allowed: What may be spent, in this number.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        dense = problem.spent(problem.units(problem.whole))
        self._weights = {
            name: 1 / (dense[name] - allowed) for name, allowed in problem.allowed.items() if dense[name] > allowed
        }
        self.allowed = sum(problem.allowed[name] * weight for name, weight in self._weights.items())

    def __call__(self, picked: Sequence[int]) -> float:
        """Returns the number for the options picked."""
        return self.of(self._problem.spent(self._problem.units(picked)))

    def after(self, picked: Picked, moves: Sequence[tuple[int, int]]) -> list[float]:
        """Returns the number after each of several moves alone.

        Args:
            picked: The options picked.
            moves: Numbers of choices, and what is picked there instead.
        """
        problem = self._problem
        if problem.spent_after is None:
            return [self(_moved(picked, place, option)) for place, option in moves]
        changes = [problem.choices[place].options[option] for place, option in moves]
        return [self.of(spent) for spent in problem.spent_after(problem.units(picked), changes)]

    def of(self, spent: Mapping[str, float]) -> float:
        """Returns the number for some costs."""
        return sum(spent[name] * weight for name, weight in self._weights.items())


def greedy(problem: Problem) -> Picked:
    """Takes away step by step what does least damage for the cost that it saves, until the budget is met.

    A step goes to a vertex of the lower convex hull of a choice's damages, so that a steep first unit doesn't hide what
    comes after it. In the end units are given back where that still fits.

    Args:
        problem: The problem; its smallest options must meet the budget.
    """
    load = Load(problem)
    hulls = [_hull(choice.damages) for choice in problem.choices]
    return finished(problem, load, problem.whole, hulls)


def dynamic(problem: Problem) -> Picked:
    """Solves the knapsack by dynamic programming, over costs made linear around the best solution so far.

    Around a solution ``x`` the cost of ``y`` is taken to be ``c(x) + sum_g (c(x with y_g) - c(x))``, which is exact
    where costs add up. The knapsack over these is solved exactly (partial solutions that cost more and damage more than
    another are dropped), its solution made to meet the budget by exact costs, and kept if it does less damage; then the
    costs are made linear around it. Where it does not, options further from the solution are left out of the next
    round, until only neighbours are left. The start is `greedy`, so the result is never worse.

    Args:
        problem: The problem; its smallest options must meet the budget.
    """
    load = Load(problem)
    best = greedy(problem)
    every = [tuple(range(len(choice.options))) for choice in problem.choices]
    reach = max((len(choice.options) for choice in problem.choices), default=1)
    for _ in range(_ROUNDS):
        found = finished(problem, load, _linearised(problem, load, best, reach), every)
        if problem.damage(found) < problem.damage(best) * (1 - 1e-9):
            best = found
        elif reach == 1:
            break
        else:
            reach = max(1, reach // 3)
    return best


def _hull(damages: Sequence[float]) -> tuple[int, ...]:
    """The vertices of the lower convex hull of the points ``(option, damage)``."""
    hull: list[int] = []
    for option, damage in enumerate(damages):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (damages[b] - damages[a]) * (option - a) < (damage - damages[a]) * (b - a):
                break
            hull.pop()
        hull.append(option)
    return tuple(hull)


def _moved(picked: Picked, place: int, option: int) -> Picked:
    return (*picked[:place], option, *picked[place + 1 :])


def finished(problem: Problem, load: Load, picked: Picked, steps: Sequence[Sequence[int]]) -> Picked:
    """Makes a solution meet the budget, with the steps that do least damage for what they save; then gives back."""
    while not problem.fits(picked):
        now, best = load(picked), None
        moves = [
            (place, steps[place][following])
            for place, option in enumerate(picked)
            if (following := bisect.bisect_right(steps[place], option)) < len(steps[place])
        ]
        for (place, further), cost in zip(moves, load.after(picked, moves), strict=True):
            damages = problem.choices[place].damages
            worth = (damages[further] - damages[picked[place]]) / max(now - cost, 1e-12)
            if best is None or (worth, place) < best[:2]:
                best = (worth, place, further)
        if best is None:
            break
        picked = _moved(picked, best[1], best[2])
    return _filled(problem, picked)


def _filled(problem: Problem, picked: Picked) -> Picked:
    """Gives units back, those whose loss does most damage first, until nothing more fits."""
    waiting = set(range(len(picked)))
    while waiting:
        returns = []
        for place in sorted(waiting):
            damages, option = problem.choices[place].damages, picked[place]
            if option:
                returns.append((damages[option - 1] - damages[option], place))
        waiting = set()
        for _, place in sorted(returns):
            larger = _moved(picked, place, picked[place] - 1)
            if problem.fits(larger):
                picked = larger
                waiting.add(place)
    return picked


def _linearised(problem: Problem, load: Load, around: Picked, reach: int) -> Picked:
    """Solves the knapsack whose costs are linear around a solution, among the options within reach of it."""
    base = load(around)
    stages: list[tuple[list[int], torch.Tensor, torch.Tensor]] = []
    for place, choice in enumerate(problem.choices):
        near = range(max(0, around[place] - reach), min(len(choice.options), around[place] + reach + 1))
        changes = [cost - base for cost in load.after(around, [(place, option) for option in near])]
        damages = [choice.damages[option] for option in near]
        stages.append((list(near), wide(changes), wide(damages)))
    solution = _knapsack([changes for _, changes, _ in stages], [d for _, _, d in stages], load.allowed - base)
    return tuple(options[found] for (options, _, _), found in zip(stages, solution, strict=True))


def wide(values: Sequence[float]) -> torch.Tensor:
    """Returns numbers as a tensor ``[values]``, float64 on the CPU."""
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _knapsack(costs: Sequence[torch.Tensor], damages: Sequence[torch.Tensor], allowed: float) -> list[int]:
    """Picks one option of every stage: the least damage within the cost that is allowed.

    Args:
        costs: Tensors ``[options]``, one per stage.
        damages: The same for damages.
        allowed: What the costs may add up to. Where nothing fits, what costs least is picked.
    """
    least = sum(float(stage.min()) for stage in costs)
    allowed = max(allowed + abs(allowed) * (SLACK - 1), least)
    spent, lost = wide([0.0]), wide([0.0])
    trail: list[tuple[torch.Tensor, int]] = []
    for cost, damage in zip(costs, damages, strict=True):
        least -= float(cost.min())
        total = (spent[:, None] + cost).flatten()
        harm = (lost[:, None] + damage).flatten()
        chosen = undominated(total, harm, allowed - least)
        trail.append((chosen, len(cost)))
        spent, lost = total[chosen], harm[chosen]
    solution: list[int] = []
    place = int(lost.argmin()) if len(lost) else 0
    for chosen, options in reversed(trail):
        before, option = divmod(int(chosen[place]), options)
        solution.append(option)
        place = before
    return solution[::-1]


def undominated(total: torch.Tensor, harm: torch.Tensor, allowed: float, most: int = FRONTIER) -> torch.Tensor:
    """Returns the partial solutions that may still fit and than which none costs less and damages less.

    Args:
        total: Tensor ``[solutions]``, what they cost.
        harm: Tensor ``[solutions]``, what they damage.
        allowed: What they may cost.
        most: How many are kept; of more, evenly spaced ones.

    Returns:
        Their positions, tensor ``[kept]``, by cost.
    """
    rounding = 1e-9 * max(1.0, abs(allowed))
    within = (total <= max(allowed + rounding, float(total.min()))).nonzero().flatten()
    order = within[torch.argsort(harm[within], stable=True)]
    order = order[torch.argsort(total[order], stable=True)]
    best = harm[order].cummin(0).values
    new = torch.ones(len(order), dtype=torch.bool, device="cpu")
    new[1:] = harm[order][1:] < best[:-1]
    order = order[new]
    if len(order) <= most:
        return order
    return order[torch.linspace(0, len(order) - 1, most, dtype=torch.float64, device="cpu").round().long()]
