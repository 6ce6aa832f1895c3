"""Masks of booleans that address positions of a tensor, and the dims along which they are the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from prunekit.plugin import Axis, OpCall, TensorArgument, product
from prunekit_plugins.ops.pointwise import same_along


def is_mask(index: TensorArgument) -> bool:
    """Tells whether an index is a mask, which covers as many dims as it has, and no list of positions."""
    return index.dtype in (torch.bool, torch.uint8)


def equal_tail(call: OpCall, mask: TensorArgument, shape: tuple[int, ...]) -> int:
    """Counts the last dims of a shape along which a mask that is broadcast to it is the same.

    Its true positions, one after another, are whole rows of these dims.
    """
    equal = same_along(call, mask, shape)
    count = 0
    while count < len(shape) and len(shape) - 1 - count in equal:
        count += 1
    return count


def dealt_out(call: OpCall, mask: TensorArgument, covered: Sequence[Axis], why: str) -> list[Axis]:
    """Pins the dims that a mask covers, but for the last ones along which it is the same: those are tied to it.

    Returns:
        The axes of these last dims.
    """
    count = equal_tail(call, mask, mask.shape)
    first = mask.ndim - count
    call.pin([*mask.axes[:first], *covered[:first]], why)
    for own, other in zip(covered[first:], mask.axes[first:], strict=True):
        call.tie(own, other)
    return list(covered[first:])


def rows_of(call: OpCall, count: int, tail: Sequence[Axis], why: str) -> Axis:
    """Makes the axis of some elements that are rows of the given dims, one after another."""
    width = math.prod(axis.size for axis in tail)
    if not count or not width:
        call.pin(tail, why)
        return call.fresh(count, why)
    return product([call.fresh(count // width, why), *tail])
