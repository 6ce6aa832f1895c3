"""Schedules: in how many steps a ratio is reached, and how much of it after each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from prunekit_core.arguments import is_count
from prunekit_core.errors import ArgumentError, PluginError
from prunekit_core.plugins.blame import Blame
from prunekit_core.plugins.registry import Registry

Schedule = Callable[[float, int], Sequence[float]]
"""Gives ``steps + 1`` ascending cumulative ratios for a final ratio and a number of steps."""
ENDING = 1e-6
"""How far from the ratio a schedule may end, as it computes with rounded numbers."""


def linear_scheduler(ratio: float, steps: int) -> list[float]:
    """Cumulative pruning ratios in equal steps.

    Args:
        ratio: The final ratio.
        steps: Number of steps, at least one.

    Returns:
        ``[i / steps * ratio for i in 0..steps]``.
    """
    return [step / steps * ratio for step in range(steps + 1)]


def check_steps(value: int) -> int:
    """Returns a number of steps that is a positive integer.

    Raises:
        ArgumentError: It isn't.
    """
    if is_count(value):
        return value
    raise ArgumentError("iterative_steps must be a positive integer.", why=f"got {value!r}")


def bound_schedule(schedule: Schedule | str, steps: int, registry: Registry) -> Callable[[float], list[float]]:
    """Binds a schedule, or the one registered under a name, to a number of steps, and checks what it returns.

    Returns:
        The cumulative ratios of a final ratio.

    Raises:
        ArgumentError: It is no function, or there is none of that name. The function that is returned raises where the
            schedule raises (`PluginError`), or where its ratios aren't ascending, aren't one more than there are
            steps, or don't end at the ratio: `PluginError` for one that is registered, else `ArgumentError`.
    """
    function: Any = registry.named("prunekit_schedules", schedule) if isinstance(schedule, str) else schedule
    if not callable(function):
        raise ArgumentError("The schedule must be a function (ratio, steps) -> cumulative ratios.", why=f"{schedule!r}")
    blame = registry.owners.blame("prunekit_schedules", function)

    def ratios(ratio: float) -> list[float]:
        with blame.blamed("A schedule failed."):
            returned = function(ratio, steps)
        return _checked(returned, ratio, steps, blame)

    return ratios


def _checked(returned: Any, ratio: float, steps: int, blame: Blame) -> list[float]:
    headline = "The schedule must return ascending cumulative ratios, one more than there are steps."
    kind = PluginError if blame.plugin else ArgumentError
    try:
        found = [float(value) for value in returned]
    except (TypeError, ValueError) as error:
        raise blame.error(headline, f"got {returned!r}", kind=kind) from error
    if len(found) != steps + 1 or any(not b >= a - 1e-12 for a, b in itertools.pairwise(found)):
        raise blame.error(headline, f"got {found} for {steps} steps", kind=kind)
    if any(not 0 <= value < 1 for value in found):
        raise blame.error(headline, f"got {found}, and ratios lie in [0, 1)", kind=kind)
    if abs(found[-1] - ratio) > ENDING:
        raise blame.error("The schedule must end at the ratio.", f"got {found} for the ratio {ratio}", kind=kind)
    return found
