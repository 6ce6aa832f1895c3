"""Writing by position: dims that are addressed are pinned, all others are shared by what is written and its place."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunekit_core import Axis, AxisMismatchError, OpCall, Rule, TensorArgument

WRITTEN = "its positions are written by index"


def index_put(call: OpCall) -> list[Axis]:
    """``x[i, j] = values``: values have the looked-up dims where the indices stood, or first, and all other dims."""
    target: TensorArgument = call["self"]
    values: TensorArgument = call["values"]
    dim, indexed, wide = 0, list[int](), 0
    for entry in call["indices"]:
        width = 1
        if isinstance(entry, TensorArgument):
            call.pin(entry.axes, "an index tensor")
            masks = entry.dtype in (torch.bool, torch.uint8)
            width = entry.ndim if masks else 1
            wide = max(wide, 1 if masks else entry.ndim)
            indexed.extend(range(dim, dim + width))
        dim += width
    call.pin([target.axes[d] for d in indexed], WRITTEN)
    kept: list[int | None] = [d for d in range(target.ndim) if d not in indexed]
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1)) if indexed else True
    first = indexed[0] if indexed and adjacent else 0
    places: list[int | None] = [*kept[:first], *([None] * wide), *kept[first:]]
    for back in range(1, values.ndim + 1):
        place = places[-back]
        if place is None:
            call.pin(values.axes[-back], WRITTEN)
        elif values.shape[-back] == target.shape[place]:
            call.tie(target.axes[place], values.axes[-back])
    return list(target.axes)


def scatter(call: OpCall) -> list[Axis]:
    """Index and source share every dim with the target but the one along which positions are written."""
    target: TensorArgument = call["self"]
    dim = call["dim"] % max(1, target.ndim)
    for tensor in call.tensors():
        for position, axis in enumerate(tensor.axes):
            if position == dim:
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
    call.pin([target.axes[dim], *call["index"].axes], WRITTEN)
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


def flat(call: OpCall) -> list[list[Axis]]:
    """Elements are numbered or dealt out one after another (``masked_select``, ``take``): nothing may go."""
    for tensor in call.tensors():
        call.pin(tensor.axes, "its elements are dealt out one after another")
    return [[call.fresh(size, "dealt out one after another") for size in shape] for shape in call.shapes]


_ROWS = "index_add index_copy index_fill index_reduce"
_FLAT = "masked_select masked_scatter nonzero take put bincount histc"

RULES: Mapping[str | torch.Tag, Rule] = {
    "aten::index_put": index_put,
    "aten::_index_put_impl_": index_put,
    "aten::_unsafe_index_put": index_put,
    **{f"aten::{name}": scatter for name in ("scatter", "scatter_add", "scatter_reduce")},
    **{f"aten::{name}": write_rows for name in _ROWS.split()},
    **{f"aten::{name}": flat for name in _FLAT.split()},
}
