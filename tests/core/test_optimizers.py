"""Optimizer state is cut with its parameters: training goes on as if the removed units had been zero all along."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import prunekit_core as pk
from tests.models import Chain, Residual

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_step_is_the_one_of_the_masked_model(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5, dtype=torch.float64)
    model = Chain(5, 8, 6, 3).double()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    train(model, optimizer, x, 3)
    masked = copy.deepcopy(model)
    masked_optimizer = OPTIMIZERS[name](list(masked.parameters()))
    masked_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    pruner = pk.BasePruner(model, x)
    parameters = list(model.parameters())
    plan = pruner.plan()
    plan.mask(masked)
    pruner.step(optimizer=optimizer)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    train(model, optimizer, x, 1)
    train(masked, masked_optimizer, x, 1)
    expected = plan.apply(masked)  # what the masked model's kept weights are after the same step
    for (key, found), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-12, atol=1e-14, msg=key)
    train(model, optimizer, x, 2)


def test_steps_and_buffers() -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, x, 2)
    pruner = pk.BasePruner(model, x, iterative_steps=3)
    for _ in range(3):
        pruner.step(optimizer=optimizer)
        for parameter in model.parameters():
            assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
            assert optimizer.state[parameter]["exp_avg_sq"].shape == parameter.shape
            assert float(optimizer.state[parameter]["step"]) >= 2
        train(model, optimizer, x, 1)


def test_factored_averages() -> None:
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, optimizer, x, 2)
    rows = optimizer.state[model.layers[0].weight]["row_var"].clone()
    result = pk.prune(model, x, optimizer=optimizer)
    kept = list(result.plan.kept["layers.0"])
    assert torch.equal(optimizer.state[model.layers[0].weight]["row_var"], rows[kept])
    train(model, optimizer, x, 2)


def test_parameters_that_the_optimizer_does_not_train() -> None:
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    optimizer = torch.optim.Adam(model.layers[1].parameters())
    train(model, optimizer, x, 1)
    pk.prune(model, x, optimizer=optimizer)
    assert set(optimizer.state) == set(model.layers[1].parameters())
    train(model, optimizer, x, 1)


def test_state_that_is_not_understood_stops_the_cut() -> None:
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    optimizer = torch.optim.LBFGS(model.parameters())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    state = copy.deepcopy(model.state_dict())
    pruner = pk.BasePruner(model, x)
    with pytest.raises(pk.PlanError, match="The state of the optimizer can't be cut") as caught:
        pruner.step(optimizer=optimizer)
    assert "make a new one" in str(caught.value)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert pruner.current_step == 0
    pruner.step()
    assert model.layers[0].out_features == 4


def test_an_optimizer_of_another_model() -> None:
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    other = torch.optim.Adam(Chain(5, 8, 3).parameters())
    with pytest.raises(pk.PlanError, match="not this model's"):
        pk.prune(model, x, optimizer=other)
    assert model.layers[0].out_features == 8
    with pytest.raises(pk.ArgumentError, match="interactive"):
        pk.BasePruner(model, x).step(interactive=True, optimizer=torch.optim.Adam(model.parameters()))
