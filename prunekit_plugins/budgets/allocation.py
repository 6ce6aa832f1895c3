"""Allocation: how a budget is shared out among the groups."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence

from prunekit_core.choose.candidates import Scope
from prunekit_core.choose.chooser import Chooser
from prunekit_core.errors import ArgumentError, PluginError
from prunekit_core.plugins.blame import Blame
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.projects.config import SEARCHED
from prunekit_plugins.budgets.budget import Budget
from prunekit_plugins.budgets.curves import Sensitivity
from prunekit_plugins.budgets.knapsack import Choice, Picked, Problem
from prunekit_plugins.budgets.options import Options, fixed_units, free_options
from prunekit_plugins.budgets.targets import Selector

UNIFORM, GLOBAL = SEARCHED
ESTIMATED = "estimated"

Solver = Callable[[Problem], Sequence[int]]
"""An allocation: a problem to the number of the option that is picked of every choice."""

Weight = Callable[[Collection[str]], float]
"""Names of groups that shrink together to what their damages are multiplied by."""


def alike(names: Collection[str]) -> float:
    """The weight of damages that are taken as they are."""
    return 1.0


def solver_of(allocation: str | Solver, registry: Registry) -> Solver | None:
    """Returns what an allocation stands for; None where a search for the ratio decides.

    Raises:
        ArgumentError: It is no callable, and no allocator has that name.
    """
    found: Solver | None = allocation if callable(allocation) else registry.allocator(str(allocation))
    return found


def by_default(*, sums: bool) -> str:
    """The allocation that is taken where there are a target and calibration data, and nothing was said.

    By ``benchmarks/quality.py``, with compensation, ``"estimated"`` is ahead of ``"global"`` where scores are damages,
    and costs little; where they aren't, ``"global"`` is ahead of ``"uniform"``.

    Args:
        sums: Whether scores are damages that add up.
    """
    return ESTIMATED if sums else GLOBAL


def selector(
    solve: Solver,
    sensitivity: Sensitivity | None,
    *,
    sums: bool = False,
    registry: Registry | None = None,
    seen: Callable[[Problem], None] = lambda problem: None,
    weight: Weight = alike,
) -> Selector:
    """Makes what decides for `plan_to_target`.

    Args:
        solve: The allocator.
        sensitivity: Measured damages. None: damages come from the scores.
        sums: Whether scores are damages that add up. If not, the damage of a group is minus the logarithm of the part
            of its summed scores that stays.
        registry: What tells whose the allocator is; None for the default registry.
        seen: Called with every problem before it is solved; a plan is made by the last one.
        weight: What damages are multiplied by.
    """
    blame = (registry or default_registry()).owners.blame("prunekit_allocators", solve)

    def select(chooser: Chooser, scopes: Sequence[Scope], budget: Budget) -> Mapping[str, int]:
        free = choosable(chooser, scopes, sensitivity)
        choices = tuple(
            Choice(options, weighed(weight, options, damages(chooser, options, sensitivity, sums=sums)))
            for options in free
        )
        fixed = fixed_units(chooser, scopes, free)
        problem = Problem(choices, budget.spent, budget.allowed, fixed, budget.spent_after)
        if not problem.fits(problem.smallest):
            raise budget.refuse(problem.units(problem.smallest))
        seen(problem)
        with blame.blamed("An allocator failed."):
            picked = solve(problem)
        return problem.units(_checked(problem, picked, blame))

    return select


def weighed(weight: Weight, options: Options, found: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the damages of some sizes, multiplied by the weight of their groups."""
    factor = weight(options[0])
    return tuple(factor * damage for damage in found)


def _checked(problem: Problem, picked: object, blame: Blame) -> Picked:
    """Returns what an allocator picked, if it is a solution."""
    kind = PluginError if blame.plugin else ArgumentError
    sizes = [len(choice.options) for choice in problem.choices]
    options = _numbers(picked)
    if len(options) != len(sizes) or any(not 0 <= n < size for n, size in zip(options, sizes, strict=True)):
        why = f"{len(sizes)} choices of {sizes} options, got {picked!r}"
        raise blame.error("An allocation must pick one option of every choice.", why, kind=kind)
    if not problem.fits(options):
        why = f"{dict(problem.allowed)}, got {picked!r}"
        raise blame.error("An allocation must meet the budget.", why, kind=kind)
    return options


def _numbers(picked: object) -> Picked:
    """Reads whole numbers; none where it is no sequence of them."""
    try:
        return tuple(map(operator.index, picked)) if isinstance(picked, Sequence) else ()
    except TypeError:
        return ()


def choosable(chooser: Chooser, scopes: Sequence[Scope], sensitivity: Sensitivity | None) -> list[Options]:
    """Lists the sizes of everything whose size is up for choice and whose damage is known."""
    return [o for o in free_options(chooser, scopes) if sensitivity is None or sensitivity.covers(o[0])]


def damages(
    chooser: Chooser, options: Options, sensitivity: Sensitivity | None, *, sums: bool = False
) -> tuple[float, ...]:
    """Returns what the model loses with each of some sizes of groups; it starts at 0 and never falls.

    Args:
        chooser: The groups that were scored.
        options: Their sizes, from all units to the fewest.
        sensitivity: Measured damages; None for what the scores say.
        sums: Whether scores are damages that add up, see `selector`.
    """
    if sensitivity is None:
        found = _score_damages(chooser, options, sums=sums)
    else:
        found = [sensitivity.damage(units) for units in options]
    return tuple(itertools.accumulate((0.0, *found[1:]), max))


def _score_damages(chooser: Chooser, options: Options, *, sums: bool) -> list[float]:
    """Damages out of scores alone.

    Where scores are no damages that add up, those of a group count as ``-log(1 - removed / all)``: the parts of the
    scores that groups keep are multiplied, as signals are that run through them one after another; a plain sum would
    see no harm in emptying one group.
    """
    found = [0.0] * len(options)
    for group in options[0]:
        candidate = chooser.candidates[group]
        scores = candidate.scores.detach().double().cpu().sort(descending=True)[0]
        scores = scores - scores[-1].clamp(max=0)
        whole = float(scores.sum()) or 1.0
        kept = (scores / whole).cumsum(0).clamp(min=1e-12, max=1).tolist()
        for place, units in enumerate(options):
            stays = kept[units[group] // candidate.blocks - 1]
            found[place] += whole * (1 - stays) if sums else -math.log(stays)
    return found
