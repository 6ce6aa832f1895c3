"""How the layers are pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunekit import Role, UnitsError
from prunekit.plugin import Axis, LayerType, Layout, Opaque, OpCall, Resizing, check_indices, shrink_tensor

Layouts = Mapping[str, tuple[Layout, ...]]


def _kept(indices: Sequence[int], size: int, where: str) -> torch.Tensor:
    gone = set(check_indices(indices, size, where))
    if len(gone) == size:
        raise UnitsError("All units of a layer can't be removed.", where=where)
    return torch.tensor([unit for unit in range(size) if unit not in gone])


def prune_swish_out(layer: nn.Module, indices: Sequence[int]) -> nn.Module:
    """Removes units that a ScaledSwish produces."""
    kept = _kept(indices, layer.width, "ScaledSwish")
    shrink_tensor(layer.weight, {0: kept})
    shrink_tensor(layer.gain, {0: kept})
    layer.width = len(kept)
    return layer


def prune_swish_in(layer: nn.Module, indices: Sequence[int]) -> nn.Module:
    """Removes units that a ScaledSwish reads."""
    shrink_tensor(layer.weight, {1: _kept(indices, layer.weight.shape[1], "ScaledSwish")})
    return layer


def prune_clip(layer: nn.Module, indices: Sequence[int]) -> nn.Module:
    """Removes units that pass through a SoftClip."""
    shrink_tensor(layer.limit, {0: _kept(indices, len(layer.limit), "SoftClip")})
    return layer


def _attributes(module: nn.Module, resizing: Resizing) -> Mapping[str, Any]:
    return {"width": resizing.size("gain", 0)}


def _limits(module: nn.Module, layouts: Layouts) -> Layout:
    return layouts["limit"][0]


def _clip_rule(call: OpCall) -> list[Axis]:
    """The limits lie along the last dim."""
    x, limit = call["x"], call["limit"]
    call.tie(x.axes[-1], limit.axes[0])
    call.role(limit, 0, Role.ALONG)
    return list(x.axes)


def _clip_fake(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


SCALED_SWISH = LayerType(
    "scaled_swish",
    prune_out=prune_swish_out,
    prune_in=prune_swish_in,
    flat_out=lambda module, layouts: layouts["weight"][0],
    flat_in=lambda module, layouts: layouts["weight"][1],
    attributes=_attributes,
)
SOFT_CLIP = LayerType(
    "soft_clip",
    prune_out=prune_clip,
    prune_in=prune_clip,
    flat_out=_limits,
    flat_in=_limits,
    opaque=Opaque(_clip_rule, fake=_clip_fake),
)
