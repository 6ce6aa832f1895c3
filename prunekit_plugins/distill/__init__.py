"""Distillation: a pruned model learns, in place, to put out what it did before it was pruned."""

from prunekit_plugins.distill.call import distill
from prunekit_plugins.distill.objective import DistillationLoss
from prunekit_plugins.distill.result import Distillation
from prunekit_plugins.distill.stored_logits import store_logits

__all__ = ["Distillation", "DistillationLoss", "distill", "store_logits"]
