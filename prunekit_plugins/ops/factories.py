"""Creation operations: fresh axes that touch none of their inputs'."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunekit.plugin import Axis, OpCall, OpRule, Rule, Scaling
from prunekit_plugins.ops.names import aten
from prunekit_plugins.ops.pointwise import always_zero, filled_with_zero

POSITIONED = "its values depend on their position"


def uniform_values(call: OpCall) -> list[Axis]:
    """All elements are alike (zeros, ones, full): any unit may go, so the axes are free."""
    return [Axis(size) for size in call.shape]


def one_value(call: OpCall) -> list[Axis]:
    """Zeros, ones, one number: all elements are equal."""
    call.expanded(range(len(call.shape)))
    return uniform_values(call)


def numbered_values(call: OpCall) -> list[Axis]:
    """Elements depend on their position (arange) or on a random stream: the axes are pinned."""
    return [call.fresh(size, POSITIONED) for size in call.shape]


def numbers_in_order(call: OpCall) -> list[Axis]:
    """``arange(n)``: pinned, unless it is compared with positions of a chosen axis (a one-hot code)."""
    if call.get("start", 0) != 0 or call.get("step", 1) != 1 or call["end"] != call.shape[0]:
        return numbered_values(call)
    return [call.enumerate("end", POSITIONED)]


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


def check(call: OpCall) -> None:
    """An assertion about values, or a question about memory, makes nothing."""


_SIZE = {"size": "it is the shape of the output"}
_STRIDED = {**_SIZE, "stride": "no value depends on the order in memory"}
_EMPTY = "empty new_empty empty_strided new_empty_strided"
"""Memory that nobody may read before it is written: as good as zeros."""
_NUMBERED = "linspace logspace rand randn randint randperm tril_indices triu_indices tensor"
_WINDOWS = "bartlett_window blackman_window fft_fftfreq fft_rfftfreq hamming_window hann_window kaiser_window range"

RULES: Mapping[str | torch.Tag, Rule] = {
    **aten("ones new_ones", OpRule(one_value, scaling=Scaling.NUMBERS, sizes=_SIZE)),
    **aten("zeros new_zeros", OpRule(one_value, scaling=Scaling.ZEROS, zeros=always_zero, sizes=_SIZE)),
    **aten(
        "full new_full",
        OpRule(one_value, scaling=Scaling.NUMBERS, factors="fill_value", zeros=filled_with_zero, sizes=_SIZE),
    ),
    **aten(_EMPTY, OpRule(uniform_values, scaling=Scaling.NUMBERS, zeros=always_zero, sizes=_STRIDED)),
    "aten::scalar_tensor": OpRule(uniform_values, scaling=Scaling.NUMBERS, factors="s"),
    "aten::arange": numbers_in_order,
    **aten(_NUMBERED, numbered_values),
    **aten(_WINDOWS, numbered_values),
    "aten::eye": identity,
    **aten("_assert_async is_pinned _linalg_check_errors", check),
}
