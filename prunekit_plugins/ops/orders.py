"""Operations that order positions along a dim (sorting, choosing the largest, running extrema): that dim is pinned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from prunekit.plugin import Axis, OpCall, Rule, TensorArgument
from prunekit_plugins.ops.names import aten

ORDERED = "its positions are ordered by value"


def ordered(call: OpCall) -> Sequence[Sequence[Axis]]:
    """The dim is pinned, all others pass; values and positions have the same dims."""
    source: TensorArgument = call["self"]
    if not source.ndim:
        return [[] for _ in call.shapes]
    dim = call["dim"] % source.ndim
    call.pin(source.axes[dim], ORDERED)
    result = []
    for shape in call.shapes:
        dims = list(source.axes)
        if len(shape) < source.ndim:
            del dims[dim]
        else:
            dims[dim] = call.fresh(shape[dim], ORDERED)
        result.append(dims)
    return result


def everything(call: OpCall) -> Sequence[Sequence[Axis]]:
    """Looks at all elements of its tensors in an order (``unique``, ``searchsorted``): all dims are pinned."""
    for tensor in call.tensors():
        call.pin(tensor.axes, ORDERED)
    return [[call.fresh(size, ORDERED) for size in shape] for shape in call.shapes]


_ORDERED = "topk sort kthvalue mode cummax cummin logcumsumexp"
_EVERYTHING = "_unique _unique2 unique_dim unique_consecutive searchsorted bucketize multinomial"

RULES: Mapping[str | torch.Tag, Rule] = {
    **aten(_ORDERED, ordered),
    **aten(_EVERYTHING, everything),
}
