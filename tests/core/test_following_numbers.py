"""Numbers that follow a size that shrinks, at every argument of every operation that has a rule, on dims that don't.

Shapes agree there and no axis is concerned: only the comparison of arguments can tell that another program would run.
Each program is pruned and held against the original with zeros where units were removed: it is exact, refused, or keeps
its units.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk

WIDTH = 16
Use = Callable[[Any, torch.Tensor, torch.Tensor, int], Any]
"""What a model computes from itself, the output ``y [5, 3]`` of the pruned layers, the input ``x [5, 8]``, and ``n``,
the width that shrinks from 16 to 8."""


class Net(nn.Module):
    """``a`` loses half of its neurons; ``c`` and what ``use`` computes have nothing to do with them, but for ``n``."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 3), nn.Linear(4, 3)
        self.table = nn.Parameter(torch.randn(9, 3))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.norm = nn.Parameter(torch.rand(8) + 0.5)
        self.kernel = nn.Parameter(torch.randn(1, 1, 3))
        self.plane = nn.Parameter(torch.randn(4, 2, 3, 3))
        self.use = use

    def forward(self, x: torch.Tensor) -> Any:
        h = self.a(x).relu()
        return self.use(self, self.b(h), x, h.shape[1])


def picture(x: torch.Tensor) -> torch.Tensor:
    """``[5, 8]`` as one picture ``[1, 2, 5, 4]``."""
    return x.view(5, 2, 4).transpose(0, 1)[None]


