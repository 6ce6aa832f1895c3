"""Convolutions, plain, grouped, depthwise and transposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunekit.plugin import (
    Axis,
    Kind,
    OpCall,
    Operands,
    OpRule,
    ReasonKind,
    Role,
    Rule,
    Scaling,
    TensorArgument,
    Verb,
    product,
    split,
)
from prunekit_plugins.ops import readings, windows
from prunekit_plugins.ops.names import aten


def _like_convolved(arguments: Mapping[str, Any]) -> tuple[torch.Tensor, Sequence[int]] | None:
    """The shape of a plain convolution's output, if its operands are batched, contiguous, of one dtype, and fit."""
    source, weight, bias, groups = (arguments[name] for name in ("input", "weight", "bias", "groups"))
    settings = arguments["stride"], arguments["padding"], arguments["dilation"]
    if source.dtype != weight.dtype or not source.is_contiguous() or not weight.is_contiguous():
        return None
    if not 2 < source.dim() == weight.dim():
        return None
    batch, channels, *places = source.shape
    out, into, *kernels = weight.shape
    if channels != into * groups or out % groups or isinstance(settings[1], str):
        return None
    if bias is not None and bias.shape != (out,):
        return None
    sizes = windows.counts(places, kernels, *(windows.each(setting, len(places)) for setting in settings))
    return (source, [batch, out, *sizes]) if min(sizes) > 0 else None


def convolution(call: OpCall) -> list[Axis]:
    """Channels in ``G x i``, channels out ``G x o``; kernel and spatial dims are pinned, but where a kernel is 1."""
    return _convolve(call, transposed=False)


def transposed_convolution(call: OpCall) -> list[Axis]:
    """The weight is ``[in, out / groups, ...]``."""
    return _convolve(call, transposed=True)


def general_convolution(call: OpCall) -> list[Axis]:
    """``aten::convolution`` says itself whether it is transposed."""
    return _convolve(call, transposed=call["transposed"])


def _convolve(call: OpCall, *, transposed: bool) -> list[Axis]:
    source: TensorArgument = call["input"]
    weight: TensorArgument = call["weight"]
    bias: TensorArgument | None = call["bias"]
    groups: int = call["groups"]
    spatial = weight.ndim - 2
    dim = source.ndim - spatial - 1
    into, out = (weight.axes[0], weight.axes[1]) if transposed else (weight.axes[1], weight.axes[0])
    call.role(weight, 0 if transposed else 1, Role.IN)
    call.role(weight, 1 if transposed else 0, Role.OUT)
    if groups == 1:
        call.tie(source.axes[dim], into)
        result = out
    else:
        result = _tie_groups(call, source.axes[dim], weight, groups, transposed=transposed)
    if not weight.parameter:
        call.whole(into, Verb.CONTRACT, operands=((source, dim), (weight, 0 if transposed else 1)))
    call.kind(out, Kind.CHANNELS)
    if bias is not None:
        call.tie(result, bias.axes[0])
        call.role(bias, 0, Role.ALONG)
    call.pin(weight.axes[2:], "a kernel dim", kind=ReasonKind.KERNEL)
    places = list(source.axes[dim + 1 :])
    for position, size in enumerate(call.shape[dim + 1 :]):
        if not _one_by_one(call, weight.shape[2 + position], position):
            call.pin(places[position], "a spatial dim")
            places[position] = call.fresh(size, "a spatial dim")
    return [*source.axes[:dim], result, *places]


def _one_by_one(call: OpCall, kernel: int, position: int) -> bool:
    """Whether each place along a spatial dim is convolved by itself: a kernel, a step and no margin."""

    def number(argument: str, usual: int) -> int:
        given = call.get(argument, usual)
        if isinstance(given, str):
            return usual
        return given if isinstance(given, int) else int(given[position if len(given) > 1 else 0])

    margins = number("padding", 0) + number("output_padding", 0)
    return kernel == 1 and number("stride", 1) == 1 and not margins


def _tie_groups(call: OpCall, channels: Axis, weight: TensorArgument, groups: int, *, transposed: bool) -> Axis:
    outer, inner = split(channels, groups, channels.size // groups)
    weight_groups, rest = split(weight.axes[0], groups, weight.shape[0] // groups)
    call.tie(outer, weight_groups)
    if transposed:
        call.tie(inner, rest)
        made = weight.axes[1]
        result = product([weight_groups, made])
    else:
        call.tie(inner, weight.axes[1])
        made, result = rest, weight.axes[0]
    call.kind(weight_groups, Kind.CHANNELS if inner.size == 1 else Kind.CONV_GROUPS)
    if inner.size == 1:
        call.kind(made, Kind.COPIES)
    call.expect("groups", [weight_groups])
    return result


def convolved_zeros(operands: Operands, dim: int) -> bool:
    """A filter makes a channel; what is zero for all channels gets the bias."""
    weight, bias = operands["weight"], operands["bias"]
    if dim == len(operands.shape) - operands.ndim(weight) + 1:
        held = operands.dims(weight)
        turned = bool(operands["transposed"]) or "conv_transpose" in operands.operation.name
        rows = 1 if turned and 1 in held else 0
        return operands.along(weight, rows) and (bias is None or operands.along(bias, 0))
    return bias is None and operands.along(operands["input"], dim)


_PLAIN = OpRule(
    convolution, like=_like_convolved, scaling=Scaling.ROWS, zeros=convolved_zeros, reads=readings.CONVOLUTION
)
_TRANSPOSED = OpRule(transposed_convolution, zeros=convolved_zeros, reads=readings.TRANSPOSED)

RULES: Mapping[str | torch.Tag, Rule] = {
    **aten("conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding", _PLAIN),
    **aten("conv_transpose1d conv_transpose2d conv_transpose3d", _TRANSPOSED),
    "aten::convolution": OpRule(general_convolution, zeros=convolved_zeros),
}
