"""Schedules of iterative pruning: how much is gone after each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prunekit_core import hookimpl, linear_scheduler

__all__ = ["linear_scheduler"]


@hookimpl
def prunekit_schedules() -> Mapping[str, Callable[[float, int], list[float]]]:
    """The linear schedule."""
    return {"linear": linear_scheduler}
