"""What operations require of sizes: arguments that must equal them, constants that follow them, least sizes."""

from __future__ import annotations

import attrs

from prunekit_core.algebra.axes import Axis


@attrs.frozen
class Expectation:
    """An integer argument that must be the total size of some axes, also after pruning.

    Attributes:
        argument: Name of the argument.
        position: Which entry of it, if it is a list.
        pieces: The axes.
        along: If the argument is a place along a dim, the axis of that dim: a negative number counts from its end.
    """

    argument: str
    position: int | None
    pieces: tuple[Axis, ...] = attrs.field(eq=False)
    along: Axis | None = attrs.field(default=None, eq=False)


@attrs.frozen
class Temperature:
    """A constant that follows the size of an axis unless it is given: the default scale of attention."""

    argument: str
    value: float
    axis: Axis = attrs.field(eq=False)
    scaled: str = ""


@attrs.frozen
class Least:
    """How many elements an operation needs along some axes together, to have a value.

    Attributes:
        axes: The axes.
        size: The least product of their sizes.
        text: What needs them.
    """

    axes: tuple[Axis, ...] = attrs.field(eq=False)
    size: int
    text: str
