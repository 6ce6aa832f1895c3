"""What criteria need before they can score, by their names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.importance.checks import Prepare, activations, factors, gradients, squares


def statistics(criterion: Any, model: nn.Module, batch: torch.Tensor) -> None:
    criterion.statistics = pk.calibrate(model, [batch], parts=criterion.needs)


FROM_STATISTICS = ("activation_energy", "activation_variance", "calibrated", "reconstruction", "wanda")
PREPARE: dict[str, Prepare] = {
    **dict.fromkeys(FROM_STATISTICS, statistics),
    "activation": activations,
    "hessian": squares,
    "obdc": factors,
    "taylor": gradients,
}
