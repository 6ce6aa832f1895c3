"""The networks of the quality benchmark, and how their cost is counted; only torch is needed.

This file is imported in two environments, prunekit's and Torch-Pruning's, so that models can travel between them.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

CONTEXT = 64
"""Characters that the language model reads."""
SYMBOLS = 96
"""Its alphabet: printable ASCII and the end of a line."""
FEATURES, CLASSES = 54, 7
"""Columns and classes of the generated table."""


def _demo_networks() -> Any:
    """The networks of ``prunekit demo``, loaded from their file: the other environment has no prunekit."""
    name = "demo_networks"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "prunekit_plugins" / "cli" / "commands" / "demo" / "networks.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class Block(nn.Module):
    """A basic block of a residual network."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride=stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of two basic blocks for 16 by 16 images."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.stage2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.stage3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(images))))
        return self.head(x.mean((2, 3)))


class CausalAttention(nn.Module):
    """Self-attention with one packed layer for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A layer of a language model: attention and an MLP, each after a norm and around which the input is passed on."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CharGPT(nn.Module):
    """A small GPT on characters."""

    def __init__(self, width: int = 96, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(SYMBOLS, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.layers = nn.ModuleList([Layer(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.tokens(symbols) + self.positions(torch.arange(symbols.shape[1], device=symbols.device))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Perceptron(nn.Module):
    """Three hidden layers for a table."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        sizes = (FEATURES, width, width, width)
        self.hidden = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(sizes)])
        self.head = nn.Linear(width, CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        for layer in self.hidden:
            rows = torch.relu(layer(rows))
        return self.head(rows)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "digits conv net": lambda: _demo_networks().ConvNet(),
    "digits transformer": lambda: _demo_networks().Transformer(),
    "clutter resnet": ResNet,
    "table perceptron": Perceptron,
    "docs gpt": CharGPT,
}


def build(name: str, seed: int) -> nn.Module:
    """Builds one of the networks with fresh weights."""
    _demo_networks()  # also makes pickled models readable
    torch.manual_seed(seed)
    return BUILDERS[name]()


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per sample: tensor ``[batch]``, the mean over positions where a sample has several."""
    each = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return each.reshape(len(labels), -1).mean(1)


def count_macs(model: nn.Module, inputs: Tensor) -> float:
    """Multiply-accumulates of one forward: half of what PyTorch's own counter calls flops.

    Attention runs as plain matrix products while it counts, which it knows; fused kernels of the CPU it doesn't.
    """
    fast, training = torch.backends.mha.get_fastpath_enabled(), model.training
    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCounterMode(display=False)
    try:
        with (
            torch.no_grad(),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            counter,
        ):
            model.eval()(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        model.train(training)
    return counter.get_total_flops() / 2
