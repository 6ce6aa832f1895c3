"""Layouts of the parameters and of one recorded program: how each dim is made of units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.algebra.layout import ExpectedArgument, Kept, Layout, kept_positions, new_size
from prunekit_core.algebra.reasons import Reason
from prunekit_core.algebra.requirements import Temperature
from prunekit_core.program.examples import Example
from prunekit_core.program.extents import LeastSize, Wholes
from prunekit_core.program.trace import Trace


def _positions(dims: Sequence[Layout], kept: Kept) -> dict[int, torch.Tensor]:
    sizes = ((dim, layout, new_size(layout, kept)) for dim, layout in enumerate(dims))
    return {dim: kept_positions(layout, kept) for dim, layout, size in sizes if size != layout.size}


@attrs.frozen
class ParameterLayout:
    """How a parameter or buffer is made of units.

    Attributes:
        shape: Its shape at analysis.
        dims: One layout per dim.
        reasons: Per dim, why (some of) it is pinned; None where nothing is.
        itemsize: Bytes per element.
        buffer: Whether it is a buffer.
    """

    shape: tuple[int, ...]
    dims: tuple[Layout, ...]
    reasons: tuple[Reason | None, ...]
    itemsize: int
    buffer: bool

    def positions(self, kept: Kept) -> dict[int, torch.Tensor]:
        """Returns, per dim that shrinks, the positions that stay."""
        return _positions(self.dims, kept)


@attrs.frozen(eq=False)
class Recording:
    """One trace with the layouts that its tensors have.

    Attributes:
        trace: The trace.
        example: What it was recorded on.
        training: The mode it ran in.
        replayed: False when another recording is the same program, so that one replay proves both.
        live: Layouts of the tensors that can shrink, by `TensorRef.index`.
        wholes: Whole-axis uses by operation index.
        least: By operation index: how many elements it needs.
        expectations: By operation index: what its arguments must be.
        temperatures: By operation index: the constant and the layout of the axis that it follows.
        unread: Indices of operations that say nothing, as nobody reads their results; they only have to run.
    """

    trace: Trace
    example: Example
    training: bool | None
    replayed: bool
    live: Mapping[int, tuple[Layout, ...]]
    wholes: Mapping[int, Wholes]
    least: Mapping[int, tuple[LeastSize, ...]]
    expectations: Mapping[int, tuple[ExpectedArgument, ...]]
    temperatures: Mapping[int, tuple[Temperature, Layout]]
    unread: frozenset[int]

    def shape(self, index: int, sizer: Callable[[Layout], Any]) -> tuple[Any, ...]:
        """Returns the shape a tensor must have when only the sizer's kept units stay.

        Args:
            index: `TensorRef.index`.
            sizer: Computes sizes of layouts: a `Sizer`, or a `SymbolicSizer`, whose sizes are polynomials.
        """
        layouts = self.live.get(index)
        if layouts is None:
            return self.trace.shapes[index]
        return tuple(map(sizer, layouts))

    def positions(self, index: int, kept: Kept) -> dict[int, torch.Tensor]:
        """Returns, per dim of a tensor that shrinks, the positions that stay."""
        return _positions(self.live.get(index, ()), kept)
