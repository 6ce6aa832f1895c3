"""Small students and teachers, and batches for them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import prunekit as pk


class Block(nn.Module):
    """Adds a feed-forward with a batch norm and dropout to what it is given."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(width, inside), nn.BatchNorm1d(inside)
        self.down, self.drop = nn.Linear(inside, width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(self.norm(self.up(x)).relu()))


class Net(nn.Module):
    """A classifier of eight features, with residual blocks."""

    def __init__(self, width: int = 12, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.blocks = nn.Sequential(*(Block(width, 16) for _ in range(blocks)))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).relu())


def inputs(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def batches(count: int = 6, size: int = 16) -> list[Tensor]:
    return list(inputs(count * size).split(size))


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Net()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean = torch.randn(module.num_features)
                module.running_var = torch.rand(module.num_features) + 0.5
        nn.init.normal_(model.head.weight)
    return model.eval()


def pair(**options: object) -> tuple[nn.Module, nn.Module, pk.Plan]:
    """A student, its teacher, and the plan between them."""
    teacher = net()
    student = copy.deepcopy(teacher)
    result = pk.prune(student, inputs(2), **({"ratio": 0.5} | options))
    return student, teacher, result.plan


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two states are the same, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class StoppedError(Exception):
    """What a test stops a run with."""


def stop_after(steps: int) -> Callable[[int, int], None]:
    """A progress that ends a run after so many calls."""
    calls = 0

    def progress(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == steps:
            raise StoppedError

    return progress
