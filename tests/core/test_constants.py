"""Other constants in a program, made up for in the weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk


class Attention(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.scaling, self.fused = 0.5, fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        else:
            mixed = (q @ k.transpose(-1, -2) * self.scaling).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("fused", [True, False])
def test_another_temperature_is_made_up_for(fused: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Attention(fused=fused)).double()
    expected, before = model(X), copy.deepcopy(model)
    graph = pk.DependencyGraph().build_dependency(model, X)
    plan = pk.absorb_constants(graph, {("0", "scaling"): 0.8})
    assert {rescale.parameter for rescale in plan.rescales} == {"0.q.weight", "0.q.bias"}
    assert not plan.cuts
    assert torch.equal(model(X), expected)  # planning touches nothing
    plan.apply(model)
    assert torch.allclose(model[0].q.weight, before[0].q.weight * (0.5 / 0.8))
    assert not torch.allclose(model(X), expected)
    model[0].scaling = 0.8
    assert torch.allclose(model(X), expected)


def test_a_constant_that_no_weight_can_make_up_for_is_an_error() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.shift = nn.Linear(8, 8), 0.5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.layer(x).exp() * self.shift).sin()

    graph = pk.DependencyGraph().build_dependency(Shifted().double(), X)
    with pytest.raises(pk.RehearsalError, match="The weights can't make up for another constant"):
        pk.absorb_constants(graph, {("", "shift"): 0.25})


def test_a_constant_that_changes_the_program_is_an_error() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.limit = nn.Linear(8, 8), 0.5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).relu() if self.limit > 0.4 else self.layer(x)

    graph = pk.DependencyGraph().build_dependency(Branching().double(), X)
    with pytest.raises(pk.RehearsalError, match="With other constants another program runs"):
        pk.absorb_constants(graph, {("", "limit"): 0.25})
