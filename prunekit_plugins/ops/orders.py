"""Operations that order positions along a dim: it is pinned (sorting, running extrema), or chosen from (``topk``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from prunekit.plugin import Axis, OpCall, OpRule, Rule, TensorArgument, is_pinned
from prunekit_plugins.ops.names import aten

ORDERED = "its positions are ordered by value"


def choose(call: OpCall) -> Sequence[Sequence[Axis]]:
    """``topk``: the dim that it chooses from is free, and the positions that it returns are positions along it."""
    source: TensorArgument = call["self"]
    if source.ndim:
        dim = call["dim"] % source.ndim
        call.choose(source, dim, call["k"], 1, dim)
        if not is_pinned(source.axes[dim]):
            rest = [
                axis if k != dim else call.fresh(call["k"], "counts the chosen ones")
                for k, axis in enumerate(source.axes)
            ]
            return [rest, rest]
    return ordered(call)


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


def sort(call: OpCall) -> Sequence[Sequence[Axis]]:
    """Sorted positions of another axis are positions of it."""
    call.numbers(call.domain(call["self"]))
    return ordered(call)


_ORDERED = "kthvalue mode cummax cummin logcumsumexp"
_EVERYTHING = "_unique _unique2 unique_dim unique_consecutive searchsorted bucketize multinomial"

RULES: Mapping[str | torch.Tag, Rule] = {
    "aten::topk": choose,
    "aten::sort": OpRule(sort, positions="self"),
    **aten(_ORDERED, ordered),
    **aten(_EVERYTHING, everything),
}
