"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunekit_core import (
    Axis,
    Centring,
    Kind,
    OpCall,
    Role,
    Rule,
    Scaling,
    TensorArgument,
    Verb,
    centres,
    output_like,
    scales,
    split,
)


def _like_channels(arguments: Mapping[str, Any]) -> torch.Tensor | None:
    """BatchNorm's output is like its input, if its parameters fit."""
    source: torch.Tensor = arguments["input"]
    if source.dim() < 2:
        return None
    channels = source.shape[1:2]
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = arguments[name]
        if tensor is not None and tensor.shape != channels:
            return None
    return source


@output_like(_like_channels)
def batch_norm(call: OpCall) -> list[Axis]:
    return channel_norm(call)


def channel_norm(call: OpCall) -> list[Axis]:
    """BatchNorm and InstanceNorm treat each channel by itself: slicing commutes."""
    source: TensorArgument = call["input"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        _along(call, source.axes[1], call.get(name))
    if call.get("training"):
        for axis in (source.axes[0], *source.axes[2:]):
            call.whole(axis, Verb.MIX)
    if "use_input_stats" in call:
        call.pin(source.axes[2:], "a spatial dim")
    return list(source.axes)


def _along(call: OpCall, axis: Axis, parameter: TensorArgument | None) -> None:
    if parameter is not None:
        call.tie(axis, parameter.axes[0])
        call.role(parameter, 0, Role.ALONG)


def group_norm(call: OpCall) -> list[Axis]:
    """Channels ``G x i``: whole groups leave exactly; units inside the groups change the statistics."""
    source: TensorArgument = call["input"]
    groups: int = call["num_groups"]
    outer, inner = split(source.axes[1], groups, source.shape[1] // groups)
    call.whole(inner, Verb.MIX)
    if source.shape[1] > groups > 1:
        call.kind(outer, Kind.NORM_GROUPS)
    call.expect("num_groups", [outer])
    for name in ("weight", "bias"):
        _along(call, source.axes[1], call[name])
    call.pin(source.axes[2:], "a spatial dim")
    return list(source.axes)


def _like_normalized(arguments: Mapping[str, Any]) -> torch.Tensor | None:
    """LayerNorm's output is like its input, if the normalised shape and the parameters fit."""
    source: torch.Tensor = arguments["input"]
    shape = tuple(arguments["normalized_shape"])
    own = [t for t in (arguments.get("weight"), arguments.get("bias")) if t is not None]
    fits = tuple(source.shape[source.dim() - len(shape) :]) == shape and source.is_contiguous()
    return source if fits and all(tuple(t.shape) == shape and t.dtype == source.dtype for t in own) else None


@output_like(_like_normalized)
def single_layer_norm(call: OpCall) -> list[Axis]:
    return layer_norm(call)


def layer_norm(call: OpCall) -> list[Axis]:
    """LayerNorm and RMSNorm take statistics over the last dims."""
    source: TensorArgument = call["input"]
    normalized = source.axes[source.ndim - len(call["normalized_shape"]) :]
    for position, axis in enumerate(normalized):
        call.whole(axis, Verb.MIX)
        call.expect("normalized_shape", [axis], position)
    for name in ("weight", "bias"):
        parameter = call.get(name)
        if parameter is not None:
            for dim, axis in enumerate(normalized):
                call.tie(axis, parameter.axes[dim])
                call.role(parameter, dim, Role.ALONG)
    return list(source.axes)


def layer_norm_with_statistics(call: OpCall) -> list[list[Axis]]:
    """Mean and inverse deviation keep the dims that are not normalised."""
    result = layer_norm(call)
    lead = result[: len(result) - len(call["normalized_shape"])]
    statistics = [*lead, *(Axis(1) for _ in call["normalized_shape"])]
    return [result, *([statistics] * (len(call.shapes) - 1))]


def weight_norm(call: OpCall) -> list[list[Axis]]:
    """``v g / |v|``: the norm is taken over all dims of ``v`` but one, along which ``g`` lies."""
    direction: TensorArgument = call["v"]
    length: TensorArgument = call["g"]
    own = call["dim"] % direction.ndim
    for dim, axis in enumerate(direction.axes):
        if length.ndim == direction.ndim and length.shape[dim] == direction.shape[dim]:
            call.tie(axis, length.axes[dim])
        if dim != own:
            call.whole(axis, Verb.MIX)
        call.role(direction, dim, Role.OUT if dim == own else Role.IN)
    call.role(length, own, Role.ALONG)
    return [list(direction.axes), list(length.axes)]


RULES: Mapping[str | torch.Tag, Rule] = {
    "aten::batch_norm": centres(Centring("input", "running_mean", "training"))(scales(Scaling.CHANNELS)(batch_norm)),
    "aten::instance_norm": scales(Scaling.CHANNELS)(channel_norm),
    "aten::native_batch_norm": channel_norm,
    "aten::_native_batch_norm_legit": channel_norm,
    "aten::_native_batch_norm_legit_no_training": channel_norm,
    "aten::group_norm": scales(Scaling.CHANNELS)(group_norm),
    "aten::layer_norm": scales(Scaling.ROWS)(single_layer_norm),
    "aten::native_layer_norm": layer_norm_with_statistics,
    "aten::_weight_norm_interface": weight_norm,
    "aten::rms_norm": scales(Scaling.ROWS)(layer_norm),
    "aten::_fused_rms_norm": layer_norm_with_statistics,
}
