"""Blocks over token sequences ``[batch, tokens, channels]``: every construct that a transformer may be made of."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from tests.programs.pictures import ACTS, Built, Call, Residual, parameter
from tests.programs.spec import Block, divisors, pick, width

TOKENS = 5
SHAPES = ((2, 4), (3, 2), (2, 3), (4, 2), (1, 4), (2, 2))


class Attention(nn.Module):
    """Self-attention, packed or not, with fewer key heads or not, in the many ways that people write it."""

    def __init__(self, channels: int, heads: int, dim: int, layout: int, core: int, written: int) -> None:
        super().__init__()
        self.layout, self.core, self.written = layout % 9, core % 7, written % 3
        self.heads, self.dim = heads, dim
        self.kv_heads = {
            3: 1,
            4: pick(divisors(heads), -2),
            5: pick(divisors(heads), -2),
            6: pick(divisors(heads), -2),
        }.get(self.layout, heads)
        self.scale = dim**-0.5
        self.value_dim = dim + 1 if self.layout == 8 else dim
        inner, key = heads * dim, self.kv_heads * dim
        if self.layout in (0, 1, 7):
            self.qkv = nn.Linear(channels, 3 * inner, bias=core % 2 == 0)
        elif self.layout == 6:
            self.sizes = [inner, key, key]
            self.qkv = nn.Linear(channels, inner + 2 * key)
        else:
            self.q = nn.Linear(channels, inner)
            self.k = nn.Linear(channels, key, bias=False)
            self.v = nn.Linear(channels, self.kv_heads * self.value_dim)
        if self.core == 6:
            self.register_buffer("angles", torch.rand(TOKENS + 1, dim))
        self.out = nn.Linear(heads * self.value_dim, channels)

    def part(self, x: torch.Tensor, heads: int, dim: int) -> torch.Tensor:
        b, n, _ = x.shape
        if self.written == 0:
            return x.view(b, n, heads, dim).transpose(1, 2)
        if self.written == 1:
            return x.reshape(b, n, heads, -1).permute(0, 2, 1, 3)
        return x.unflatten(-1, (-1, dim)).transpose(1, 2)

    def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        b, n, _ = x.shape
        if self.layout == 0:
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1 if self.written else self.dim).permute(2, 0, 3, 1, 4)
            return q, k, v
        if self.layout == 7:
            q, k, v = self.qkv(x).view(b, n, self.heads, -1).transpose(1, 2).chunk(3, dim=-1)
            return q, k, v
        if self.layout == 1:
            pieces = self.qkv(x).chunk(3, dim=-1)
        elif self.layout == 6:
            pieces = self.qkv(x).split(self.sizes, dim=-1)
        else:
            pieces = (self.q(x), self.k(x), self.v(x))
        q, k, v = pieces
        return (
            self.part(q, self.heads, self.dim),
            self.part(k, self.kv_heads, self.dim),
            self.part(v, self.kv_heads, self.value_dim),
        )

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        b, h, n, d = x.shape
        repeats = self.heads // self.kv_heads
        if self.layout == 4:
            return x[:, :, None].expand(b, h, repeats, n, d).reshape(b, h * repeats, n, d)
        if self.layout == 6:
            return x.repeat_interleave(repeats, dim=1)
        return x

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        angles = self.angles[: x.shape[-2]]
        if x.shape[-1] % 2:
            return x * angles.cos()
        a, b = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat((-b, a), dim=-1) * angles.sin()

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.core == 0 or self.layout == 5:
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=self.layout == 5)
        if self.core == 1:
            return F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        if self.core == 2:
            scores = (q @ k.transpose(-2, -1)) * self.scale
        elif self.core == 3:
            scores = (q * q.size(-1) ** -0.5) @ k.transpose(-2, -1)
        elif self.core == 4:
            return q @ (k.transpose(-2, -1) @ v) * self.scale
        elif self.core == 5:
            scores = torch.einsum("bhnd,bhmd->bhnm", q, k.expand(-1, q.shape[1], -1, -1)) / math.sqrt(self.dim)
        else:
            return F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v)
        return scores.softmax(dim=-1) @ v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.parts(x)
        k, v = self.spread(k), self.spread(v)
        y = self.attend(q, k, v).transpose(1, 2)
        if self.written == 1:
            return self.out(y.flatten(2))
        return self.out(y.reshape(x.shape[0], x.shape[1], -1))


class Packed(nn.Module):
    """``nn.MultiheadAttention`` on one input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return result


