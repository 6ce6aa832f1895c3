"""Small models that the command line is pointed at as ``tests.cli.toys:NAME``; their sizes are written out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import prunekit as pk


class Perceptron(nn.Module):
    """One group: 8 neurons. 4*8 + 8 + 8*3 + 3 = 67 parameters, 4*8 + 8*3 = 56 MACs for a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(torch.relu(self.first(x)))
        return result


class Blocks(nn.Module):
    """A stream of 6 channels through three blocks of 10 neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6)) for _ in range(3)]
        )
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        result: Tensor = self.head(x)
        return result


class Tokens(nn.Module):
    """Takes whole numbers and a mask: 5 channels of an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        result: Tensor = self.head(self.embedding(tokens) * weights[..., None])
        return result


def perceptron() -> nn.Module:
    return Perceptron()


def with_tensor() -> tuple[nn.Module, Tensor]:
    return Perceptron(), torch.arange(4.0)[None]


def with_names() -> tuple[nn.Module, dict[str, Tensor]]:
    return Tokens(), {"tokens": torch.zeros(2, 3, dtype=torch.int64), "weights": torch.ones(2, 3)}


def with_nothing() -> tuple[nn.Module, list[Tensor]]:
    return Perceptron(), []


def blocks() -> nn.Module:
    return Blocks()


def tokens() -> nn.Module:
    return Tokens()


def normed() -> nn.Module:
    """Its norm's statistics are those of the batches."""
    norm = nn.BatchNorm1d(12, momentum=None)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), norm, nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        model[0].bias.add_(1.0)
        model.train()(torch.cat(batches()))
    return model.eval()


def fixed() -> nn.Module:
    """Nothing in it can shrink: its input and its output are its only dims."""
    return nn.Linear(4, 3)


def raises() -> nn.Module:
    raise OSError("no weights here")


def no_module() -> object:
    return [1, 2]


INSTANCE = Perceptron()


def batches() -> list[Tensor]:
    """Sixty examples that repeat each other, in batches of twelve."""
    generator = torch.Generator().manual_seed(1)
    examples = torch.randn(60, 2, generator=generator) @ torch.randn(2, 4, generator=generator)
    return list(examples.split(12))


class Seen:
    """An iterable that isn't a list and has no length; it counts the passes over it."""

    passes = 0

    def __iter__(self) -> Iterator[Tensor]:
        Seen.passes += 1
        return iter(batches())


SEEN = Seen()
READ = pk.Batches([(batch, 0) for batch in batches()], inputs=lambda pair: pair[0])


def no_batches() -> object:
    return 3


def batches_raise() -> object:
    raise OSError("no data here")
