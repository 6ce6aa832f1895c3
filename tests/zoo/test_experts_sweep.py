"""The sweep by experts: its original with barred experts is the one computed by hand, its comparison can fail, and its
verdicts."""

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
FOUND: dict[str, Any] = {"groups": {"a": 10, "b": 10}, "uniform": EXACT, "uneven": EXACT}


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("zoo_experts")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("zoo_experts_table")


class Mixture(nn.Module):
    """A sigmoid router with a correction bias: a score of zero can be chosen, minus infinity can't."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router, self.out = nn.Linear(8, 8), nn.Linear(8, 10, bias=False), nn.Linear(8, 3)
        self.correction_bias = nn.Parameter(torch.rand(10) + 1)
        self.up = nn.Parameter(torch.randn(10, 8, 8) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        scores = self.router(x).sigmoid()
        chosen = (scores + self.correction_bias).topk(2).indices
        each = torch.einsum("td,tkdh->tkh", x, self.up[chosen]).relu()
        result: torch.Tensor = self.out((each * scores.gather(1, chosen)[..., None]).sum(1))
        return result


def tried(sweep: ModuleType) -> Any:
    torch.manual_seed(0)
    model, x = Mixture().eval(), torch.randn(12, 8)
    return sweep.Mixture(model, x, pk.Graph.of(model, x), [model(x).detach()])


def test_the_original_with_barred_experts_is_the_one_computed_by_hand(sweep: ModuleType) -> None:
    mixture = tried(sweep)
    kept = (0, 2, 3, 5, 9)
    (found,) = sweep.can_t_choose(mixture.model, mixture.graph.draft({"router#experts": kept}), mixture.run)
    small = copy.deepcopy(mixture.model)
    small.router.weight.data = small.router.weight.data[list(kept)]
    small.correction_bias.data, small.up.data = small.correction_bias.data[list(kept)], small.up.data[list(kept)]
    torch.testing.assert_close(found, small(mixture.inputs))


def test_half_of_the_experts_leave_exactly(sweep: ModuleType) -> None:
    result, small, _ = tried(sweep).tried(uneven=False)
    assert result["verdict"] == "exact"
    assert result["seen"] > 0.01
    assert len(small.up) == 5


def test_the_comparison_finds_experts_in_the_wrong_place(sweep: ModuleType) -> None:
    mixture = tried(sweep)
    plan = mixture.graph.draft({"router#experts": (0, 2, 3, 5, 9)})
    small = plan.apply(copy.deepcopy(mixture.model))
    expected = sweep.can_t_choose(mixture.model, plan, mixture.run)
    small.up.data = small.up.data.roll(1, 0)
    with torch.no_grad():
        assert sweep.difference(expected, mixture.run(small)) > 1e-3


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        ({"implementations": {"own": FOUND}}, "exact"),
        ({"implementations": {"own": FOUND}, "routers": 3}, "partly"),
        ({"implementations": {"eager": FOUND, "batched_mm": {"groups": {}}}}, "stays"),
        ({"implementations": {"own": {**FOUND, "uneven": {"verdict": "wrong"}}}}, "wrong"),
        ({"implementations": {"own": {**FOUND, "uneven": {"verdict": "refused"}}}}, "refused"),
        ({"implementations": {"own": {**FOUND, "stock": {"verdict": "crash"}}}}, "crash"),
        ({"implementations": {"own": {"groups": {"a": 10}, "uniform": {**EXACT, "seen": 0.0}}}}, "blind"),
        ({"ran": False}, "unbuilt"),
        ({"failed": "longer than 300 s"}, "fails"),
    ],
)
def test_verdicts(tables: ModuleType, result: dict[str, Any], verdict: str) -> None:
    assert tables.verdict(result) == verdict
    assert f"| some | {verdict} |" in tables.table([{"model": "some", **result}])
