"""Losses: predictions and targets are compared place by place, then averaged or summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from prunekit.plugin import Axis, AxisMismatchError, OpCall, Rule, TensorArgument, Verb
from prunekit_plugins.ops.names import aten
from prunekit_plugins.ops.pointwise import broadcast

UNREDUCED = 0
"""The number by which PyTorch's operations say that a loss is returned place by place."""


def placewise(call: OpCall) -> list[Axis]:
    """Squared errors and the like: operands broadcast; an average or a sum depends on all places."""
    tensors = call.tensors()
    shape = tuple(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))
    axes = broadcast(call, tensors, shape)
    if call["reduction"] == UNREDUCED:
        return axes
    for axis in axes:
        call.whole(axis, Verb.MIX)
    return []


def likelihood(call: OpCall) -> Sequence[Sequence[Axis]]:
    """Negative log likelihood: classes are looked up by their numbers, all other dims are shared with the targets."""
    source: TensorArgument = call["self"]
    target: TensorArgument = call["target"]
    classes = min(1, source.ndim - 1)
    call.pin(source.axes[classes], "classes are looked up by number")
    if call["weight"] is not None:
        call.tie(source.axes[classes], call["weight"].axes[0])
    others = [axis for dim, axis in enumerate(source.axes) if dim != classes]
    if len(others) != target.ndim:
        raise AxisMismatchError("predictions and targets have different dims")
    for own, other in zip(others, target.axes, strict=True):
        call.tie(own, other)
    if call["reduction"] == UNREDUCED:
        return [others, []]
    for axis in others:
        call.whole(axis, Verb.MIX)
    return [[], []]


_PLACEWISE = """
binary_cross_entropy binary_cross_entropy_with_logits huber_loss mse_loss smooth_l1_loss soft_margin_loss
"""

RULES: Mapping[str | torch.Tag, Rule] = {
    **aten(_PLACEWISE, placewise),
    **aten("nll_loss_forward nll_loss2d_forward", likelihood),
}
