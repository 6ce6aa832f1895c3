"""Pooling, interpolation, padding: operations on the trailing spatial dims, channel by channel."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from prunekit.plugin import (
    Axis,
    AxisMismatchError,
    OpCall,
    Operands,
    OpRule,
    Rule,
    Scaling,
    TensorArgument,
    concat,
    cut,
    is_pinned,
    product,
    split,
)
from prunekit_plugins.ops import windows
from prunekit_plugins.ops.names import aten
from prunekit_plugins.ops.pointwise import zeros_of_first


def spatial(call: OpCall) -> list[list[Axis]]:
    """Each channel by itself; how many trailing dims are spatial stands in the operation's name."""
    source: TensorArgument = call.tensors()[0]
    found = re.search(r"([123])d", call.name)
    if found is None:
        raise AxisMismatchError("the number of spatial dims can't be read from the operation's name")
    lead = source.ndim - int(found[1])
    call.pin(source.axes[lead:], "a spatial dim")
    return [
        [*source.axes[:lead], *(call.fresh(size, "a spatial dim") for size in shape[lead:])] for shape in call.shapes
    ]


def _like_averaged(arguments: Mapping[str, Any]) -> tuple[torch.Tensor, Sequence[int]] | None:
    """Adaptive pooling states the spatial sizes of its output."""
    source, size = arguments["self"], list(arguments["output_size"])
    return (source, [*source.shape[: -len(size)], *size]) if source.dim() > len(size) else None


def _like_pooled(spatial_dims: int) -> Callable[[Mapping[str, Any]], tuple[torch.Tensor, Sequence[int]] | None]:
    """Windows over so many dims: how many fit, for contiguous inputs of real numbers."""

    def like(arguments: Mapping[str, Any]) -> tuple[torch.Tensor, Sequence[int]] | None:
        source = arguments["self"]
        lead = source.dim() - spatial_dims
        if lead not in (1, 2) or not source.is_contiguous() or not source.is_floating_point():
            return None
        if arguments.get("ceil_mode"):
            return None
        names = ("kernel_size", "stride", "padding", "dilation")
        kernels, steps, margins, gaps = (windows.each(arguments.get(name, 1), spatial_dims) for name in names)
        steps = steps or kernels
        if min(*steps, *gaps) < 1 or any(2 * margin > kernel for margin, kernel in zip(margins, kernels, strict=True)):
            return None
        sizes = windows.counts(source.shape[lead:], kernels, steps, margins, gaps)
        return (source, [*source.shape[:lead], *sizes]) if min(sizes) > 0 else None

    return like


def _like_resized(arguments: Mapping[str, Any]) -> tuple[torch.Tensor, Sequence[int]] | None:
    """Pictures of a given size, or of the largest whole numbers of pixels that the factors reach, made contiguous."""
    source = arguments["input"] if "input" in arguments else arguments["self"]
    sizes, factors = arguments.get("output_size"), arguments.get("scale_factors")
    if not source.is_contiguous() or not source.is_floating_point():
        return None
    if sizes is None:
        sizes = [int(size * factor) for size, factor in zip(source.shape[2:], factors or (), strict=True)]
    return (source, [*source.shape[:2], *sizes]) if sizes and min(sizes) > 0 else None


def grid_sample(call: OpCall) -> list[Axis]:
    """Channels pass through; where to look is data."""
    source: TensorArgument = call["input"]
    grid: TensorArgument = call["grid"]
    call.tie(source.axes[0], grid.axes[0])
    call.pin([*source.axes[2:], *grid.axes[1:]], "a spatial dim")
    return [*source.axes[:2], *(call.fresh(size, "a spatial dim") for size in call.shape[2:])]


def im2col(call: OpCall) -> list[Axis]:
    """Patches: each channel brings its whole kernel window along."""
    source: TensorArgument = call["self"]
    window = call.shape[-2] // source.shape[-3]
    call.pin(source.axes[-2:], "a spatial dim")
    channels = product([source.axes[-3], call.fresh(window, "a kernel window")])
    return [*source.axes[:-3], channels, call.fresh(call.shape[-1], "the place of the window")]


