"""LLM-Pruner (Ma, Fang and Wang, NeurIPS 2023) with its first-order criterion, without training afterwards.

``I = sum |w * dL/dw|`` over all weights of a coupled unit: a neuron's rows of the gate and of the up projection and its
column of the down projection; a group's rows and columns of the four projections of attention. The same part goes of
each layer but the first four and the last two, as the authors do it (``block_wise``).
"""

from __future__ import annotations

from typing import Any

import torch

from .budget import Budget, same_part
from .decoder import cut
from .evidence import Evidence

FIRST, LAST = 4, 2


def prune(model: Any, evidence: Evidence, budget: Budget) -> None:
    """Cuts a copy of the model that the evidence is of."""
    sizes = evidence.sizes
    neurons, groups = torch.zeros(sizes.layers, sizes.hidden), torch.zeros(sizes.layers, sizes.groups)
    for number in range(sizes.layers):
        of = {
            name.split(".")[-2]: value
            for name, value in evidence.salience.items()
            if name.startswith(f"model.layers.{number}.") and value.dim() == 2
        }
        neurons[number] = of["gate_proj"].sum(1) + of["up_proj"].sum(1) + of["down_proj"].sum(0)
        units = (of["q_proj"].sum(1), of["k_proj"].sum(1), of["v_proj"].sum(1), of["o_proj"].sum(0))
        groups[number] = sum(part.view(sizes.groups, -1).sum(1) for part in units)
    cut(model, sizes, same_part(sizes, neurons, groups, budget, range(FIRST, sizes.layers - LAST)))
