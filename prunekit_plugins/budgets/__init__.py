"""Cost models: what a cut costs, from the analysis alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prunekit_core import hookimpl
from prunekit_plugins.budgets.counts import macs, params, weights

__all__ = ["macs", "params", "weights"]


@hookimpl
def prunekit_budgets() -> Mapping[str, Callable[..., float]]:
    """Parameters, multiply-accumulates, and bytes of weights."""
    return {"params": params, "macs": macs, "memory": weights}
