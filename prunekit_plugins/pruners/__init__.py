"""Pruner classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit_core import BasePruner, hookimpl

MagnitudePruner = BasePruner
MetaPruner = BasePruner

__all__ = ["MagnitudePruner", "MetaPruner"]


@hookimpl
def prunekit_pruners() -> Mapping[str, type[Any]]:
    """The base pruner under its usual names."""
    return {"base": BasePruner, "magnitude": MagnitudePruner, "meta": MetaPruner}
