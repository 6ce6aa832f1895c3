"""Fake quantisation, as quantisation-aware training does it: values are rounded, dims stay as they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunekit.plugin import Axis, AxisMismatchError, OpCall, OpRule, Role, Rule, TensorArgument, Verb
from prunekit_plugins.ops.names import aten


def per_tensor(call: OpCall) -> list[list[Axis]]:
    """One scale and one zero point for all elements; the mask tells which weren't clamped."""
    return [list(call["self"].axes)] * len(call.shapes)


def rounded(call: OpCall) -> list[Axis]:
    """As `per_tensor`, without a mask."""
    return list(call["self"].axes)


def per_channel(call: OpCall) -> list[list[Axis]]:
    """One scale and one zero point for each unit of a dim."""
    _along_channels(call, call["axis"], ("scale", "zero_point"))
    return per_tensor(call)


def observed(call: OpCall) -> list[list[Axis]]:
    """Running extrema are moved towards those of the tensor, which depend on all units but those they are kept for."""
    source: TensorArgument = call["self"]
    channels = call["ch_axis"] % source.ndim if call["per_row_fake_quant"] else None
    if channels is not None:
        _along_channels(call, channels, ("running_min", "running_max", "scale", "zero_point"))
    for dim, axis in enumerate(source.axes):
        if dim != channels:
            call.whole(axis, Verb.MIX)
    return per_tensor(call)


def _along_channels(call: OpCall, dim: int, names: tuple[str, ...]) -> None:
    source: TensorArgument = call["self"]
    for name in names:
        tensor: TensorArgument = call[name]
        if tensor.shape != (source.shape[dim],):
            raise AxisMismatchError(f"{name} of shape {tuple(tensor.shape)}, as before an observer has seen data")
        call.tie(source.axes[dim], tensor.axes[0])
        call.role(tensor, 0, Role.ALONG)


_PER_TENSOR = """
fake_quantize_per_tensor_affine_cachemask _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
_fake_quantize_learnable_per_tensor_affine
"""
_PER_CHANNEL = """
fake_quantize_per_channel_affine fake_quantize_per_channel_affine_cachemask _fake_quantize_learnable_per_channel_affine
"""
_OBSERVED = "_fused_moving_avg_obs_fq_helper fused_moving_avg_obs_fake_quant"

RULES: Mapping[str | torch.Tag, Rule] = {
    "aten::fake_quantize_per_tensor_affine": rounded,
    **aten(_PER_TENSOR, per_tensor),
    **aten(_PER_CHANNEL, OpRule(per_channel, numbers="zero_point")),
    **aten(_OBSERVED, OpRule(observed, numbers="zero_point")),
}
