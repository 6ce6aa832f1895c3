"""Long listings of repeated blocks, made short: ``layers.{0-11}.mlp`` for twelve rows that differ in one number."""

from __future__ import annotations

import re
from collections.abc import Sequence

Row = tuple[str, ...]


def collapse(rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """Joins rows whose other cells are equal and whose names (the first cell) differ in one number.

    Joined names stand for every combination of their numbers, so nothing is listed that isn't there.

    Args:
        rows: Rows in the order in which they are to be shown.

    Returns:
        How many rows each line stands for, and the line, in the order in which they came first.
    """
    split = [(1, re.split(r"(\d+)", row[0]), row[1:]) for row in rows]
    positions = max((len(parts) for _, parts, _ in split), default=0)
    for position in range(1, positions, 2):
        split = _join(split, position)
    return [(count, ("".join(parts), *rest)) for count, parts, rest in split]


def _join(rows: list[tuple[int, list[str], Row]], position: int) -> list[tuple[int, list[str], Row]]:
    alike: dict[tuple[object, ...], list[tuple[int, list[str], Row]]] = {}
    for number, (count, parts, rest) in enumerate(rows):
        if position < len(parts):
            key: tuple[object, ...] = (*parts[:position], None, *parts[position + 1 :], rest, count)
        else:
            key = (number,)
        alike.setdefault(key, []).append((count, parts, rest))
    joined = []
    for members in alike.values():
        count, parts, rest = members[0]
        if len(members) > 1:
            numbers = sorted(int(other[position]) for _, other, _ in members)
            parts = [*parts[:position], "{" + _ranges(numbers) + "}", *parts[position + 1 :]]
        joined.append((count * len(members), parts, rest))
    return joined


def _ranges(numbers: Sequence[int]) -> str:
    """Writes ascending numbers as runs: ``0-3,7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
