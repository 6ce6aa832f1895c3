"""Linear assignment, against all permutations and against scipy."""

from __future__ import annotations

import itertools

import pytest
import torch

from prunekit_plugins.compensation.experts.assignment import assign


def cost(costs: torch.Tensor, columns: list[int]) -> float:
    return float(costs.double()[range(len(columns)), columns].sum())


@pytest.mark.parametrize("size", range(1, 7))
@pytest.mark.parametrize("whole", [False, True])
def test_no_permutation_costs_less(size: int, whole: bool) -> None:
    generator = torch.Generator().manual_seed(size)
    for _ in range(20):
        costs = torch.randn(size, size, generator=generator) * 3
        costs = costs.round() if whole else costs  # equal costs, too
        found = assign(costs).tolist()
        assert sorted(found) == list(range(size))
        least = min(cost(costs, list(order)) for order in itertools.permutations(range(size)))
        assert cost(costs, found) == pytest.approx(least, abs=1e-9)


def test_a_permutation_is_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, order = torch.randn(50, 8, generator=generator), torch.randperm(50, generator=generator)
    assert assign(-rows @ rows[order].T).tolist() == order.argsort().tolist()


def test_it_costs_what_scipys_costs() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    generator = torch.Generator().manual_seed(0)
    costs = torch.randn(120, 3, generator=generator) @ torch.randn(3, 120, generator=generator)
    _, columns = optimize.linear_sum_assignment(costs.double().numpy())
    assert cost(costs, assign(costs).tolist()) == pytest.approx(cost(costs, columns.tolist()), abs=1e-6)


def test_nothing_is_assigned_to_nothing() -> None:
    assert assign(torch.empty(0, 0)).shape == (0,)
