"""Pruning models that are trained by several processes: DDP, FSDP2 (``fully_shard``) and tensor parallelism.

Everything here is called by all processes together. A failure on one of them is an error on all, and leaves the model
whole on all.
"""

from prunekit_plugins.distributed.agreement import DistributedError, agree, broadcast_plan
from prunekit_plugins.distributed.sharded import apply_sharded, step_sharded
from prunekit_plugins.distributed.statistics import reduce_calibration, reduce_statistics
from prunekit_plugins.distributed.together import apply_together, step_together

__all__ = [
    "DistributedError",
    "agree",
    "apply_sharded",
    "apply_together",
    "broadcast_plan",
    "reduce_calibration",
    "reduce_statistics",
    "step_sharded",
    "step_together",
]
