"""Allocators that are built in: how a budget is shared out among the groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunekit.plugin import hookimpl
from prunekit_plugins.budgets.allocation import ESTIMATED
from prunekit_plugins.budgets.knapsack import dynamic, greedy


@hookimpl
def prunekit_allocators() -> Mapping[str, Callable[[Any], Any]]:
    """Dynamic programming, the greedy walk, and the first with damages from the scores."""
    return {"dp": dynamic, "greedy": greedy, ESTIMATED: dynamic}
