"""What comparing a cut by numbers costs of a call of ``prune``: ``python -m benchmarks.verification``.

Each line is one model: the time of a call without the comparison, what it takes on top when it is asked for, that
share, and whether ``verify="auto"`` asks for it. The processor time of one thread, the least of some runs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import prunekit as pk

RUNS = 5


class Tokens(nn.Module):
    """A transformer encoder of a given size."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, width), nn.Linear(width, 5)
        self.body = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True) for _ in range(depth)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.body:
            x = block(x)
        return self.last(x.mean(1))


def subjects() -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Yields models from small to large with an input each."""
    from torchvision import models  # an optional package, only for this script

    yield "three linear layers", _mlp(64), torch.randn(8, 16)
    yield "three wide linear layers", _mlp(2048), torch.randn(8, 16)
    yield "transformer 64 x 4, 16 tokens", Tokens(64, 4), torch.randn(1, 16, 8)
    yield "transformer 256 x 6, 64 tokens", Tokens(256, 6), torch.randn(1, 64, 8)
    for name, side in (("resnet18", 32), ("resnet18", 224), ("resnet50", 64), ("resnet50", 224)):
        yield f"{name}, {side} pixels", getattr(models, name)(num_classes=10), torch.randn(1, 3, side, side)
    yield "mobilenet_v3_small, 64 pixels", models.mobilenet_v3_small(num_classes=10), torch.randn(1, 3, 64, 64)
    yield "vit_b_16, 224 pixels", models.vit_b_16(num_classes=10), torch.randn(1, 3, 224, 224)


def _mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.Linear(width, 4),
    )


def least(action: Callable[[nn.Module], Any], model: nn.Module) -> tuple[float, Any]:
    """Returns the least seconds of some runs, each on a copy of its own, and the last result."""
    times, result = [], None
    for _ in range(RUNS):
        own = copy.deepcopy(model)
        start = time.process_time()
        result = action(own)
        times.append(time.process_time() - start)
    return min(times), result


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    print(f"{'model':<34}{'call':>9}{'on top':>9}{'share':>8}  auto")
    for name, model, x in subjects():
        model.eval()
        without, _ = least(lambda own, x=x: pk.prune(own, x, verify="never"), model)  # type: ignore[misc]
        always, result = least(lambda own, x=x: pk.prune(own, x, verify="always"), model)  # type: ignore[misc]
        assert result.verification.check, str(result.verification)
        auto = pk.prune(copy.deepcopy(model), x).verification.check is not None
        extra = always - without
        print(
            f"{name:<34}{without:>8.3f}s{extra:>8.3f}s{extra / without:>8.0%}  {'compares' if auto else 'leaves out'}"
        )


if __name__ == "__main__":
    main()
