"""Meeting points with other libraries, and a helper for plain training loops.

What needs a library is in a module of its own, which imports it: ``integrations.lightning`` (extra ``lightning``),
``integrations.trainer`` (callback for transformers' trainer) and ``integrations.huggingface`` (folders of transformers
models; extra ``hf`` for both).
"""

from prunekit_plugins.integrations.event import PruningEvent
from prunekit_plugins.integrations.training import TrainingPruner

__all__ = ["PruningEvent", "TrainingPruner"]
