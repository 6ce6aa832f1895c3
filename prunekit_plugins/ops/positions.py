"""Positions: integers that number the units of an axis, compared, counted and found again."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunekit.plugin import (
    ELEMENTWISE,
    Axis,
    OpCall,
    Operands,
    OpRule,
    Rule,
    Scaling,
    TensorArgument,
    cut,
    look_up,
    resolve,
)
from prunekit_plugins.ops.names import aten
from prunekit_plugins.ops.pointwise import pointwise, zeros_of_first
from prunekit_plugins.ops.scatters import flat

KNOWN_BY_NUMBER = "one of its positions is told apart from the others"
COUNTED = "positions are counted in a way that isn't understood"
NOT_CHOSEN = "it is gone through in order, and isn't zero for units that weren't chosen"

_FIRST_BEYOND = {"ge": 0, "lt": 0, "gt": 1, "le": 1}
"""Comparisons that split an axis in two, with the distance from the number to the first position of the second part."""


def compared(call: OpCall) -> list[Axis]:
    """Positions compared with a number have to lie on its two sides as before; with 0, 1, 2, ... they are marked."""
    source, other = call["self"], call["other"]
    first, second = call.domain(source), call.domain(other)
    if first is not None and second is not None:
        _same(call, first, second)
    elif isinstance(other, TensorArgument):
        _one_hot(call, source, other)
    elif call.domain(source) is not None:
        _bounded(call, source, other)
    return pointwise(call)


def _same(call: OpCall, first: Axis, second: Axis) -> None:
    """Whether two positions are the same unit, or in which order they stand, is so with fewer units as well."""
    call.tie(first, second)


def _bounded(call: OpCall, source: TensorArgument, number: object) -> None:
    axis = call.domain(source)
    assert axis is not None
    size, kind = resolve(axis).size, call.name.removeprefix("aten::").partition(".")[0]
    if not isinstance(number, int) or isinstance(number, bool):
        call.pin(axis, KNOWN_BY_NUMBER)
        return
    shift = _FIRST_BEYOND.get(kind, 0)
    first = number + shift
    if first >= size:
        call.expect("other", [axis, call.fresh(first - size, "beyond all positions")], offset=-shift)
    elif first > 0 and kind in _FIRST_BEYOND:
        call.expect("other", cut(axis, [0, first, size])[:1], offset=-shift)
    elif first >= 0 and kind not in _FIRST_BEYOND:
        _single(call, axis, number, "other")
    elif kind not in _FIRST_BEYOND:
        call.pin(axis, KNOWN_BY_NUMBER)


def _single(call: OpCall, axis: Axis, number: int, argument: str) -> None:
    """The unit at one position stays; the number follows those before it."""
    before, alone, _ = cut(axis, [0, number, number + 1, resolve(axis).size])
    call.pin(alone, KNOWN_BY_NUMBER)
    call.expect(argument, [before])


def replaced(call: OpCall) -> list[Axis]:
    """``masked_fill``: a position that is put in the place of others is told apart; all are positions of one axis."""
    source, number = call["self"], call["value"]
    axis = call.domain(source)
    if axis is not None:
        size = resolve(axis).size
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < size:
            _single(call, axis, number, "value")
        elif isinstance(number, int) and number >= size:
            call.expect("value", [axis, call.fresh(number - size, "beyond all positions")])
        else:
            call.pin(axis, KNOWN_BY_NUMBER)
        call.numbers(axis)
    return pointwise(call)


def _one_hot(call: OpCall, first: TensorArgument, second: TensorArgument) -> None:
    """``indices[..., None] == arange(n)``: true at the chosen position of a new dim."""
    for indices, numbers in ((first, second), (second, first)):
        axis = call.domain(indices)
        if axis is None:
            continue
        along = len(call.shape) - 1
        aligned = not indices.ndim or indices.shape[-1] == 1 or resolve(axis).size == 1
        if call.name.startswith("aten::eq") and aligned and numbers.ndim == 1 and call.is_enumerated(numbers):
            look_up(numbers.axes[0], axis)
            call.marks(along)
        else:
            call.pin_positions(indices, KNOWN_BY_NUMBER)
            call.pin(numbers.axes, KNOWN_BY_NUMBER)


def count_in_bins(call: OpCall) -> list[list[Axis]]:
    """``histc`` with a bin for each position, or each of the first ones, counts how often each was chosen."""
    source: TensorArgument = call["self"]
    axis, bins = call.domain(source), call["bins"]
    if axis is None or not 0 < bins <= resolve(axis).size or call["min"] != 0 or call["max"] != bins - 1:
        call.pin_positions(source, COUNTED)
        return flat(call)
    axis = cut(axis, [0, bins, resolve(axis).size])[0]
    call.expect("bins", [axis])
    call.expect("max", [axis], offset=-1)
    call.marks(0)
    return [[axis]]


def count(call: OpCall) -> list[list[Axis]]:
    """``bincount`` with as many counts as there are positions."""
    source: TensorArgument = call["self"]
    axis = call.domain(source)
    if (
        axis is None
        or call["weights"] is not None
        or call["minlength"] != resolve(axis).size
        or call.shape[0] != axis.size
    ):
        call.pin_positions(source, COUNTED)
        return flat(call)
    call.expect("minlength", [axis])
    call.marks(0)
    return [[axis]]


def find(call: OpCall) -> list[list[Axis]]:
    """``nonzero`` finds the positions that are marked as chosen; of anything else nothing may go."""
    source: TensorArgument = call["self"]
    if source.ndim != 1 or not call.is_chosen(source.axes[0]):
        return flat(call)
    call.needs_zeros(source, 0, NOT_CHOSEN)
    call.numbers(source.axes[0])
    return [[call.fresh(size, "counts the chosen ones") for size in call.shape]]


def find_each(call: OpCall) -> list[list[Axis]]:
    """``where(mask)`` lists the true places, their positions along each dim apart; see `find`."""
    source: TensorArgument = call["condition"]
    for dim, axis in enumerate(source.axes):
        if call.is_chosen(axis):
            call.needs_zeros(source, dim, NOT_CHOSEN)
            call.numbers(axis, dim)
        else:
            call.pin(axis, "its places are listed")
    return [[call.fresh(size, "counts the true places") for size in shape] for shape in call.shapes]


def add_along(call: OpCall) -> list[Axis]:
    """Cumulative sums: the dim is pinned, unless it counts what was chosen: units that can't be are zero."""
    source: TensorArgument = call["self"]
    if not source.ndim:
        return []
    dim = call["dim"] % source.ndim
    if call.name.startswith("aten::cumsum") and call.is_chosen(source.axes[dim]):
        call.needs_zeros(source, dim, NOT_CHOSEN)
    else:
        call.pin(source.axes[dim], "order along this dim matters")
    return list(source.axes)


