"""Sharing a budget out among groups."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from tests.models import Encoder

IMAGE = torch.zeros(1, 3, 8, 8)


class Net(nn.Module):
    """A residual stream, an inner group, and a layer that matters not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.back = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 1)
        self.idle, self.head = nn.Conv2d(16, 24, 1), nn.Linear(24 + 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.back(self.inner(x).relu())
        return self.head(torch.cat([x.mean((2, 3)), self.idle(x).relu().mean((2, 3))], 1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.head.weight[:, 16:] *= 1e-3
    return model


@pytest.fixture
def measured(net: Net) -> pk.Sensitivity:
    torch.manual_seed(1)
    return pk.sensitivity(net, IMAGE, [torch.randn(8, 3, 8, 8)])


def macs(model: nn.Module, example: torch.Tensor) -> float:
    return pk.BasePruner(model, example).plan().preview().costs["macs"][0]


@pytest.mark.slow
@pytest.mark.parametrize("allocation", ["uniform", "global", "greedy", "dp"])
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_targets_are_met(net: Net, measured: pk.Sensitivity, allocation: str, share: float) -> None:
    known = measured if allocation in ("greedy", "dp") else None
    first, second = copy.deepcopy(net), copy.deepcopy(net)
    result = pk.prune(first, IMAGE, target={"macs": share}, allocation=allocation, sensitivity=known)
    assert 0.93 * share <= macs(first, IMAGE) / macs(net, IMAGE) <= share
    assert pk.prune(second, IMAGE, target={"macs": share}, allocation=allocation, sensitivity=known).plan == result.plan
    assert pk.check_exact(net.double(), first.double(), result.plan, IMAGE.double())


def test_what_does_no_harm_goes_first(net: Net, measured: pk.Sensitivity) -> None:
    """The idle layer is nearly all gone before anything else is."""
    for allocation in ("greedy", "dp"):
        found = pk.prune(
            copy.deepcopy(net), IMAGE, target={"params": 0.93}, allocation=allocation, sensitivity=measured
        ).preview.groups
        assert {name: sizes[1] < sizes[0] for name, sizes in found.items()} == {"idle": True}


def test_dynamic_programming_does_no_more_damage(net: Net, measured: pk.Sensitivity) -> None:
    damages = {}
    for allocation in ("greedy", "dp", "uniform"):
        known = None if allocation == "uniform" else measured
        plan = pk.prune(
            copy.deepcopy(net), IMAGE, target={"macs": 0.5, "params": 0.5}, allocation=allocation, sensitivity=known
        ).plan
        damages[allocation] = measured.damage({cut.group: len(cut.kept) for cut in plan.cuts})
    assert damages["dp"] <= damages["greedy"] + 1e-12
    assert damages["dp"] < damages["uniform"]


def test_limits_and_ignored_layers_hold(net: Net, measured: pk.Sensitivity) -> None:
    for allocation in ("greedy", "dp"):
        small = copy.deepcopy(net)
        options: dict[str, Any] = {"max_pruning_ratio": 0.5, "round_to": 4, "ignored_layers": ["stem"]}
        pk.prune(small, IMAGE, target={"macs": 0.6}, allocation=allocation, sensitivity=measured, **options)
        assert small.stem.out_channels == 16
        assert small.inner.out_channels in (16, 20, 24, 28)
        assert small.idle.out_channels in (12, 16, 20, 24)


def test_stated_ratios_hold(net: Net, measured: pk.Sensitivity) -> None:
    small = copy.deepcopy(net)
    pk.prune(
        small, IMAGE, target={"macs": 0.4}, allocation="dp", sensitivity=measured, pruning_ratio_dict={"inner": 0.25}
    )
    assert small.inner.out_channels == 24


def test_what_cannot_be_reached_says_what_can(net: Net, measured: pk.Sensitivity) -> None:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(pk.ArgumentError, match=r"The target can't be reached") as caught:
        pk.prune(net, IMAGE, target={"macs": 0.1}, allocation="dp", sensitivity=measured, max_pruning_ratio=0.25)
    assert "the smallest model has macs=" in caught.value.why
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("allocation", ["greedy", "dp"])
def test_sizes_that_the_program_ties_stay_in_step(allocation: str) -> None:
    torch.manual_seed(0)
    model, x = Encoder(width=64, heads=4).double().eval(), torch.randn(4, 6, 10, dtype=torch.float64)
    known = pk.sensitivity(model, x, [x], ratios=(0.5, 1.0))
    assert any(len(curve.groups) > 1 for curve in known.curves)
    for sensitivity in (known, None):
        small = copy.deepcopy(model)
        plan = pk.prune(small, x, target={"macs": 0.5}, allocation=allocation, sensitivity=sensitivity).plan
        assert 0.45 < macs(small, x) / macs(model, x) <= 0.5
        assert pk.check_exact(model, small, plan, x)


def test_an_allocation_of_ones_own(net: Net) -> None:
    def last_first(problem: plugin.Problem) -> Sequence[int]:
        picked = list(problem.whole)
        for place in reversed(range(len(picked))):
            while not problem.fits(picked) and picked[place] < problem.smallest[place]:
                picked[place] += 1
        return picked

    small = copy.deepcopy(net)
    pk.prune(small, IMAGE, target={"macs": 0.8}, allocation=last_first)
    assert (small.idle.out_channels, small.inner.out_channels) == (24, 32)
    assert small.stem.out_channels < 16
    assert macs(small, IMAGE) <= 0.8 * macs(net, IMAGE)


def test_what_an_allocation_picks_is_checked(net: Net) -> None:
    with pytest.raises(pk.ArgumentError, match="An allocation must meet the budget"):
        pk.prune(net, IMAGE, target={"macs": 0.8}, allocation=lambda problem: problem.whole)
    with pytest.raises(pk.ArgumentError, match="An allocation must pick one option of every choice"):
        pk.prune(net, IMAGE, target={"macs": 0.8}, allocation=lambda problem: ())
    assert net.stem.out_channels == 16


def test_arguments_are_checked(net: Net, measured: pk.Sensitivity) -> None:
    with pytest.raises(pk.ArgumentError, match="There is no allocation called 'dpp'"):
        pk.prune(net, IMAGE, target={"macs": 0.5}, allocation="dpp")
    with pytest.raises(pk.ArgumentError, match="This allocation needs a target"):
        pk.prune(net, IMAGE, 0.5, allocation="dp")
    with pytest.raises(pk.ArgumentError, match="A sensitivity needs an allocation that uses it"):
        pk.prune(net, IMAGE, target={"macs": 0.5}, sensitivity=measured)
    other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    with pytest.raises(pk.ArgumentError, match="The sensitivity is that of another model"):
        pk.prune(other, IMAGE, target={"macs": 0.5}, allocation="dp", sensitivity=measured)


@pytest.mark.slow
def test_with_calibration_data_damages_are_measured_after_compensation(net: Net) -> None:
    torch.manual_seed(1)
    batches = [torch.randn(16, 3, 8, 8) for _ in range(2)]
    errors = {}
    for allocation in ("dp", "uniform", None):
        small = copy.deepcopy(net)
        result = pk.prune(small, IMAGE, target={"macs": 0.4}, calibration=batches, allocation=allocation)
        assert macs(small, IMAGE) / macs(net, IMAGE) <= 0.4
        assert result.compensation is not None
        errors[allocation] = result.compensation.output_error[1]
    assert errors["dp"] <= errors["uniform"]
    first = copy.deepcopy(net)
    damages = pk.sensitivity(
        net,
        IMAGE,
        batches,
        ratios=(0.25, 0.5, 0.75, 0.9),
        importance=pk.default_registry().named("prunekit_importance", "calibrated")(
            pk.calibrate(net, batches, parts=("covariances",))
        ),
        finish=lambda small, plan: pk.compensate(small, plan, batches, original=net, stages=1) and None,
    )
    given = pk.prune(first, IMAGE, target={"macs": 0.4}, calibration=batches, allocation="dp", sensitivity=damages).plan
    assert given == pk.prune(copy.deepcopy(net), IMAGE, target={"macs": 0.4}, calibration=batches, allocation="dp").plan


def test_the_default_with_calibration_data_is_one_ranking(net: Net) -> None:
    torch.manual_seed(1)
    batches = [torch.randn(16, 3, 8, 8)]
    plans = [
        pk.prune(copy.deepcopy(net), IMAGE, target={"macs": 0.6}, calibration=batches, allocation=allocation).plan
        for allocation in (None, "global", "uniform")
    ]
    assert plans[0] == plans[1] != plans[2]
    alike = pk.prune(copy.deepcopy(net), IMAGE, 0.5, calibration=batches).preview.groups
    assert all(after == before // 2 for before, after in alike.values())
