"""Parameters that no known layer owns: foreign linear layers, stacks of experts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit_plugins.importance import GroupMagnitudeImportance, GroupTaylorImportance


class Transposed(nn.Module):
    """A linear layer of another library, stored as ``[in, out]``."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(given, made)), nn.Parameter(torch.randn(made))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Experts(nn.Module):
    """Experts of width 10 in two stacks."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 6, 10)), nn.Parameter(torch.randn(3, 10, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.einsum("nd,edh->enh", x, self.up).relu() @ self.down).sum(0)


def scores(
    model: nn.Module, x: torch.Tensor, criterion: Callable[[pk.Group], torch.Tensor | None]
) -> torch.Tensor | None:
    graph = pk.DependencyGraph().build_dependency(model, x)
    group = max(graph.groups(), key=lambda group: group.size)
    return criterion(graph.whole_group(group.name))


def test_a_foreign_linear_layer_counts_beside_a_known_one() -> None:
    model = nn.Sequential(Transposed(5, 8), nn.ReLU(), nn.Linear(8, 3))
    first, last = model[0].weight, model[2].weight
    found = scores(model, torch.randn(2, 5), GroupMagnitudeImportance(normalizer=None))
    assert found is not None
    assert torch.allclose(found, (first.square().sum(0) + last.square().sum(0)) / 2)


def test_a_stack_of_experts_is_scored_by_its_parameters() -> None:
    model = Experts()
    found = scores(model, torch.randn(2, 6), GroupMagnitudeImportance(normalizer=None))
    assert found is not None
    assert torch.allclose(found, (model.up.square().sum((0, 1)) + model.down.square().sum((0, 2))) / 2)


def test_taylor_scores_a_stack_of_experts() -> None:
    model, x = Experts(), torch.randn(2, 6)
    model(x).square().sum().backward()
    found = scores(model, x, GroupTaylorImportance(normalizer=None))
    assert found is not None
    up, down = ((p.data * p.grad).abs() for p in (model.up, model.down))  # type: ignore[operator]
    assert torch.allclose(found, (up.sum((0, 1)) + down.sum((0, 2))) / 2)


def test_stated_target_types_leave_strangers_alone() -> None:
    model = nn.Sequential(Transposed(5, 8), nn.ReLU(), Transposed(8, 3))
    assert scores(model, torch.randn(2, 5), GroupMagnitudeImportance(target_types=[nn.Linear])) is None


def test_layers_of_pytorch_that_are_no_targets_dont_count_beside_others() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(9, 6), nn.Linear(6, 2)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            return self.out(F.relu(self.table(words)))

    model = Words()
    found = scores(model, torch.tensor([1, 2]), GroupMagnitudeImportance(normalizer=None))
    assert found is not None
    assert torch.allclose(found, model.out.weight.square().sum(0))


@pytest.mark.parametrize("kind", [nn.Linear, Transposed])
def test_a_model_of_foreign_layers_is_pruned_like_one_of_known_ones(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(5, 8), nn.ReLU(), kind(8, 3))
    result = pk.prune(model, torch.randn(2, 5))
    assert list(result.report.pruned.values()) == [(8, 4)]
