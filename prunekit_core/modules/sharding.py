"""Tensors in pieces on several processes: ``DTensor`` (``fully_shard``, ``parallelize_module``), and FSDP's modules."""

from __future__ import annotations

import sys

import torch
from torch import nn


def is_sharded(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor is a ``torch.distributed.tensor.DTensor``."""
    module = sys.modules.get("torch.distributed.tensor")  # without that module there are no such tensors
    return module is not None and isinstance(tensor, module.DTensor)


def shards_its_parameters(module: nn.Module) -> bool:
    """Tells whether a module is a ``FullyShardedDataParallel``: what its parameters are, no process knows in full."""
    package = sys.modules.get("torch.distributed.fsdp")  # without that module there are no such modules
    return package is not None and isinstance(module, package.FullyShardedDataParallel)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor's values in full, detached.

    Args:
        tensor: Any tensor. Of a ``DTensor`` the pieces are gathered from all processes of its mesh; each of them has to
            call this, in the same order.

    Returns:
        A plain tensor: the same memory for a plain tensor, a copy for a ``DTensor``.
    """
    if is_sharded(tensor):
        with torch.no_grad():
            full: torch.Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
        return full
    return tensor.detach()