def pad(call: OpCall) -> list[Axis]:
    """Padding a free dim puts pinned runs around it; negative padding cuts it."""
    source: TensorArgument = call["self"]
    result = list(source.axes)
    amounts: list[int] = list(call["pad"])
    constant = call.get("mode", "constant") == "constant"
    for position in range(len(amounts) // 2):
        before, after = amounts[2 * position : 2 * position + 2]
        dim = source.ndim - 1 - position
        if not before and not after:
            continue
        if not constant:
            call.pin(result[dim], "padded with its own values")
        if is_pinned(result[dim]):
            result[dim] = call.fresh(call.shape[dim], "a padded dim")
            continue
        if before < 0 or after < 0:
            size = source.shape[dim]
            points = sorted({0, max(0, -before), size - max(0, -after), size})
            parts = cut(result[dim], points)
            inside = points.index(max(0, -before))
            call.pin([part for part in parts if part is not parts[inside]], "cut off by a constant amount")
            result[dim] = parts[inside]
        margins = [call.fresh(max(0, amount), "padding") for amount in (before, after)]
        result[dim] = concat([margins[0], result[dim], margins[1]])
    return result


def padded_zeros(operands: Operands, dim: int) -> bool:
    """Padded with zeros, or with its own values."""
    return operands["value"] in (None, 0) and operands.along(operands["self"], dim)


def col2im(call: OpCall) -> list[Axis]:
    """Patches are put back: each channel takes its whole kernel window along."""
    source: TensorArgument = call["self"]
    channels, window = split(source.axes[-2], call.shape[-3], source.shape[-2] // call.shape[-3])
    call.pin([window, source.axes[-1]], "a kernel window")
    return [*source.axes[:-2], channels, *(call.fresh(size, "a spatial dim") for size in call.shape[-2:])]


def affine_grid(call: OpCall) -> list[Axis]:
    """Where to look, from one matrix for each picture."""
    theta: TensorArgument = call["theta"]
    call.pin(theta.axes[1:], "a matrix of a map")
    call.expect("size", [theta.axes[0]], 0)
    return [theta.axes[0], *(call.fresh(size, "a spatial dim") for size in call.shape[1:])]


def unpool(call: OpCall) -> list[Axis]:
    """Pictures are put back to where the largest pixels were; channels are shared with those places."""
    source, places = call["self"], call["indices"]
    lead = source.ndim - len(call["output_size"])
    for own, other in zip(source.axes[:lead], places.axes[:lead], strict=True):
        call.tie(own, other)
    call.pin([*source.axes[lead:], *places.axes[lead:]], "a spatial dim")
    return [*source.axes[:lead], *(call.fresh(size, "a spatial dim") for size in call.shape[lead:])]


_SPATIAL = """
_adaptive_avg_pool2d _adaptive_avg_pool3d
adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
"""
_RESIZED = """
upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
_upsample_bilinear2d_aa _upsample_bicubic2d_aa
"""

_CHANNELS_ASIDE = "it is the shape of the output, but for the number of channels, which nothing depends on"

RULES: Mapping[str | torch.Tag, Rule] = {
    **aten(
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
        OpRule(spatial, like=_like_averaged, scaling=Scaling.WHOLE),
    ),
    **aten(_SPATIAL, OpRule(spatial, scaling=Scaling.WHOLE)),
    **aten(_RESIZED, OpRule(spatial, like=_like_resized, scaling=Scaling.WHOLE)),
    **{
        f"aten::{kind}_pool{dims}d": OpRule(spatial, like=_like_pooled(dims), scaling=Scaling.WHOLE)
        for kind in ("avg", "max")
        for dims in (1, 2, 3)
    },
    **aten("grid_sampler grid_sampler_2d grid_sampler_3d", OpRule(grid_sample, zeros=zeros_of_first)),
    "aten::im2col": OpRule(im2col, zeros=zeros_of_first),
    "aten::col2im": OpRule(col2im, zeros=zeros_of_first),
    "aten::affine_grid_generator": OpRule(affine_grid, sizes={"size": _CHANNELS_ASIDE}),
    **aten("max_unpool2d max_unpool3d", OpRule(unpool, zeros=zeros_of_first)),
    **aten("pad constant_pad_nd", OpRule(pad, zeros=padded_zeros)),
}
