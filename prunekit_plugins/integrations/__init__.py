"""Pruning while a model is trained: a helper for plain loops, and callbacks for trainers.

The callbacks are in modules of their own, which import their library: ``integrations.lightning`` (extra ``lightning``)
and ``integrations.hf`` (extra ``hf``).
"""

from prunekit_plugins.integrations.event import PruningEvent
from prunekit_plugins.integrations.training import TrainingPruner

__all__ = ["PruningEvent", "TrainingPruner"]
