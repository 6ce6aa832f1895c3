"""How the work grows with a model, counted in Python calls, which no other load on the machine can change."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import prunekit as pk
from prunekit_core.program.examples import Example
from prunekit_core.record.recorder import record
from prunekit_core.record.shadow import Shadow
from tests.models import Residual

DEPTHS = (8, 16, 32)


class Deep(nn.Module):
    """A transformer's blocks: a stream that all of them share, attention, and groups of their own."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(4, 16)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(16), "qkv": nn.Linear(16, 48), "out": nn.Linear(16, 16)})
            for _ in range(depth)
        )
        self.last = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            q, k, v = block["qkv"](block["norm"](x)).chunk(3, dim=-1)
            x = x + block["out"](nn.functional.scaled_dot_product_attention(q, k, v))
        return self.last(x)


def calls(action: Callable[[], Any]) -> int:
    """Counts the Python and C functions that are called."""
    count = 0

    def see(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


@pytest.fixture(scope="module")
def efforts() -> dict[str, list[int]]:
    """Calls of every stage for every depth."""
    inputs = torch.randn(2, 5, 4)
    pk.BasePruner(Residual(), torch.randn(2, 3, 8, 8)).step()  # what is imported and cached once
    found: dict[str, list[int]] = {"analysis": [], "plan": [], "application": [], "fake forward": []}
    for depth in DEPTHS:
        model, made = Deep(depth), []
        found["analysis"].append(calls(lambda model=model, made=made: made.append(pk.BasePruner(model, inputs))))
        found["plan"].append(calls(lambda made=made: made.append(made[0].plan())))
        found["application"].append(calls(lambda made=made: made[0].graph.apply(made[1])))
        with FakeTensorMode() as mode, torch.inference_mode():
            fake, x = Deep(depth), mode.from_tensor(inputs)
            fake(x)
            found["fake forward"].append(calls(lambda fake=fake, x=x: fake(x)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["analysis", "plan", "application"])
def test_work_grows_in_proportion_to_the_depth(efforts: dict[str, list[int]], stage: str) -> None:
    few, _, many = efforts[stage]
    assert math.log(many / few, DEPTHS[-1] / DEPTHS[0]) < 1.1, efforts[stage]


@pytest.mark.slow
def test_an_analysis_is_a_few_forwards_on_fakes(efforts: dict[str, list[int]]) -> None:
    """Two programs are recorded, eval and train; propagation is counted, too."""
    more, one = (efforts[stage][-1] - efforts[stage][0] for stage in ("analysis", "fake forward"))
    assert more < 4 * one, efforts


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4)), lambda: Deep(3)])
def test_what_is_remembered_is_what_would_have_been_computed(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen() -> tuple[Any, int]:
        torch.manual_seed(0)
        model = make()
        example = torch.randn(2, 3, 8, 8) if isinstance(model, nn.Sequential) else torch.randn(2, 5, 4)
        shadow = Shadow(model, fake=True)
        registry = pk.default_registry()
        shadow.watch(registry.opaque)
        trace = record(shadow, Example.of(example), registry.op_rules, label="eval", training=False)
        return (str(trace.operations), trace.shapes, trace.dtypes, trace.shares), len(shadow.fakes.known_results)

    remembered, count = seen()
    assert count > 0
    monkeypatch.setattr("prunekit_core.record.fakes._described", lambda value: None)
    computed, none = seen()
    assert none == 0
    assert remembered == computed


class Counted(nn.Module):
    """A module that says its width in many attributes, and reads one of them."""

    def __init__(self, read: str) -> None:
        super().__init__()
        self.make, self.take = nn.Linear(6, 12), nn.Linear(12, 6)
        self.read = read
        for number in range(8):
            setattr(self, f"width{number}", 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.make(x).reshape(-1, getattr(self, self.read))
        return x + self.take(hidden)


class Halved(nn.Module):
    """A module whose program writes half of its width down, so that no attribute helps."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.take = nn.Linear(6, 12), nn.Linear(12, 6)
        self.width, self.also = 12, 12

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.make(x).split([6, 6], dim=-1)
        return x + self.take(torch.cat([second, first], dim=-1))


@pytest.mark.parametrize("read", ["width0", "width5", "width7"])
def test_attributes_are_found_by_halves(read: str) -> None:
    model = nn.Sequential(*(Counted(read) for _ in range(3)))
    pruner = pk.BasePruner(model, torch.randn(2, 6))
    plan = pruner.plan()
    assert {cut.group for cut in plan.cuts} == {"0.make", "1.make", "2.make"}
    assert {(edit.module, edit.attribute) for edit in plan.edits if edit.attribute.startswith("width")} == {
        (name, read) for name in "012"
    }
    # one that fails, all attributes at once, two for each halving of eight, and those of the siblings came along
    assert pruner.graph.analysis.shadow.replays <= 1 + 1 + 2 * 3 + 1
    again = pruner.graph.analysis.shadow.replays
    pruner.plan()
    assert pruner.graph.analysis.shadow.replays == again + 1


def test_what_did_not_help_is_not_tried_at_siblings() -> None:
    def replays(depth: int) -> int:
        pruner = pk.BasePruner(nn.Sequential(*(Halved() for _ in range(depth))), torch.randn(2, 6))
        assert not pruner.plan().cuts
        return int(pruner.graph.analysis.shadow.replays)

    assert replays(8) == replays(2)


def test_the_report_says_what_many_replays_were_for() -> None:
    class Written(nn.Module):
        """Two sizes that are written down and one that is read: a few searches."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleList([Counted("width3"), Halved(), Counted("width6")])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for module in self.inner:
                x = module(x)
            return x

    def noted(model: nn.Module) -> list[str]:
        pruner = pk.BasePruner(model, torch.randn(2, 6))
        pruner.step()
        return [note for note in pruner.report().notes if "planning took longer" in note]

    assert noted(Counted("width1")) == []
    (note,) = noted(Written())
    total, *parts = (int(word) for word in note.replace(":", "").split() if word.isdigit())
    assert total == sum(parts) > 10
    assert "to find attributes that follow sizes (first: aten::" in note
    assert "to find what has to keep its size, or to be in step (first: aten::" in note


class Feed(nn.Sequential):
    """A feed-forward around which its input is passed on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


def _of_feeds() -> pk.Graph:
    feeds = (Feed(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6)) for _ in range(4))
    return pk.Graph.of(nn.Sequential(nn.Linear(5, 6), *feeds, nn.Linear(6, 2)), torch.randn(2, 5))


@pytest.mark.parametrize("keep_names", [True, False])
def test_a_plan_without_branches_runs_what_is_left_once(keep_names: bool) -> None:
    graph = _of_feeds()
    before = graph.analysis.shadow.replays
    plan = graph.plan_without(["2.0", "3.0"], keep_names=keep_names)
    assert plan.absent == ("2.0", "3.0")
    assert bool(plan.entries) is not keep_names
    assert graph.analysis.shadow.replays == before + 1


def test_units_that_go_besides_are_proven_by_a_run_of_their_own() -> None:
    graph = _of_feeds()
    before = graph.analysis.shadow.replays
    plan = graph.plan_without(["2.0"], {"1.0": (0, 1, 2)})
    assert {cut.group: cut.kept for cut in plan.cuts} == {"1.0": (0, 1, 2)}
    assert graph.analysis.shadow.replays == before + 2
