"""Proving a schedule: it starts at nothing, ends at the ratio, and never goes back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from prunekit_plugins.testing.failure import failing, require


def check_schedule(schedule: Callable[[float, int], list[float]]) -> None:
    """Proves a schedule for several ratios and numbers of steps.

    It must return ``steps + 1`` numbers that start at 0, never fall, and end at the ratio.

    Args:
        schedule: The schedule, ``(ratio, steps) -> [0, ..., ratio]``.

    Raises:
        AssertionError: One of the above doesn't hold, or the schedule raises.
    """
    require(callable(schedule), "check_schedule", "a function (ratio, steps) -> [0, ..., ratio]", schedule)
    for ratio in (0.1, 0.5, 0.9):
        for steps in (1, 2, 5, 40):
            what = f"schedule({ratio}, {steps})"
            with failing(what, schedule):
                found: Any = schedule(ratio, steps)
            numbers = isinstance(found, Sequence) and all(isinstance(value, int | float) for value in found)
            assert numbers, f"{what} returns {found!r}, not a list of numbers"
            assert len(found) == steps + 1, f"{what} has {len(found)} values, not {steps + 1}"
            assert found[0] == 0, f"{what} starts at {found[0]}, not at 0"
            assert abs(found[-1] - ratio) < 1e-12, f"{what} ends at {found[-1]}, not at {ratio}"
            for earlier, later in itertools.pairwise(found):
                assert earlier <= later, f"{what} falls from {earlier} to {later}"
