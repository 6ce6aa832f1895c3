"""Pruning single layers, as functions and objects: the names of ``layer_pruners`` under Torch-Pruning's path."""

from prunekit_plugins.compat.torch_pruning import layer_pruners, ops
from prunekit_plugins.compat.torch_pruning.layer_pruners import *  # noqa: F403 - this module is that one's other name

__all__ = ["ops"]
__all__ += layer_pruners.__all__