class Gated(nn.Module):
    """SwiGLU with two projections, or one that is taken apart."""

    def __init__(self, channels: int, hidden: int, how: int) -> None:
        super().__init__()
        self.how, self.hidden = how % 4, hidden
        if self.how == 0:
            self.gate, self.up = nn.Linear(channels, hidden), nn.Linear(channels, hidden, bias=False)
        else:
            self.both = nn.Linear(channels, 2 * hidden)
        self.down = nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == 0:
            a, b = self.gate(x), self.up(x)
        elif self.how == 1:
            a, b = self.both(x).chunk(2, dim=-1)
        elif self.how == 2:
            a, b = self.both(x).split(self.hidden, dim=-1)
        else:
            a, b = self.both(x).unflatten(-1, (2, -1)).unbind(-2)
        return self.down(F.silu(a) * b)


class Extra(nn.Module):
    """Learnt tokens put before the others, and taken away again."""

    def __init__(self, channels: int, count: int, body: nn.Module) -> None:
        super().__init__()
        self.tokens = parameter(1, count, channels)
        self.count, self.body = count, body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(torch.cat([self.tokens.expand(len(x), -1, -1), x], 1))
        return y[:, self.count :] + y[:, :1]


class Crossed(nn.Module):
    """Learnt queries attend to the sequence; tokens attend to what they gathered."""

    def __init__(self, channels: int, count: int, inner: int) -> None:
        super().__init__()
        self.queries = parameter(count, inner)
        self.k, self.v = nn.Linear(channels, inner), nn.Linear(channels, inner)
        self.back = nn.Linear(inner, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(self.queries @ self.k(x).mT, -1)
        return x + self.back((weights @ self.v(x)).mean(1, keepdim=True))


class Mixer(nn.Module):
    """A perceptron over tokens, with the sequence transposed."""

    def __init__(self, hidden: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.up, self.down = nn.Linear(TOKENS, hidden), nn.Linear(hidden, TOKENS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2)
        return x + y if self.residual else y


class Experts(nn.Module):
    """Packed experts, all of them weighed by a router."""

    def __init__(self, channels: int, experts: int, hidden: int) -> None:
        super().__init__()
        self.router = nn.Linear(channels, experts)
        self.up, self.down = parameter(experts, channels, hidden), parameter(experts, hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.sigmoid(self.router(x))
        y = F.relu(torch.einsum("bnc,ech->bneh", x, self.up))
        return torch.einsum("bneh,ehc,bne->bnc", y, self.down, weights)


class Tables(nn.Module):
    """A table of place embeddings looked up by number."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENS, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table(torch.arange(x.shape[1], device=x.device))


class LowRank(nn.Module):
    """A linear layer with a low-rank update that is added to its weight."""

    def __init__(self, channels: int, out: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(channels, out)
        self.a, self.b = parameter(rank, channels), parameter(out, rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.base.weight + self.b @ self.a, self.base.bias)


class Convolved(nn.Module):
    """A depthwise convolution along the sequence."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


def sequence(blocks: tuple[Block, ...], c: int) -> Built:
    made: list[nn.Module] = []
    for block in blocks:
        module, c = KINDS[block.kind](block, c)
        made.append(module)
    return nn.Sequential(*made), c


def same_width(blocks: tuple[Block, ...], c: int) -> nn.Module:
    body, made = sequence(blocks, c)
    return body if made == c else nn.Sequential(body, nn.Linear(made, c))


def _attention(block: Block, c: int) -> Built:
    heads, dim = pick(SHAPES, block.a)
    return Attention(c, heads, dim, block.b, block.a // len(SHAPES) + block.b // 9, block.a + block.b), c


def _packed(block: Block, c: int) -> Built:
    return Packed(c, pick(divisors(c), block.a)), c


def _linear(block: Block, c: int) -> Built:
    out = width(block.a)
    return nn.Linear(c, out, bias=block.b % 2 == 0), out


def _mlp(block: Block, c: int) -> Built:
    act = pick(ACTS, block.b)
    up, down = nn.Linear(c, width(block.a)), nn.Linear(width(block.a), c)
    return Call(lambda m, x: m.down(act(m.up(x))), up=up, down=down), c


def _tied(block: Block, c: int) -> Built:
    hidden = width(block.a)
    return Call(lambda m, x: F.linear(F.relu(F.linear(x, m.matrix)), m.matrix.t()), matrix=parameter(hidden, c)), c


def _twice(block: Block, c: int) -> Built:
    return Call(lambda m, x: m.layer(torch.tanh(m.layer(x))), layer=nn.Linear(c, c)), c


def _act(block: Block, c: int) -> Built:
    act = pick(ACTS, block.a)
    return Call(lambda m, x: act(x)), c


def _scale(block: Block, c: int) -> Built:
    return Call(lambda m, x: x * m.weight + m.bias, weight=parameter(c), bias=parameter(1, 1, c)), c


def _place(block: Block, c: int) -> Built:
    if block.a % 2:
        return Tables(c), c
    return Call(lambda m, x: x + m.place, place=parameter(1, TOKENS, c)), c


def _residual(block: Block, c: int) -> Built:
    return Residual(same_width(block.inner, c), None), c


def _joined(block: Block, c: int) -> Built:
    left, a = sequence(block.inner[::2], c)
    right, b = sequence(block.inner[1::2], c)
    return Call(lambda m, x: torch.cat([m.left(x), m.right(x)], -1), left=left, right=right), a + b


def _extra(block: Block, c: int) -> Built:
    return Extra(c, 1, _attention(block, c)[0]), c


def _registers(block: Block, c: int) -> Built:
    return Extra(c, 2 + block.a % 3, Attention(c, 2, 2, 2, 0, 0)), c


def _free_norm(block: Block, c: int) -> Built:
    return nn.LayerNorm(c, elementwise_affine=False), c


def _norm(block: Block, c: int) -> Built:
    return (nn.LayerNorm, nn.RMSNorm)[block.a % 2](c), c


def _batch_norm(block: Block, c: int) -> Built:
    return Call(lambda m, x: m.norm(x.transpose(1, 2)).transpose(1, 2), norm=nn.BatchNorm1d(c)), c


def _softmax_channels(block: Block, c: int) -> Built:
    functions: tuple[Callable[[nn.Module, torch.Tensor], torch.Tensor], ...] = (
        lambda m, x: torch.softmax(x, -1),
        lambda m, x: x - x.mean(-1, keepdim=True),
        lambda m, x: F.normalize(x, dim=-1),
        lambda m, x: x / (1 + x.std(-1, keepdim=True, unbiased=False)),
    )
    function = pick(functions, block.a)
    return Call(function), c


def _head_norm(block: Block, c: int) -> Built:
    heads = pick(divisors(c), block.a)

    def run(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.norm(x.unflatten(-1, (m.heads, -1))).flatten(-2)

    return Call(run, norm=nn.RMSNorm(c // heads), heads=heads), c


KINDS: dict[str, Callable[[Block, int], Built]] = {
    "linear": _linear,
    "mlp": _mlp,
    "act": _act,
    "attention": _attention,
    "packed": _packed,
    "gated": lambda block, c: (Gated(c, width(block.a), block.b), c),
    "residual": _residual,
    "joined": _joined,
    "scale": _scale,
    "place": _place,
    "tied": _tied,
    "twice": _twice,
    "extra": _extra,
    "mixer": lambda block, c: (Mixer(width(block.a), residual=True), c),
    "resampler": lambda block, c: (Mixer(width(block.a), residual=False), c),
    "experts": lambda block, c: (Experts(c, 2 + block.a % 2, width(block.b)), c),
    "low_rank": lambda block, c: (LowRank(c, width(block.a), 2 + block.b % 2), width(block.a)),
    "convolved": lambda block, c: (Convolved(c), c),
    "batch_norm": _batch_norm,
    "norm": _norm,
    "free_norm": _free_norm,
    "head_norm": _head_norm,
    "registers": _registers,
    "crossed": lambda block, c: (Crossed(c, 2 + block.a % 3, width(block.b)), c),
    "softmax_channels": _softmax_channels,
}
NESTED = ("residual", "joined")
NORMS = ("norm",)
"""Kinds whose statistics run over channels: the masked original must take them over the kept channels only."""
INEXACT = ("free_norm", "head_norm", "registers", "resampler", "crossed", "softmax_channels")
"""Kinds that reduce over a prunable axis: zeros still count, so only the library's own check compares them."""


class TokenNet(nn.Module):
    """Token embedding, blocks, and one of several heads."""

    def __init__(self, blocks: tuple[Block, ...], head: int) -> None:
        super().__init__()
        self.how = head % 4
        self.numbers = self.how == 3
        self.embed: nn.Module = nn.Embedding(7, 8) if self.numbers else nn.Linear(6, 8)
        body, c = sequence(blocks, 8)
        self.body = body if not self.numbers or c == 8 else nn.Sequential(body, nn.Linear(c, 8))
        self.head: nn.Module = nn.Linear(
            TOKENS * c if self.how == 1 else 8 if self.numbers else c, 7 if self.numbers else 3
        )
        if self.numbers:
            assert isinstance(self.head, nn.Linear)
            self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(self.embed(x))
        if self.how == 0:
            x = x.mean(1)
        elif self.how == 1:
            x = x.flatten(1)
        elif self.how == 2:
            x = x[:, 0]
        result: torch.Tensor = self.head(x)
        return result