def added_zeros(operands: Operands, dim: int) -> bool:
    """Zeros along other dims stay zeros; what is summed up stays where nothing is added."""
    source = operands["self"]
    return dim != operands["dim"] % max(1, operands.ndim(source)) and zeros_of_first(operands, dim)


def number(call: OpCall) -> None:
    """``item()`` reads one value; what the program does with it is recorded as it happens."""
    call.reads_number(call["self"])


_COMPARED = OpRule(compared, zeros=ELEMENTWISE, positions=("self", "other"))

RULES: Mapping[str | torch.Tag, Rule] = {
    **aten("eq ne ge gt le lt", _COMPARED),
    "aten::masked_fill.Scalar": OpRule(replaced, zeros=ELEMENTWISE, scaling=Scaling.SUM, positions="self"),
    "aten::masked_fill_.Scalar": OpRule(replaced, zeros=ELEMENTWISE, scaling=Scaling.SUM, positions="self"),
    "aten::histc": OpRule(count_in_bins, positions="self"),
    "aten::bincount": OpRule(count, positions="self"),
    "aten::nonzero": OpRule(find, positions="self"),
    "aten::where.default": OpRule(find_each, positions="condition"),
    **aten("cumsum cumprod", OpRule(add_along, zeros=added_zeros)),
    "aten::_local_scalar_dense": OpRule(number, positions="self"),
}
