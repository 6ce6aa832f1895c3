"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunekit.plugin import (
    Axis,
    Centring,
    Kind,
    OpCall,
    Operands,
    OpRule,
    Role,
    Rule,
    Scaling,
    TensorArgument,
    Verb,
    split,
)
from prunekit_plugins.ops.names import aten


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


def _like_contiguous(arguments: Mapping[str, Any]) -> torch.Tensor | None:
    """GroupNorm's and InstanceNorm's outputs are like their inputs, if the parameters fit."""
    source = _like_channels({"running_mean": None, "running_var": None, **arguments})
    if source is None or not source.is_contiguous() or source.shape[1] % arguments.get("num_groups", 1):
        return None
    own = [arguments[name] for name in ("weight", "bias") if arguments[name] is not None]
    return source if all(tensor.dtype == source.dtype for tensor in own) else None


def channel_norm(call: OpCall) -> list[Axis]:
    """BatchNorm and InstanceNorm treat each channel by itself: slicing along channels commutes.

    In train mode the statistics are taken over all other dims, so units that lie along one of them aren't exact there.
    Train mode isn't recorded for layers that tie the same axes in both, so this is said in eval mode as well.
    """
    source: TensorArgument = call["input"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        _along(call, source.axes[1], call.get(name))
    text = "" if call.get("training") else "its statistics in train mode"
    for axis in (source.axes[0], *source.axes[2:]):
        call.whole(axis, Verb.MIX, text)
    if "use_input_stats" in call:
        call.pin(source.axes[2:], "a spatial dim")
    return list(source.axes)


def _along(call: OpCall, axis: Axis, parameter: TensorArgument | None) -> None:
    if parameter is not None:
        call.tie(axis, parameter.axes[0])
        call.role(parameter, 0, Role.ALONG)


def channel_norm_zeros(operands: Operands, dim: int) -> bool:
    """Zero weight and bias make zeros; so do zeros that are normalised by their own statistics."""
    if operands.output or dim != 1:
        return False
    own = bool(operands["training"]) or bool(operands["use_input_stats"]) or operands["running_mean"] is None
    scaled = operands.along(operands["weight"], 0) or (own and operands.along(operands["input"], 1))
    return scaled and (operands["bias"] is None or operands.along(operands["bias"], 0))


def group_norm_zeros(operands: Operands, dim: int) -> bool:
    """Zero weight and bias make zeros."""
    bias = operands["bias"]
    zero = dim == 1 and not operands.output and operands.along(operands["weight"], 0)
    return zero and (bias is None or operands.along(bias, 0))


def layer_norm_zeros(operands: Operands, dim: int) -> bool:
    """Zero weight and bias make zeros along a dim that is normalised; all zeros make the bias."""
    if operands.output:
        return False
    weight, bias = operands["weight"], operands["bias"]
    own = dim - len(operands.shape) + len(operands["normalized_shape"])
    if own < 0:
        return bias is None and operands.along(operands["input"], dim)
    scaled = operands.along(weight, own)
    if "bias" not in operands.operation.arguments:  # RMSNorm subtracts no mean
        scaled = scaled or operands.along(operands["input"], dim)
    return scaled and (bias is None or operands.along(bias, own))


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


def weight_norm_zeros(operands: Operands, dim: int) -> bool:
    """A direction of length zero counts as zero, and so does anything of length zero."""
    return not operands.output and any(operands.along(operands[name], dim) for name in ("v", "g"))


_RUNNING_MEAN = Centring("input", "running_mean", "training")

RULES: Mapping[str | torch.Tag, Rule] = {
    "aten::batch_norm": OpRule(
        channel_norm, like=_like_channels, scaling=Scaling.CHANNELS, zeros=channel_norm_zeros, centres=_RUNNING_MEAN
    ),
    "aten::instance_norm": OpRule(
        channel_norm, like=_like_contiguous, scaling=Scaling.CHANNELS, zeros=channel_norm_zeros
    ),
    **aten(
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training",
        OpRule(channel_norm, zeros=channel_norm_zeros),
    ),
    "aten::group_norm": OpRule(group_norm, like=_like_contiguous, scaling=Scaling.CHANNELS, zeros=group_norm_zeros),
    "aten::layer_norm": OpRule(layer_norm, like=_like_normalized, scaling=Scaling.ALONG, zeros=layer_norm_zeros),
    "aten::native_layer_norm": OpRule(layer_norm_with_statistics, zeros=layer_norm_zeros),
    "aten::_weight_norm_interface": OpRule(weight_norm, zeros=weight_norm_zeros),
    "aten::rms_norm": OpRule(layer_norm, like=_like_normalized, scaling=Scaling.ALONG, zeros=layer_norm_zeros),
    "aten::_fused_rms_norm": OpRule(layer_norm_with_statistics, zeros=layer_norm_zeros),
}
