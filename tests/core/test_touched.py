"""How many elements planning a large model touches: counted in torch operations, which no load on the machine changes.

A mask as large as a weight costs little on a small model, and minutes on a large one.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import prunekit as pk
from prunekit_core.rehearse.factors import sources

TOKENS, VOCABULARY = 8, 32


class Block(nn.Module):
    """Grouped-query attention whose queries are turned as by a rotary embedding, and a gated MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head_dim = 16
        self.norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width // part, bias=False) for part in (1, 2, 2))
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        first, second = q.chunk(2, dim=-1)
        q = q + torch.cat((-second, first), dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Touched(TorchDispatchMode):
    """Counts the elements of real tensors that operations read or write; views touch none."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returned = func._schema.returns
        if not any(entry.alias_info is not None and not entry.alias_info.is_write for entry in returned):
            for leaf in tree_leaves((args, kwargs, result)):
                if isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeTensor) and not leaf.is_meta:
                    self.elements += leaf.numel()
        return result


@functools.cache
def touched(width: int, depth: int) -> float:
    """Elements touched by analysis and plan, per unit of the model's layers."""
    with torch.device("meta"):
        model = Llama(width, depth)
    ids = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    with Touched() as found:
        plan = pk.BasePruner(model, ids, "random", pruning_ratio=0.5).plan()
    assert len(plan.rescales) == depth  # queries are scaled: rows of large weights were looked for
    return found.elements / sum(layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear))


LIMIT = 60
"""It was 52 for two blocks, whatever their width, and 28 for sixteen."""


@pytest.mark.parametrize("width", [128, 256, 512])
def test_wider_layers_touch_as_many_elements_per_unit(width: int) -> None:
    assert touched(width, 2) < LIMIT
    assert touched(2 * width, 2) < 1.02 * touched(width, 2)


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_further_blocks_touch_as_many_elements_per_unit(depth: int) -> None:
    assert touched(256, 2 * depth) <= touched(256, depth) < LIMIT


def test_a_mask_as_large_as_a_weight_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such masks once were made wherever rows are scaled: a plan for 70 billion parameters took six times as long."""
    found = sources._Walk._take

    def take(walk: Any, index: int, log: float, wanted: torch.Tensor) -> None:
        found(walk, index, log, wanted.contiguous())

    monkeypatch.setattr(sources._Walk, "_take", take)
    assert touched.__wrapped__(128, 2) > 2 * LIMIT
    assert touched.__wrapped__(256, 2) > 1.5 * touched.__wrapped__(128, 2)
