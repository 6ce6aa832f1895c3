"""Residual models, and how their branches are switched off by hand: nothing of the library is used for that."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torchvision
from torch import nn

import prunekit as pk
from tests.core.test_branches import PreNorm


class Attention(nn.Module):
    """Self-attention with two heads on ``[batch, tokens, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """An attention and a feed-forward block, each with a norm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(8), Attention(), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SmallViT(nn.Module):
    """Patches, positions, three layers, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.positions = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.randn(1, 4, 8))
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class Behind(nn.Module):
    """``norm(relu(x + f(x)))``: what stands behind the sum stays, with its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.relu, self.norm = nn.ReLU(), nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.relu(x + self.down(self.up(x).relu())))


class PostNorms(nn.Module):
    """A layer, three blocks with what stands behind their sums, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.blocks = nn.Sequential(Behind(), Behind(), Behind())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)))


class TiedMLP(nn.Module):
    """Two blocks ``x + f(x)``; the first one's matrix, which has its name first, is the head's as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.head.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x)
        return self.head(x + self.second(x))


def residual_mlp() -> tuple[nn.Module, torch.Tensor]:
    """Two blocks ``x + f(x)`` on ``[2, 5, 8]``, in double precision."""
    torch.manual_seed(0)
    return PreNorm().double().eval(), torch.randn(2, 5, 8).double()


def small_vit() -> tuple[nn.Module, torch.Tensor]:
    """Three layers with attention on images ``[2, 3, 8, 8]``, in double precision."""
    torch.manual_seed(0)
    return SmallViT().double().eval(), torch.randn(2, 3, 8, 8).double()


def mobilenet() -> tuple[nn.Module, torch.Tensor]:
    """torchvision's MobileNetV3 with few channels, on images ``[2, 3, 32, 32]``, in double precision."""
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v3_small(num_classes=4, width_mult=0.25).double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return model, torch.randn(2, 3, 32, 32).double()


def post_norms() -> tuple[nn.Module, torch.Tensor]:
    """Three blocks with a relu and a norm behind the sum, on ``[4, 8]``, in double precision."""
    torch.manual_seed(0)
    model = PostNorms().double().eval()
    with torch.no_grad():
        for block in model.blocks:
            nn.init.uniform_(block.norm.weight, 0.5, 1.5)
    return model, torch.randn(4, 8).double()


MODELS: list[tuple[Any, dict[str, str]]] = [
    (residual_mlp, {"blocks.1.up": "blocks.1.down"}),
    (small_vit, {"layers.0.attn": "layers.0.attn", "layers.1.mlp": "layers.1.mlp", "layers.2.attn": "layers.2.attn"}),
    (post_norms, {"blocks.0.up": "blocks.0.down", "blocks.2.up": "blocks.2.down"}),
    (mobilenet, {"features.5.block": "features.5.block", "features.10.block": "features.10.block"}),
]
"""Makers of a model and its inputs, with branches, each with the module whose result is the operand."""


def switched_off(model: nn.Module, *paths: str) -> nn.Module:
    """Returns a copy of a model in which some modules return zeros."""
    copied = copy.deepcopy(model)
    for path in paths:
        copied.get_submodule(path).register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    return copied


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two results in double precision are equal but for rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def other_weights(model: nn.Module) -> nn.Module:
    """Returns a copy of a model with other values in all parameters and buffers of real numbers."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1.0)
    return copied


def applied_as_json(plan: pk.Plan, model: Any) -> Any:
    """Writes a plan as JSON, which must give it back, and applies what was read to a copy of a model."""
    read = pk.Plan.from_json(plan.to_json())
    assert read == plan
    return read.apply(copy.deepcopy(model))
