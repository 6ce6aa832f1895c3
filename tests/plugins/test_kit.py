"""Everything built in goes through the kit that authors of plugins use; what the registry holds is what is tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.testing import check_compensator, check_cost, check_criterion, check_regularizer, check_schedule
from tests.plugins.test_layers import LAYERS, full_name

REGISTRY = pk.default_registry()
Prepare = Callable[[Any, nn.Module, torch.Tensor], None]


def names(hook: str) -> list[Any]:
    return [key for key, entry in REGISTRY.entries(hook).items() if entry.owner.distribution == "prunekit"]


def gradients(criterion: Any, model: nn.Module, batch: torch.Tensor) -> None:
    model.eval()(batch).square().sum().backward()


def activations(criterion: Any, model: nn.Module, batch: torch.Tensor) -> None:
    with criterion.compute_importance(model.eval()):
        model(batch)


def squares(criterion: Any, model: nn.Module, batch: torch.Tensor) -> None:
    criterion.zero_grad()
    for loss in model.eval()(batch).square().sum(1):
        model.zero_grad()
        loss.backward(retain_graph=True)
        criterion.accumulate_grad(model)


def factors(criterion: Any, model: nn.Module, batch: torch.Tensor) -> None:
    criterion.prepare_model(model.eval())
    model(batch).square().sum().backward()
    criterion.step()
    criterion.rm_hooks(model)


def statistics(criterion: Any, model: nn.Module, batch: torch.Tensor) -> None:
    criterion.statistics = pk.calibrate(model, [batch], parts=criterion.needs)


PREPARE: dict[str, Prepare] = {
    "activation": activations,
    "activation_energy": statistics,
    "activation_variance": statistics,
    "calibrated": statistics,
    "hessian": squares,
    "obdc": factors,
    "reconstruction": statistics,
    "taylor": gradients,
    "wanda": statistics,
}
"""What a criterion needs before it can score."""


@pytest.mark.parametrize("name", names("prunekit_importance"))
def test_criteria(name: str) -> None:
    make = REGISTRY.named("prunekit_importance", name)
    if name not in PREPARE:
        check_criterion(make, equivariant=name != "random")
        return
    criterion, prepare = make(), PREPARE[name]
    check_criterion(lambda: criterion, prepare=lambda model, batch: prepare(criterion, model, batch))


@pytest.mark.parametrize("name", names("prunekit_regularizers"))
def test_regularizers(name: str) -> None:
    check_regularizer(REGISTRY.named("prunekit_regularizers", name))


ESTIMATES = {"latency"}
"""Cost models whose prediction for a cut is no exact number."""


@pytest.mark.parametrize("name", names("prunekit_budgets"))
def test_cost_models(name: str) -> None:
    check_cost(REGISTRY.named("prunekit_budgets", name), exact=name not in ESTIMATES)


@pytest.mark.parametrize("name", names("prunekit_schedules"))
def test_schedules(name: str) -> None:
    check_schedule(REGISTRY.named("prunekit_schedules", name))


@pytest.mark.slow
@pytest.mark.parametrize("name", names("prunekit_compensators"))
def test_compensators(name: str) -> None:
    check_compensator(REGISTRY.named("prunekit_compensators", name))


def test_every_layer_type_is_tried_on_a_layer() -> None:
    tried = {key for make, _ in LAYERS for cls in type(make()).__mro__ for key in (cls, full_name(cls))}
    assert [key for key in names("prunekit_layer_types") if key not in tried] == []
