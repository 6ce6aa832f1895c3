"""The one call: it prunes a model to a ratio or to a target, through hooks and the pruner."""

from prunekit_plugins.prune.call import PruneResult, prune

__all__ = ["PruneResult", "prune"]
