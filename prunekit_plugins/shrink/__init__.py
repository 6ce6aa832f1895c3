"""Shrinking: a model is cut to a target in steps, and trained by distillation after each of them."""

from prunekit_plugins.shrink.call import shrink
from prunekit_plugins.shrink.result import Shrinking, Step

__all__ = ["Shrinking", "Step", "shrink"]
