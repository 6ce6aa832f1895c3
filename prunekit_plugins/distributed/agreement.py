"""What processes tell each other: that all is well, and what was decided."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from prunekit.plugin import ArgumentError, Plan, PrunekitError

Result = TypeVar("Result")
_MESSAGE = 400
"""Bytes of an error that other processes get to see."""


class DistributedError(PrunekitError, RuntimeError):
    """Something failed on one of the processes; no process changed its model."""


def require_group() -> None:
    """Raises `ArgumentError` unless processes were joined."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ArgumentError(
            "There is no process group.",
            why="torch.distributed was not initialised",
            hint="start with torchrun and call torch.distributed.init_process_group() first",
        )


def device_of(group: dist.ProcessGroup | None) -> torch.device:
    """Returns the device on which a process group's messages lie: the GPU for NCCL, else the CPU."""
    return (
        torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend(group) else torch.device("cpu")
    )


@contextmanager
def all_or_none(what: str, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Runs a block on every process; an exception in one of them raises in all, before anything else is done.

    Args:
        what: What is done, for the error.
        group: The processes; None for all.

    Raises:
        DistributedError: On the processes on which nothing failed; those that failed raise their own exception.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:  # told to the others first, and raised again below
        error = raised
    device = device_of(group)
    text = f"{type(error).__name__}: {error}".encode()[:_MESSAGE] if error is not None else b""
    own = torch.zeros(_MESSAGE + 1, dtype=torch.uint8, device="cpu")
    own[0] = error is not None
    own[1 : 1 + len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else own[1:1]
    received = [torch.zeros_like(own, device=device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, own.to(device), group=group)
    if error is not None:
        raise error
    failed = [(rank, message.cpu()) for rank, message in enumerate(received) if int(message[0])]
    if failed:
        said = [
            f"rank {rank}: {bytes(message[1:].tolist()).rstrip(bytes(1)).decode(errors='replace')}"
            for rank, message in failed
        ]
        raise DistributedError(
            "Another process failed; no process changed its model.", where=what, why="; ".join(said[:3])
        )


def broadcast_plan(plan: Plan | None, *, source: int = 0, group: dist.ProcessGroup | None = None) -> Plan:
    """Gives a plan that one process made to all.

    Args:
        plan: The plan; read on the source only.
        source: Rank that has it, among all processes.
        group: The processes; None for all.

    Returns:
        The plan, the same on every process. It carries no cost models: ``preview`` knows the parameters that change.

    Raises:
        ArgumentError: There is no process group, or the source has no plan.
    """
    require_group()
    with all_or_none("broadcast_plan", group):
        if dist.get_rank() == source and plan is None:
            raise ArgumentError("The source of a broadcast has no plan.", where=f"rank {source}")
    device = device_of(group)
    text = plan.to_json().encode() if plan is not None and dist.get_rank() == source else b""
    length = torch.tensor([len(text)], device=device)
    dist.broadcast(length, source, group=group)
    content = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if text:
        content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    dist.broadcast(content, source, group=group)
    return Plan.from_json(bytes(content.cpu().numpy()).decode())


def same_everywhere(text: str, group: dist.ProcessGroup | None = None) -> bool:
    """Tells whether all processes hold the same text; all of them get the same answer."""
    digest = torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8).int()
    lowest, highest = digest.to(device_of(group)), digest.to(device_of(group), copy=True)
    dist.all_reduce(lowest, dist.ReduceOp.MIN, group=group)
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    return torch.equal(lowest, highest)


def agree(plan: Plan, group: dist.ProcessGroup | None = None) -> Plan:
    """Checks that all processes hold the same plan.

    Returns:
        The plan.

    Raises:
        DistributedError: They don't; raised on all of them.
        ArgumentError: There is no process group.
    """
    require_group()
    if not same_everywhere(plan.to_json(), group):
        raise DistributedError(
            "The processes made different plans.",
            why="their weights, gradients or statistics differ",
            hint="call reduce_statistics on the criterion, or make the plan on one process and broadcast_plan it",
        )
    return plan
