"""Targets on measured costs, met by branches: predicted from what runs no more, corrected by what is measured."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.budgets import LatencyCost
from prunekit_plugins.budgets.timetable import Timetable
from tests.core.test_depth import Deep, X, deep


class Calls(plugin.CostModel):
    """Counts calls of linear layers, for real; predicts by recorded operations, with a part that no branch takes."""

    unit = "calls"
    previewed = False
    measured = True

    def __init__(self, fixed: float = 0.0) -> None:
        self.fixed, self.measurements = fixed, 0

    def compile(self, analysis: plugin.Analysis) -> plugin.Compiled:
        count = sum(op.name.startswith("aten::") for op in analysis.recordings[0].trace.operations)
        return lambda sizes: float(count) + self.fixed

    def real(self, model: nn.Module) -> float:
        counted = [0]

        def count(module: nn.Module, args: Any) -> None:
            counted[0] += 1

        handles = [m.register_forward_pre_hook(count) for m in model.modules() if isinstance(m, nn.Linear)]
        model(X)
        for handle in handles:
            handle.remove()
        return float(counted[0])

    def measure(self, before: nn.Module, after: nn.Module, example: plugin.Example) -> tuple[float, float]:
        self.measurements += 1
        return self.real(before), self.real(after)


def registry(cost: plugin.CostModel) -> pk.Registry:
    class Brings:
        @plugin.hookimpl
        def prunekit_budgets(self) -> dict[str, plugin.CostModel]:
            return {"calls": cost}

    return pk.Registry(extra={"brings": Brings()})


@pytest.mark.parametrize("fixed", [0.0, 8.0])
@pytest.mark.parametrize("share", [0.8, 0.6, 0.4])
def test_a_measured_target_is_met_by_branches(share: float, fixed: float) -> None:
    """18 calls, two fewer for each branch: by the prediction with a fixed part far more would have to go."""
    cost, model = Calls(fixed), deep()
    assert cost.real(model) == 18
    result = pk.prune(model, X, target={"calls": share}, by="depth", registry=registry(cost))
    left = 18 - 2 * len(result.report.absent)
    assert cost.real(model) == left
    assert left / 18 <= 1.1 * share
    assert left + 2 > share * 18  # with one branch more it would be above
    (note,) = [note for note in result.report.notes if note.startswith("calls: predicted ")]
    assert f"measured {left} calls" in note
    assert "the model took 18 calls (attempt " in note
    assert cost.measurements >= 1


def test_an_absolute_target_is_one_of_the_model_as_it_is_measured() -> None:
    cost, model = Calls(), deep()
    pk.prune(model, X, target={"calls": 12}, by="depth", registry=registry(cost))
    assert cost.real(model) == 12


def test_a_measured_target_beside_a_counted_one() -> None:
    cost, model = Calls(), deep()
    whole = sum(p.numel() for p in model.parameters())
    pk.prune(model, X, target={"calls": 0.9, "params": 0.5}, by="depth", registry=registry(cost))
    assert sum(p.numel() for p in model.parameters()) <= 0.5 * whole
    assert cost.real(model) <= 0.9 * 18


def test_in_steps_each_is_measured() -> None:
    cost, model = Calls(), deep()
    pruner = pk.BasePruner(
        model, X, target={"calls": 0.5}, by="depth", iterative_steps=2, registry=registry(cost)
    )  # fmt: skip
    calls = []
    for _ in range(2):
        pruner.step()
        calls.append(cost.real(model))
    assert calls[0] == 14
    assert calls[1] <= 0.5 * 18 * 1.25  # what the original took is estimated in the second step


def test_with_both_units_alone_can_t_save_calls() -> None:
    cost, model = Calls(), deep()
    result = pk.prune(model, X, target={"calls": 0.7}, by="both", calibration=[X, 2 * X], registry=registry(cost))
    assert cost.real(model) <= 0.7 * 18 * 1.1
    assert result.report.absent
    assert any(note.startswith("units alone: the smallest model has calls=") for note in result.report.notes)


def test_the_time_of_what_runs_no_more_is_saved(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation takes as long as it has elements here; a table that knows all of them runs none again."""
    runs: list[str] = []

    def elements(self: Timetable, run: Any) -> float:
        runs.append("run")
        result = run()
        return float((result[0] if isinstance(result, tuple | list) else result).numel())

    monkeypatch.setattr(Timetable, "_time", elements)
    graph = pk.Graph.of(deep(), X)
    cost = LatencyCost(tmp_path)
    whole = cost.compile(graph.analysis)({})
    measured = len(runs)
    left = cost.compile(graph.analysis_after(graph.plan_without(["layers.0.mlp", "layers.2.attend"])))({})
    assert len(runs) == measured + 5  # zeros in the place of a branch, which the whole model lacks, at five sizes
    tokens = X.shape[0] * X.shape[1]
    mlp, attend, zeros = tokens * (16 + 16 + 8), tokens * (8 + 8 + 8 + 8), tokens * 8
    assert whole - left == mlp + attend - 2 * zeros


def test_latency_is_met_on_this_machine(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From end to end, whatever the times are: what is found is what is asked for, or says how far off it is."""
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path))
    model: Deep = deep()
    original = copy.deepcopy(model)
    result = pk.prune(model, X, target={"latency": 0.7}, by="depth")
    assert result.report.absent
    assert any(note.startswith("latency: predicted ") for note in result.report.notes)
    assert pk.check_exact(original, model, result.plan, X)
    assert result.protocol.arguments["by"] == "depth"
