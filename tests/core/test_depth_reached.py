"""What branches reach of a target: the least harm of all sets that meet it, whole layers where sizes are alike."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.depth.reachable import Reachable

X = torch.randn(2, 8)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, width), nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


class Two(nn.Module):
    """A layer of two branches, all of whose parameters are theirs, or with a norm behind them."""

    def __init__(self, *, normed: bool = False) -> None:
        super().__init__()
        self.first, self.second = Block(8), Block(12)
        self.norm = nn.LayerNorm(8) if normed else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.second(self.first(x)))
        return y


class Stated:
    """Scores that are stated, by the name of the branch."""

    def __init__(self, **scores: float) -> None:
        self.scores = scores

    def __call__(self, group: Any) -> None:
        return None

    def branch(self, group: Any) -> float:
        return self.scores[f"n{group.name.split('.')[0]}"]


@pytest.mark.parametrize("seed", range(20))
def test_the_least_harm_of_all_sets_is_found(seed: int) -> None:
    """Held against every set; 0 to 3 are in 8, and 8 in 9."""
    rng = random.Random(seed)
    names = [str(number) for number in range(10)]
    saved = {name: rng.randint(1, 200) / 2000 for name in names}
    inside = {**dict.fromkeys("0123", "8"), "8": "9"}
    saved["8"] = sum(saved[name] for name in "0123") + rng.randint(0, 100) / 2000
    saved["9"] = saved["8"] + rng.randint(0, 100) / 2000
    damages = {name: rng.random() for name in names}

    def within(one: str, other: str) -> bool:
        return inside.get(one) == other or inside.get(inside.get(one, "")) == other

    sets = [
        chosen
        for size in range(7)
        for chosen in itertools.combinations(names, size)
        if not any(within(one, other) for one in chosen for other in chosen)
    ]
    sizes = Reachable(saved, damages, within, 6)
    for needed in (0.05025, 0.20025, 0.40025):
        enough = [one for one in sets if sum(saved[name] for name in one) >= needed]
        found = sizes.least(needed)
        if found is None:
            assert not enough
            continue
        assert sum(saved[name] for name in found.names) >= needed
        assert found.damage == pytest.approx(min(sum(damages[name] for name in one) for one in enough), rel=0.02)
        near, above = sizes.nearest(needed)
        totals = [sum(saved[name] for name in one) for one in sets]
        assert near is not None
        assert above is not None
        assert near.saved == pytest.approx(min(total for total in totals if total >= needed), abs=1e-3)
        assert above.saved == pytest.approx(max(total for total in totals if total < needed), abs=1e-3)


def chain() -> nn.Sequential:
    """Blocks of 1,096, 552 and 144 parameters, and 90 more."""
    torch.manual_seed(0)
    return nn.Sequential(Block(64), Block(32), Block(8), nn.Linear(8, 10))


def test_a_smaller_set_goes_where_it_does_less_harm() -> None:
    """By damage for what is saved the largest block comes first, and 41 % would be left."""
    model = chain()
    before = sum(p.numel() for p in model.parameters())
    result = pk.prune(model, X, target={"params": 0.75}, by="depth", branch_importance=Stated(n0=1.0, n1=0.6, n2=5.0))
    assert result.report.absent == ("1.up",)
    assert 0.70 * before < sum(p.numel() for p in model.parameters()) <= 0.75 * before
    assert not [note for note in result.report.notes if "asked for" in note]


def test_much_less_than_was_asked_for_is_told_with_the_nearest_sizes() -> None:
    model = chain()
    result = pk.prune(model, X, target={"params": 0.75}, by="depth", branch_importance=Stated(n0=0.5, n1=0.6, n2=5.0))
    assert result.report.absent == ("0.up",)
    (note,) = [note for note in result.report.notes if "asked for" in note]
    before, left = result.preview.params_before, result.preview.params_after
    near, above = before - 552, before - 144
    wanted = f"params: {left:,} ({left / before:.1%}) are left where {0.75 * before:,.0f} (75.0%) were asked for, as "
    wanted += (
        f"branches leave as a whole; nearest to it they reach {near:,} ({near / before:.1%}), which does more damage "
    )
    wanted += f"and {above:,} ({above / before:.1%}), which is more than that; by width it is met more closely"
    assert note == wanted


def layers(*, normed: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), *(Two(normed=normed) for _ in range(4)), nn.Linear(8, 3))


@pytest.mark.parametrize("calibration", [None, [torch.randn(6, 8) for _ in range(2)]])
@pytest.mark.parametrize("asked", [{"target": {"params": 0.6}, "by": "depth"}, {"branch_ratio": 0.5}])
def test_uniform_takes_whole_layers(asked: dict[str, Any], calibration: Any) -> None:
    model = layers()
    result = pk.prune(model, X, uniform=True, calibration=calibration, **asked)
    gone = {name.split(".")[0] for name in result.report.absent}
    assert len(gone) == 2
    assert set(result.report.absent) == {f"{name}.{part}.up" for name in gone for part in ("first", "second")}
    assert len(model) == 4
    alone = layers()
    pk.prune(alone, X, calibration=calibration, **asked)
    assert sum(p.numel() for p in alone.parameters()) >= sum(p.numel() for p in model.parameters())


def test_the_layer_that_does_least_together_goes() -> None:
    """`output_change` is asked with both branches of a layer off: alone they cancel what the other one does."""
    model = layers()
    with torch.no_grad():
        for number in (1, 2, 3, 4):
            model[number].first.down.weight.mul_(0.3 * number)
    x, data = torch.randn(64, 8), torch.randn(64, 8)
    changes = {}
    for number in (1, 2, 3, 4):
        without = nn.Sequential(*(layer for place, layer in enumerate(model) if place != number))
        with torch.no_grad():
            changes[number] = float((without(data) - model(data)).square().sum() / model(data).square().sum())
    result = pk.prune(model, x, target={"params": 0.8}, by="depth", uniform=True, calibration=[data], compensation=None)
    assert {name.split(".")[0] for name in result.report.absent} == {str(min(changes, key=lambda one: changes[one]))}


def test_layers_that_cant_leave_as_a_whole_are_told() -> None:
    with pytest.raises(
        pk.ArgumentError, match=r"(?s)can't be reached by depth.*1 can't: 1\.norm\.weight is in no branch"
    ):
        pk.prune(layers(normed=True), X, target={"params": 0.8}, by="depth", uniform=True)
    model = layers(normed=True)
    assert pk.prune(model, X, target={"params": 0.8}, by="depth").report.absent
    with pytest.raises(pk.ArgumentError, match="in no list of layers"):
        pk.prune(Two(), X, target={"params": 0.7}, by="depth", uniform=True)


def test_depth_and_width_for_one_target_take_whole_layers_too() -> None:
    model = layers()
    with torch.no_grad():
        for part in (model[2].first, model[2].second):
            part.down.weight.mul_(1e-3)
            part.down.bias.zero_()
    result = pk.prune(
        model, X, target={"params": 0.7}, by="both", uniform=True, calibration=[torch.randn(32, 8) for _ in range(4)]
    )
    assert result.report.absent == ("2.first.up", "2.second.up")
    assert len(model) == 5
    assert len({tuple(p.shape for p in layer.parameters()) for layer in list(model)[1:-1]}) == 1
