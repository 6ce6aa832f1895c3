"""The pruner and the graph with what users of Torch-Pruning know: declarations, former names, histories, two phases."""

from prunekit_plugins.classic.custom_layers import CustomizedPruner
from prunekit_plugins.classic.graph import DependencyGraph
from prunekit_plugins.classic.history import Removal
from prunekit_plugins.classic.pruner import BasePruner

__all__ = ["BasePruner", "CustomizedPruner", "DependencyGraph", "Removal"]
