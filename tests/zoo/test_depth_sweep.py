"""The sweep by depth: its masked original is the one computed by hand, its comparison can fail, and its verdicts."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
EXACT: dict[str, Any] = {"verdict": "exact", "seen": 0.5, "error": 0.0}


@pytest.fixture
def depth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("zoo_depth")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("zoo_depth_table")


class Net(nn.Module):
    """One module called twice adds in place, and another one doesn't."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.once, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 2
        x += self.twice(x)
        x = x + self.once(x).tanh()
        x += self.twice(x)
        result: torch.Tensor = self.head(x)
        return result


def trial(depth: ModuleType, model: nn.Module, x: torch.Tensor) -> Any:
    runs = depth.Runs(x, None)
    return depth.Trial(model, pk.Graph.of(model, x), runs, depth.plain(model, runs))


def test_the_masked_original_is_the_one_computed_by_hand(depth: ModuleType) -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(3, 4)
    tried = trial(depth, model, x)
    (found,) = depth.masked(model, tried.graph, ["twice"], tried.runs)
    y = x * 2
    torch.testing.assert_close(found, model.head(y + model.once(y).tanh()))
    assert tried.alone("twice")["verdict"] == "exact"


def test_a_wrong_removal_is_wrong(depth: ModuleType) -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(3, 4)
    tried = trial(depth, model, x)
    small = tried.graph.plan_without(["once"]).apply(copy.deepcopy(model))
    expected = depth.masked(model, tried.graph, ["twice"], tried.runs)
    assert depth.difference(expected, depth.plain(small, tried.runs)) > 1e-2


def test_a_program_that_adds_more_often_than_recorded_is_not_compared(depth: ModuleType) -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(3, 4)
    off, counts = depth.sums_off(pk.Graph.of(model, x), ["once"])
    switched = depth.SwitchedOff(model, off, {key: count + 1 for key, count in counts.items()})
    with switched, pytest.raises(depth.NotLocatedError):
        model(x)


def test_of_many_branches_some_of_each_structure_are_tried(depth: ModuleType) -> None:
    names = [f"layers.{layer}.{part}" for layer in range(12) for part in ("attention", "mlp")]
    assert depth.chosen(names, 24) == names
    found = depth.chosen(names, 6)
    assert len(found) == 6
    assert found[:2] == ["layers.0.attention", "layers.0.mlp"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "exact"),
        ({"alone": [EXACT, {"verdict": "wrong", "error": 0.5}]}, "wrong"),
        ({"half": {"verdict": "crash", "why": "KeyError: 3"}}, "crash"),
        ({"alone": [{"verdict": "refused", "why": "it can't"}]}, "stays"),
        ({"alone": [{**EXACT, "seen": 0.0}]}, "blind"),
        ({"alone": []}, "none"),
        ({"failed": "longer than 300 s"}, "fails"),
        ({"ran": False, "failed": "ImportError: no such package"}, "unbuilt"),
    ],
)
def test_verdicts(tables: ModuleType, change: dict[str, Any], expected: str) -> None:
    result = {"family": "timm", "model": "net", "alone": [EXACT]}
    assert tables.verdict({**result, **change}) == expected
    assert f"| timm:net | {expected} |" in tables.table([{**result, **change}])
