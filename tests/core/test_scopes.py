"""Scopes: local, global, isomorphic and user-defined ones choose differently, and say so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.importance import GroupMagnitudeImportance
from tests.models import Chain

ROWS = GroupMagnitudeImportance(p=1, group_reduction="first", normalizer=None)


class Two(nn.Module):
    """Two alike groups (linear to linear) and one that isn't (with a norm), with scores written into the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 4)
        self.b = nn.Linear(4, 4)
        self.c = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.d = nn.Linear(4, 2)
        scores = {"a": [1.0, 2.0, 9.0, 10.0], "b": [3.0, 4.0, 11.0, 12.0], "c": [0.1, 0.2, 0.3, 0.4]}
        for name, rows in scores.items():
            weight = getattr(self, name).weight
            weight.data = torch.tensor(rows)[:, None].expand(-1, weight.shape[1]) / weight.shape[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x).relu()).relu()
        return self.d(self.norm(self.c(x)).relu())


X = torch.randn(3, 2)


def kept(**options: object) -> dict[str, tuple[int, ...]]:
    model = Two()
    pruner = pk.BasePruner(model, X, ROWS, **options)
    full = {name: tuple(range(4)) for name in "abc"}
    return {**full, **pruner.plan().kept}


def test_local_takes_the_ratio_of_every_group() -> None:
    assert kept() == {"a": (2, 3), "b": (2, 3), "c": (2, 3)}


def test_global_takes_the_lowest_scores_wherever_they_are() -> None:
    assert kept(global_pruning=True) == {"a": (2, 3), "b": (1, 2, 3), "c": (3,)}


def test_isomorphic_ranks_alike_groups_together() -> None:
    found = kept(global_pruning=True, isomorphic=True)
    assert found == {"a": (2, 3), "b": (2, 3), "c": (2, 3)}
    # the ratio 0.25 takes two of the eight units of a and b: both lie in a
    found = kept(global_pruning=True, isomorphic=True, pruning_ratio=0.25)
    assert found == {"a": (2, 3), "b": (0, 1, 2, 3), "c": (1, 2, 3)}
    assert kept(pruning_ratio=0.25) == {"a": (1, 2, 3), "b": (1, 2, 3), "c": (1, 2, 3)}
    assert kept(global_pruning=True, pruning_ratio=0.25) == {"a": (0, 1, 2, 3), "b": (0, 1, 2, 3), "c": (3,)}


def test_a_tuple_of_layers_is_a_scope() -> None:
    model = Two()
    ratios = {(model.a, model.c): 0.5, model.b: 0.25}
    pruner = pk.BasePruner(model, X, ROWS, pruning_ratio_dict=ratios)
    assert pruner.plan().kept == {"a": (1, 2, 3), "c": (3,), "b": (1, 2, 3)}
    assert [(s.name, s.groups, s.ratio, s.ranked, s.fixed) for s in pruner.scopes()] == [
        ("pruning_ratio_dict[0]", ("a", "c"), 0.5, True, True),
        ("pruning_ratio_dict[1]", ("b",), 0.25, False, True),
    ]


def test_scopes_are_listed_with_names() -> None:
    model = Two()

    def names(**options: object) -> list[tuple[str, tuple[str, ...]]]:
        return [(scope.name, scope.groups) for scope in pk.BasePruner(model, X, ROWS, **options).scopes()]

    assert names() == [("local", ("a", "b", "c"))]
    assert names(global_pruning=True) == [("global", ("a", "b", "c"))]
    assert names(global_pruning=True, isomorphic=True) == [
        ("isomorphic to a", ("a", "b")),
        ("isomorphic to c", ("c",)),
    ]
    assert names(ignored_layers=[model.b]) == [("local", ("a", "c"))]


def test_isomorphic_without_global_is_an_error() -> None:
    with pytest.raises(pk.ArgumentError, match="isomorphic needs global_pruning=True"):
        pk.BasePruner(Two(), X, isomorphic=True)


