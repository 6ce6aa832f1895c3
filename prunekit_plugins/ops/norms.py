"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunekit_core import Axis, Kind, OpCall, Role, Rule, TensorArgument, Verb, split


def channel_norm(call: OpCall) -> list[Axis]:
    """BatchNorm and InstanceNorm treat each channel by itself: slicing commutes."""
    source: TensorArgument = call["input"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        _along(call, source.axes[1], call.get(name))
    if "use_input_stats" in call:
        call.pin(source.axes[2:], "a spatial dim")
    return list(source.axes)


def _along(call: OpCall, axis: Axis, parameter: TensorArgument | None) -> None:
    if parameter is not None:
        call.tie(axis, parameter.axes[0])
        call.role(parameter.axes[0], Role.ALONG)


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
            for axis, own in zip(normalized, parameter.axes, strict=True):
                call.tie(axis, own)
                call.role(own, Role.ALONG)
    return list(source.axes)


RULES: Mapping[str | torch.Tag, Rule] = {
    "aten::batch_norm": channel_norm,
    "aten::instance_norm": channel_norm,
    "aten::native_batch_norm": channel_norm,
    "aten::_native_batch_norm_legit": channel_norm,
    "aten::_native_batch_norm_legit_no_training": channel_norm,
    "aten::group_norm": group_norm,
    "aten::layer_norm": layer_norm,
    "aten::native_layer_norm": layer_norm,
    "aten::rms_norm": layer_norm,
    "aten::_fused_rms_norm": layer_norm,
}
