"""Pruning history: plain data that makes an unpruned copy the same model."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.layers import prune_conv_out_channels
from tests.core.test_heads import Decoder
from tests.models import Chain, Encoder, Residual

CASES = {
    "residual": (lambda: Residual(), torch.randn(2, 3, 8, 8), {}),
    "encoder": (lambda: Encoder(), torch.randn(2, 6, 10), {}),
    "heads": (lambda: Decoder(8, 4), torch.randn(3, 5, 6), {"prune_num_heads": True, "head_pruning_ratio": 0.5}),
    "bare parameter": (lambda: Bare(), torch.randn(2, 4), {"importance": "random"}),
}


class Bare(nn.Module):
    """Units that no layer numbers: two parameters of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 8))
        self.second = nn.Parameter(torch.randn(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.first).relu() @ self.second


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_history_makes_a_copy_the_same(case: str, steps: int) -> None:
    torch.manual_seed(0)
    make, x, options = CASES[case]
    model = make().eval()
    copied = copy.deepcopy(model)
    pruner = pk.BasePruner(model, x, iterative_steps=steps, **options)
    for _ in range(steps):
        pruner.step()
    history = json.loads(json.dumps(pruner.pruning_history()))
    assert history
    graph = pk.DependencyGraph().build_dependency(copied, x)
    graph.load_pruning_history(history)
    state = model.state_dict()
    for name, value in copied.state_dict().items():  # a constant of the program that is scaled in steps is rounded
        torch.testing.assert_close(value, state[name], rtol=1e-6, atol=0)
    torch.testing.assert_close(copied(x), model(x), rtol=1e-5, atol=1e-6)
    assert graph.applied.kept == pruner.graph.applied.kept


def test_entries_are_numbered_as_the_layer_was_then() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    graph = pk.DependencyGraph().build_dependency(model, torch.randn(1, 3, 4, 4))
    graph.get_pruning_group(model[0], prune_conv_out_channels, [0, 3]).prune()
    graph.get_pruning_group(model[0], prune_conv_out_channels, [0, 5]).prune()
    assert graph.pruning_history() == [("0", True, [0, 3]), ("0", True, [0, 5])]
    assert graph.applied.kept["0"] == (2, 4, 5, 6)


@pytest.mark.parametrize(
    ("history", "error"),
    [
        ([("nowhere", True, [0])], pk.ArgumentError),
        ([("layers.0", True, [8])], pk.UnitsError),
        ([("layers.0", True, [1, 1])], pk.UnitsError),
        ([("layers.0", True, list(range(8)))], pk.UnitsError),
        ([("layers.1", True, [0])], pk.UnitsError),
        ([("layers.0", True)], pk.ArgumentError),
        ([("group:nowhere", True, [0])], pk.ArgumentError),
    ],
)
def test_a_history_that_does_not_fit(history: list[object], error: type[Exception]) -> None:
    model = Chain(4, 8, 3)
    before = copy.deepcopy(model.state_dict())
    graph = pk.DependencyGraph().build_dependency(model, torch.randn(1, 4))
    with pytest.raises(error):
        graph.load_pruning_history(history)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
