"""Calibration data that aren't finite, models that run in other dtypes than their weights, and such as show nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import prunekit as pk

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
SPOILT = X.clone()
SPOILT[3, 5] = float("nan")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


class Net(nn.Sequential):
    """Three blocks and a head; counts the runs with data."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(Block(), Block(), Block(), nn.Linear(16, 4))


class Autocast(Net):
    """The same, which runs in bfloat16 whoever calls it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("criterion", ["magnitude", "random", "output_change", None])
def test_branches_are_not_chosen_nor_fitted_by_data_that_are_not_finite(criterion: str | None, value: float) -> None:
    model, spoilt = Net(), X.clone()
    spoilt[3, 5] = value
    with pytest.raises(pk.ArgumentError) as refused:
        pk.prune(model, X[:2], branch_ratio=0.4, branch_importance=criterion, calibration=[X, spoilt])
    assert (refused.value.headline, refused.value.where) == ("Calibration data hold NaN or infinity.", "batch 1")
    assert refused.value.why == "1 of 1024 values, the first at (3, 5)"
    assert len(model) == 4
    with pytest.raises(pk.ArgumentError, match="Calibration data hold NaN"):
        pk.BasePruner(model, X[:2], branch_ratio=0.4, branch_importance=criterion, calibration=[X, spoilt])


def test_nothing_runs_before_a_list_is_refused() -> None:
    class Silent(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("it ran")

    with pytest.raises(pk.ArgumentError, match=r"batch 0, input \['x'\]"):
        pk.prune(Silent(), X[:2], branch_ratio=0.4, calibration=[{"x": SPOILT}])
    with pytest.raises(pk.ArgumentError, match="Calibration data hold NaN"):
        pk.prune(Silent(), X[:2], importance="magnitude", calibration=[X * float("nan")])


def test_data_that_come_one_after_the_other_are_refused_as_they_are_read() -> None:
    class Loader:
        def __iter__(self) -> Iterator[torch.Tensor]:
            return iter([X, SPOILT])

    model = Net()
    with pytest.raises(pk.ArgumentError, match=r"Calibration data hold NaN or infinity\.[\s\S]*batch 1"):
        pk.prune(model, X[:2], branches=["0.up"], calibration=Loader())
    assert len(model) == 4


@pytest.mark.parametrize("criterion", ["magnitude", "random", None])
def test_widths_leave_such_samples_out_and_the_report_says_so(criterion: str | None) -> None:
    options: dict[str, Any] = {"importance": criterion, "compensation": None, "reestimate_batchnorm": False}
    result = pk.prune(Net(), X[:2], calibration=[X, SPOILT, SPOILT], **options)
    told = "calibration data hold NaN or infinity: batch 1, and 1 more; such samples are left out"
    assert told in result.report.notes
    assert not any("NaN" in note for note in pk.prune(Net(), X[:2], calibration=[X], **options).report.notes)


def test_infinity_in_a_mask_is_no_mistake() -> None:
    class Masked(Net):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x) + torch.softmax(mask, -1).sum()

    mask = torch.zeros(64, 4).masked_fill(torch.arange(4) > 1, -torch.inf)
    result = pk.prune(Masked(), (X, mask), branches=["0.up"], calibration=[(X, mask)])
    assert result.plan.absent == ("0.up",)


# -- other dtypes


def test_what_layers_read_under_autocast_is_seen() -> None:
    seen = pk.calibrate(Autocast(), [X]).sites
    assert set(seen) == set(pk.calibrate(Net(), [X]).sites)
    expected = X.bfloat16().double()
    assert torch.allclose(seen["0.up.weight"].moments.mean[0], expected.mean(0))
    with torch.autocast("cpu", torch.bfloat16):
        around = pk.calibrate(Net(), [X]).sites
    for name, site in seen.items():
        assert torch.equal(site.moments.mean, around[name].moments.mean)


def test_weights_make_up_for_units_and_branches_under_autocast() -> None:
    plain, other = (pk.prune(net, X[:2], calibration=[X]) for net in (Net(), Autocast()))
    assert plain.compensation is not None
    assert other.compensation is not None
    assert [one.consumer for one in other.compensation.layers] == [one.consumer for one in plain.compensation.layers]
    assert other.compensation.output_error[1] < 0.5 * other.compensation.output_error[0]
    model, data = Autocast(), torch.randn(400, 16)
    result = pk.prune(model, X[:2], branches=["1.up"], calibration=[data])
    assert result.compensation is not None
    assert [one.consumer for one in result.compensation.layers] == ["0.down.weight"]
    assert result.compensation.output_error[1] < 0.5 * result.compensation.output_error[0]


def test_a_model_that_shows_no_layer_is_refused_by_its_own_name() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(16, 8)), nn.ReLU(), parametrizations.weight_norm(nn.Linear(8, 4))
    )
    with pytest.raises(pk.ArgumentError) as refused:
        pk.prune(model, X[:2], calibration=[X])
    assert refused.value.headline == "Calibration data say nothing about this model."
