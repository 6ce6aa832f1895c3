"""Sensitivity against damages computed by hand, and as a value."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.budgets.curves import Curve


class Net(nn.Module):
    """Two layers in a row and a norm between them that depends on how many units there are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.second, self.last = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.second(self.norm(self.first(x)))))


class Mask(nn.Module):
    """Reads a batch with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 6, generator=generator) for _ in range(3)]


def test_damages_are_those_of_the_cut_model(net: Net, batches: list[torch.Tensor]) -> None:
    found = pk.sensitivity(net, batches[0], batches, ratios=(0.5,))
    scores = net.second.weight.square().sum(1)
    columns = pk.BasePruner(net, batches[0], "magnitude").score("second")
    assert columns is not None
    assert scores.shape == columns.shape
    gone = columns.argsort()[:6]
    zeroed = copy.deepcopy(net)
    with torch.no_grad():
        zeroed.last.weight[:, gone] = 0
        x = torch.cat(batches).double()
        a, b = copy.deepcopy(net).double()(x), zeroed.double()(x)
    expected = float((a - b).square().sum() / a.square().sum())
    curve = next(curve for curve in found.curves if curve.groups == ("second",))
    assert curve.removed == (0.5,)
    assert curve.damages[0] == pytest.approx(expected, rel=1e-4)
    assert found.examples == 15


def test_norms_run_over_what_is_left(net: Net, batches: list[torch.Tensor]) -> None:
    found = pk.sensitivity(net, batches[0], batches, ratios=(0.25,))
    gone = pk.BasePruner(net, batches[0], "magnitude").score("first")
    assert gone is not None
    left = gone.argsort()[2:].sort()[0]
    x = torch.cat(batches)
    with torch.no_grad():
        inner = net.first(x)[:, left]
        inner = (inner - inner.mean(1, keepdim=True)) / (inner.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        inner = inner * net.norm.weight[left] + net.norm.bias[left]
        hidden = torch.relu(inner @ net.second.weight[:, left].T + net.second.bias)
        wrong, right = net.last(hidden), net(x)
    curve = next(curve for curve in found.curves if curve.groups == ("first",))
    assert curve.damages[0] == pytest.approx(float((wrong - right).square().sum() / right.square().sum()), rel=1e-4)


def test_the_model_is_not_touched(net: Net, batches: list[torch.Tensor]) -> None:
    before = copy.deepcopy(net.state_dict())
    net.train()
    calls: list[tuple[int, int | None]] = []
    pk.sensitivity(
        net, batches[0], batches, ratios=(0.5, 1.0), progress=lambda done, total: calls.append((done, total))
    )
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_metric_of_ones_own(net: Net, batches: list[torch.Tensor]) -> None:
    def width(model: nn.Module) -> float:
        return float(sum(parameter.numel() for parameter in model.parameters()))

    found = pk.sensitivity(net, batches[0], metric=width, ratios=(0.5,))
    curve = next(curve for curve in found.curves if curve.groups == ("second",))
    assert curve.damages == (6 * (8 + 1 + 3),)
    assert found.metric == "width"


def test_a_metric_that_is_no_number(net: Net, batches: list[torch.Tensor]) -> None:
    with pytest.raises(pk.ArgumentError, match="A damage is not a finite number"):
        pk.sensitivity(net, batches[0], metric=lambda model: float("nan"))


@pytest.mark.parametrize("ratios", [(), (0.0,), (1.5,)])
def test_ratios_are_checked(net: Net, batches: list[torch.Tensor], ratios: tuple[float, ...]) -> None:
    with pytest.raises(pk.ArgumentError):
        pk.sensitivity(net, batches[0], batches, ratios=ratios)


def test_padding_does_not_count() -> None:
    torch.manual_seed(0)
    model = Mask().eval()
    x, mask = torch.randn(2, 4, 4), torch.ones(2, 4, dtype=torch.long)
    mask[1, 2:] = 0
    spoilt = x.clone()
    spoilt[1, 2:] = 100.0
    first, second = (
        pk.sensitivity(model, {"x": x, "attention_mask": mask}, [{"x": values, "attention_mask": mask}])
        for values in (x, spoilt)
    )
    assert first == second


def test_limits_and_ignored_layers_hold(net: Net, batches: list[torch.Tensor]) -> None:
    found = pk.sensitivity(
        net, batches[0], batches, ratios=(1.0,), ignored_layers=[net.first], max_pruning_ratio=0.5, round_to=4
    )
    assert [(curve.groups, curve.removed) for curve in found.curves] == [(("second",), (pytest.approx(1 / 3),))]


def test_finish_is_called_on_every_copy(net: Net, batches: list[torch.Tensor]) -> None:
    def spoil(model: nn.Module, plan: pk.Plan) -> None:
        assert len(plan.cuts) == 1
        nn.init.zeros_(model.last.weight)
        nn.init.zeros_(model.last.bias)

    found = pk.sensitivity(net, batches[0], batches, ratios=(0.5,), finish=spoil)
    assert [curve.damages for curve in found.curves] == [(pytest.approx(1.0),)] * 2


def test_it_is_kept_and_used_again(net: Net, batches: list[torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "sensitivity.json"
    first = pk.sensitivity(net, batches[0], batches, ratios=(0.5,), cache=file)
    assert pk.sensitivity(net, batches[0], [], cache=file) == first == pk.Sensitivity.load(file)
    other = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 2))
    with pytest.raises(pk.ArgumentError, match="The sensitivity is that of another model"):
        pk.sensitivity(other, batches[0], batches, cache=file)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 9, "plan_format": 1}'])
def test_what_is_no_sensitivity_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(pk.CheckpointError):
        pk.Sensitivity.from_json(text)
    with pytest.raises(pk.CheckpointError, match="There is no such file"):
        pk.Sensitivity.load(tmp_path / "missing.json")


def test_between_measurements_the_line_is_straight_and_never_falls() -> None:
    curve = Curve(("a",), (0.25, 0.5, 0.75), (1.0, 0.5, 3.0))
    assert [curve.at(x) for x in (0.0, 0.125, 0.25, 0.5, 0.625, 0.75, 1.0)] == [0.0, 0.5, 1.0, 1.0, 2.0, 3.0, 5.0]
    assert curve.ratio(2.0) == pytest.approx(0.625)
    assert curve.ratio(9.0) == 0.75


def test_ratios_out_of_a_damage() -> None:
    found = pk.Sensitivity((Curve(("a", "b"), (0.5,), (1.0,)), Curve(("c",), (0.5,), (0.1,))), "m", {}, 1)
    assert found.ratios(0.5) == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5})


def test_damages_of_groups_add_up() -> None:
    sizes = {"a": 4, "b": 8, "c": 10}
    found = pk.Sensitivity((Curve(("a", "b"), (0.5,), (1.0,)), Curve(("c",), (0.5,), (0.1,))), "m", sizes, 1)
    assert found.damage({"a": 3, "b": 6, "c": 5}) == pytest.approx(0.6)
    with pytest.raises(pk.ArgumentError, match="The sensitivity of a group was not measured"):
        found.damage({"d": 1})


@pytest.mark.parametrize("units", [-1, 11])
def test_sizes_that_a_group_does_not_have_are_refused(units: int) -> None:
    found = pk.Sensitivity((Curve(("a",), (0.5,), (1.0,)),), "error", {"a": 10}, 1)
    with pytest.raises(pk.ArgumentError, match="can't keep so many units"):
        found.damage({"a": units})


def test_tables_show_what_was_measured_where_all_groups_have_the_same_fractions() -> None:
    first, second = Curve(("a",), (0.25, 0.75), (3.0, 2.0)), Curve(("b",), (0.25, 0.75), (1.0, 4.0))
    rows = str(pk.Sensitivity((first, second), "error", {"a": 8, "b": 8}, 1)).splitlines()
    assert [row.split() for row in rows[1:]] == [["group", "25%", "75%"], ["a", "3", "2"], ["b", "1", "4"]]
    other = Curve(("c",), (0.5,), (1.0,))
    rows = str(pk.Sensitivity((first, other), "error", {"a": 8, "c": 8}, 1)).splitlines()
    assert rows[1].split() == ["group", "12%", "25%", "38%", "50%", "62%", "75%", "88%"]
    assert rows[2].split()[1:] == ["1.5", "3", "3", "3", "3", "3", "3"]


def test_data_of_which_nothing_is_finite_measure_nothing(net: Net, batches: list[torch.Tensor]) -> None:
    with pytest.raises(pk.ArgumentError, match="returns nothing finite on calibration data"):
        pk.sensitivity(net, batches[0], [batches[0] * torch.nan], ratios=(0.5,))


def test_tables(net: Net, batches: list[torch.Tensor]) -> None:
    found = pk.Sensitivity((Curve(("a",), (0.5, 0.75), (0.25, 1.0)),), "output error", {"a": 4}, 8)
    assert str(found).splitlines() == [
        "damage (output error) by fraction of a group's units that go",
        "group   50%  75%",
        "a      0.25    1",
    ]
    assert found.to_markdown().splitlines() == ["| group | 50% | 75% |", "| --- | ---: | ---: |", "| a | 0.25 | 1 |"]
