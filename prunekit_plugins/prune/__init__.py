"""The one call: it prunes a model to a ratio or to a target, through hooks and the pruner."""

from prunekit_plugins.prune.call import PruneResult, prune
from prunekit_plugins.prune.sensitivities import sensitivity
from prunekit_plugins.prune.serving import ServingEngine, ServingProfile

__all__ = ["PruneResult", "ServingEngine", "ServingProfile", "prune", "sensitivity"]
