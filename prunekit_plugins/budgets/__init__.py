"""Cost models: what a cut costs, from the analysis alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prunekit_core import hookimpl
from prunekit_plugins.budgets.counts import macs, params, weights
from prunekit_plugins.budgets.latency import LatencyCost, latency, watched
from prunekit_plugins.budgets.memory import memory

__all__ = ["LatencyCost", "latency", "macs", "memory", "params", "watched", "weights"]


@hookimpl
def prunekit_budgets() -> Mapping[str, Callable[..., float]]:
    """Parameters, multiply-accumulates, memory of an inference, bytes of weights, and latency."""
    return {"params": params, "macs": macs, "memory": memory, "weights": weights, "latency": latency}
