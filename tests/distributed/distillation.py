"""Distillation in loops on several processes: the gradients are those of one process with all examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import prunekit as pk
from tests.distill.models import inputs, pair
from tests.distributed import toys

OPTIONS: dict[str, Any] = {"weights": {"logits": 1.0}, "temperature": 3.0}


def models() -> tuple[nn.Module, nn.Module, pk.Plan]:
    """A student, its teacher and the plan, without what depends on who else is in a batch."""
    student, teacher, plan = pair()
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return student.to(toys.DEVICE), teacher.to(toys.DEVICE), plan


def gradients(student: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in student.named_parameters():
        grad = parameter.grad
        assert grad is not None, name
        found[name] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return found


def distilled(world: int) -> None:
    """DDP and FSDP2 average the gradients of the loss over the processes; hidden states are seen through both."""
    x, rank = inputs(8).to(toys.DEVICE), dist.get_rank()
    share = x[rank * 8 // world : (rank + 1) * 8 // world]
    student, teacher, _ = models()
    pk.DistillationLoss(student, teacher, [x], **OPTIONS)(student, x).backward()
    expected = gradients(student)
    for wrap in (DistributedDataParallel, fully_shard):
        student, teacher, plan = models()
        criterion = pk.DistillationLoss(student, teacher, [share], **OPTIONS)
        wrapped = wrap(student)
        criterion(wrapped, share).backward()
        found = gradients(student)
        for name, grad in expected.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        seen = {"weights": {"logits": 1.0, "hidden": 1.0}, "plan": plan}
        fresh, teacher, _ = models()
        criterion = pk.DistillationLoss(fresh, teacher, [share], **seen)
        criterion(wrap(fresh), share).backward()
        assert set(criterion.last) == {"logits", "hidden"}
        with pytest.raises(pk.ArgumentError, match=r"distill trains in one process only."):
            pk.distill(wrapped, teacher, [share], steps=1)
