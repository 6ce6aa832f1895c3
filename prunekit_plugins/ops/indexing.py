"""Lookups: dims that are addressed by position are pinned, all others pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunekit.plugin import Axis, Kind, OpCall, Operands, OpRule, Role, Rule, Scaling, TensorArgument, look_up
from prunekit_plugins.ops.masks import dealt_out, is_mask, rows_of
from prunekit_plugins.ops.names import aten

LOOKED_UP = "its positions are looked up"


def looked_up(call: OpCall, axis: Axis, indices: TensorArgument, why: str = LOOKED_UP) -> bool:
    """Ties an axis to the one whose positions the indices are; where they are no such positions, it is pinned.

    Returns:
        Whether it was tied.
    """
    chosen = call.domain(indices)
    if chosen is None:
        call.pin(axis, why)
    else:
        look_up(axis, chosen)
    return chosen is not None


def embedding(call: OpCall) -> list[Axis]:
    """Rows are looked up; the columns are produced."""
    weight, indices = call["weight"], call["indices"]
    looked_up(call, weight.axes[0], indices, "its rows are looked up")
    call.role(weight, 0, Role.IN)
    call.role(weight, 1, Role.OUT)
    call.kind(weight.axes[1], Kind.NEURONS)
    return [*indices.axes, weight.axes[1]]


def embedding_bag(call: OpCall) -> list[list[Axis]]:
    """Sums, means or maxima of looked-up rows; the further outputs are bookkeeping."""
    weight = call["weight"]
    for tensor in call.tensors():
        if tensor is not weight:
            call.pin(tensor.axes, "an index tensor")
    call.pin(weight.axes[0], "its rows are looked up")
    call.role(weight, 0, Role.IN)
    call.role(weight, 1, Role.OUT)
    call.kind(weight.axes[1], Kind.NEURONS)
    rest = [[call.fresh(size, "bookkeeping of the bags") for size in shape] for shape in call.shapes[1:]]
    return [[call.fresh(call.shape[0], "counts the bags"), weight.axes[1]], *rest]


def pack(call: OpCall) -> list[list[Axis]]:
    """Sequences of a batch are laid out step by step: batch and steps become one dim, all others pass."""
    source: TensorArgument = call["input"]
    call.pin([*source.axes[:2], *call["lengths"].axes], "laid out step by step")
    packed, counts = (shape[0] for shape in call.shapes)
    return [[call.fresh(packed, "laid out step by step"), *source.axes[2:]], [call.fresh(counts, "counts the steps")]]


def index(call: OpCall) -> list[Axis]:
    """Advanced indexing: indexed dims are pinned; the looked-up dims stand where the indices stood, or first.

    A dim that is indexed by positions of a chosen axis is that axis.
    Last dims of a mask along which it is the same aren't: whole rows of them are taken.
    """
    source: TensorArgument = call["self"]
    entries = [entry for entry in call["indices"] if isinstance(entry, TensorArgument)]
    dim, indexed = 0, list[int]()
    rows: Axis | None = None
    chosen: list[Axis] | None = None  # the dims of a single index that holds positions of a chosen axis
    for entry in call["indices"]:
        width = 1
        if isinstance(entry, TensorArgument):
            width = entry.ndim if is_mask(entry) else 1
            places = range(dim, dim + width)
            indexed.extend(places)
            if is_mask(entry) and len(entries) == 1:
                tail = dealt_out(call, entry, [source.axes[d] for d in places], LOOKED_UP)
                rows = rows_of(call, call.shape[dim], tail, "looked up by position")
            else:
                if is_mask(entry):
                    call.pin([source.axes[d] for d in places], LOOKED_UP)
                    alone = False
                else:
                    alone = looked_up(call, source.axes[dim], entry) and len(entries) == 1
                if alone:
                    chosen = list(entry.axes)
                else:
                    call.pin(entry.axes, LOOKED_UP)
        dim += width
    call.numbers(call.domain(source))
    kept = [d for d in range(source.ndim) if d not in indexed]
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1)) if indexed else True
    first = (indexed[0] if adjacent else 0) if indexed else 0
    width = len(call.shape) - len(kept)
    found = [call.fresh(size, "looked up by position") for size in call.shape[first : first + width]]
    if rows is not None:
        found = [rows]
    elif chosen is not None:
        found = chosen
    before = [source.axes[d] for d in kept if adjacent and d < first]
    after = [source.axes[d] for d in kept if not (adjacent and d < first)]
    return [*before, *found, *after]


def index_select(call: OpCall) -> list[Axis]:
    source: TensorArgument = call["self"]
    tied = looked_up(call, source.axes[call["dim"]], call["index"]) and call["index"].ndim
    call.numbers(call.domain(source))
    result = list(source.axes)
    found = call.fresh(call.shape[call["dim"]], "looked up by position")
    result[call["dim"]] = call["index"].axes[0] if tied else found
    return result


def gather(call: OpCall) -> list[Axis]:
    """The gathered dim is pinned; other dims are shared with the index."""
    source, indices = call["self"], call["index"]
    dim = call["dim"] % source.ndim
    looked_up(call, source.axes[dim], indices)
    call.pin(indices.axes[dim], LOOKED_UP)
    call.numbers(call.domain(source))
    for position, (own, other) in enumerate(zip(source.axes, indices.axes, strict=True)):
        if position != dim:
            if source.shape[position] == indices.shape[position]:
                call.tie(own, other)
            else:
                call.pin([own, other], "gathered in part")
    return list(indices.axes)


def _like_looked_up(arguments: Mapping[str, Any]) -> tuple[torch.Tensor, list[int]] | None:
    """An embedding has a row of the weight for each index."""
    weight, indices = arguments["weight"], arguments["indices"]
    if weight.dim() != 2 or indices.dtype not in (torch.int64, torch.int32):
        return None
    return weight, [*indices.shape, weight.shape[1]]


def row_zeros(operands: Operands, dim: int) -> bool:
    """Rows are looked up: what is zero in all of them is zero in the result."""
    return operands.output == 0 and dim == len(operands.shape) - 1 and operands.along(operands["weight"], 1)


RULES: Mapping[str | torch.Tag, Rule] = {
    "aten::embedding": OpRule(
        embedding, like=_like_looked_up, scaling=Scaling.WHOLE, zeros=row_zeros, positions="indices"
    ),
    **aten("embedding_bag _embedding_bag _embedding_bag_forward_only", OpRule(embedding_bag, zeros=row_zeros)),
    "aten::_pack_padded_sequence": pack,
    **aten("index _unsafe_index", OpRule(index, scaling=Scaling.WHOLE, positions=("self", "indices"))),
    "aten::index_select": OpRule(index_select, scaling=Scaling.WHOLE, positions=("self", "index")),
    "aten::gather": OpRule(gather, scaling=Scaling.WHOLE, positions=("self", "index")),
}
