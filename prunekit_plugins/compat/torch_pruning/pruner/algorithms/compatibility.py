"""Former names of the base pruner."""

from __future__ import annotations

from prunekit_plugins.compat.torch_pruning.pruner.algorithms.base_pruner import BasePruner


class MetaPruner(BasePruner):
    """`BasePruner` under an older name."""


class MagnitudePruner(BasePruner):
    """`BasePruner` under an older name; the importance decides what is measured."""


__all__ = ["BasePruner", "MagnitudePruner", "MetaPruner"]
