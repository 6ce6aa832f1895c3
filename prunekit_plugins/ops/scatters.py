"""Writing by position: dims that are addressed are pinned, all others are shared by what is written and its place."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs
import torch

from prunekit.plugin import (
    Axis,
    AxisMismatchError,
    OpCall,
    Operands,
    OpRule,
    Rule,
    Scaling,
    TensorArgument,
    TensorRef,
    look_up,
    regroup,
)
from prunekit_plugins.ops.masks import dealt_out, equal_tail, is_mask, rows_of
from prunekit_plugins.ops.names import aten
from prunekit_plugins.ops.pointwise import broadcast

WRITTEN = "its positions are written by index"
DEALT = "its elements are dealt out one after another"


def index_put(call: OpCall) -> list[Axis]:
    """``x[i, j] = values``: values have the looked-up dims where the indices stood, or first, and all other dims."""
    target: TensorArgument = call["self"]
    values: TensorArgument = call["values"]
    entries = [entry for entry in call["indices"] if isinstance(entry, TensorArgument)]
    if len(entries) == 1 and is_mask(entries[0]) and math.prod(values.shape) == 1:
        return _number_where(call, target, entries[0])
    dim, indexed, wide = 0, list[int](), 0
    passing: list[Axis] = []
    for entry in call["indices"]:
        width = 1
        if isinstance(entry, TensorArgument):
            masks = is_mask(entry)
            width = entry.ndim if masks else 1
            wide = max(wide, 1 if masks else entry.ndim)
            places = range(dim, dim + width)
            indexed.extend(places)
            if masks and len(entries) == 1:
                passing = dealt_out(call, entry, [target.axes[d] for d in places], WRITTEN)
            else:
                call.pin([*entry.axes, *(target.axes[d] for d in places)], WRITTEN)
        dim += width
    kept: list[int | None] = [d for d in range(target.ndim) if d not in indexed]
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1)) if indexed else True
    first = indexed[0] if indexed and adjacent else 0
    kept_places: list[int | None] = [*kept[:first], *([None] * wide), *kept[first:]]
    for back in range(1, values.ndim + 1):
        place = kept_places[-back]
        if place is None:
            _tie_dealt(call, values.axes[-back], passing)
        elif values.shape[-back] == target.shape[place]:
            call.tie(target.axes[place], values.axes[-back])
    return list(target.axes)


def _number_where(call: OpCall, target: TensorArgument, mask: TensorArgument) -> list[Axis]:
    """``x[mask] = number`` is pointwise, like ``masked_fill``: the mask shares the dims that it covers."""
    first = next(place for place, entry in enumerate(call["indices"]) if entry is not None)
    for own, other in zip(mask.axes, target.axes[first:], strict=False):
        call.tie(own, other)
    return list(target.axes)


def _tie_dealt(call: OpCall, values: Axis, passing: list[Axis]) -> None:
    """Values for the true positions of a mask, one after another: rows of the dims along which the mask is the same."""
    width = math.prod(axis.size for axis in passing)
    if values.size <= 1 or width <= 1:
        call.pin(values, WRITTEN)
        return
    rows, *own = regroup([values], [values.size // width, *(axis.size for axis in passing)])
    call.pin(rows, WRITTEN)
    for axis, other in zip(passing, own, strict=True):
        call.tie(axis, other)


def scatter(call: OpCall) -> list[Axis]:
    """Index and source share every dim with the target but the one along which positions are written."""
    target: TensorArgument = call["self"]
    dim = call["dim"] % max(1, target.ndim)
    chosen = call.domain(call["index"])
    if chosen is not None:
        look_up(target.axes[dim], chosen)
    for tensor in call.tensors():
        for position, axis in enumerate(tensor.axes):
            if position == dim:
                if tensor is not target or chosen is None:
                    call.pin(axis, WRITTEN)
            elif tensor.shape[position] == target.shape[position]:
                call.tie(target.axes[position], axis)
            else:
                call.pin([axis, target.axes[position]], "scattered in part")
    return list(target.axes)


def write_rows(call: OpCall) -> list[Axis]:
    """``index_add`` and its relatives write whole slices along one dim."""
    target: TensorArgument = call["self"]
    dim = call["dim"] % max(1, target.ndim)
    chosen = call.domain(call["index"])
    if chosen is not None:
        look_up(target.axes[dim], chosen)
    call.pin([*([] if chosen is not None else [target.axes[dim]]), *call["index"].axes], WRITTEN)
    source = call.get("source")
    if isinstance(source, TensorArgument):
        if source.ndim != target.ndim:
            raise AxisMismatchError("slices of another number of dims")
        for position, axis in enumerate(source.axes):
            if position == dim:
                call.pin(axis, WRITTEN)
            else:
                call.tie(target.axes[position], axis)
    return list(target.axes)


def masked_scatter(call: OpCall) -> list[Axis]:
    """Elements of the source go to the true positions of the mask, one after another.

    Along last dims over which the mask is the same, whole rows are dealt out: those dims are shared with the source.
    """
    target: TensorArgument = call["self"]
    mask: TensorArgument = call["mask"]
    source: TensorArgument = call["source"]
    count = equal_tail(call, mask, target.shape)
    tail = list(target.axes[target.ndim - count :])
    width, elements = math.prod(axis.size for axis in tail), math.prod(source.shape)
    if call.shape != target.shape or not width or not elements or elements % width:
        return flat(call)[0]
    _masked_rows(call, [target, mask], target.shape, count)
    rows, *own = regroup(source.axes, [elements // width, *(axis.size for axis in tail)])
    call.pin(rows, DEALT)
    for axis, other in zip(tail, own, strict=True):
        call.tie(axis, other)
    return list(target.axes)


def masked_select(call: OpCall) -> list[Axis]:
    """The true positions of the mask, one after another: rows of the last dims over which the mask is the same."""
    source: TensorArgument = call["self"]
    mask: TensorArgument = call["mask"]
    shape = torch.broadcast_shapes(source.shape, mask.shape)
    count = min(equal_tail(call, mask, shape), source.ndim)
    tail = _masked_rows(call, [source, mask], shape, count)
    return [rows_of(call, call.shape[0], tail, DEALT)]


def _masked_rows(call: OpCall, tensors: list[TensorArgument], shape: tuple[int, ...], count: int) -> list[Axis]:
    """Pins the dims of broadcast tensors but for the last ones, which are tied and returned."""
    for tensor in tensors:
        call.pin(tensor.axes[: max(0, tensor.ndim - count)], DEALT)
    ends = [attrs.evolve(t, shape=t.shape[-count:], axes=t.axes[-count:]) for t in tensors] if count else []
    return broadcast(call, ends, shape[len(shape) - count :])


def flat(call: OpCall) -> list[list[Axis]]:
    """Elements are numbered or dealt out one after another (``masked_select``, ``take``): nothing may go."""
    for tensor in call.tensors():
        call.pin(tensor.axes, DEALT)
    return [[call.fresh(size, DEALT) for size in shape] for shape in call.shapes]


def written_zeros(operands: Operands, dim: int) -> bool:
    """Zeros stay where zeros are written, and what is written has the target's dims."""
    written = next((operands[name] for name in ("values", "src", "source", "value") if operands[name] is not None), 0)
    if not isinstance(written, TensorRef):
        return written == 0 and operands.along(operands["self"], dim)
    return operands.along(operands["self"], dim) and operands.everywhere(written)


_ROWS = "index_copy index_fill index_reduce"
_FLAT = "take put"

RULES: Mapping[str | torch.Tag, Rule] = {
    "aten::index_put": OpRule(index_put, scaling=Scaling.WRITTEN, zeros=written_zeros),
    **aten("_index_put_impl_ _unsafe_index_put", OpRule(index_put, zeros=written_zeros)),
    **aten("scatter scatter_reduce", OpRule(scatter, zeros=written_zeros, positions="index")),
    "aten::scatter_add": OpRule(scatter, scaling=Scaling.WRITTEN, zeros=written_zeros, positions="index"),
    **aten(_ROWS, OpRule(write_rows, zeros=written_zeros, positions="index")),
    "aten::index_add": OpRule(write_rows, scaling=Scaling.WRITTEN, zeros=written_zeros, positions="index"),
    "aten::masked_scatter": OpRule(masked_scatter, zeros=written_zeros),
    "aten::masked_select": masked_select,
    **aten(_FLAT, flat),
}
