"""The networks on which criteria, regularizers, cost models and compensators are proven."""

from __future__ import annotations

import copy

import torch
from torch import nn


class SmallNet(nn.Module):
    """A residual branch, a norm of each kind and a flatten, so that units show as rows, columns, runs and entries."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 6, 1)
        self.hidden = nn.Linear(6 * 4, 5)
        self.last_norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps pictures ``[batch, 3, height, width]`` to scores ``[batch, 3]``."""
        x = self.norm(self.stem(x)).relu()
        x = nn.functional.adaptive_avg_pool2d(x + self.inner(x), 2).flatten(1)
        scores: torch.Tensor = self.head(self.last_norm(self.hidden(x)).relu())
        return scores


def small_net() -> tuple[SmallNet, torch.Tensor]:
    """Makes the network and a batch for it, the same every time; all parameters are random, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, batch = SmallNet().double(), torch.randn(4, 3, 6, 6, dtype=torch.float64)
        for parameter in net.parameters():
            nn.init.normal_(parameter)
    return net, batch


class BranchNet(nn.Module):
    """Tokens through two residual branches in each of two layers, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6)) for _ in range(2))
        self.feeds = nn.ModuleList(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6)) for _ in range(2))
        self.twice, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps tokens ``[batch, tokens, 6]`` to ``[batch, tokens, 4]``."""
        for mixer, feed in zip(self.mixers, self.feeds, strict=True):
            x = x + mixer(x)
            x = x + feed(x)
        x = x + self.twice(x)
        x = x + self.twice(x)
        logits: torch.Tensor = self.head(x)
        return logits


def branch_net() -> tuple[BranchNet, torch.Tensor]:
    """Makes the network and a batch for it, the same every time; all parameters are random, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, batch = BranchNet().double(), torch.randn(4, 5, 6, dtype=torch.float64)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.5)
    return net, batch


class MixtureNet(nn.Module):
    """A network whose only units that can leave are four experts, of which a token is sent to two."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        self.weights = nn.Parameter(torch.randn(4, 6, 3, device="cpu"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps tokens ``[tokens, 6]`` to ``[tokens, 3]``."""
        gates, chosen = self.router(x).softmax(-1).topk(2)
        each = torch.einsum("td,tkdf->tkf", x, self.weights[chosen])
        mixed: torch.Tensor = (each * gates[..., None]).sum(1)
        return mixed.tanh() + x[:, :3]


def mixture_net() -> tuple[MixtureNet, torch.Tensor]:
    """Makes the network and a batch for it, the same every time, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MixtureNet().double(), torch.randn(40, 6, dtype=torch.float64, device="cpu")


def chosen_net(model: nn.Module | None, example: torch.Tensor | None) -> tuple[nn.Module, torch.Tensor]:
    """Returns a copy of the author's network and its input, or the small one.

    Raises:
        AssertionError: Only one of both was given.
    """
    if model is None and example is None:
        return small_net()
    assert model is not None, "an example without a model"
    assert example is not None, "a model without an example"
    return copy.deepcopy(model), example


def random_batches(like: torch.Tensor, count: int, *, seed: int) -> list[torch.Tensor]:
    """Makes batches of standard normal numbers of the shape, dtype and device of another one.

    Args:
        like: The other one, of real numbers.
        count: How many are made.
        seed: Where the random numbers start; they are drawn on the CPU, so that every device gets the same.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(like.shape, generator=generator, dtype=like.dtype, device="cpu") for _ in range(count)]
    return [values.to(like.device) for values in drawn]
