"""Small models with their expected groups written next to the layers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Groups: the stream (conv1, bn1, conv3, bn3 out; conv2, fc in) and the inner channels of conv2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)  # stream: out
        self.bn1 = nn.BatchNorm2d(8)  # stream: along
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)  # stream: in, inner: out
        self.bn2 = nn.BatchNorm2d(12)  # inner: along
        self.conv3 = nn.Conv2d(12, 8, 3, padding=1)  # inner: in, stream: out
        self.bn3 = nn.BatchNorm2d(8)  # stream: along
        self.fc = nn.Linear(8, 5)  # stream: in; its 5 outputs are those of the model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(x)).relu()
        x = (x + self.bn3(self.conv3(y))).relu()
        return self.fc(x.mean((2, 3)))


class Chain(nn.Module):
    """One group per hidden layer; the last layer's outputs are pinned."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class Attention(nn.Module):
    """Packed qkv; the head dim is computed from the width, so ``|stream| = heads x |head dim|``."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class Encoder(nn.Module):
    """Two pre-norm blocks on a token stream with a class token and a position embedding."""

    def __init__(self, width: int = 16, heads: int = 4, tokens: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(10, width)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, tokens + 1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.attention = nn.ModuleList(Attention(width, heads) for _ in range(2))
        self.mlp = nn.ModuleList(Chain(width, 4 * width, width) for _ in range(2))
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.position
        for k in range(2):
            x = x + self.attention[k](self.norms[2 * k](x))
            x = x + self.mlp[k](self.norms[2 * k + 1](x))
        return self.head(x[:, 0])


def small_llama(**sizes: Any) -> Any:
    """A language model of transformers with three layers, in eval mode; the test is skipped without transformers."""
    transformers = pytest.importorskip("transformers", reason="transformers is an extra of its own")
    torch.manual_seed(0)
    given = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**given, **heads, **sizes})).eval()
