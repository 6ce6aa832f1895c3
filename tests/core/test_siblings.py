"""Sizes that stay uniform: groups of the same structure at sibling layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk


class Block(nn.Module):
    """Attention with its own head dim, and an MLP whose size differs from the attention's."""

    def __init__(self, width: int = 16, heads: int = 2, hidden: int = 24) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.proj, self.up, self.down = nn.Linear(width, width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:-1], self.heads, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.proj(mixed.reshape(*x.shape[:-1], self.heads * self.head_dim))
        return x + self.down(self.up(x).relu())


class Blocks(nn.Module):
    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(6, 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(count))
        for number, block in enumerate(self.blocks):  # so that ranking globally would empty the first ones
            for layer in (block.q, block.k, block.v, block.up):
                layer.weight.data *= 4.0**number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


@pytest.fixture
def model() -> Blocks:
    torch.manual_seed(0)
    return Blocks().eval()


X = torch.randn(2, 5, 6)
MAGNITUDE = "magnitude"


def sizes(model: nn.Module) -> tuple[set[int], set[int]]:
    assert isinstance(model, Blocks)
    hidden = {block.up.out_features for block in model.blocks}
    dims = {layer.out_features for block in model.blocks for layer in (block.q, block.k, block.v)}
    return hidden, dims


def plain() -> object:
    from prunekit_plugins.importance import GroupMagnitudeImportance

    return GroupMagnitudeImportance(normalizer=None)


def test_global_ranking_alone_gives_blocks_different_sizes(model: Blocks) -> None:
    pk.prune(model, X, 0.5, importance=plain(), global_pruning=True)
    hidden, dims = sizes(model)
    assert len(hidden) > 1
    assert len(dims) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "wish", [{"ratio": 0.5}, {"target": {"macs": 0.5}}, {"target": {"params": 0.4}}], ids=["ratio", "macs", "params"]
)
@pytest.mark.parametrize("ranked", [False, True])
def test_uniform_sizes_are_one_number_per_place(model: Blocks, wish: dict[str, object], ranked: bool) -> None:
    model, x = model.double(), X.double()
    original = copy.deepcopy(model)
    result = pk.prune(model, x, importance=plain(), global_pruning=ranked, uniform=True, **wish)  # type: ignore[arg-type]
    hidden, dims = sizes(model)
    assert (len(hidden), len(dims)) == (1, 1)
    assert hidden < {*range(1, 24)}
    assert pk.check_exact(original, model, result.plan, x)
    target = wish.get("target")
    if isinstance(target, dict) and "params" in target:
        assert result.preview.params_after <= 0.4 * result.preview.params_before


def test_what_is_given_back_in_one_block_is_given_back_in_all() -> None:
    class Literal(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.down(self.up(x).view(*x.shape[:-1], 24))

    torch.manual_seed(0)
    model = Blocks()
    model.blocks[1] = Literal()
    odd = copy.deepcopy(model)
    pk.prune(odd, X)
    assert [block.up.out_features for block in odd.blocks] == [12, 24, 12]
    for block in model.blocks:
        block.__class__ = type("Block", (type(block),), {"__qualname__": "Block", "__module__": __name__})
    pk.prune(model, X, uniform=True)
    assert [block.up.out_features for block in model.blocks] == [24, 24, 24]


def test_siblings_of_an_ignored_layer_stay_whole(model: Blocks) -> None:
    result = pk.prune(model, X, ignored_layers=["blocks.1.up"], uniform=True)
    assert sizes(model)[0] == {24}
    assert result.report.left["blocks.0.up"] == "uniform: blocks.1.up stays whole"
    assert sizes(model)[1] == {8}


def test_groups_at_other_places_or_of_other_sizes_are_free() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(Block(hidden=24), Block(hidden=20), nn.Linear(16, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    torch.manual_seed(0)
    model = Two()
    ratios: dict[object, float] = {"layers.0.up": 0.25, "layers.1.up": 0.75}
    pk.prune(model, torch.randn(2, 5, 16), uniform=True, pruning_ratio_dict=ratios)  # type: ignore[arg-type]
    assert [layer.up.out_features for layer in list(model.layers)[:2]] == [18, 5]


def test_stated_ratios_of_siblings_meet_in_the_middle(model: Blocks) -> None:
    ratios: dict[object, float] = {"blocks.0.up": 0.25, "blocks.1.up": 0.75, "blocks.2.up": 0.5}
    pk.prune(model, X, uniform=True, pruning_ratio_dict=ratios)  # type: ignore[arg-type]
    assert sizes(model)[0] == {12}


def test_whole_heads_are_as_many_in_every_block(model: Blocks) -> None:
    for block in model.blocks:
        block.heads, block.head_dim = 8, 2
    pruner = pk.BasePruner(
        model,
        X,
        plain(),
        global_pruning=True,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=0.5,
        uniform=True,
    )
    pruner.step()
    assert {block.heads for block in model.blocks} == {4}
    assert model(X).shape == (2, 5, 3)
