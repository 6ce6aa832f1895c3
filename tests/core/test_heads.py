"""Whole heads, head dims and grouped queries: which go, when, and that nothing else does."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit_plugins.importance import GroupMagnitudeImportance
from tests.models import Encoder


class Grouped(nn.Module):
    """Grouped-query attention: sizes live in attributes."""

    def __init__(self, width: int, heads: int, kv: int, dim: int) -> None:
        super().__init__()
        self.heads, self.kv, self.dim = heads, kv, dim
        self.q = nn.Linear(width, heads * dim)
        self.k = nn.Linear(width, kv * dim)
        self.v = nn.Linear(width, kv * dim)
        self.o = nn.Linear(heads * dim, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, self.dim).transpose(1, 2)
        k = self.k(x).view(b, t, self.kv, self.dim).transpose(1, 2)
        v = self.v(x).view(b, t, self.kv, self.dim).transpose(1, 2)
        k = k.repeat_interleave(self.heads // self.kv, 1)
        v = v.repeat_interleave(self.heads // self.kv, 1)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).reshape(b, t, self.heads * self.dim))


class Decoder(nn.Module):
    def __init__(self, heads: int = 8, kv: int = 8, dim: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.a = Grouped(16, heads, kv, dim)
        self.b = Grouped(16, heads, kv, dim)
        self.out = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + self.a(x)
        return self.out(x + self.b(x))


X = torch.randn(3, 5, 6)


def sizes(model: Decoder) -> tuple[int, int, int, int]:
    return (model.a.heads, model.a.kv, model.a.dim, model.a.q.out_features)


def heads_only(model: Decoder, **options: object) -> pk.BasePruner:
    given = {"pruning_ratio": 0.0, "prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
    return pk.BasePruner(model, X, **{**given, **options})


def test_ratio_zero_still_prunes_heads() -> None:
    model = Decoder()
    before = copy.deepcopy(model)
    pruner = heads_only(model)
    pruner.step()
    assert sizes(model) == (4, 4, 4, 16)
    assert model.embed.out_features == 16
    assert pk.check_exact(before, model, pruner.graph.applied, X)


def test_the_heads_with_the_largest_weights_stay() -> None:
    model = Decoder()
    with torch.no_grad():
        for weight in (model.a.q.weight, model.a.k.weight, model.a.v.weight):
            weight.view(8, 4, 16).mul_(torch.tensor([1.0, 9, 2, 8, 3, 7, 4, 6]).view(8, 1, 1))
    kept = heads_only(model, importance=GroupMagnitudeImportance()).plan().kept
    assert kept["a.q#heads"] == (1, 3, 5, 7)


def test_heads_go_step_by_step() -> None:
    model = Decoder()
    pruner = heads_only(model, iterative_steps=4)
    seen = []
    for _ in range(4):
        pruner.step()
        seen.append(model.a.heads)
    assert seen == [7, 6, 5, 4]


def test_heads_and_head_dims_in_one_step() -> None:
    model = Decoder()
    before = copy.deepcopy(model)
    pruner = heads_only(model, prune_head_dims=True, pruning_ratio=0.5)
    pruner.step()
    assert sizes(model) == (4, 4, 2, 8)
    assert model.embed.out_features == 8
    assert pk.check_exact(before, model, pruner.graph.applied, X)


def test_heads_are_left_alone_by_default_and_dims_on_request() -> None:
    model = Decoder()
    pruner = pk.BasePruner(model, X, prune_head_dims=False)
    pruner.step()
    assert sizes(model) == (8, 8, 4, 32)
    left = pruner.report().left
    assert left["a.q#heads"] == "whole heads are left alone by default: prune_num_heads=True takes them"
    assert left["a.q#head_dim"] == left["a.v#head_dim"] == "prune_head_dims is off"


def test_key_value_heads_take_their_queries_along() -> None:
    model = Decoder(heads=8, kv=4)
    before = copy.deepcopy(model)
    pruner = heads_only(model)
    pruner.step()
    assert sizes(model) == (4, 2, 4, 16)
    assert model.a.k.out_features == 8
    assert pruner.report().left["a.q#queries_per_head"] == "queries leave together with their key-value heads"
    assert pk.check_exact(before, model, pruner.graph.applied, X)


def test_the_scores_of_key_value_heads_count() -> None:
    model = Decoder(heads=8, kv=4)
    with torch.no_grad():
        model.a.k.weight.view(4, 4, 16).mul_(torch.tensor([1.0, 50, 1, 50]).view(4, 1, 1))
    assert heads_only(model).plan().kept["a.q#heads"] == (1, 3)


def test_one_key_value_head_leaves_its_queries_to_prune() -> None:
    model = Decoder(heads=8, kv=1)
    heads_only(model).step()
    assert sizes(model) == (4, 1, 4, 16)


def test_global_heads_are_ranked_over_layers() -> None:
    model = Decoder()
    with torch.no_grad():
        model.b.q.weight.mul_(100)
    options = {"global_pruning": True, "importance": GroupMagnitudeImportance(normalizer=None)}
    heads_only(model, **options).step()
    assert (model.a.heads, model.b.heads) == (1, 7)
    model = Decoder()
    heads_only(model, max_pruning_ratio=0.75, head_pruning_ratio=0.75, **options).step()
    assert (model.a.heads, model.b.heads) == (2, 2)


def test_head_ratios_of_single_layers() -> None:
    model = Decoder()
    pruner = heads_only(model, head_pruning_ratio_dict={model.a.q: 0.25, "b": 0.75})
    pruner.step()
    assert (model.a.heads, model.b.heads) == (6, 2)
    assert [scope.name for scope in pruner.scopes()] == [
        "local",
        "head_pruning_ratio_dict[0]",
        "head_pruning_ratio_dict[1]",
    ]


def test_round_to_is_for_channels_not_for_numbers_of_heads() -> None:
    model = Decoder(dim=16)
    heads_only(model, prune_head_dims=True, pruning_ratio=0.5, round_to=8).step()
    assert sizes(model)[:3] == (4, 4, 8)


def test_prune_takes_the_arguments_of_the_pruner() -> None:
    model = Decoder()
    result = pk.prune(model, X, ratio=0.25, prune_num_heads=True, head_pruning_ratio=0.5)
    assert sizes(model) == (4, 4, 3, 12)
    assert result.report.pruned["a.q#heads"] == (8, 4)
    model = Decoder()
    pk.prune(model, X, target={"params": 0.4}, prune_num_heads=True, head_pruning_ratio=0.5)
    assert model.a.heads == 4  # a target moves the ratio of units, not that of heads
    with pytest.raises(pk.ArgumentError, match=r"prune\(\) cuts once"):
        pk.prune(model, X, iterative_steps=3)


def test_num_heads_is_checked() -> None:
    model = Decoder(heads=8, kv=4)
    right = {model.a.q: 8, model.a.k: 4, model.b.v: 4}
    pk.BasePruner(model, X, num_heads=right)
    with pytest.raises(pk.ArgumentError, match="declared are 2 heads, its outputs are made of 4") as caught:
        pk.BasePruner(model, X, num_heads={model.a.k: 2})
    assert "a.k" in str(caught.value)
    encoder = Encoder()
    tokens = torch.randn(2, 6, 10)
    pk.BasePruner(encoder, tokens, num_heads={layer.qkv: 4 for layer in encoder.attention})
    with pytest.raises(pk.ArgumentError, match="declared are 8 heads, its outputs are made of 4"):
        pk.BasePruner(encoder, tokens, num_heads={encoder.attention[0].qkv: 8})
    pruner = pk.BasePruner(encoder, tokens, num_heads={encoder.head: 5})
    assert any("num_heads of head" in note for note in pruner.report().notes)


def test_num_heads_where_heads_can_not_leave() -> None:
    class Biased(Encoder):
        """A table with one entry per head pins the heads; their dims still shrink."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.attention:
                assert block.num_heads == len(self.table)
            return super().forward(x) + self.table.sum()

    model, tokens = Biased(), torch.randn(2, 6, 10)
    layer = model.attention[0].qkv
    pk.BasePruner(model, tokens, num_heads={layer: 4})
    with pytest.raises(pk.ArgumentError, match="num_heads contradicts"):
        pk.BasePruner(model, tokens, num_heads={layer: 5})


