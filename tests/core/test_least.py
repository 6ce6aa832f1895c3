"""Sizes at which an operation has no value are refused: a deviation of one unit is no number."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import prunekit as pk

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
Reduction = Callable[[torch.Tensor], torch.Tensor]


class Spread(nn.Module):
    """How far the features of a layer spread."""

    def __init__(self, reduce: Reduction, width: int = 8) -> None:
        super().__init__()
        self.a, self.o, self.reduce = nn.Linear(5, width), nn.Linear(1, 4), reduce

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.reduce(self.a(x).tanh())[:, None])


REDUCTIONS: dict[str, tuple[Reduction, int]] = {
    "std": (lambda x: x.std(-1), 2),
    "var": (lambda x: x.var(-1), 2),
    "var over all dims": (lambda x: x[:, None].var((1, 2)), 2),
    "correction of two": (lambda x: torch.var(x, -1, correction=2), 3),
    "no correction": (lambda x: x.std(-1, unbiased=False), 1),
    "with the mean": (lambda x: torch.std_mean(x, -1)[0], 2),
    "mean with the variance": (lambda x: torch.var_mean(x, dim=-1)[0], 2),
    "mean": (lambda x: x.mean(-1), 1),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("options", [{}, {"global_pruning": True}, {"max_pruning_ratio": 0.99}])
def test_as_many_units_stay_as_are_needed(name: str, options: dict[str, object]) -> None:
    reduce, least = REDUCTIONS[name]
    model = Spread(reduce)
    original = copy.deepcopy(model)
    result = pk.prune(model, X, ratio=0.95, **options)  # type: ignore[arg-type]
    assert model.a.out_features == least
    assert model(X).isfinite().all()
    assert result.graph.analysis.groups["a"].least == least
    check = pk.check_exact(original, model, result.plan, X)
    assert check, str(check)


@pytest.mark.slow
@pytest.mark.parametrize("round_to", [1, 2, 3])
def test_rounding_doesn_t_go_below(round_to: int) -> None:
    model = Spread(lambda x: x.std(-1), 12)
    pk.prune(model, X, ratio=0.95, round_to=round_to)
    assert model.a.out_features >= 2
    assert model.a.out_features % round_to == 0


def test_a_target_doesn_t_go_below() -> None:
    model = Spread(lambda x: x.std(-1), 12)
    with pytest.raises(pk.PrunekitError):
        pk.prune(model, X, target={"params": 0.05})
    assert model.a.out_features == 12


def test_a_chosen_cut_to_fewer_is_refused_with_the_reason() -> None:
    model = Spread(lambda x: x.std(-1))
    graph = pk.DependencyGraph().build_dependency(model, X)
    group = pk.Group(graph, {"a": tuple(range(7))}, None)
    with pytest.raises(pk.RehearsalError, match="needs 2 elements"):
        group.prune()
    assert model.a.out_features == 8
    pk.Group(graph, {"a": tuple(range(6))}, None).prune()
    assert model.a.out_features == 2


class Joined(nn.Module):
    """Two groups lie along the axis: together they have enough."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(1, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(torch.cat([self.a(x), self.b(x)], -1).std(-1)[:, None])


def test_units_of_several_groups_count_together() -> None:
    model = Joined()
    pk.prune(model, X, ratio=0.95)
    assert (model.a.out_features, model.b.out_features) == (1, 1)
    assert model(X).isfinite().all()


class Crossed(nn.Module):
    """Two groups span the elements: one of each isn't enough, though either one alone may go down to one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(1, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o((self.a(x)[:, :, None] * self.b(x)[:, None]).std((1, 2))[:, None])


def test_groups_that_span_the_elements_together_are_given_back() -> None:
    model = Crossed()
    result = pk.prune(model, X, ratio=0.9)
    assert sorted((model.a.out_features, model.b.out_features)) == [1, 4]
    assert model(X).isfinite().all()
    assert any("needs 2 elements" in why for why in result.report.left.values())
