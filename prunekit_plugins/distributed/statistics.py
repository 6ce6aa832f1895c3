"""Criteria that look at data see a part of it on every process: their sums are added up."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from prunekit_core import ArgumentError, is_sharded
from prunekit_plugins.distributed.agreement import device_of, require_group


def reduce_statistics(criterion: Any, model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Adds up what a criterion gathered on all processes, so that it scores as if it had seen all data.

    Call it once, on every process, after the last batch and before the first score.

    Args:
        criterion: One with a method ``reduce(model, total)``, where ``total(tensor)`` returns the sum of a tensor over
            all processes: of the built-in ones those that gather squared gradients, activations or curvature. Taylor
            scores need none, as DDP and FSDP average the gradients that they read.
        model: This process's replica (the module inside of DDP).
        group: The processes; None for all.

    Raises:
        ArgumentError: The criterion gathers nothing that could be added up, or there is no process group.
    """
    require_group()
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise ArgumentError(
            "The gradients of a sharded model are averaged already.",
            where=type(model).__name__,
            hint="under fully_shard, run the same samples on all processes; there is nothing to add up then",
        )
    reduce = getattr(criterion, "reduce", None)
    if reduce is None:
        raise ArgumentError(
            "The criterion gathers no statistics that could be added up.",
            where=type(criterion).__name__,
            hint="criteria that read weights or averaged gradients need none; others need a reduce(model, total)",
        )
    device = device_of(group)

    def total(values: torch.Tensor) -> torch.Tensor:
        sent = values.detach().to(device, copy=True)
        dist.all_reduce(sent, group=group)
        return sent.to(values.device)

    reduce(model, total)