def test_num_heads_of_multi_head_attention() -> None:
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    x = torch.randn(2, 5, 16)
    pk.BasePruner(model, x, num_heads={model.self_attn: 4})
    with pytest.raises(pk.ArgumentError, match="made of 4"):
        pk.BasePruner(model, x, num_heads={model.self_attn: 2})


def test_heads_go_by_the_ratio_where_none_of_their_own_is_given() -> None:
    model = Decoder()
    report = pk.prune(model, X, ratio=0.25, prune_num_heads=True, prune_head_dims=False).report
    assert sizes(model) == (6, 6, 4, 24)
    assert report.pruned["a.q#heads"] == (8, 6)
    assert "a.q#heads" not in report.left


def test_asking_for_heads_at_a_ratio_of_zero_is_told() -> None:
    report = pk.prune(Decoder(), X, prune_num_heads=True, head_pruning_ratio=0.0).report
    assert report.left["a.q#heads"] == "prune_num_heads is on, but head_pruning_ratio is 0"


def test_a_target_shares_heads_out_where_no_ratio_of_their_own_is_given() -> None:
    model = Decoder()
    result = pk.prune(model, X, target={"params": 0.4}, prune_num_heads=True, prune_head_dims=False)
    before, after = result.preview.costs["params"]
    assert after <= 0.4 * before
    assert model.a.heads < 8
    stated = Decoder()
    pk.prune(stated, X, target={"params": 0.4}, prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=0.25)
    assert stated.a.heads == 6


