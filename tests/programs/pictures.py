"""Blocks over pictures ``[batch, channels, 4, 4]``: every construct that a convolutional network may be made of."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from tests.programs.spec import Block, divisors, pick, width

SIDE = 4
ACTS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (F.relu, torch.sigmoid, F.gelu, torch.tanh, F.silu)
Built = tuple[nn.Module, int]


class Call(nn.Module):
    """A function on the output of modules, so that small constructs need no class."""

    def __init__(self, function: Callable[..., torch.Tensor], **parts: nn.Module | torch.Tensor | int) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


class Residual(nn.Module):
    def __init__(self, body: nn.Module, project: nn.Module | None) -> None:
        super().__init__()
        self.body, self.project = body, project

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + (x if self.project is None else self.project(x))


class Halves(nn.Module):
    """``chunk(2)``, one half processed, joined again."""

    def __init__(self, body: nn.Module, swap: bool) -> None:
        super().__init__()
        self.body, self.swap = body, swap

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=1)
        second = self.body(second)
        return torch.cat((second, first) if self.swap else (first, second), dim=1)


class Pieces(nn.Module):
    """``split`` into listed sizes that live in attributes."""

    def __init__(self, low: int, high: int, body: nn.Module) -> None:
        super().__init__()
        self.low, self.high, self.body = low, high, body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.split([self.low, self.high], dim=1)
        return torch.cat([self.body(first), second], dim=1)


class Prefix(nn.Module):
    """Only the leading channels are processed (a partial convolution)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(size, size, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.conv(x[:, : self.size]), x[:, self.size :]], dim=1)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, hidden: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        make = nn.Linear if linear else lambda a, b: nn.Conv2d(a, b, 1)
        self.down, self.up = make(channels, hidden), make(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.linear:
            gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
            return x * gate[:, :, None, None]
        return x * self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


class Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class PerGroup(nn.Module):
    """One convolution for every run of channels, folded into the batch."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.conv = nn.Conv2d(channels // groups, channels // groups, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        return self.conv(x.reshape(b * self.groups, -1, h, w)).reshape(b, -1, h, w)


class PixelAttention(nn.Module):
    """Attention between pixels, over the channels."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(channels, 3 * inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).flatten(2).chunk(3, dim=1)
        weights = torch.softmax(q.transpose(1, 2) @ k, dim=-1)
        return self.out((v @ weights.transpose(1, 2)).unflatten(2, (x.shape[2], x.shape[3])))


def conv(a: int, b: int, kernel: int = 3, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(a, b, kernel, padding=kernel // 2, groups=groups, bias=bias)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / math.sqrt(max(1, shape[-1])))


def sequence(blocks: tuple[Block, ...], c: int) -> Built:
    made: list[nn.Module] = []
    for block in blocks:
        module, c = build(block, c)
        made.append(module)
    return nn.Sequential(*made), c


def same_width(blocks: tuple[Block, ...], c: int, wanted: int) -> nn.Module:
    body, made = sequence(blocks, c)
    return body if made == wanted else nn.Sequential(body, conv(made, wanted, 1))


def build(block: Block, c: int) -> Built:
    """Makes the module of a block for ``c`` input channels; returns it with its output channels."""
    return KINDS[block.kind](block, c)


def _conv(block: Block, c: int) -> Built:
    out = width(block.a)
    groups = pick(divisors(math.gcd(c, out)), block.b)
    return conv(c, out, (1, 3)[block.a % 2], groups, bias=block.b % 3 != 2), out


def _transposed(block: Block, c: int) -> Built:
    out = width(block.a)
    groups = pick(divisors(math.gcd(c, out)), block.b)
    return nn.ConvTranspose2d(c, out, 3, padding=1, groups=groups), out


def _depthwise(block: Block, c: int) -> Built:
    times = 1 + block.a % 2
    return conv(c, times * c, 3, c), times * c


def _depthwise_transposed(block: Block, c: int) -> Built:
    times = 1 + block.a % 2
    return nn.ConvTranspose2d(c, times * c, 3, padding=1, groups=c), times * c


def _group_norm(block: Block, c: int) -> Built:
    return nn.GroupNorm(pick(divisors(c), block.a), c), c


def _channels_last_norm(block: Block, c: int) -> Built:
    norm = (nn.LayerNorm, nn.RMSNorm)[block.a % 2](c)
    return Call(lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=norm), c


def _act(block: Block, c: int) -> Built:
    act = pick(ACTS, block.a)
    return Call(lambda m, x: act(x)), c


def _residual(block: Block, c: int) -> Built:
    body, out = sequence(block.inner, c)
    if block.a % 2 and out != c:
        return Residual(nn.Sequential(body, conv(out, c, 1)), None), c
    return Residual(body, None if out == c else conv(c, out, 1)), out


def _branches(block: Block, c: int) -> Built:
    left, a = sequence(block.inner[::2], c)
    right, b = sequence(block.inner[1::2], c)
    return Call(lambda m, x: torch.cat([m.left(x), m.right(x)], 1), left=left, right=right), a + b


def _dense(block: Block, c: int) -> Built:
    body, out = sequence(block.inner, c)
    return Call(lambda m, x: torch.cat([x, m.body(x), x][: 2 + block.a % 2], 1), body=body), (1 + block.a % 2) * c + out


def _halves(block: Block, c: int) -> Built:
    if c % 2:
        return _conv(block, c)
    body, out = sequence(block.inner, c // 2)
    return Halves(body, bool(block.a % 2)), c // 2 + out


def _pieces(block: Block, c: int) -> Built:
    if c < 2:
        return _conv(block, c)
    low = 1 + block.a % (c - 1)
    body, out = sequence(block.inner, low)
    return Pieces(low, c - low, body), out + c - low


def _equal_pieces(block: Block, c: int) -> Built:
    size = pick(divisors(c), block.a)
    body = same_width(block.inner, size, size)
    turn = block.b

    def run(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        parts = list(x.split(m.size, dim=1)) if turn % 2 else list(x.tensor_split(c // size, dim=1))
        parts[0] = m.body(parts[0])
        return torch.cat(parts[turn % len(parts) :] + parts[: turn % len(parts)], 1)

    return Call(run, body=body, size=size), c


def _prefix(block: Block, c: int) -> Built:
    if c < 2:
        return _conv(block, c)
    return Prefix(1 + block.a % (c - 1)), c


def _squeeze(block: Block, c: int) -> Built:
    return SqueezeExcite(c, width(block.a), bool(block.b % 2)), c


def _gate(block: Block, c: int) -> Built:
    return Call(lambda m, x: x * torch.sigmoid(m.gate(x)), gate=conv(c, 1, 3)), c


def _glu(block: Block, c: int) -> Built:
    hidden = width(block.a)
    how = block.b % 3

    def run(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = m.conv(x)
        if how == 0:
            return F.glu(y, dim=1)
        a, b = y.chunk(2, dim=1) if how == 1 else (y[:, : m.hidden], y[:, m.hidden :])
        return a * torch.sigmoid(b)

    return Call(run, conv=conv(c, 2 * hidden, 1), hidden=hidden), hidden


def _shuffle(block: Block, c: int) -> Built:
    return Shuffle(pick(divisors(c), block.a)), c


def _twice(block: Block, c: int) -> Built:
    return Call(lambda m, x: m.conv(F.relu(m.conv(x))), conv=conv(c, c)), c


def _tied(block: Block, c: int) -> Built:
    out = width(block.a)
    first, second = conv(c, out), conv(c, out)
    second.weight = first.weight
    if block.b % 2:
        return Call(lambda m, x: torch.cat([m.first(x), m.second(x)], 1), first=first, second=second), 2 * out
    return Call(lambda m, x: m.first(x) * m.second(x), first=first, second=second), out


def _scale(block: Block, c: int) -> Built:
    weight, bias = parameter(c, 1, 1), parameter(1, c, 1, 1)
    return Call(lambda m, x: x * m.weight + m.bias, weight=weight, bias=bias), c


def _place(block: Block, c: int) -> Built:
    return Call(lambda m, x: x + m.place, place=parameter(c, SIDE, SIDE)), c


def _bare(block: Block, c: int) -> Built:
    out = width(block.a)
    how = block.b % 5
    if how == 0:
        return Call(lambda m, x: F.conv2d(x, m.kernel, padding=1), kernel=parameter(out, c, 3, 3)), out
    if how == 1:
        return Call(lambda m, x: torch.einsum("bchw,oc->bohw", x, m.matrix), matrix=parameter(out, c)), out
    if how == 2:
        return Call(lambda m, x: (m.matrix @ x.flatten(2)).unflatten(2, (SIDE, SIDE)), matrix=parameter(out, c)), out
    if how == 3:
        return Call(
            lambda m, x: (x.movedim(1, -1) @ m.matrix + m.bias).movedim(-1, 1),
            matrix=parameter(c, out),
            bias=parameter(out),
        ), out
    return Call(
        lambda m, x: F.linear(x.permute(0, 2, 3, 1), m.matrix).permute(0, 3, 1, 2), matrix=parameter(out, c)
    ), out


def _channels_last(block: Block, c: int) -> Built:
    out = width(block.a)
    linear = nn.Linear(c, out, bias=block.b % 2 == 0)
    return Call(lambda m, x: m.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), linear=linear), out


def _pixels(block: Block, c: int) -> Built:
    if c % 4 or block.a % 2:
        return Call(lambda m, x: F.pixel_unshuffle(F.interpolate(x, scale_factor=2), 2)), 4 * c
    return Call(lambda m, x: F.avg_pool2d(F.pixel_shuffle(x, 2), 2)), c // 4


def _interleave(block: Block, c: int) -> Built:
    left, a = sequence(block.inner[::2], c)
    right = same_width(block.inner[1::2], c, a)
    return Call(lambda m, x: torch.stack([m.left(x), m.right(x)], 2).flatten(1, 2), left=left, right=right), 2 * a


def _strided(block: Block, c: int) -> Built:
    if c % 2:
        return _conv(block, c)
    if block.a % 2:
        return Call(lambda m, x: torch.cat([-x[:, 1::2], x[:, ::2]], 1)), c
    return Call(lambda m, x: x[:, ::2] * x[:, 1::2]), c // 2


def _repeat(block: Block, c: int) -> Built:
    times = 2 + block.a % 2
    how = block.b % 4
    if how == 0:
        return Call(lambda m, x: x.repeat(1, m.times, 1, 1), times=times), times * c
    if how == 1:
        return Call(lambda m, x: x.repeat_interleave(m.times, dim=1), times=times), times * c
    if how == 2:
        return Call(
            lambda m, x: x[:, :, None].expand(-1, -1, m.times, -1, -1).reshape(len(x), -1, SIDE, SIDE), times=times
        ), times * c
    return Call(lambda m, x: torch.cat([x] * times, 1)), times * c


def _fold(block: Block, c: int) -> Built:
    runs = pick(divisors(c), block.a)
    first = block.b % 2 == 0

    def run(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = x.unflatten(1, (m.runs, -1) if first else (-1, m.runs))
        return y.sum(1 if first else 2)

    return Call(run, runs=runs), c // runs


def _lookup(block: Block, c: int) -> Built:
    order = torch.randperm(c)
    how = block.a % 4
    if how == 0:
        return Call(lambda m, x: x.index_select(1, m.order), order=order), c
    if how == 1:
        return Call(lambda m, x: x[:, m.order], order=order), c
    if how == 2:
        return Call(lambda m, x: x.flip(1)), c
    return Call(lambda m, x: x.roll(1, 1)), c


def _per_group(block: Block, c: int) -> Built:
    return PerGroup(c, pick(divisors(c), block.a)), c


def _pixel_attention(block: Block, c: int) -> Built:
    return PixelAttention(c, width(block.a)), c


def _margin(block: Block, c: int) -> Built:
    low, high = block.a % 3, block.b % 3
    return Call(lambda m, x: F.pad(x, (0, 0, 0, 0, low, high))), c + low + high


def _coordinates(block: Block, c: int) -> Built:
    grid = torch.linspace(-1, 1, SIDE).expand(1, 1, SIDE, SIDE).clone()
    if block.a % 2:
        return Call(lambda m, x: torch.cat([m.grid.expand(len(x), -1, -1, -1), x], 1), grid=grid), c + 1
    return Call(lambda m, x: torch.cat([x, x.new_ones(len(x), 2, SIDE, SIDE)], 1)), c + 2


def _outer(block: Block, c: int) -> Built:
    one, two = 2 + block.a % 2, 2 + block.b % 2

    def run(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return (m.left(x)[:, :, None] * m.right(x)[:, None, :]).flatten(1, 2)

    return Call(run, left=conv(c, one, 1), right=conv(c, two, 1)), one * two


def _patches(block: Block, c: int) -> Built:
    out = width(block.a)

    def run(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        windows = F.unfold(x, 3, padding=1)
        return m.linear(windows.transpose(1, 2)).transpose(1, 2).unflatten(2, (SIDE, SIDE))

    return Call(run, linear=nn.Linear(9 * c, out)), out


def _buffer(block: Block, c: int) -> Built:
    def run(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        y[:, : m.half] = m.conv(x[:, : m.half])
        y[:, m.half :] = x[:, m.half :]
        return y

    half = (c + 1) // 2
    return Call(run, conv=conv(half, half), half=half), c


def _in_place(block: Block, c: int) -> Built:
    def run(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = m.conv(x)
        y += x
        y.mul_(m.weight)
        return F.relu_(y)

    return Call(run, conv=conv(c, c), weight=parameter(c, 1, 1)), c


def _running(block: Block, c: int) -> Built:
    out = width(block.a)
    total = block.b % 2

    def run(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        maps = [m.first(x), m.second(x), m.third(x)]
        return sum(maps) if total else torch.stack(maps).amax(0)  # type: ignore[return-value]

    return Call(run, first=conv(c, out, 1), second=conv(c, out), third=conv(c, out, 1, bias=False)), out


def _softmax_channels(block: Block, c: int) -> Built:
    how = block.a % 4
    functions: tuple[Callable[[nn.Module, torch.Tensor], torch.Tensor], ...] = (
        lambda m, x: torch.softmax(x, 1),
        lambda m, x: x - x.mean(1, keepdim=True),
        lambda m, x: F.normalize(x, dim=1),
        lambda m, x: x * x.amax(1, keepdim=True),
    )
    return Call(functions[how]), c


def _select_kernel(block: Block, c: int) -> Built:
    """Two branches weighed per channel by a softmax over branches (a selective kernel)."""

    def run(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        maps = torch.stack([m.first(x), m.second(x)], 1)
        pooled = maps.sum(1).mean((2, 3))
        weights = torch.softmax(m.score(pooled).view(len(x), 2, -1), 1)
        return (maps * weights[..., None, None]).sum(1)

    return Call(run, first=conv(c, c), second=conv(c, c, 1), score=nn.Linear(c, 2 * c)), c


KINDS: dict[str, Callable[[Block, int], Built]] = {
    "conv": _conv,
    "transposed": _transposed,
    "depthwise": _depthwise,
    "depthwise_transposed": _depthwise_transposed,
    "batch_norm": lambda block, c: (nn.BatchNorm2d(c, affine=block.a % 3 != 2), c),
    "instance_norm": lambda block, c: (nn.InstanceNorm2d(c, affine=block.a % 2 == 0), c),
    "prelu": lambda block, c: (nn.PReLU(c if block.a % 3 else 1), c),
    "act": _act,
    "residual": _residual,
    "branches": _branches,
    "dense": _dense,
    "halves": _halves,
    "pieces": _pieces,
    "equal_pieces": _equal_pieces,
    "prefix": _prefix,
    "squeeze": _squeeze,
    "gate": _gate,
    "glu": _glu,
    "shuffle": _shuffle,
    "twice": _twice,
    "tied": _tied,
    "scale": _scale,
    "place": _place,
    "bare": _bare,
    "channels_last": _channels_last,
    "pixels": _pixels,
    "interleave": _interleave,
    "strided": _strided,
    "repeat": _repeat,
    "fold": _fold,
    "lookup": _lookup,
    "per_group": _per_group,
    "pixel_attention": _pixel_attention,
    "margin": _margin,
    "coordinates": _coordinates,
    "outer": _outer,
    "patches": _patches,
    "buffer": _buffer,
    "in_place": _in_place,
    "running": _running,
    "select_kernel": _select_kernel,
    "group_norm": _group_norm,
    "channels_last_norm": _channels_last_norm,
    "softmax_channels": _softmax_channels,
}
NESTED = ("residual", "branches", "dense", "halves", "pieces", "equal_pieces", "interleave")
NORMS = ("group_norm", "channels_last_norm")
"""Kinds whose statistics run over channels: the masked original must take them over the kept channels only."""
INEXACT = ("softmax_channels", "fold")
"""Kinds that reduce over channels: zeroed channels still count, so only the library's own check compares them."""


class PictureNet(nn.Module):
    """A stem, blocks, and one of several heads."""

    def __init__(self, blocks: tuple[Block, ...], head: int) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.body, c = sequence(blocks, 8)
        self.how = head % 5
        self.head: nn.Module
        if self.how == 0:
            self.head = nn.Linear(c, 3)
        elif self.how == 1:
            self.head = nn.Linear(c * SIDE * SIDE, 3)
        elif self.how == 2:
            self.head = nn.Linear(SIDE * SIDE * c, 3)
        elif self.how == 3:
            self.head = conv(c, 2, 1)
        else:
            self.head = nn.Sequential(nn.Linear(c * SIDE * SIDE, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(F.relu(self.stem(x)))
        if self.how == 0:
            x = x.mean((2, 3))
        elif self.how == 1:
            x = x.flatten(1)
        elif self.how == 2:
            x = x.permute(0, 2, 3, 1).reshape(len(x), -1)
        elif self.how == 4:
            x = x.contiguous().view(x.size(0), -1)
        result: torch.Tensor = self.head(x)
        return result
