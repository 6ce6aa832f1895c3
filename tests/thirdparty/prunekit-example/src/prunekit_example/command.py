"""``prunekit example``."""

from __future__ import annotations

import torch

import prunekit as pk
from prunekit_example.layers import Net


def example(width: int = 16, ratio: float = 0.5) -> None:
    """Prune the example network and print its widths."""
    model = Net(width)
    pk.prune(model, torch.randn(2, 8), ratio, importance="largest_row")
    print(f"{width} -> {model.first.width}")
