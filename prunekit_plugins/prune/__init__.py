"""The one call: it prunes a model to a ratio or to a target, through hooks and the pruner."""

from prunekit_plugins.prune.call import PruneResult, prune
from prunekit_plugins.prune.sensitivities import sensitivity

__all__ = ["PruneResult", "prune", "sensitivity"]
