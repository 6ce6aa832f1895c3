"""Creation operations: fresh axes that touch none of their inputs'."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunekit.plugin import Axis, OpCall, Rule, Scaling, scales, sized_by, zero_where
from prunekit_plugins.ops.pointwise import always_zero, filled_with_zero

shaped = sized_by(size="it is the shape of the output", stride="no value depends on the order in memory")


@shaped
def uniform_values(call: OpCall) -> list[Axis]:
    """All elements are alike (zeros, ones, full): any unit may go, so the axes are free."""
    return [Axis(size) for size in call.shape]


@shaped
def one_value(call: OpCall) -> list[Axis]:
    """Zeros, ones, one number: all elements are equal."""
    call.expanded(range(len(call.shape)))
    return uniform_values(call)


def numbered_values(call: OpCall) -> list[Axis]:
    """Elements depend on their position (arange) or on a random stream: the axes are pinned."""
    return [call.fresh(size, "its values depend on their position") for size in call.shape]


def identity(call: OpCall) -> list[Axis]:
    """A square identity matrix loses a row and its column together, and stays one; any other is pinned."""
    rows, columns = call.shape
    if rows != columns:
        return numbered_values(call)
    axis = Axis(rows)
    for name in ("n", "m"):
        if name in call:
            call.expect(name, [axis])
    return [axis, axis]


def number(call: OpCall) -> None:
    """``item()`` reads one value; what the program does with it is recorded as it happens."""


def check(call: OpCall) -> None:
    """An assertion about values, or a question about memory, makes nothing."""


_ONES = "ones new_ones"
_ZEROS = "zeros new_zeros"
_EMPTY = "empty new_empty empty_strided new_empty_strided"
"""Memory that nobody may read before it is written: as good as zeros."""
_NUMBERED = "arange linspace logspace rand randn randint randperm tril_indices triu_indices tensor"
_WINDOWS = "bartlett_window blackman_window fft_fftfreq fft_rfftfreq hamming_window hann_window kaiser_window range"

filled = zero_where(filled_with_zero)(scales(Scaling.NUMBERS, "fill_value")(one_value))

RULES: Mapping[str | torch.Tag, Rule] = {
    **{f"aten::{name}": scales(Scaling.NUMBERS)(one_value) for name in _ONES.split()},
    **{f"aten::{name}": zero_where(always_zero)(scales(Scaling.ZEROS)(one_value)) for name in _ZEROS.split()},
    **{
        f"aten::{name}": zero_where(filled_with_zero)(scales(Scaling.NUMBERS, "fill_value")(one_value))
        for name in ("full", "new_full")
    },
    **{f"aten::{name}": zero_where(always_zero)(scales(Scaling.NUMBERS)(uniform_values)) for name in _EMPTY.split()},
    "aten::scalar_tensor": scales(Scaling.NUMBERS, "s")(uniform_values),
    **{f"aten::{name}": numbered_values for name in (*_NUMBERED.split(), *_WINDOWS.split())},
    "aten::eye": identity,
    "aten::_local_scalar_dense": number,
    "aten::_assert_async": check,
    "aten::is_pinned": check,
    "aten::_linalg_check_errors": check,
}
