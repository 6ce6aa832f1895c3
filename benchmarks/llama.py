"""A Llama-shaped decoder with nothing but what shapes the computation, at the sizes of models of 8 and 70 billion."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass(frozen=True)
class Sizes:
    vocabulary: int = 128_256
    width: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    hidden: int = 14_336
    tied: bool = False

    def with_layers(self, layers: int) -> Sizes:
        return dataclasses.replace(self, layers=layers)


SEVENTY_BILLION = Sizes(width=8192, layers=80, heads=64, kv_heads=8, hidden=28_672)


class RMSNorm(nn.Module):
    """Written out, as checkpoints' own code does, rather than ``nn.RMSNorm``."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Rotary(nn.Module):
    """Rotary position embedding: cosines and sines ``[tokens, head_dim]``."""

    def __init__(self, head_dim: int, base: float = 500_000.0) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("inv_freq", base**-exponents, persistent=False)

    def forward(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        angles = torch.outer(torch.arange(tokens, device=self.inv_freq.device).float(), self.inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal attention with fewer key and value heads than query heads."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.head_dim = sizes.width // sizes.heads
        self.repeats = sizes.heads // sizes.kv_heads
        self.q_proj = nn.Linear(sizes.width, sizes.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(sizes.width, sizes.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(sizes.width, sizes.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(sizes.heads * self.head_dim, sizes.width, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q = self.q_proj(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = self._repeat(k), self._repeat(v)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))

    def _repeat(self, x: torch.Tensor) -> torch.Tensor:
        batch, heads, tokens, dim = x.shape
        x = x[:, :, None].expand(batch, heads, self.repeats, tokens, dim)
        return x.reshape(batch, heads * self.repeats, tokens, dim)


class SwiGLU(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.width, sizes.hidden, bias=False)
        self.up_proj = nn.Linear(sizes.width, sizes.hidden, bias=False)
        self.down_proj = nn.Linear(sizes.hidden, sizes.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.input_norm = RMSNorm(sizes.width)
        self.attention = Attention(sizes)
        self.mlp_norm = RMSNorm(sizes.width)
        self.mlp = SwiGLU(sizes)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.input_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """Token ids ``[batch, tokens]`` in, logits ``[batch, tokens, vocabulary]`` out."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.rotary = Rotary(sizes.width // sizes.heads)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = RMSNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        if sizes.tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        cos, sin = self.rotary(ids.shape[1])
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))
