"""The solvers against brute force."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence

import attrs
import pytest

from prunekit.plugin import Choice, Problem
from prunekit_plugins.budgets.knapsack import dynamic, greedy


def problem(seed: int, *, products: bool, costs: int = 1) -> Problem:
    """A random problem of a few groups; with products, groups multiply each other's costs as layers do."""
    r = random.Random(seed)
    groups = r.randint(2, 4)
    choices = []
    for group in range(groups):
        size = r.randint(2, 6)
        damages = sorted(r.random() ** 3 for _ in range(size - 1))
        choices.append(Choice(tuple({f"g{group}": size - step} for step in range(size)), (0.0, *damages)))
    linear = [[r.randint(1, 9) for _ in range(groups)] for _ in range(costs)]
    pairs = list(itertools.combinations_with_replacement(range(groups), 2))
    weights = [[r.randint(0, 9) * products for _ in pairs] for _ in range(costs)]

    def spent(sizes: Mapping[str, int]) -> dict[str, float]:
        n = [sizes[f"g{group}"] for group in range(groups)]
        return {
            f"c{cost}": float(
                sum(a * b for a, b in zip(linear[cost], n, strict=True))
                + sum(w * n[a] * n[b] for w, (a, b) in zip(weights[cost], pairs, strict=True))
            )
            for cost in range(costs)
        }

    free = Problem(tuple(choices), spent, {})
    low, high = spent(free.units(free.smallest)), spent(free.units(free.whole))
    part = r.random()
    return Problem(tuple(choices), spent, {name: low[name] + part * (high[name] - low[name]) for name in low})


def optimum(found: Problem) -> float:
    every = itertools.product(*(range(len(choice.options)) for choice in found.choices))
    return min(found.damage(picked) for picked in every if found.fits(picked))


@pytest.mark.parametrize("seed", range(60))
def test_dynamic_programming_is_exact_where_costs_add_up(seed: int) -> None:
    found = problem(seed, products=False)
    picked = dynamic(found)
    assert found.fits(picked)
    assert found.damage(picked) == pytest.approx(optimum(found), abs=1e-12)


@pytest.mark.parametrize("solve", [greedy, dynamic])
@pytest.mark.parametrize("costs", [1, 2])
def test_costs_that_are_asked_for_together_change_nothing(
    solve: Callable[[Problem], tuple[int, ...]], costs: int
) -> None:
    asked = 0

    def together(sizes: Mapping[str, int], changes: Sequence[Mapping[str, int]]) -> list[Mapping[str, float]]:
        nonlocal asked
        asked += 1
        return [found.spent({**sizes, **change}) for change in changes]

    for seed in range(30):
        found = problem(seed, products=True, costs=costs)
        assert solve(attrs.evolve(found, spent_after=together)) == solve(found)
    assert asked


def test_products_of_sizes_are_solved_almost_always() -> None:
    exact = 0
    for seed in range(100):
        found = problem(seed, products=True)
        picked, step_by_step = dynamic(found), greedy(found)
        assert found.fits(picked)
        assert found.fits(step_by_step)
        best = optimum(found)
        assert best - 1e-12 <= found.damage(picked) <= found.damage(step_by_step) + 1e-12
        exact += found.damage(picked) <= best + 1e-12
    assert exact >= 95  # 96 as it is; greedy alone finds about 75


@pytest.mark.parametrize("seed", range(20))
def test_several_costs_are_all_met(seed: int) -> None:
    found = problem(seed, products=True, costs=3)
    for solve in (greedy, dynamic):
        picked = solve(found)
        assert found.fits(picked)
        assert picked == solve(found)


def test_nothing_goes_where_everything_fits() -> None:
    found = problem(0, products=True)
    roomy = Problem(found.choices, found.spent, {"c0": 1e9})
    assert greedy(roomy) == dynamic(roomy) == roomy.whole


def test_units_that_do_no_damage_stay_where_they_fit() -> None:
    choices = (Choice(({"a": 2}, {"a": 1}), (0.0, 0.0)), Choice(({"b": 2}, {"b": 1}), (0.0, 5.0)))
    found = Problem(choices, lambda sizes: {"c": float(sizes["a"] + sizes["b"])}, {"c": 3.0})
    assert greedy(found) == dynamic(found) == (1, 0)
