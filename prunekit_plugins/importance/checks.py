"""How criteria are proven that are prepared by more than statistics, or don't look at the weights."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from prunekit.plugin import Registry
from prunekit_plugins.importance.activation import ActivationImportance
from prunekit_plugins.importance.chance import RandomImportance
from prunekit_plugins.importance.experts import (
    ExpertFrequencyImportance,
    ExpertReconstructionImportance,
    REAPImportance,
    ReroutingImportance,
)
from prunekit_plugins.importance.hessian import GroupHessianImportance
from prunekit_plugins.importance.obdc import OBDCImportance
from prunekit_plugins.importance.taylor import GroupTaylorImportance

HOOK = "prunekit_importance"
Prepare = Callable[[Any, nn.Module, torch.Tensor], None]


def declared() -> Mapping[tuple[str, Any], Callable[[Registry], None]]:
    """Returns the checks of these criteria by hook and name."""
    experts = {
        (HOOK, name): functools.partial(_check_experts, made)
        for name, made in (
            ("expert_frequency", ExpertFrequencyImportance),
            ("expert_reconstruction", ExpertReconstructionImportance),
            ("reap", REAPImportance),
            ("rerouting", ReroutingImportance),
        )
    }
    return {
        **experts,
        (HOOK, "activation"): functools.partial(_check, ActivationImportance, activations),
        (HOOK, "hessian"): functools.partial(_check, GroupHessianImportance, squares),
        (HOOK, "obdc"): functools.partial(_check, OBDCImportance, factors),
        (HOOK, "random"): lambda registry: _kit().check_criterion(
            RandomImportance, equivariant=False, registry=registry
        ),
        (HOOK, "taylor"): functools.partial(_check, GroupTaylorImportance, gradients),
    }


def _kit() -> Any:
    return importlib.import_module("prunekit.testing")  # which imports much that scoring doesn't need


def _check(make: Callable[[], Any], prepare: Prepare, registry: Registry) -> None:
    criterion = make()
    _kit().check_criterion(lambda: criterion, prepare=functools.partial(prepare, criterion), registry=registry)


def _check_experts(make: Callable[[], Any], registry: Registry) -> None:
    net, batch = importlib.import_module("prunekit_plugins.testing.network").mixture_net()
    _kit().check_criterion(make, model=net, example=batch, registry=registry)


def gradients(criterion: Any, model: nn.Module, batch: torch.Tensor) -> None:
    """Fills the gradients of the parameters."""
    model.eval()(batch).square().sum().backward()


def activations(criterion: Any, model: nn.Module, batch: torch.Tensor) -> None:
    """Shows the criterion the activations of a batch."""
    with criterion.compute_importance(model.eval()):
        model(batch)


def squares(criterion: Any, model: nn.Module, batch: torch.Tensor) -> None:
    """Shows the criterion the gradients of every example."""
    criterion.zero_grad()
    for loss in model.eval()(batch).square().sum(1):
        model.zero_grad()
        loss.backward(retain_graph=True)
        criterion.accumulate_grad(model)


def factors(criterion: Any, model: nn.Module, batch: torch.Tensor) -> None:
    """Shows the criterion the inputs of layers and the derivatives by their outputs."""
    criterion.prepare_model(model.eval())
    model(batch).square().sum().backward()
    criterion.step()
    criterion.rm_hooks(model)
