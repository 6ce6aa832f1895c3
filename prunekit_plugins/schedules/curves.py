"""Curves from 0 to the final ratio; each is a function ``f(t)`` of the time ``t = step / steps``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import attrs

from prunekit.plugin import ArgumentError


def one_shot_scheduler(ratio: float, steps: int) -> list[float]:
    """Everything in the first step; the other steps remove nothing.

    Args:
        ratio: The final ratio, in [0, 1].
        steps: Number of steps, at least one.

    Returns:
        ``[0, ratio, ..., ratio]``, ``steps + 1`` cumulative ratios.

    Raises:
        ArgumentError: The ratio or the number of steps is wrong.
    """
    return _follow(lambda t: ratio if t else 0.0, ratio, steps)


def cubic_scheduler(ratio: float, steps: int) -> list[float]:
    """Fast at first, slow at the end: ``ratio * (1 - (1 - t)^3)`` (AGP: Zhu and Gupta, "To prune, or not to prune").

    Args:
        ratio: The final ratio, in [0, 1].
        steps: Number of steps, at least one.

    Returns:
        ``steps + 1`` cumulative ratios, ascending, from 0 to ``ratio``.

    Raises:
        ArgumentError: The ratio or the number of steps is wrong.
    """
    return _follow(lambda t: ratio * (1 - (1 - t) ** 3), ratio, steps)


def exponential_scheduler(ratio: float, steps: int) -> list[float]:
    """The same fraction of what is left in every step: ``1 - (1 - ratio)^t``.

    Args:
        ratio: The final ratio, in [0, 1].
        steps: Number of steps, at least one.

    Returns:
        ``steps + 1`` cumulative ratios, ascending, from 0 to ``ratio``.

    Raises:
        ArgumentError: The ratio or the number of steps is wrong.
    """
    return _follow(lambda t: 1 - (1 - ratio) ** t, ratio, steps)


def cosine_scheduler(ratio: float, steps: int) -> list[float]:
    """Slow at both ends, fast in the middle: ``ratio * (1 - cos(pi * t)) / 2``.

    Args:
        ratio: The final ratio, in [0, 1].
        steps: Number of steps, at least one.

    Returns:
        ``steps + 1`` cumulative ratios, ascending, from 0 to ``ratio``.

    Raises:
        ArgumentError: The ratio or the number of steps is wrong.
    """
    return _follow(lambda t: ratio * (1 - math.cos(math.pi * t)) / 2, ratio, steps)


@attrs.frozen
class OneCycle:
    """The form of `one_cycle_scheduler`; a project sets it in its table ``plugin.one_cycle``.

    Attributes:
        alpha: How steep the curve is in the middle, above 0.
        beta: How late the middle comes: at the fraction ``beta / alpha`` of the steps.

    Raises:
        ArgumentError: Alpha isn't a positive number.
    """

    alpha: float = 14.0
    beta: float = 5.0

    def __attrs_post_init__(self) -> None:
        if not 0 < self.alpha < math.inf or not math.isfinite(self.beta):
            raise ArgumentError("A one-cycle schedule needs a positive alpha and a finite beta.", why=f"got {self}")

    def at(self, t: float) -> float:
        """Returns ``(1 + e^(-alpha + beta)) / (1 + e^(-alpha * t + beta))``, which is 1 at the end, t = 1."""
        return (1 + math.exp(self.beta - self.alpha)) / (1 + math.exp(self.beta - self.alpha * t))


PUBLISHED = OneCycle()
"""The curve of the paper."""


def one_cycle_scheduler(ratio: float, steps: int, *, settings: OneCycle = PUBLISHED) -> list[float]:
    """Little, then nearly everything within a short time, then little (Hubens et al., "One-Cycle Pruning", 2021).

    With ``g(t) = (1 + e^(-alpha + beta)) / (1 + e^(-alpha * t + beta))``, alpha 14 and beta 5, it is
    ``ratio * (g(t) - g(0)) / (1 - g(0))``: moved so that it starts at 0 (``g(0)`` is 0.0067) and ends at the ratio.

    Args:
        ratio: The final ratio, in [0, 1].
        steps: Number of steps, at least one.
        settings: Alpha and beta.

    Returns:
        ``steps + 1`` cumulative ratios, ascending, from 0 to ``ratio``.

    Raises:
        ArgumentError: The ratio or the number of steps is wrong.
    """
    start = settings.at(0.0)
    return _follow(lambda t: ratio * (settings.at(t) - start) / (1 - start), ratio, steps)


def _follow(curve: Callable[[float], float], ratio: float, steps: int) -> list[float]:
    """Reads a curve at ``0, 1/steps, ..., 1``; its ends are exact, and rounding makes it neither fall nor overshoot."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ArgumentError("A schedule needs a positive number of steps.", why=f"got {steps!r}")
    if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0 <= ratio <= 1:
        raise ArgumentError("The ratio of a schedule must lie in [0, 1].", why=f"got {ratio!r}")
    between = (min(max(curve(step / steps), 0.0), ratio) for step in range(1, steps))
    return [*itertools.accumulate(between, max, initial=0.0), float(ratio)]
