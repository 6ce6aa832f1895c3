"""Cutting replicas: every process has the whole model, as under DDP."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from prunekit.plugin import BasePruner, Plan
from prunekit_plugins.distributed.agreement import agree, all_or_none, require_group


def apply_together(
    plan: Plan,
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    group: dist.ProcessGroup | None = None,
) -> nn.Module:
    """Applies a plan to the replica of every process, or to none.

    A ``DistributedDataParallel`` plans its communication for the sizes that it was made with: cut the module inside
    it, and make a new one afterwards.

    Args:
        plan: The plan; the same on all processes.
        model: This process's replica (the module inside of DDP).
        optimizer: The optimizer of this process; its state is cut along.
        group: The processes; None for all.

    Returns:
        The model.

    Raises:
        PlanError: The plan doesn't fit this process's replica.
        DistributedError: It doesn't fit another one's, or the plans differ; nothing was changed anywhere.
        ArgumentError: There is no process group.
    """
    require_group()
    agree(plan, group)
    with all_or_none("apply_together", group):
        plan.check(model, optimizer=optimizer)
    return plan.apply(model, optimizer=optimizer)


def step_together(
    pruner: BasePruner, *, optimizer: torch.optim.Optimizer | None = None, group: dist.ProcessGroup | None = None
) -> Plan:
    """Prunes one step of a pruner on every process, or on none.

    Args:
        pruner: This process's pruner, made for its replica (the module inside of DDP).
        optimizer: The optimizer of this process; its state is cut along.
        group: The processes; None for all.

    Returns:
        The plan of the step.

    Raises:
        DistributedError: The processes chose differently, or one of them failed; nothing was changed anywhere.
        ArgumentError: There is no process group.
    """
    require_group()
    with all_or_none("step_together", group):
        plan = pruner.plan()
    agree(plan, group)
    step = pruner.graph.step_to(plan)
    with all_or_none("step_together", group):
        step.check(pruner.graph.model, optimizer=optimizer)
    step.apply(pruner.graph.model, optimizer=optimizer)
    pruner.adopt(pruner.graph.model, plan)
    return plan
