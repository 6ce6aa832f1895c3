"""Cost models: what a cut costs, from the analysis alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prunekit_core import hookimpl
from prunekit_plugins.budgets.counts import macs, params, weights
from prunekit_plugins.budgets.memory import memory

__all__ = ["macs", "memory", "params", "weights"]


@hookimpl
def prunekit_budgets() -> Mapping[str, Callable[..., float]]:
    """Parameters, multiply-accumulates, memory of an inference, and bytes of weights."""
    return {"params": params, "macs": macs, "memory": memory, "weights": weights}
