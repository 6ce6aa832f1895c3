"""Depth: which branches of a model go, by their scores, to a ratio or to a target, at once or in steps."""

from prunekit_plugins.depth.choice import choose_branches
from prunekit_plugins.depth.search import DepthChoice
from prunekit_plugins.depth.settings import DepthSettings
from prunekit_plugins.depth.steps import DepthSteps

__all__ = ["DepthChoice", "DepthSettings", "DepthSteps", "choose_branches"]
