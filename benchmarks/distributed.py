"""What sparse training costs when several processes train: a step with a regularizer against one without, in one run.

Usage: python benchmarks/distributed.py [--world 2] [--rounds 20] [--width 1024] [--batch 256]

Prints the median time of a training step with the group-norm regularizer divided by that without it, under DDP and
under FSDP2 over gloo, steps with and without taking turns. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from prunekit_plugins.pruners import GroupNormPruner


def build(width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(64, width), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def ddp(width: int) -> tuple[GroupNormPruner, nn.Module]:
    model = build(width)
    return GroupNormPruner(model, torch.randn(2, 64)), DistributedDataParallel(model)


def fsdp2(width: int) -> tuple[GroupNormPruner, nn.Module]:
    with torch.device("meta"):
        model = build(width)
    pruner = GroupNormPruner(model, torch.empty(2, 64, device="meta"))
    for layer in model:  # type: ignore[attr-defined]
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        local: Any = tensor.detach()
        local = local.to_local() if hasattr(local, "to_local") else local
        if local.is_floating_point():
            local.uniform_(0.01, 0.05)
    return pruner, model


def measure(make: Callable[[int], tuple[GroupNormPruner, nn.Module]], arguments: argparse.Namespace) -> float:
    torch.manual_seed(0)
    pruner, model = make(arguments.width)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs = torch.randn(arguments.batch, 64)
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * arguments.rounds + 4):
        regularize = bool(number % 2)
        dist.barrier()
        start = time.perf_counter()
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        if regularize:
            pruner.regularize(model)
        optimizer.step()
        if number >= 4:
            times[regularize].append(time.perf_counter() - start)
    return statistics.median(times[True]) / statistics.median(times[False])


def run(rank: int, folder: str, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=arguments.world)
    for name, make in (("DDP", ddp), ("FSDP2", fsdp2)):
        ratio = measure(make, arguments)
        if rank == 0:
            print(f"{name:<6} step with regularizer / step without: {ratio:.3f}", flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("world", 2), ("rounds", 20), ("width", 1024), ("batch", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {arguments.world} processes, 1 thread each, width {arguments.width}")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, args=(folder, arguments), nprocs=arguments.world)


if __name__ == "__main__":
    main()
