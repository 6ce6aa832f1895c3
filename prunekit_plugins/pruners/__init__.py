"""Pruner classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit.plugin import BasePruner, hookimpl
from prunekit_plugins.pruners.sparse import BNScalePruner, GroupNormPruner, GrowingRegPruner

MagnitudePruner = BasePruner
MetaPruner = BasePruner

__all__ = ["BNScalePruner", "GroupNormPruner", "GrowingRegPruner", "MagnitudePruner", "MetaPruner"]


@hookimpl
def prunekit_pruners() -> Mapping[str, type[Any]]:
    """The base pruner under its usual names, and the pruners with sparse training."""
    return {
        "base": BasePruner,
        "bn_scale": BNScalePruner,
        "group_norm": GroupNormPruner,
        "growing_reg": GrowingRegPruner,
        "magnitude": MagnitudePruner,
        "meta": MetaPruner,
    }