def test_a_ratio_that_would_empty_a_group_keeps_one_aligned_unit_and_says_so() -> None:
    model = Chain(4, 8, 32, 3)
    pruner = pk.BasePruner(model, torch.randn(1, 4), pruning_ratio=0.9)
    pruner.step()
    assert [layer.out_features for layer in model.layers] == [1, 3, 3]
    note = "layers.0 keeps 1 of 8 units: the ratio would have emptied it"
    assert [line for line in pruner.report().notes if "keeps" in line] == [note]
    model = Chain(4, 8, 32, 3)
    pruner = pk.BasePruner(model, torch.randn(1, 4), pruning_ratio=0.9, round_to=4)
    pruner.step()
    assert [layer.out_features for layer in model.layers] == [4, 4, 3]
    assert "layers.0 keeps 4 of 8 units: the ratio would have emptied it" in pruner.report().notes
    model = Two()
    pruner = pk.BasePruner(model, X, ROWS, global_pruning=True, pruning_ratio=0.5)
    pruner.step()
    assert model.c.out_features == 1
    assert "c keeps 1 of 4 units: the ratio would have emptied it" in pruner.report().notes
    half = pk.BasePruner(Chain(4, 2, 3), torch.randn(1, 4))
    half.step()
    assert half.report().notes == ()  # one of two is just what was asked for


def test_root_module_types_keep_other_groups_whole() -> None:
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    pruner = pk.BasePruner(model, torch.tensor([[1, 2]]), root_module_types=[nn.Linear])
    assert [cut.group for cut in pruner.plan().cuts] == ["1"]
    assert "no layer of root_module_types produces it" in pruner.report().left["0"]
    both = pk.BasePruner(model, torch.tensor([[1, 2]]), root_module_types=[nn.Linear, nn.Embedding])
    assert [cut.group for cut in both.plan().cuts] == ["0", "1"]


def test_a_layer_that_is_not_there_is_told_before_anything_is_traced() -> None:
    class Loud(Chain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("traced")

    for options in (
        {"ignored_layers": ["nowhere"]},
        {"pruning_ratio_dict": {nn.Linear(1, 1): 0.5}},
        {"pruning_ratio_dict": {(nn.Conv2d,): 0.5}},
        {"head_pruning_ratio_dict": {"nowhere": 0.5}},
        {"head_pruning_ratio": 1.0},
        {"isomorphic": True},
        {"unwrapped_parameters": {nn.Parameter(torch.zeros(3)): 0}},
        {"customized_pruners": {nn.Linear: object()}},
    ):
        with pytest.raises(pk.ArgumentError):
            pk.BasePruner(Loud(2, 3, 4), X, **options)


def test_former_names_warn_and_work() -> None:
    with pytest.warns(DeprecationWarning, match="ch_sparsity was renamed: use pruning_ratio"):
        pruner = pk.BasePruner(Chain(4, 8, 3), torch.randn(1, 4), ch_sparsity=0.25)
    assert pruner.plan().kept["layers.0"] == tuple(sorted(pruner.plan().kept["layers.0"]))
    assert len(pruner.plan().kept["layers.0"]) == 6
    model = Chain(4, 8, 3)
    with pytest.warns(DeprecationWarning, match="use pruning_ratio_dict"):
        pruner = pk.BasePruner(model, torch.randn(1, 4), ch_sparsity_dict={model.layers[0]: 0.75})
    assert len(pruner.plan().kept["layers.0"]) == 2
    with pytest.warns(DeprecationWarning, match="use in_channel_groups and out_channel_groups"):
        pruner = pk.BasePruner(model, torch.randn(1, 4), channel_groups={model.layers[0]: 4})
    assert len({unit % 2 for unit in pruner.plan().kept["layers.0"]}) == 1
    with pytest.raises(pk.KeywordError, match=r"no argument called 'pruning_rato'[\s\S]*'pruning_ratio'"):
        pk.BasePruner(model, torch.randn(1, 4), pruning_rato=0.5)


def test_pruners_share_nothing() -> None:
    first, second = (pk.BasePruner(Chain(4, 8, 3), torch.randn(1, 4)) for _ in range(2))
    first.step()
    assert second.plan().cuts
    assert second.graph.applied.cuts == ()
    assert second.report().pruned == {}
