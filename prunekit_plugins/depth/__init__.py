"""Depth: which branches of a model go, by their scores, to a ratio or to a target."""

from prunekit_plugins.depth.choice import DepthChoice, choose_branches
from prunekit_plugins.depth.settings import DepthSettings

__all__ = ["DepthChoice", "DepthSettings", "choose_branches"]
