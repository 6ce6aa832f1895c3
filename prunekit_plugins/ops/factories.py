"""Creation operations: fresh axes that touch none of their inputs'."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunekit_core import Axis, OpCall, Rule


def uniform_values(call: OpCall) -> list[Axis]:
    """All elements are alike (zeros, ones, full): any unit may go, so the axes are free."""
    return [Axis(size) for size in call.shape]


def one_value(call: OpCall) -> list[Axis]:
    """Zeros, ones, one number: all elements are equal."""
    call.expanded(range(len(call.shape)))
    return uniform_values(call)


def numbered_values(call: OpCall) -> list[Axis]:
    """Elements depend on their position (arange) or on a random stream: the axes are pinned."""
    return [call.fresh(size, "its values depend on their position") for size in call.shape]


def number(call: OpCall) -> None:
    """``item()`` reads one value; what the program does with it is recorded as it happens."""


def check(call: OpCall) -> None:
    """An assertion about values makes nothing."""


_VALUES = "zeros ones full new_zeros new_ones new_full"
_UNIFORM = "empty new_empty empty_strided new_empty_strided scalar_tensor"
_NUMBERED = "arange linspace logspace rand randn randint randperm eye tril_indices triu_indices tensor"

RULES: Mapping[str | torch.Tag, Rule] = {
    **{f"aten::{name}": one_value for name in _VALUES.split()},
    **{f"aten::{name}": uniform_values for name in _UNIFORM.split()},
    **{f"aten::{name}": numbered_values for name in _NUMBERED.split()},
    "aten::_local_scalar_dense": number,
    "aten::_assert_async": check,
}