class Cached(Decoder):
    """What decoders with a cache do: keys and values are handed back, so that their heads and dims are pinned."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h = self.embed(x)
        return self.out(h + self.a(h)), self.a.k(h).unflatten(-1, (self.a.kv, -1)), self.a.v(h).unflatten(-1, (2, 4))


def test_query_heads_stay_unless_asked_for_where_a_cache_pins_their_dims() -> None:
    model = Cached(8, 2, 4)
    pruner = pk.BasePruner(model, X)
    plan = pruner.plan()
    assert set(plan.kept) == {"embed#stream"} or set(plan.kept) == {"embed"}
    why = pruner.report().left["a.q#queries_per_head"]
    assert why == "whole queries_per_head are left alone by default: prune_num_heads=True takes them"
    before = copy.deepcopy(model)
    plan = pk.prune(model, X, prune_num_heads=True, prune_head_dims=False, ratio=0.5).plan
    assert sizes(model) == (4, 2, 4, 16)
    assert pk.check_exact(before, model, plan, X)


class PinnedGroups(nn.Module):
    """A grouped convolution whose channels within the groups are looked up, so that only whole groups could go."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.grouped(self.first(x))
        grouped = y.unflatten(1, (self.grouped.groups, 4))
        return self.last(y) + grouped[:, :, 0].sum(1, keepdim=True)


def test_whole_convolution_groups_stay_where_the_channels_inside_are_pinned() -> None:
    pruner = pk.BasePruner(PinnedGroups(), torch.randn(1, 3, 6, 6))
    pruner.plan()
    left = {name: why for name, why in pruner.report().left.items() if "conv_groups" in name}
    (why,) = left.values()
    assert why == "each of its conv_groups holds units of other groups, which leave instead; a group takes whole ones"