def to3(x: torch.Tensor) -> torch.Tensor:
    """Anything as something that can be added to ``y [5, 3]``."""
    flat = x.to(torch.float64).flatten()
    return flat.repeat(15)[: 15 * (flat.numel() // 15 or 1)].view(-1, 5, 3).sum(0)


VIEWS: dict[str, Use] = {
    "unfold dimension": lambda m, y, x, n: y + to3(x.view(2, 4, 5).unfold(n // 16, 2, 2)),
    "unfold size": lambda m, y, x, n: (
        y + x.unfold(1, n // 8 + 1, 1)[:, :3, 0] * x.unfold(1, n // 8 + 1, 1).sum(-1)[:, :3]
    ),
    "unfold step": lambda m, y, x, n: y + x.unfold(1, 2, n // 8)[:, :3].sum(-1),
    "diagonal offset": lambda m, y, x, n: y + x.diagonal(n // 8)[:3],
    "transpose dims": lambda m, y, x, n: y + x[:4, :4].reshape(4, 4, 1).transpose(0, n // 8 - 1)[:3, :3, 0].sum(),
    "permute dims": lambda m, y, x, n: y + to3(x[:, :5].permute(n // 16, 1 - n // 16)),
    "movedim": lambda m, y, x, n: (
        y + to3(x[:4, :4].reshape(4, 2, 2).movedim(0, n // 8)[:2, :2, :2] ** 2 * torch.arange(8.0).view(2, 2, 2))
    ),
    "flatten start": lambda m, y, x, n: y + to3(x.view(1, 1, 40).flatten(n // 16, 1) + n // n),
    "squeeze dim": lambda m, y, x, n: y + to3(x[:1, :1].squeeze(n // 16)),
    "unsqueeze dim": lambda m, y, x, n: y + to3(x[:4, :4].unsqueeze(n // 8 - 1).expand(4, 4, 4)[:, :, 0]),
    "repeat": lambda m, y, x, n: y + to3(x.repeat(n // 8, 1)[:6]),
    "repeat_interleave": lambda m, y, x, n: y + x.repeat_interleave(n // 8, 1)[:, :3],
    "tile": lambda m, y, x, n: y + to3(x.tile(n // 8, 1)[5:6] if n > 8 else x[4:5]),
    "pixel_shuffle": lambda m, y, x, n: y + to3(F.pixel_shuffle(picture(x).repeat(1, 2, 1, 1), n // 8)[..., :2, :2]),
    "pixel_unshuffle": lambda m, y, x, n: y + to3(F.pixel_unshuffle(picture(x)[:, :, :4], n // 8)[..., :2, :2]),
    "channel_shuffle groups": lambda m, y, x, n: y + F.channel_shuffle(x.T[None], n // 8)[0].T[:, :3],
    "as_strided offset": lambda m, y, x, n: y + x.as_strided((5, 3), (8, 1), n // 8),
    "as_strided stride": lambda m, y, x, n: y + x.as_strided((5, 3), (n // 4, 1)),
}

JOINS: dict[str, Use] = {
    "slice both": lambda m, y, x, n: y + m.c(x[:, n // 4 - 2 : n // 4 + 2]),
    "slice from the end": lambda m, y, x, n: y + x[:, -n // 4 : -n // 4 + 3 or None],
    "slice that reaches the end": lambda m, y, x, n: y + x[:, n // 4 + 1 :].sum(1, keepdim=True),
    "slice step": lambda m, y, x, n: y + x[:, :: n // 8][:, :3],
    "narrow": lambda m, y, x, n: y + m.c(x.narrow(1, n // 4 - 2, 4)),
    "narrow from the end": lambda m, y, x, n: y + m.c(x.narrow(1, -n // 4 - 2, 4)),
    "narrow dim": lambda m, y, x, n: y + to3(x[:5, :5].narrow(n // 16, 1, 3)),
    "select index": lambda m, y, x, n: y + x[:, n // 4][:, None],
    "select index from the end": lambda m, y, x, n: y + x[:, -n // 4][:, None],
    "select dim": lambda m, y, x, n: y + to3(x[:5, :5].select(n // 16, 1)),
    "split size": lambda m, y, x, n: y + x.split(n // 4, 1)[-1][:, :2].sum(1, keepdim=True),
    "split sizes": lambda m, y, x, n: y + x.split([n // 4, 8 - n // 4], 1)[1][:, :3],
    "tensor_split": lambda m, y, x, n: y + x.tensor_split([n // 4], 1)[1][:, :3],
    "chunk": lambda m, y, x, n: y + x.chunk(n // 8, 1)[-1][:, :3],
    "unbind dim": lambda m, y, x, n: y + to3(x[:5, :5].unbind(n // 16)[1]),
    "cat dim": lambda m, y, x, n: y + to3(torch.cat([x, x * 2], n // 16)[:5, :8]),
    "stack dim": lambda m, y, x, n: y + to3(torch.stack([x[:, :2], 2 * x[:, :2]], n // 8)[:2, :2, :2]),
    "cat of parts": lambda m, y, x, n: y + m.c(torch.cat([x[:, : n // 8], 2 * x[:, n // 8 : 4]], 1)),
    "glu dim": lambda m, y, x, n: y + to3(F.glu(x[:4, :4], n // 16)),
    "select_scatter": lambda m, y, x, n: y + x.select_scatter(y[:, 0], 1, n // 8)[:, :3],
    "slice_scatter end": lambda m, y, x, n: y + x.slice_scatter(x[:, :2] * 2, 1, 0, n // 6)[:, :3],
    "slice_scatter": lambda m, y, x, n: y + x.slice_scatter(x[:, :2] * 2, 1, n // 8, n // 8 + 2)[:, :3],
    "write into a slice": lambda m, y, x, n: y + written(x, slice(n // 8, n // 8 + 2), 3.0)[:, :3],
    "write of a number": lambda m, y, x, n: y + written(x, slice(0, 2), n / 16)[:, :3],
    "written at a place": lambda m, y, x, n: y + written(x, n // 8, 3.0)[:, :3],
}


def written(x: torch.Tensor, where: Any, value: float) -> torch.Tensor:
    x = x.clone()
    x[:, where] = value
    return x


FACTORIES: dict[str, Use] = {
    "arange": lambda m, y, x, n: y + torch.arange(n, n + 3, dtype=x.dtype),
    "arange step": lambda m, y, x, n: y + torch.arange(0, 3 * (n // 8), n // 8, dtype=x.dtype),
    "arange times": lambda m, y, x, n: y + torch.arange(3, dtype=x.dtype) * (n // 8),
    "arange over": lambda m, y, x, n: y * (torch.arange(1, 4, dtype=x.dtype) / n),
    "arange below": lambda m, y, x, n: y * (torch.arange(3) < n // 8),
    "linspace": lambda m, y, x, n: y + torch.linspace(0, n, 3, dtype=x.dtype),
    "linspace steps": lambda m, y, x, n: y + torch.linspace(0, 1, n, dtype=x.dtype)[:3],
    "full": lambda m, y, x, n: y + torch.full((3,), n, dtype=x.dtype),
    "full of a float": lambda m, y, x, n: y + torch.full((3,), n / 4, dtype=x.dtype),
    "many of full": lambda m, y, x, n: y + torch.full((100,), n / 4, dtype=x.dtype)[:3],
    "full_like": lambda m, y, x, n: y + torch.full_like(y, n),
    "new_full": lambda m, y, x, n: y + x.new_full((3,), n),
    "fill_": lambda m, y, x, n: y + torch.empty(3, dtype=x.dtype).fill_(n),
    "fill_ of an activation": lambda m, y, x, n: y + (x * 2).fill_(n)[:, :3],
    "scalar_tensor": lambda m, y, x, n: y + torch.scalar_tensor(n, dtype=x.dtype),
    "a tensor of a number": lambda m, y, x, n: y + torch.tensor(n / 4, dtype=x.dtype),
    "a tensor of a number as an index": lambda m, y, x, n: y + x[:, torch.tensor(n // 4)][:, None],
    "a tensor of numbers": lambda m, y, x, n: y + torch.tensor([n, n + 1, 0.0], dtype=x.dtype),
    "a tensor of numbers as an index": lambda m, y, x, n: y + x[:, torch.tensor([n // 4, 1, n // 8])],
    "a tensor of many numbers": lambda m, y, x, n: y + torch.tensor([n / 4] * 100, dtype=x.dtype)[:3],
    "an array": lambda m, y, x, n: y + torch.from_numpy(np.full(3, n / 4)),
    "an array of many numbers": lambda m, y, x, n: y + torch.from_numpy(np.full(300, n / 4))[:3],
    "an array as an index": lambda m, y, x, n: y + x[:, torch.from_numpy(np.array([n // 4, 0, 1]))],
    "as_tensor of an array": lambda m, y, x, n: y + torch.as_tensor(np.arange(n, n + 3) / 4),
    "asarray": lambda m, y, x, n: y + torch.asarray([n / 4, 1.0, n / 8], dtype=x.dtype),
    "the old constructor": lambda m, y, x, n: y + torch.DoubleTensor([n / 4, 1.0, n / 8]),
    "frombuffer": lambda m, y, x, n: y + torch.frombuffer(bytearray(np.full(3, n / 4).tobytes()), dtype=x.dtype),
    "new_tensor": lambda m, y, x, n: y + x.new_tensor([n / 4, 1.0, n / 8]),
    "eye": lambda m, y, x, n: y + torch.eye(n, dtype=x.dtype)[7, 7:8] * torch.eye(n, dtype=x.dtype)[:3, n // 8],
    "tril_indices": lambda m, y, x, n: y + to3(torch.tril_indices(n // 4, 4)[:, 3:5].clone()),
    "ones summed": lambda m, y, x, n: y + torch.ones(n, dtype=x.dtype).sum(),
    "positions": lambda m, y, x, n: y + (torch.arange(n) + n)[:3],
    "a constant that is overwritten": lambda m, y, x, n: y * torch.full((5, 3), n / 4, dtype=x.dtype).copy_(x[:, :3]),
    "a constant that is multiplied": lambda m, y, x, n: y + torch.full((5, 3), n / 4, dtype=x.dtype).mul_(x[:, :3]),
    "a constant as output": lambda m, y, x, n: (y, torch.full((3,), n / 4, dtype=x.dtype)),
    "one of two outputs": lambda m, y, x, n: (lambda s, c: s if n > 8 else c)(y.sin(), y.cos()),
    "randint": lambda m, y, x, n: y + torch.randint(0, n, (3,), generator=torch.Generator().manual_seed(0)),
    "randn times": lambda m, y, x, n: y + torch.randn(3, dtype=x.dtype, generator=torch.Generator().manual_seed(0)) * n,
}

POINTWISE: dict[str, Use] = {
    "mul": lambda m, y, x, n: y + x[:, :3] * (n // 8),
    "mul by a float": lambda m, y, x, n: y + x[:, :3] * (n / 8),
    "mul of the layer after": lambda m, y, x, n: y + m.c(x[:, :4]) * (n // 8),
    "mul of the output": lambda m, y, x, n: y * (n / 8),
    "mul before and after": lambda m, y, x, n: (y * n).tanh() * n,
    "mul in place": lambda m, y, x, n: y + x[:, :3].clone().mul_(n),
    "div": lambda m, y, x, n: y + x[:, :3] / n,
    "div rounded": lambda m, y, x, n: y + (x[:, :3] * 100).div(n, rounding_mode="floor"),
    "div rounded of a layer": lambda m, y, x, n: (y * 100).div(3, rounding_mode="floor") * n,
    "floor_divide": lambda m, y, x, n: y + (x[:, :3] * 100) // n,
    "reciprocal": lambda m, y, x, n: y + n / (x[:, :3] + 9),
    "add": lambda m, y, x, n: y + n,
    "add alpha": lambda m, y, x, n: torch.add(y, x[:, :3], alpha=n),
    "sub": lambda m, y, x, n: y - n / 4,
    "rsub": lambda m, y, x, n: n - y,
    "rsub alpha": lambda m, y, x, n: torch.rsub(y, x[:, :3], alpha=n),
    "pow": lambda m, y, x, n: y + x[:, :3].pow(n // 8),
    "pow of a number": lambda m, y, x, n: y + (n / 8) ** x[:, :3],
    "remainder": lambda m, y, x, n: y + (100 * x[:, :3]) % n,
    "fmod": lambda m, y, x, n: y + (100 * x[:, :3]).fmod(n),
    "clamp": lambda m, y, x, n: y + (20 * x[:, :3]).clamp(max=n),
    "clamp_min": lambda m, y, x, n: y + (20 * x[:, :3]).clamp_min(n),
    "clip below": lambda m, y, x, n: y + (20 * x[:, :3]).clip(-n, n / 2),
    "threshold": lambda m, y, x, n: y + F.threshold(20 * x[:, :3], n, n),
    "masked_fill": lambda m, y, x, n: y + x[:, :3].masked_fill(x[:, :3] > 0, n),
    "where": lambda m, y, x, n: y + torch.where(x[:, :3] > 0, x[:, :3], n),
    "greater": lambda m, y, x, n: y + (20 * x[:, :3] > n),
    "equal": lambda m, y, x, n: y + (torch.arange(3) * 8 == n),
    "lerp": lambda m, y, x, n: y.lerp(x[:, :3], n / 32),
    "addcmul": lambda m, y, x, n: y.addcmul(x[:, :3], x[:, :3], value=n),
    "addcdiv": lambda m, y, x, n: y.addcdiv(x[:, :3], x[:, :3] + 9, value=n),
    "leaky_relu": lambda m, y, x, n: y + F.leaky_relu(x[:, :3], 1 / n),
    "elu": lambda m, y, x, n: y + F.elu(x[:, :3], n / 8),
    "celu": lambda m, y, x, n: y + F.celu(x[:, :3], n / 8),
    "softplus": lambda m, y, x, n: y + F.softplus(x[:, :3], n / 8),
    "hardtanh": lambda m, y, x, n: y + F.hardtanh(20 * x[:, :3], -n, n),
    "hardshrink": lambda m, y, x, n: y + F.hardshrink(20 * x[:, :3], n),
    "softshrink": lambda m, y, x, n: y + F.softshrink(20 * x[:, :3], n),
    "nan_to_num": lambda m, y, x, n: y + (x[:, :3] - torch.inf).nan_to_num(neginf=n),
    "heaviside": lambda m, y, x, n: y + torch.heaviside(20 * x[:, :3] - n, torch.tensor(1.0, dtype=x.dtype)),
    "round": lambda m, y, x, n: y + x[:, :3].round(decimals=n // 8),
    "dropout": lambda m, y, x, n: y + F.dropout(x[:, :3], 1 / n, training=True),
    "alpha_dropout": lambda m, y, x, n: y + F.alpha_dropout(x[:, :3], 1 / n, training=True),
    "softmax dim": lambda m, y, x, n: y + to3(x[:5, :5].softmax(n // 16)),
    "softmax of a multiple": lambda m, y, x, n: y + (x[:, :3] * n).softmax(1),
    "logits over a temperature": lambda m, y, x, n: y + (m.c(x[:, :4]) / n).softmax(1),
    "cumsum dim": lambda m, y, x, n: y + to3(x[:5, :5].cumsum(n // 16)),
    "cumsum cut": lambda m, y, x, n: y + x.cumsum(1)[:, n // 4 : n // 4 + 3],
    "roll shifts": lambda m, y, x, n: y + x[:, :3].roll(n // 8, 1),
    "roll dims": lambda m, y, x, n: y + to3(x[:5, :5].roll(1, n // 16)),
    "flip dims": lambda m, y, x, n: y + to3(x[:5, :5].flip(n // 16)),
    "tril": lambda m, y, x, n: y + x.tril(n // 8)[:, :3],
    "triu": lambda m, y, x, n: y + x.triu(n // 8)[:, :3],
    "fake quantisation": lambda m, y, x, n: (
        y + torch.fake_quantize_per_tensor_affine(x[:, :3].float(), n / 64, 0, -8, 8)
    ),
    "bernoulli": lambda m, y, x, n: (
        y + torch.empty(3, dtype=x.dtype).bernoulli_(1 / n, generator=torch.Generator().manual_seed(0))
    ),
    "uniform": lambda m, y, x, n: (
        y + torch.empty(3, dtype=x.dtype).uniform_(0, n, generator=torch.Generator().manual_seed(0))
    ),
    "normal": lambda m, y, x, n: y + torch.normal(n, 1.0, (3,), generator=torch.Generator().manual_seed(0)),
    "a counter": lambda m, y, x, n: y * counted(m, n),
}


def counted(m: Any, n: int) -> torch.Tensor:
    m.count += n
    return m.count


REDUCTIONS: dict[str, Use] = {
    "sum dim": lambda m, y, x, n: y + to3(x[:5, :5].sum(n // 16)),
    "mean dim": lambda m, y, x, n: y + to3(x[:5, :5].mean(n // 16)),
    "amax dim": lambda m, y, x, n: y + to3(x[:5, :5].amax(n // 16)),
    "max dim": lambda m, y, x, n: y + to3(x[:5, :5].max(n // 16).values),
    "argmax dim": lambda m, y, x, n: y + to3(x[:5, :5].argmax(n // 16)),
    "logsumexp dims": lambda m, y, x, n: y + to3(x[:5, :5].logsumexp(n // 16)),
    "norm p": lambda m, y, x, n: y + x[:, :3].norm(p=n / 8),
    "vector_norm": lambda m, y, x, n: y + torch.linalg.vector_norm(x[:, :3], n / 8),
    "std correction": lambda m, y, x, n: y + x[:, :3].std(correction=n // 8),
    "var": lambda m, y, x, n: y + x[:, :3].var(0, correction=n // 8),
    "topk": lambda m, y, x, n: y + x.topk(n // 4).values[:, :1],
    "topk of the smallest": lambda m, y, x, n: y + x.topk(n // 4).values[:, -1:],
    "kthvalue": lambda m, y, x, n: y + x.kthvalue(n // 4).values[:, None],
    "sort dim": lambda m, y, x, n: y + to3(x[:5, :5].sort(n // 16).values),
    "quantile": lambda m, y, x, n: y + x.quantile(1 / n, dim=1)[:, None],
    "count": lambda m, y, x, n: y + torch.histc(x, bins=n // 4, min=-3, max=3)[:2].sum(),
    "histc range": lambda m, y, x, n: y + torch.histc(x, bins=3, min=-1, max=n / 8),
    "bincount": lambda m, y, x, n: y + torch.bincount(torch.arange(3), minlength=n)[-1],
    "one_hot": lambda m, y, x, n: y + F.one_hot(torch.arange(5) % 3, n)[:, :3] * F.one_hot(torch.arange(5), n).shape[1],
    "cdist": lambda m, y, x, n: y + torch.cdist(x, x, p=n / 8)[:, :3],
    "losses": lambda m, y, x, n: y + F.huber_loss(x[:, :3], 2 * y, delta=1 / n),
    "smooth_l1": lambda m, y, x, n: y + F.smooth_l1_loss(x[:, :3], 2 * y, beta=n / 8),
    "cross_entropy": lambda m, y, x, n: y + F.cross_entropy(x, torch.arange(5), label_smoothing=1 / n),
    "ignored class": lambda m, y, x, n: y + F.cross_entropy(x, torch.arange(5), ignore_index=n // 4),
    "multinomial": lambda m, y, x, n: (
        y + torch.multinomial(x.exp(), n // 8, generator=torch.Generator().manual_seed(0))[:, :1]
    ),
    "bucketize": lambda m, y, x, n: y + torch.bucketize(x[:, :3], torch.tensor([0.0, 0.1 * n], dtype=x.dtype)),
}

LOOKUPS: dict[str, Use] = {
    "index_select": lambda m, y, x, n: y + x.index_select(1, torch.arange(3) + n // 8),
    "index_select dim": lambda m, y, x, n: y + to3(x[:5, :5].index_select(n // 16, torch.tensor([1, 2]))),
    "embedding": lambda m, y, x, n: y + m.table[n // 4],
    "embedding of numbers": lambda m, y, x, n: y + F.embedding(torch.arange(5) + n // 4 - 2, m.table),
    "embedding_bag": lambda m, y, x, n: y + F.embedding_bag(torch.arange(5)[:, None] + n // 4 - 2, m.table),
    "padding_idx": lambda m, y, x, n: y + F.embedding(torch.arange(5), m.table, padding_idx=n // 4),
    "gather": lambda m, y, x, n: y + x.gather(1, torch.full((5, 3), n // 4)),
    "take": lambda m, y, x, n: y + x.take(torch.arange(3) + n),
    "scatter": lambda m, y, x, n: y + torch.zeros_like(x).scatter(1, torch.full((5, 1), n // 8), 1.0)[:, :3],
    "scatter of a value": lambda m, y, x, n: (
        y + torch.zeros_like(x).scatter(1, torch.zeros((5, 1), dtype=torch.long), n / 8)[:, :3]
    ),
    "index_fill": lambda m, y, x, n: y + x.index_fill(1, torch.tensor([0]), n)[:, :3],
    "index_add alpha": lambda m, y, x, n: y + x.index_add(1, torch.tensor([0]), x[:, :1], alpha=n)[:, :3],
    "index_put": lambda m, y, x, n: y + x.index_put((torch.tensor([n // 8]), torch.tensor([0])), y[0, 0] * 2)[:, :3],
    "masked_select": lambda m, y, x, n: y + x[torch.arange(5) < 4][:1, :3] + (torch.arange(3) < n // 8),
}

MATRICES: dict[str, Use] = {
    "addmm alpha": lambda m, y, x, n: torch.addmm(y, x[:, :4], m.c.weight.T, alpha=n / 8),
    "addmm beta": lambda m, y, x, n: torch.addmm(y, x[:, :4], m.c.weight.T, beta=n / 8),
    "baddbmm": lambda m, y, x, n: torch.baddbmm(y[None], x[None, :, :4], m.c.weight.T[None], alpha=n / 8)[0],
    "einsum": lambda m, y, x, n: y + torch.einsum("ij,jk->ik" if n > 8 else "ij,kj->ik", x[:, :3], m.table[:3]),
    "matrix power": lambda m, y, x, n: y + to3(torch.linalg.matrix_power(x[:5, :5], n // 8)),
    "fft n": lambda m, y, x, n: y + torch.fft.rfft(x, n // 2)[:, :3].real,
    "fft dim": lambda m, y, x, n: y + to3(torch.fft.fft(x[:5, :5], dim=n // 16).real),
    "cross dim": lambda m, y, x, n: y + to3(torch.linalg.cross(x[:3, :3], x[:3, 3:6], dim=n // 16)),
    "attention scale": lambda m, y, x, n: y + F.scaled_dot_product_attention(x[None], x[None], y[None], scale=1 / n)[0],
    "attention of layers": lambda m, y, x, n: (
        y + F.scaled_dot_product_attention(m.c(x[:, :4])[None], x[None, :, :3], y[None], scale=1 / n)[0]
    ),
    "attention dropout": lambda m, y, x, n: (
        y + F.scaled_dot_product_attention(x[None], x[None], y[None], dropout_p=1 / n)[0]
    ),
    "attention heads": lambda m, y, x, n: (
        y
        + to3(F.scaled_dot_product_attention(*[x.view(1, 5, n // 8, 8 // (n // 8)).transpose(1, 2)] * 3)[:, :1, :, :1])
    ),
}

NORMS: dict[str, Use] = {
    "group_norm": lambda m, y, x, n: y + m.c(F.group_norm(x, n // 4)[:, :4]),
    "group_norm eps": lambda m, y, x, n: y + F.group_norm(x, 2, eps=n / 8)[:, :3],
    "layer_norm eps": lambda m, y, x, n: y + F.layer_norm(x, (8,), eps=n / 8)[:, :3],
    "layer_norm shape": lambda m, y, x, n: (
        y + F.layer_norm(x.view(5, 2, 4), (2, 4) if n > 8 else (4,)).flatten(1)[:, :3]
    ),
    "rms_norm": lambda m, y, x, n: y + F.rms_norm(x, (8,), m.norm, eps=n / 8)[:, :3],
    "batch_norm": lambda m, y, x, n: y + F.batch_norm(x, x.new_zeros(8), x.new_ones(8), eps=n / 8)[:, :3],
    "instance_norm": lambda m, y, x, n: y + F.instance_norm(x[None], eps=n / 8)[0, :, :3],
    "normalize": lambda m, y, x, n: y + F.normalize(x[:, :3], p=n / 8),
    "local response": lambda m, y, x, n: y + F.local_response_norm(x[None], n // 8)[0, :, :3],
}


def grid(x: torch.Tensor, factor: float) -> torch.Tensor:
    return F.affine_grid(torch.eye(2, 3, dtype=x.dtype)[None] * factor, (1, 2, 3, 3), align_corners=False)


SPATIAL: dict[str, Use] = {
    "pad": lambda m, y, x, n: y + m.c(F.pad(x, (n // 8, 0))[:, :4]),
    "pad both": lambda m, y, x, n: y + F.pad(x, (n // 8, 4 - n // 8))[:, :3],
    "pad by nothing": lambda m, y, x, n: y + F.pad(x, (2 - n // 8, n // 8 - 2))[:, :3],
    "pad value": lambda m, y, x, n: y + F.pad(x, (1, 0), value=n)[:, :3],
    "pad reflected": lambda m, y, x, n: y + F.pad(x, (n // 8, 0), mode="reflect")[:, :3],
    "crop": lambda m, y, x, n: y + F.pad(x, (-n // 8, 0))[:, :3],
    "conv stride": lambda m, y, x, n: y + F.conv1d(x[:, None], m.kernel, stride=n // 8)[:, 0, :3],
    "conv padding": lambda m, y, x, n: y + F.conv1d(x[:, None], m.kernel, padding=n // 8)[:, 0, :3],
    "conv dilation": lambda m, y, x, n: y + F.conv1d(x[:, None], m.kernel, dilation=n // 8)[:, 0, :3],
    "conv groups": lambda m, y, x, n: y + to3(F.conv2d(picture(x), m.plane[:, : 2 // (n // 8)], groups=n // 8)[:, :1]),
    "transposed conv": lambda m, y, x, n: y + F.conv_transpose1d(x[:, None], m.kernel, padding=n // 8)[:, 0, :3],
    "avg_pool": lambda m, y, x, n: y + F.avg_pool1d(x[:, None], n // 8).mean(-1),
    "avg_pool stride": lambda m, y, x, n: y + F.avg_pool1d(x[:, None], 2, stride=n // 8)[:, 0, :3],
    "avg_pool divisor": lambda m, y, x, n: y + F.avg_pool2d(picture(x), 2, divisor_override=n).mean(),
    "max_pool": lambda m, y, x, n: y + F.max_pool1d(x[:, None], n // 8, stride=2)[:, 0, :3],
    "max_pool dilation": lambda m, y, x, n: y + F.max_pool1d(x[:, None], 2, stride=2, dilation=n // 8)[:, 0, :3],
    "lp_pool": lambda m, y, x, n: y + F.lp_pool1d(x.abs()[:, None], n / 8, 2)[:, 0, :3],
    "adaptive pool": lambda m, y, x, n: y + F.adaptive_avg_pool1d(x[:, None], n // 4)[:, 0, :2].sum(1, keepdim=True),
    "interpolate": lambda m, y, x, n: y + F.interpolate(x[:, None], n)[:, 0, :3],
    "interpolate by a factor": lambda m, y, x, n: (
        y + F.interpolate(x[:, None], scale_factor=n / 8, mode="linear")[:, 0, :3]
    ),
    "grid_sample": lambda m, y, x, n: y + to3(F.grid_sample(picture(x), grid(x, 8 / n), align_corners=False)),
    "affine_grid": lambda m, y, x, n: (
        y + to3(F.affine_grid(torch.eye(2, 3, dtype=x.dtype)[None], (1, 2, n // 8, 3), align_corners=False)[:, :1])
    ),
    "im2col": lambda m, y, x, n: y + to3(F.unfold(picture(x), 2, stride=n // 8)[..., :2]),
    "col2im": lambda m, y, x, n: y + to3(F.fold(x[:4, :4][None], (3, n // 8 + 1), 2)[..., :2]),
    "unpool": lambda m, y, x, n: (
        y
        + to3(
            F.max_unpool2d(
                *F.max_pool2d(picture(x)[..., :4, :4], 2, return_indices=True), 2, output_size=(4, 4 + n // 16)
            )[..., :4]
        )
    ),
    "lstm length": lambda m, y, x, n: y + x[:, : n // 4].cumsum(1)[:, -1:],
}

FAMILIES = {
    "views": VIEWS, "joins": JOINS, "factories": FACTORIES, "pointwise": POINTWISE, "reductions": REDUCTIONS,
    "lookups": LOOKUPS, "matrices": MATRICES, "norms": NORMS, "spatial": SPATIAL,
}  # fmt: skip
PROGRAMS = {f"{family}: {name}": use for family, uses in FAMILIES.items() for name, use in uses.items()}


def masked(model: Net, plan: pk.Plan) -> Net:
    """The original with zeros where neurons of ``a`` were removed, without the library's help."""
    full = copy.deepcopy(model)
    gone = sorted(set(range(WIDTH)) - set(plan.kept.get("a", range(WIDTH))))
    with torch.no_grad():
        full.a.weight[gone] = 0
        full.a.bias[gone] = 0
    return full


def leaves(value: Any) -> list[torch.Tensor]:
    return list(value) if isinstance(value, tuple) else [value]


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_number_that_follows_a_size_never_makes_another_program(name: str) -> None:
    torch.manual_seed(0)
    model = Net(PROGRAMS[name]).double().eval()
    x = torch.randn(5, 8, dtype=torch.float64)
    original = copy.deepcopy(model)
    try:
        result = pk.prune(model, x)
    except (pk.NothingToPruneError, pk.RehearsalError):
        assert all(torch.equal(a, b) for a, b in zip(original.parameters(), model.parameters(), strict=True))
        return
    assert not [note for note in result.report.notes if "follows a size" in note], result.report.notes
    with torch.no_grad():
        torch.manual_seed(0)
        expected = leaves(masked(original, result.plan)(x))
        torch.manual_seed(0)
        found = leaves(model(x))
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) < 1e-9 * max(1.0, float(one.abs().max()))


class Window(nn.Module):
    """A literal window of a dim that shrinks: behind fewer units the same numbers are another window."""

    def __init__(self, use: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.use = nn.Linear(8, 6), nn.Linear(6, 3), use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.use(self.a(x)))


def one_written(h: torch.Tensor) -> torch.Tensor:
    h[:, 2:3] = h[:, 2:3].tanh()
    return h


def two_written(h: torch.Tensor) -> torch.Tensor:
    h[:, 2:4] = h[:, 2:4].tanh()
    return h


def doubled_in_place(h: torch.Tensor) -> torch.Tensor:
    h[:, 2:3].mul_(2)
    return h


def added(h: torch.Tensor) -> torch.Tensor:
    return h + h[:, 2:3]


@pytest.mark.parametrize("use", [one_written, two_written, doubled_in_place, added], ids=lambda use: use.__name__)
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_literal_windows_of_what_shrinks_stay_the_same_window(
    use: Callable[[torch.Tensor], torch.Tensor], ratio: float
) -> None:
    torch.manual_seed(0)
    model, x = Window(use).double(), torch.randn(5, 8, dtype=torch.float64)
    original = copy.deepcopy(model)
    try:
        result = pk.prune(model, x, ratio=ratio, verify="never")
    except pk.NothingToPruneError:
        return
    with torch.no_grad():
        assert torch.allclose(result.plan.mask(original)(x), model(x), rtol=1e-10, atol=1e-12)
