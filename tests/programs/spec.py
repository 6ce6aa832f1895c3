"""Architectures as data: a block is a kind and two small numbers that the kind reads as it can.

Every combination is a valid network, whatever the width it meets, so that an example shrinks freely.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import attrs

T = TypeVar("T")
WIDTHS = (4, 6, 8, 3, 2, 12)


@attrs.frozen
class Block:
    """One block of a network.

    Attributes:
        kind: Which construct it is.
        a, b: What its sizes and variants are made from.
        inner: The blocks inside it, for kinds that have some.
    """

    kind: str
    a: int = 0
    b: int = 0
    inner: tuple[Block, ...] = ()


def pick(options: Sequence[T], number: int) -> T:
    """Chooses one option by any number."""
    return options[number % len(options)]


def divisors(size: int) -> list[int]:
    """Lists the divisors of a size, smallest first."""
    return [d for d in range(1, size + 1) if size % d == 0]


def width(number: int) -> int:
    """Reads any number as a number of channels."""
    return pick(WIDTHS, number)
