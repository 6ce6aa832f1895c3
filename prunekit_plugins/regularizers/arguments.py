"""Checks of numbers that regularizers take."""

from __future__ import annotations

import math

from prunekit.plugin import ArgumentError


def check_strength(value: float, name: str) -> float:
    """Returns a finite number that isn't negative.

    Raises:
        ArgumentError: It is something else.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    if not good:
        raise ArgumentError(f"{name} must be a finite number, at least 0.", why=f"got {value!r}")
    return float(value)
