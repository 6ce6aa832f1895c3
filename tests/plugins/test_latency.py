"""Latency targets: the table of operations, and plans that are corrected by measuring. No test looks at real times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit_plugins import budgets
from prunekit_plugins.budgets import LatencyCost, macs
from prunekit_plugins.budgets.latency import FRACTIONS
from prunekit_plugins.budgets.timetable import Timetable
from tests.models import Chain, Encoder, Residual

IMAGE = torch.randn(2, 3, 8, 8)
CPU = torch.device("cpu")


class Skewed(plugin.CostModel):
    """Predicts MACs and "measures" something else: an overhead, and more per MAC the smaller the model is."""

    unit = "ticks"
    measured = True
    previewed = False

    def __init__(self) -> None:
        self.calls = 0

    def compile(self, analysis: plugin.Analysis) -> plugin.Compiled:
        return macs.compile(analysis)

    def real(self, model: nn.Module) -> float:
        counted = sum(layer.weight.numel() for layer in model.layers)
        return 1000 + 3 * counted**0.9

    def measure(self, before: nn.Module, after: nn.Module, example: plugin.Example) -> tuple[float, float]:
        assert isinstance(example.args[0], torch.Tensor)
        self.calls += 1
        return self.real(before), self.real(after)


def registry(model: plugin.CostModel) -> pk.Registry:
    class Plugin:
        @plugin.hookimpl
        def prunekit_budgets(self) -> dict[str, Callable[..., float]]:
            return {"ticks": model}

    return pk.Registry(extra={"mine": Plugin()})


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_plans_are_corrected_by_what_is_measured(share: float) -> None:
    cost = Skewed()
    model = Chain(40, 300, 200, 10)
    dense = cost.real(model)
    result = pk.prune(model, torch.randn(1, 40), target={"ticks": share}, registry=registry(cost))
    assert 0.9 <= cost.real(model) / (share * dense) <= 1.1
    (note,) = [note for note in result.report.notes if note.startswith("ticks: predicted ")]
    assert f"measured {cost.real(model):,.0f} ticks; asked for {share * dense:,.0f} ticks" in note
    assert f"the model took {dense:,.0f} ticks (attempt {cost.calls})" in note


def test_absolute_targets_and_two_at_once() -> None:
    cost = Skewed()
    model = Chain(40, 300, 200, 10)
    limit = 0.6 * cost.real(model)
    count = macs(pk.DependencyGraph().build_dependency(model, torch.randn(1, 40)).analysis, {})
    result = pk.prune(model, torch.randn(1, 40), target={"ticks": limit, "macs": 0.9}, registry=registry(cost))
    assert 0.9 <= cost.real(model) / limit <= 1.1
    assert result.preview.costs["macs"][1] <= 0.9 * count
    assert "ticks" not in result.preview.costs


def test_steps_are_measured_from_where_the_model_is() -> None:
    cost = Skewed()
    model = Chain(40, 300, 200, 10)
    dense = cost.real(model)
    pruner = pk.BasePruner(model, torch.randn(1, 40), "magnitude", registry=registry(cost))
    for share in (0.8, 0.5):
        pruner.graph.apply(pk.plan_to_target(pruner, {"ticks": share}))
    assert 0.75 <= cost.real(model) / (0.5 * dense) <= 1.25  # what the original took is estimated in the second step


# -- the table


@pytest.fixture
def counted_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs every operation once for real, and says that it took as long as it has elements."""
    runs: list[str] = []

    def measured(self: Timetable, run: Callable[[], Any]) -> float:
        result = run()
        runs.append("run")
        first = result[0] if isinstance(result, tuple | list) else result
        return float(first.numel())

    monkeypatch.setattr(Timetable, "_time", measured)
    return runs


@pytest.mark.parametrize(("model", "x"), [(Residual(), IMAGE), (Encoder(), torch.randn(2, 6, 10))])
def test_every_operation_runs_by_itself_at_every_size(
    counted_runs: list[str], tmp_path: Path, model: nn.Module, x: torch.Tensor
) -> None:
    analysis = pk.DependencyGraph().build_dependency(model.eval(), x).analysis
    cost = LatencyCost(tmp_path)
    done: list[tuple[int, int]] = []
    with budgets.watched(lambda number, total: done.append((number, total))):
        compiled = cost.compile(analysis)
    total = done[-1][1]
    assert done == [(number, total) for number in range(1, total + 1)]
    groups = plugin.group_sizes(analysis)
    for fraction in FRACTIONS:
        sizes = {name: max(1, round(size * fraction)) for name, size in groups.items()}
        kept = {name: range(size) for name, size in sizes.items()}
        recording, sizer = analysis.recordings[0], plugin.Sizer(kept)
        shares = recording.trace.shares
        outputs = [op.outputs[0].index for op in recording.trace.operations if op.references()]
        expected = sum(torch.Size(recording.shape(index, sizer)).numel() for index in outputs if index not in shares)
        assert compiled(sizes) == expected
    assert compiled({}) == compiled(groups)


