"""Outputs of two models of one library, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


def outputs_of(model: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Runs a model in eval mode and returns the tensor that it puts out, or those among its outputs, but for caches."""
    flags = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            found = model.eval()(**inputs)
    finally:
        for module, training in flags.items():
            module.training = training
    if isinstance(found, torch.Tensor):
        return [found]
    outputs = found if isinstance(found, list | tuple) else found.to_tuple()
    return [tensor for tensor in outputs if isinstance(tensor, torch.Tensor)]


def difference(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """Returns the largest difference, relative to the largest value: infinity for other shapes, NaN where one is."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return float("inf")
    worst = torch.zeros((), dtype=torch.float64, device="cpu")
    for a, b in zip(expected, found, strict=True):
        scale = a.double().abs().max().clamp(min=1e-30)
        worst = torch.maximum(worst, (a.double() - b.double()).abs().max().cpu() / scale.cpu())
    return float(worst)
