"""Lookups: axes that are addressed by positions of another axis."""

from __future__ import annotations

from prunekit_core.algebra.axes import Axis, cut, resolve, tie


def look_up(axis: Axis, positions: Axis) -> None:
    """Ties an axis that is looked up to the axis whose positions the index holds.

    Where their sizes differ, positions count from the start of both: the shorter one is the beginning of the longer
    (a table without a row for the position that stands for "none of them").

    Args:
        axis: The axis that is looked up: rows of a table, matrices of a stack.
        positions: The axis whose positions the index holds.

    Raises:
        AxisMismatchError: Their structures can't be aligned.
    """
    size = min(resolve(axis).size, resolve(positions).size)
    tie(beginning(axis, size), beginning(positions, size))


def beginning(axis: Axis, size: int) -> Axis:
    """Returns the first units of an axis, which is cut there.

    Raises:
        AxisMismatchError: The cut falls inside of a run of units that belong together.
    """
    whole = resolve(axis).size
    return axis if size == whole else cut(axis, [0, size, whole])[0]
