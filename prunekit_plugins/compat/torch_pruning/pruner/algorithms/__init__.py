"""Pruners."""

from prunekit_plugins.compat.torch_pruning.pruner.algorithms import (
    base_pruner,
    batchnorm_scale_pruner,
    compatibility,
    group_norm_pruner,
    growing_reg_pruner,
    scheduler,
)
from prunekit_plugins.compat.torch_pruning.pruner.algorithms.base_pruner import BasePruner
from prunekit_plugins.compat.torch_pruning.pruner.algorithms.batchnorm_scale_pruner import BNScalePruner
from prunekit_plugins.compat.torch_pruning.pruner.algorithms.compatibility import MagnitudePruner, MetaPruner
from prunekit_plugins.compat.torch_pruning.pruner.algorithms.group_norm_pruner import GroupNormPruner
from prunekit_plugins.compat.torch_pruning.pruner.algorithms.growing_reg_pruner import GrowingRegPruner

__all__ = [
    "BNScalePruner",
    "BasePruner",
    "GroupNormPruner",
    "GrowingRegPruner",
    "MagnitudePruner",
    "MetaPruner",
    "base_pruner",
    "batchnorm_scale_pruner",
    "compatibility",
    "group_norm_pruner",
    "growing_reg_pruner",
    "scheduler",
]
