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
        offset: What is added to the size: -1 for the last position.
    """

    argument: str
    position: int | None
    pieces: tuple[Axis, ...] = attrs.field(eq=False)
    along: Axis | None = attrs.field(default=None, eq=False)
    offset: int = 0


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


@attrs.frozen
class Choice:
    """Units of an axis that an operation chooses by value (``topk``, ``argmax``), and returns the positions of.

    Attributes:
        axis: The axis.
        output: Which output holds the positions.
        dim: The dim of that output that lists the chosen ones; None where there is one, and no dim for it.
        count: How many are chosen.
    """

    axis: Axis = attrs.field(eq=False)
    output: int
    dim: int | None
    count: int = 1


@attrs.frozen
class NeedsZeros:
    """What an operation needs to be zero (or false) where units were removed, so that it is the same without them.

    Attributes:
        tensor: The tensor, by `TensorRef.index`.
        dim: Its dim along which the units lie.
        text: Why.
    """

    tensor: int
    dim: int
    text: str