def test_costs_grow_with_sizes_and_lie_between_what_was_measured(counted_runs: list[str], tmp_path: Path) -> None:
    analysis = pk.DependencyGraph().build_dependency(Residual(), IMAGE).analysis
    compiled = LatencyCost(tmp_path).compile(analysis)
    (inner,) = [name for name, size in plugin.group_sizes(analysis).items() if size == 12]
    costs = [compiled({inner: size}) for size in range(1, 13)]
    assert costs == sorted(costs)
    assert costs[0] < costs[5] < costs[11]


def test_the_table_is_kept_and_used_again(counted_runs: list[str], tmp_path: Path) -> None:
    analysis = pk.DependencyGraph().build_dependency(Residual(), IMAGE).analysis
    first = LatencyCost(tmp_path).compile(analysis)({})
    ran = len(counted_runs)
    assert ran > 10
    assert LatencyCost(tmp_path).compile(analysis)({}) == first
    assert len(counted_runs) == ran
    (file,) = tmp_path.iterdir()
    data = json.loads(file.read_text())
    assert data["machine"]["threads"] == torch.get_num_threads()
    assert data["machine"]["torch"] == torch.__version__
    assert len(data["seconds"]) == ran
    file.write_text('{"seconds": 3')  # cut off: measured anew
    assert LatencyCost(tmp_path).compile(analysis)({}) == first
    assert len(counted_runs) == 2 * ran


def test_an_interrupt_keeps_what_was_measured(counted_runs: list[str], tmp_path: Path) -> None:
    analysis = pk.DependencyGraph().build_dependency(Residual(), IMAGE).analysis

    def stop(number: int, total: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), budgets.watched(stop):
        LatencyCost(tmp_path).compile(analysis)
    (file,) = tmp_path.iterdir()
    assert len(json.loads(file.read_text())["seconds"]) == len(counted_runs) > 0


def test_tables_of_two_processes_are_joined(counted_runs: list[str], tmp_path: Path) -> None:
    one, two = Timetable(CPU, tmp_path), Timetable(CPU, tmp_path)
    one.measure("a", lambda: torch.ones(3))
    two.measure("b", lambda: torch.ones(4))
    one.save()
    two.save()
    assert Timetable(CPU, tmp_path).seconds == {"a": 3.0, "b": 4.0}


def test_a_real_measurement_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    result = pk.prune(Chain(64, 512, 512, 10), torch.randn(64, 64), target={"latency": 0.5})
    assert result.plan.cuts
    (note,) = [note for note in result.report.notes if note.startswith("latency: predicted ")]
    assert " ms, measured " in note
    assert list((tmp_path / "cache").glob("latency-*.json"))


@pytest.mark.parametrize(("text", "seconds"), [("20ms", 0.02), ("0.5 s", 0.5), ("800us", 8e-4), (20, 0.02)])
def test_units_of_time(text: str | float, seconds: float) -> None:
    assert LatencyCost().absolute(text) == pytest.approx(seconds)
    with pytest.raises(pk.ArgumentError, match="must be a positive number"):
        pk.prune(Chain(4, 8, 3), torch.randn(1, 4), target={"latency": "20 fortnights"})


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        model, x = Chain(4, 8, 3), torch.randn(1, 4)
    with pytest.raises(pk.ArgumentError, match="without values can't be measured"):
        pk.prune(model, x, target={"latency": 0.5}, importance="random")


class Flat(Skewed):
    """Predicts a large part that no cut takes away, and "measures" none of it, as launches on a GPU do."""

    def compile(self, analysis: plugin.Analysis) -> plugin.Compiled:
        counted = macs.compile(analysis)
        return lambda sizes: 40_000 + counted(sizes)

    def real(self, model: nn.Module) -> float:
        return float(sum(layer.weight.numel() for layer in model.layers))


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("share", [0.7, 0.5, 0.42])
def test_predictions_that_end_too_early_are_corrected_bit_by_bit(share: float, absolute: bool) -> None:
    """By the prediction about 0.37 of the cost stay whatever goes; really next to nothing does."""
    cost, model = Flat(), Chain(40, 300, 200, 10)
    dense = cost.real(model)
    goal = share * dense
    result = pk.prune(model, torch.randn(1, 40), target={"ticks": goal if absolute else share}, registry=registry(cost))
    assert 0.9 <= cost.real(model) / goal <= 1.1
    assert "of what was asked for" not in str(result.report)


def test_what_can_t_be_reached_is_refused_in_what_the_model_takes() -> None:
    cost, model = Flat(), Chain(40, 300, 200, 10)
    dense = cost.real(model)
    with pytest.raises(pk.ArgumentError, match=f"of {dense:,.0f} ticks\\); asked for ticks=500 ticks"):
        pk.prune(model, torch.randn(1, 40), target={"ticks": 500}, registry=registry(cost))
    assert cost.real(model) == dense


def test_runs_are_queued_on_an_accelerator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Waiting after every run would count the way there and back for each operation of a model."""
    events: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: events.append("wait"))
    times = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    table = Timetable(torch.device("mps"), tmp_path)
    assert table.measure("one", lambda: events.append("run")) == 0.1
    assert events == ["run", *["wait", *["run"] * 10, "wait"] * 3]
    on_cpu = Timetable(CPU, tmp_path)
    assert on_cpu.measure("one", lambda: None) == 1.0
    assert on_cpu.path != table.path
