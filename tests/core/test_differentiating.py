"""Forwards that differentiate: force fields, physics-informed networks, gradient penalties, function transforms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunekit as pk

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class Energy(nn.Module):
    """A small network, and what is done with it."""

    def __init__(self, way: Callable[[Any, torch.Tensor], Any], act: nn.Module) -> None:
        super().__init__()
        self.way, self.act = way, act
        self.a, self.b, self.c = nn.Linear(3, 32), nn.Linear(32, 16), nn.Linear(16, 1)

    def values(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.act(self.b(self.act(self.a(x)))))  # type: ignore[no-any-return]

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return self.values(x).sum()

    def forward(self, x: torch.Tensor) -> Any:
        return self.way(self, x)


def forces(m: Energy, x: torch.Tensor) -> Any:
    x = x.detach().requires_grad_(True)
    energy = m.energy(x)
    return {"energy": energy, "forces": -torch.autograd.grad(energy, x, create_graph=m.training)[0]}


def switched_on(m: Energy, x: torch.Tensor) -> Any:
    with torch.enable_grad():
        return forces(m, x)["forces"]


def second_order(m: Energy, x: torch.Tensor) -> Any:
    x = x.requires_grad_(True)
    u = m.values(x)
    du = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    return u, du, torch.autograd.grad(du[:, 0].sum(), x, create_graph=True)[0]


def penalty(m: Energy, x: torch.Tensor) -> Any:
    if not m.training:
        return m.values(x)
    x = x.clone().requires_grad_(True)
    return m.values(x), torch.autograd.grad(m.energy(x), x, create_graph=True)[0].square().sum(1)


def backward(m: Energy, x: torch.Tensor) -> Any:
    x = x.detach().requires_grad_(True)
    m.energy(x).backward()  # type: ignore[no-untyped-call]
    return x.grad


WAYS: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "forces": forces,
    "switched on": switched_on,
    "second order": second_order,
    "penalty": penalty,
    "func.grad": lambda m, x: (m.energy(x), torch.func.grad(m.energy)(x)),
    "func.vjp": lambda m, x: torch.func.vjp(m.values, x)[1](torch.ones(len(x), 1)),
    "func.jacrev": lambda m, x: torch.func.jacrev(m.values)(x[0]),
}
ACTS = [nn.Tanh, nn.SiLU, nn.ReLU, nn.GELU, nn.Softplus, nn.ELU, nn.Sigmoid, nn.Mish, nn.LeakyReLU]


def check(model: nn.Module, *pruned: tuple[int, int]) -> pk.PruneResult:
    original = copy.deepcopy(model)
    result = pk.prune(model, X)
    assert tuple(result.report.pruned.values()) == pruned
    assert not result.report.not_understood
    for training in (False, True):
        assert pk.check_exact(original, model, result.plan, X, training=training)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_it_is_pruned_and_exact(way: str) -> None:
    torch.manual_seed(0)
    check(Energy(WAYS[way], nn.Tanh()), (32, 16), (16, 8))


@pytest.mark.slow
@pytest.mark.parametrize("act", ACTS)
def test_derivatives_of_activations_have_rules(act: type[nn.Module]) -> None:
    torch.manual_seed(0)
    notes = check(Energy(forces, act()), (32, 16), (16, 8)).report.notes
    assert "the forward differentiates: recorded with gradients on, as the operations below autograd" in notes


def test_the_numbers_are_those_of_the_masked_original() -> None:
    """An independent computation: units zeroed by hand, and PyTorch's own autograd."""
    torch.manual_seed(0)
    model = Energy(forces, nn.Tanh()).eval()
    original = copy.deepcopy(model)
    plan = pk.prune(model, X).plan
    for name, layer, after in (("a", original.a, original.b), ("b", original.b, original.c)):
        gone = [unit for unit in range(layer.out_features) if unit not in plan.kept[name]]
        layer.weight.data[gone] = 0
        layer.bias.data[gone] = 0
        after.weight.data[:, gone] = 0
    expected, found = original(X), model(X)
    torch.testing.assert_close(found["energy"], expected["energy"])
    torch.testing.assert_close(found["forces"], expected["forces"])


@pytest.mark.slow
def test_a_small_interatomic_potential() -> None:
    class Potential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(5, 16)
            self.filter = nn.Sequential(nn.Linear(8, 24), nn.SiLU(), nn.Linear(24, 16))
            self.out = nn.Sequential(nn.Linear(16, 12), nn.Softplus(), nn.Linear(12, 1))

        def forward(self, pos: torch.Tensor) -> Any:
            pos = pos.detach().requires_grad_(True)
            distances = (pos[:, None] - pos[None] + 1e-3).square().sum(-1).sqrt()
            radial = torch.exp(-((distances[..., None] - torch.linspace(0, 3, 8)) ** 2))
            hidden = self.emb(torch.arange(len(pos)) % 5)
            hidden = hidden + (self.filter(radial) * hidden[None]).sum(1)
            energy = self.out(hidden).sum()
            return energy, -torch.autograd.grad(energy, pos)[0]

    torch.manual_seed(0)
    check(Potential(), (16, 8), (24, 12), (12, 6))


def test_convolutions_and_norms() -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(3, 16, 3, padding=1), nn.Conv1d(16, 8, 1)
            self.norm, self.c = nn.LayerNorm(8), nn.Linear(8, 1)

        def forward(self, x: torch.Tensor) -> Any:
            x = x.t()[None].detach().requires_grad_(True)
            energy = self.c(self.norm(F.silu(self.b(F.gelu(self.a(x)))).transpose(1, 2))).sum()
            return energy, torch.autograd.grad(energy, x)[0]

    torch.manual_seed(0)
    check(Waves(), (16, 8), (8, 4))


def test_backward_in_the_forward_leaves_no_gradients_in_the_model() -> None:
    torch.manual_seed(0)
    model = Energy(backward, nn.Tanh())
    check(model, (32, 16), (16, 8))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_programs_that_look_at_values_too() -> None:
    def picky(m: Energy, x: torch.Tensor) -> Any:
        if x.sum().item() > 1e9:
            raise ValueError("out of bounds")
        return forces(m, x)

    torch.manual_seed(0)
    notes = check(Energy(picky, nn.Tanh()), (32, 16), (16, 8)).report.notes
    assert "the program depends on values: recorded on real tensors instead of fake ones" in notes


def test_what_has_no_derivative_rule_is_pinned_and_named() -> None:
    def resampled(m: Energy, x: torch.Tensor) -> Any:
        x = x.detach().requires_grad_(True)
        hidden = F.interpolate(m.a(x)[None], 32, mode="linear")[0]
        return torch.autograd.grad(m.c(m.act(m.b(hidden))).sum(), x)[0]

    report = pk.prune(Energy(resampled, nn.Tanh()), X).report
    assert report.pruned == {"b": (16, 8)}
    assert report.not_understood[0].startswith(
        "aten::upsample_linear1d_backward in the model: no rule for this operation"
    )
