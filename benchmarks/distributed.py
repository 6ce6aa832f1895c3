"""What sparse training costs when several processes train: a step with a regularizer against one without, in one run.

    python benchmarks/distributed.py                    needs prunekit[vision]
    python benchmarks/distributed.py --world 2 --rounds 20 --models mlp,resnet18,transformer

Prints a Markdown table: for each model, under DDP and under FSDP2 over gloo, the median time of a training step without
a regularizer, that of ``regularize`` (group norm), their ratio, and the ratio of whole steps with and without it, which
take turns: the median over pairs of neighbours. Nothing else should run on the machine.

What ``regularize`` costs is reading the weights twice and their gradients once; what a step costs grows with the number
of samples, tokens or pixels that each weight sees in it. That number is given with each model: it is what to compare
with one's own training.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import attrs
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from prunekit_plugins.pruners import GroupNormPruner


@attrs.frozen
class Training:
    """A model and what one process feeds it in a step.

    Attributes:
        title: What it is, with what each weight sees in one step.
        build: Makes the model.
        shape: Shape of the inputs, batch first.
        parts: Type of the modules that `fully_shard` wraps one by one.
    """

    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    parts: type[nn.Module]


class Transformer(nn.Module):
    def __init__(self, width: int = 256, depth: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0, batch_first=True) for _ in range(depth)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens)  # type: ignore[no-any-return]


def mlp(width: int = 1024) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(64, width), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def resnet18() -> nn.Module:
    from torchvision import models

    model: nn.Module = models.resnet18()
    return model


def basic_block() -> type[nn.Module]:
    from torchvision.models.resnet import BasicBlock

    block: type[nn.Module] = BasicBlock
    return block


TRAININGS: dict[str, Callable[[], Training]] = {
    "mlp": lambda: Training("MLP, 6 layers of 1024; 256 samples", mlp, (256, 64), nn.Linear),
    "resnet18": lambda: Training(
        "ResNet-18, 32 images of 96 x 96; 288 to 73,728 pixels", resnet18, (32, 3, 96, 96), basic_block()
    ),
    "transformer": lambda: Training(
        "transformer, 6 layers of 256; 16 x 128 tokens", Transformer, (16, 128, 256), nn.TransformerEncoderLayer
    ),
}


def ddp(training: Training) -> tuple[GroupNormPruner, nn.Module]:
    model = training.build()
    return GroupNormPruner(model, torch.randn(2, *training.shape[1:])), DistributedDataParallel(model)


def fsdp2(training: Training) -> tuple[GroupNormPruner, nn.Module]:
    with torch.device("meta"):
        model = training.build()
    pruner = GroupNormPruner(model, torch.empty(2, *training.shape[1:], device="meta"))
    for part in model.modules():
        if isinstance(part, training.parts):
            fully_shard(part)
    fully_shard(model)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        local: Any = tensor.detach()
        local = local.to_local() if hasattr(local, "to_local") else local
        if local.is_floating_point():
            local.uniform_(0.01, 0.05)
        else:
            local.zero_()
    return pruner, model


def measure(
    make: Callable[[Training], tuple[GroupNormPruner, nn.Module]], training: Training, rounds: int
) -> tuple[float, float, float]:
    """Returns seconds of a step without a regularizer, seconds of ``regularize``, and the ratio of whole steps."""
    torch.manual_seed(0)
    pruner, model = make(training)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs = torch.randn(training.shape)
    steps: dict[bool, list[float]] = {False: [], True: []}
    alone: list[float] = []
    for number in range(2 * rounds + 4):
        regularize = bool(number % 2)
        dist.barrier()
        start = time.perf_counter()
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        before = time.perf_counter()
        if regularize:
            pruner.regularize(model)
        after = time.perf_counter()
        optimizer.step()
        if number >= 4:
            steps[regularize].append(time.perf_counter() - start)
            if regularize:
                alone.append(after - before)
    pairs = [with_it / without for without, with_it in zip(steps[False], steps[True], strict=True)]
    return statistics.median(steps[False]), statistics.median(alone), statistics.median(pairs)


def run(rank: int, folder: str, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=arguments.world)
    for name in arguments.models:
        training = TRAININGS[name]()
        for wrapper, make in (("DDP", ddp), ("FSDP2", fsdp2)):
            step, alone, ratio = measure(make, training, arguments.rounds)
            if rank == 0:
                cells = (training.title, wrapper, f"{1000 * step:.0f}", f"{1000 * alone:.1f}", f"{alone / step:.1%}")
                print(f"| {' | '.join(cells)} | {ratio:.3f} |", flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, default=2, help="processes (2)")
    parser.add_argument("--rounds", type=int, default=20, help="pairs of steps (20)")
    parser.add_argument("--models", default=",".join(TRAININGS), help=f"comma-separated: {', '.join(TRAININGS)}")
    arguments = parser.parse_args()
    arguments.models = arguments.models.split(",")
    unknown = [name for name in arguments.models if name not in TRAININGS]
    if unknown:
        parser.error(f"unknown model {unknown[0]}; known: {', '.join(TRAININGS)}")
    print(f"torch {torch.__version__}, {arguments.world} processes over gloo, 1 thread, {arguments.rounds} pairs")
    print(
        "\n| model; what a weight sees per process | wrapper | step ms | regularize ms | share | step with / without |"
    )
    print("|---|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, args=(folder, arguments), nprocs=arguments.world)


if __name__ == "__main__":
    main()
