"""Causes: which groups make a smaller program another one, found by leaving their units where they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

FEW = 6
"""Names up to which all that aren't needed are left out one by one."""


def causes(names: Sequence[str], mends: Callable[[Collection[str]], bool]) -> list[str]:
    """Finds names that mend something together, as few as it takes, the first ones where there is a choice.

    Args:
        names: The likeliest first.
        mends: Tells whether all is well with some of them; with more of them it stays well.

    Returns:
        The names; of more than a few, the last one that it takes. Empty if all of them don't mend it.
    """
    low, high = 0, 1  # by doubling, then by halving
    while high < len(names) and not mends(names[:high]):
        low, high = high, 2 * high
    high = min(high, len(names))
    if high == len(names) and not mends(names):
        return []
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if mends(names[:middle]) else (middle, high)
    if high > FEW:
        return [names[high - 1]]
    needed = list(names[:high])
    for name in names[: high - 1]:
        fewer = [other for other in needed if other != name]
        if mends(fewer):
            needed = fewer
    return needed
