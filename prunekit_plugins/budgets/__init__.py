"""Cost models: what a cut costs, from the analysis alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from prunekit.plugin import Registry, hookimpl
from prunekit_plugins.budgets.allocation import Solver
from prunekit_plugins.budgets.budget import Budget
from prunekit_plugins.budgets.counts import macs, params, weights
from prunekit_plugins.budgets.curves import Curve, Sensitivity
from prunekit_plugins.budgets.families import Family, RatioFamily
from prunekit_plugins.budgets.inference.active import active_params
from prunekit_plugins.budgets.inference.cache import kv_cache, kv_memory
from prunekit_plugins.budgets.inference.check import check_cache
from prunekit_plugins.budgets.inference.latency_table import LatencyTable
from prunekit_plugins.budgets.knapsack import Choice, Problem
from prunekit_plugins.budgets.latency import LatencyCost, latency, watched, write_latency_table
from prunekit_plugins.budgets.memory import memory
from prunekit_plugins.budgets.targets import plan_to_target

__all__ = [
    "Budget",
    "Choice",
    "Curve",
    "Family",
    "LatencyCost",
    "LatencyTable",
    "Problem",
    "RatioFamily",
    "Sensitivity",
    "Solver",
    "active_params",
    "kv_cache",
    "kv_memory",
    "latency",
    "macs",
    "memory",
    "params",
    "plan_to_target",
    "watched",
    "weights",
    "write_latency_table",
]


@hookimpl
def prunekit_budgets() -> Mapping[str, Callable[..., float]]:
    """Parameters, multiply-accumulates, memory of an inference, bytes of weights and of caches, and latency."""
    return {
        "params": params,
        "active_params": active_params,
        "macs": macs,
        "memory": memory,
        "weights": weights,
        "kv_cache": kv_cache,
        "kv_memory": kv_memory,
        "latency": latency,
    }


@hookimpl
def prunekit_checks() -> Mapping[tuple[str, Any], Callable[..., None]]:
    """Latency is estimated: what is predicted for a cut is no exact number. Caches are checked on a model with one."""

    def check(registry: Registry) -> None:
        importlib.import_module("prunekit.testing").check_cost(latency, exact=False, registry=registry)

    return {
        ("prunekit_budgets", "latency"): check,
        ("prunekit_budgets", "kv_cache"): check_cache,
        ("prunekit_budgets", "kv_memory"): check_cache,
    }
