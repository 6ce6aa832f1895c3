"""What criteria need before they can score, by their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import prunekit as pk

Prepare = Callable[[Any, nn.Module, torch.Tensor], None]


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
