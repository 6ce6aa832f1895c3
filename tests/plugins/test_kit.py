"""Everything built in goes through the kit that authors of plugins use; what the registry holds is what is tried."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit.testing import (
    check_allocator,
    check_command,
    check_compensator,
    check_cost,
    check_criterion,
    check_pruner,
    check_regularizer,
    check_schedule,
    check_serving_profile,
)
from prunekit_plugins.testing.network import mixture_net
from tests.models import small_llama
from tests.plugins.test_layers import LAYERS, full_name

REGISTRY = pk.default_registry()


def names(hook: str) -> list[Any]:
    return [key for key, entry in REGISTRY.entries(hook).items() if entry.owner.distribution == "prunekit"]


CHECKS = REGISTRY.entries("prunekit_checks")


@pytest.mark.parametrize("key", list(CHECKS), ids=lambda key: " ".join(map(str, key)))
def test_checks_that_plugins_declare(key: tuple[str, Any]) -> None:
    """Those of criteria that must be prepared, and of what needs a layer or a file."""
    CHECKS[key].value(REGISTRY)


@pytest.mark.parametrize("name", [n for n in names("prunekit_importance") if ("prunekit_importance", n) not in CHECKS])
def test_criteria(name: str) -> None:
    check_criterion(REGISTRY.named("prunekit_importance", name))


@pytest.mark.parametrize("name", names("prunekit_regularizers"))
def test_regularizers(name: str) -> None:
    check_regularizer(REGISTRY.named("prunekit_regularizers", name))


@pytest.mark.parametrize("name", [n for n in names("prunekit_budgets") if ("prunekit_budgets", n) not in CHECKS])
def test_cost_models(name: str) -> None:
    check_cost(REGISTRY.named("prunekit_budgets", name))


@pytest.mark.parametrize("name", names("prunekit_pruners"))
def test_pruners(name: str) -> None:
    check_pruner(REGISTRY.named("prunekit_pruners", name))


def test_serving_profiles() -> None:
    check_serving_profile(REGISTRY.named("prunekit_serving_profiles", "onnx"))
    model, example = small_llama(hidden_size=64, intermediate_size=256), {"input_ids": torch.tensor([[5, 9, 4, 33]])}
    for name in names("prunekit_serving_profiles"):
        check_serving_profile(REGISTRY.named("prunekit_serving_profiles", name), model=model, example=example)


@pytest.mark.parametrize("name", names("prunekit_allocators"))
def test_allocators(name: str) -> None:
    check_allocator(REGISTRY.named("prunekit_allocators", name))


@pytest.mark.parametrize("name", names("prunekit_commands"))
def test_commands(name: str) -> None:
    check_command(REGISTRY.named("prunekit_commands", name))


@pytest.mark.parametrize("name", names("prunekit_schedules"))
def test_schedules(name: str) -> None:
    check_schedule(REGISTRY.named("prunekit_schedules", name))


@pytest.mark.slow
@pytest.mark.parametrize("name", names("prunekit_compensators"))
def test_compensators(name: str) -> None:
    net, batch = mixture_net() if name == "merge_experts" else (None, None)
    check_compensator(REGISTRY.named("prunekit_compensators", name), model=net, example=batch)


def test_every_layer_type_is_tried_on_a_layer() -> None:
    tried = {key for make, _ in LAYERS for cls in type(make()).__mro__ for key in (cls, full_name(cls))}
    assert [key for key in names("prunekit_layer_types") if key not in tried] == []
