"""What users declare: channel groups, unwrapped parameters, customized pruners."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.importance import GroupMagnitudeImportance
from prunekit_plugins.layers import prune_linear_in_channels, prune_linear_out_channels
from tests.models import Chain, Encoder

ROWS = GroupMagnitudeImportance(p=1, group_reduction="first", normalizer=None)


def chain_with_rows(*rows: float) -> Chain:
    model = Chain(1, len(rows), 2)
    model.layers[0].weight.data = torch.tensor(rows)[:, None]
    return model


@pytest.mark.parametrize("side", ["out_channel_groups", "in_channel_groups"])
def test_channel_groups_lose_the_same_channels(side: str) -> None:
    model = chain_with_rows(1.0, 5.0, 2.0, 6.0, 4.0, 1.0)  # blocks (1 5 2) and (6 4 1): means 3.5, 4.5, 1.5
    layer = model.layers[0] if side == "out_channel_groups" else model.layers[1]
    pruner = pk.BasePruner(model, torch.randn(2, 1), ROWS, pruning_ratio=1 / 3, **{side: {layer: 2}})
    assert pruner.plan().kept["layers.0"] == (0, 1, 3, 4)
    assert pk.BasePruner(model, torch.randn(2, 1), ROWS, pruning_ratio=1 / 3).plan().kept["layers.0"] == (1, 2, 3, 4)


def test_channel_groups_hold_over_steps_and_with_rounding() -> None:
    torch.manual_seed(0)
    model = Chain(3, 48, 2)
    pruner = pk.BasePruner(
        model,
        torch.randn(2, 3),
        pruning_ratio=0.5,
        iterative_steps=3,
        round_to=8,
        out_channel_groups={model.layers[0]: 4},
    )
    for left in (40, 32, 24):
        pruner.step()
        kept = pruner.graph.applied.kept["layers.0"]
        assert len(kept) == left
        blocks = [[unit - 12 * block for unit in kept if unit // 12 == block] for block in range(4)]
        assert blocks == [blocks[0]] * 4


def test_channel_groups_in_a_global_ranking() -> None:
    model = Chain(1, 4, 4, 2)
    model.layers[0].weight.data = torch.tensor([[1.0], [5.0], [1.0], [5.0]])
    model.layers[1].weight.data = torch.tensor([2.0, 3.0, 6.0, 7.0])[:, None].expand(-1, 4) / 4
    pruner = pk.BasePruner(
        model,
        torch.randn(2, 1),
        ROWS,
        global_pruning=True,
        pruning_ratio=0.375,
        out_channel_groups={model.layers[0]: 2},
    )
    assert pruner.plan().kept == {"layers.0": (1, 3), "layers.1": (1, 2, 3)}


def test_channel_groups_that_do_not_divide() -> None:
    model = Chain(3, 10, 2)
    with pytest.raises(pk.ArgumentError, match="10 channels, 4 groups"):
        pk.BasePruner(model, torch.randn(2, 3), out_channel_groups={model.layers[0]: 4})
    with pytest.raises(pk.ArgumentError, match="positive integer"):
        pk.BasePruner(model, torch.randn(2, 3), out_channel_groups={model.layers[0]: 0})


def test_channel_groups_that_were_broken_by_hand() -> None:
    model = Chain(3, 8, 2)
    pruner = pk.BasePruner(model, torch.randn(2, 3), out_channel_groups={model.layers[0]: 2})
    next(iter(pruner.graph.get_all_groups())).prune([1])
    with pytest.raises(pk.UnitsError, match="lost different channels"):
        pruner.step()


def test_unwrapped_parameters_are_checked() -> None:
    model, tokens = Encoder(), torch.randn(2, 6, 10)
    pruner = pk.BasePruner(model, tokens, unwrapped_parameters={model.cls: 2, model.position: -1})
    assert pruner.report().notes == ()
    pruner.step()
    assert model.cls.shape[2] == model.position.shape[2] == 8
    model = Encoder()
    pruner = pk.BasePruner(model, tokens, unwrapped_parameters=[(model.position, 1)])
    assert any("unwrapped parameter position: dim 1 can't shrink" in note for note in pruner.report().notes)
    with pytest.raises(pk.ArgumentError, match="no such dim"):
        pk.BasePruner(model, tokens, unwrapped_parameters={model.cls: 3})


class Scaled(nn.Module):
    """A layer of a user's own, with a size in an attribute that its forward doesn't use."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.gain = nn.Parameter(torch.rand(size) + 0.5)
        self.shift = nn.Parameter(torch.randn(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.pow(2).sum(1, keepdim=True).sqrt() * self.gain + self.shift


class ScaledPruner:
    """Prunes `Scaled` as a user would write it."""

    def prune_out_channels(self, layer: Scaled, idxs: Sequence[int]) -> Scaled:
        stay = [k for k in range(layer.size) if k not in set(idxs)]
        layer.size -= len(idxs)
        layer.gain = nn.Parameter(layer.gain.data[stay])
        layer.shift = nn.Parameter(layer.shift.data[stay])
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Scaled) -> int:
        return layer.size

    get_in_channels = get_out_channels


def scaled_model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), Scaled(8), nn.Linear(8, 3))


