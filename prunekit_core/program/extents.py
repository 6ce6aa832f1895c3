"""Extents of axes that matter to an operation as a whole: what is summed or mixed over them, and how many it needs."""

from __future__ import annotations

import math

import attrs

from prunekit_core.algebra.layout import Kept, Layout, new_size
from prunekit_core.program.op_call import Verb
from prunekit_core.program.trace import TensorRef


@attrs.frozen(eq=False)
class LeastSize:
    """How many elements an operation needs along some axes together, to have a value.

    Attributes:
        layouts: Layouts of the axes.
        size: The least product of their sizes.
        text: What needs them.
    """

    layouts: tuple[Layout, ...]
    size: int
    text: str

    def is_met(self, kept: Kept) -> bool:
        """Tells whether enough stays."""
        return math.prod(new_size(layout, kept) for layout in self.layouts) >= self.size

    def units(self, group: str, size: int) -> int:
        """Returns the least number of units that a group keeps when nothing else goes."""
        return next((count for count in range(1, size) if self.is_met({group: range(count)})), size)


@attrs.frozen(eq=False)
class Whole:
    """A use of the whole extent of an axis.

    Attributes:
        layout: Layout of the axis.
        verb: How it is used.
        operands: The tensors that are summed over, each with its dim; empty for all that have the axis.
    """

    layout: Layout
    verb: Verb
    operands: tuple[tuple[TensorRef, int], ...]


@attrs.frozen(eq=False)
class Chosen:
    """Units that an operation chooses by value, and returns the positions of.

    Attributes:
        layout: Layout of the axis that it chooses from.
        output: Which output holds the positions.
        dim: The dim of that output that lists them; None where there is no dim for it.
        count: How many it chooses.
    """

    layout: Layout
    output: int
    dim: int | None
    count: int = 1


@attrs.frozen(eq=False)
class Wholes:
    """Uses of the whole extent of an axis by one operation."""

    uses: tuple[Whole, ...]
