"""ReplaceMe (Shopkhoev et al., "Network Simplification via Depth Pruning and Transformer Block Linearization", 2025).

A run of n layers goes whose end is nearest to its beginning in the mean cosine of the stream. A linear map takes its
place: with M what the MLP before the run adds, Y the stream without that, and L the stream after the run,
``T = argmin |M T + Y - L|^2 + ridge |T|^2``, which goes into that MLP's down projection.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .budget import Budget, layers_to_go
from .decoder import drop_layers, layers_of
from .evidence import Evidence
from .least_squares import RIDGE, damped


def best_run(streams: list[Tensor], count: int) -> int:
    """The first layer of the run: at least 1, so that a layer is before it."""
    distances = [
        float(1 - nn.functional.cosine_similarity(streams[first], streams[first + count], dim=1).mean())
        for first in range(1, len(streams) - count)
    ]
    return 1 + min(range(len(distances)), key=distances.__getitem__)


def transform(added: Tensor, wanted: Tensor) -> Tensor:
    """Least squares of ``added T = wanted``, ``[width, width]``; both are ``[tokens, width]``."""
    factor = torch.linalg.cholesky(damped(added.T @ added, RIDGE))
    return torch.cholesky_solve(added.T @ wanted, factor)


def prune(model: Any, evidence: Evidence, budget: Budget) -> None:
    """Cuts a copy of the model that the evidence is of."""
    count = layers_to_go(evidence.sizes, budget)
    streams = evidence.streams
    first = best_run(streams, count)
    before = layers_of(model)[first - 1]
    parts: list[Tensor] = []
    hook = before.mlp.register_forward_hook(lambda _, args, out: parts.append(out.flatten(0, 1)))
    with torch.no_grad():
        for ids in evidence.batches:
            model.model(input_ids=ids, use_cache=False)
    hook.remove()
    added = torch.cat(parts)
    rest = streams[first] - added
    down = before.mlp.down_proj
    down.weight.data.copy_(transform(added, streams[first + count] - rest).T @ down.weight.detach())
    drop_layers(model, range(first, first + count))
