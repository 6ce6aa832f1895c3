"""The dependency graph, its groups and dependencies."""

from prunekit_plugins.compat.torch_pruning.dependency import index_mapping, shape_infer
from prunekit_plugins.compat.torch_pruning.dependency.constants import (
    INDEX_MAPPING_PLACEHOLDER,
    MAX_RECURSION_DEPTH,
    MAX_VALID_DIM,
)
from prunekit_plugins.compat.torch_pruning.dependency.dependency import Dependency
from prunekit_plugins.compat.torch_pruning.dependency.graph import DependencyGraph
from prunekit_plugins.compat.torch_pruning.dependency.group import Group
from prunekit_plugins.compat.torch_pruning.dependency.node import Node

__all__ = [
    "INDEX_MAPPING_PLACEHOLDER",
    "MAX_RECURSION_DEPTH",
    "MAX_VALID_DIM",
    "Dependency",
    "DependencyGraph",
    "Group",
    "Node",
    "index_mapping",
    "shape_infer",
]