@pytest.mark.parametrize("by_instance", [False, True])
def test_customized_pruners_state_attributes(by_instance: bool) -> None:
    x = torch.randn(2, 4)
    plain = scaled_model()
    pk.BasePruner(plain, x).step()
    assert (plain[1].size, len(plain[1].gain)) == (8, 4)  # nothing in the forward needs the attribute
    model = scaled_model()
    gain = model[1].gain
    pruner = pk.BasePruner(model, x, customized_pruners={model[1] if by_instance else Scaled: ScaledPruner()})
    pruner.step()
    assert (model[1].size, len(model[1].gain)) == (4, 4)
    assert model[1].gain is gain
    assert torch.equal(model(x), plain(x))


class Mix(nn.Module):
    """A layer of a user's own with a child."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.scale, self.fc = size, nn.Parameter(torch.rand(size)), nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x * self.scale)


class MixPruner(ScaledPruner):
    """Prunes the child as well, in place or by making new parameters."""

    def __init__(self, in_place: bool) -> None:
        self.in_place = in_place

    def prune_out_channels(self, layer: Mix, idxs: Sequence[int]) -> Mix:
        stay = [k for k in range(layer.size) if k not in set(idxs)]
        layer.size, layer.scale = len(stay), nn.Parameter(layer.scale.data[stay])
        if self.in_place:
            prune_linear_out_channels(layer.fc, idxs)
            prune_linear_in_channels(layer.fc, idxs)
        else:
            layer.fc.weight = nn.Parameter(layer.fc.weight.data[stay][:, stay])
            layer.fc.bias = nn.Parameter(layer.fc.bias.data[stay])
        return layer

    prune_in_channels = prune_out_channels


@pytest.mark.parametrize("in_place", [False, True])
def test_customized_pruners_may_prune_children(in_place: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 8), Mix(8), nn.Linear(8, 3))
    original, x = copy.deepcopy(model), torch.randn(2, 4)
    pruner = pk.BasePruner(model, x, customized_pruners={Mix: MixPruner(in_place)})
    pruner.step()
    assert (model[1].size, model[1].fc.in_features, model[1].fc.out_features) == (4, 4, 4)
    assert pk.check_exact(original, model, pruner.graph.applied, x)


def test_customized_pruners_make_groups() -> None:
    model, mine = scaled_model(), ScaledPruner()
    graph = pk.DependencyGraph().build_dependency(model, torch.randn(2, 4), customized_pruners={Scaled: mine})
    group = graph.get_pruning_group(model[1], mine.prune_out_channels, [1, 6])
    assert {item.dep.name: item.idxs for item in group} == {"0": [1, 6], "1": [1, 6], "2": [1, 6]}
    group.prune()
    assert (model[0].out_features, model[1].size, model[2].in_features) == (6, 6, 6)


def test_a_customized_pruner_that_contradicts_the_program() -> None:
    class Wrong(ScaledPruner):
        def prune_out_channels(self, layer: Scaled, idxs: Sequence[int]) -> Scaled:
            layer.size -= len(idxs)
            return layer

    model = scaled_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pk.PluginError, match=r"leaves shape \(8,\), the forward pass needs \(4,\)"):
        pk.BasePruner(model, torch.randn(2, 4), customized_pruners={Scaled: Wrong()}).step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[1].size == 8


def test_customized_pruners_that_are_none() -> None:
    for wrong, words in (({"Scaled": ScaledPruner()}, "module classes"), ({Scaled: object()}, "lacks a method")):
        with pytest.raises(pk.ArgumentError, match=words):
            pk.BasePruner(scaled_model(), torch.randn(2, 4), customized_pruners=wrong)
    model = nn.Sequential(nn.Linear(4, 8), Scaled(8), nn.Linear(8, 8), Scaled(8))
    with pytest.raises(pk.ArgumentError, match="Two customized pruners"):
        pk.BasePruner(model, torch.randn(2, 4), customized_pruners={model[1]: ScaledPruner(), model[3]: ScaledPruner()})
