"""Schedules of iterative pruning: how much is gone after each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunekit.plugin import hookimpl, linear_scheduler
from prunekit_plugins.schedules.curves import (
    OneCycle,
    cosine_scheduler,
    cubic_scheduler,
    exponential_scheduler,
    one_cycle_scheduler,
    one_shot_scheduler,
)

__all__ = [
    "OneCycle",
    "cosine_scheduler",
    "cubic_scheduler",
    "exponential_scheduler",
    "linear_scheduler",
    "one_cycle_scheduler",
    "one_shot_scheduler",
]


@hookimpl
def prunekit_schedules() -> Mapping[str, Callable[[float, int], list[float]]]:
    """The built-in schedules."""
    return {
        "cosine": cosine_scheduler,
        "cubic": cubic_scheduler,
        "exponential": exponential_scheduler,
        "linear": linear_scheduler,
        "one_cycle": one_cycle_scheduler,
        "one_shot": one_shot_scheduler,
    }


@hookimpl
def prunekit_settings() -> Mapping[str, type[Any]]:
    """The form of the one-cycle schedule."""
    return {"one_cycle": OneCycle}
