"""Wanda-sp: Wanda for whole units (Sun et al., ICLR 2024; the structured form is a baseline of FLAP, AAAI 2024).

``S_j = sum_i |W[i, j]| * |x_j|_2`` for a feature j that a projection reads; the same part of each layer goes. The
weights stay as they were.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .budget import Budget, same_part
from .decoder import cut, readers
from .evidence import Evidence


def products(weight: Tensor, second: Tensor) -> Tensor:
    """Scores of features, ``[features]``."""
    return weight.abs().sum(0) * second.diagonal().sqrt()


def prune(model: Any, evidence: Evidence, budget: Budget) -> None:
    """Cuts a copy of the model that the evidence is of."""
    sizes = evidence.sizes
    neurons, groups = torch.zeros(sizes.layers, sizes.hidden), torch.zeros(sizes.layers, sizes.groups)
    for kind, number, linear in readers(evidence.model):
        found = products(linear.weight.detach(), evidence.moments[kind, number].second)
        if kind == "neurons":
            neurons[number] = found
        else:
            groups[number] = found.view(sizes.groups, sizes.group).sum(1)
    cut(model, sizes, same_part(sizes, neurons, groups, budget, range(sizes.layers)))
