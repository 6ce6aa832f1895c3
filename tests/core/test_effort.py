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

import prunekit_core as pk
from prunekit_core.examples import Example
from prunekit_core.recorder import record
from prunekit_core.shadow import Shadow
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


@pytest.mark.parametrize("stage", ["analysis", "plan", "application"])
def test_work_grows_in_proportion_to_the_depth(efforts: dict[str, list[int]], stage: str) -> None:
    few, _, many = efforts[stage]
    assert math.log(many / few, DEPTHS[-1] / DEPTHS[0]) < 1.1, efforts[stage]


def test_an_analysis_is_a_few_forwards_on_fakes(efforts: dict[str, list[int]]) -> None:
    """Two programs are recorded, eval and train; propagation is counted, too."""
    more, one = (efforts[stage][-1] - efforts[stage][0] for stage in ("analysis", "fake forward"))
    assert more < 4 * one, efforts


@pytest.mark.parametrize("make", [Residual, lambda: Deep(3)])
def test_what_is_remembered_is_what_would_have_been_computed(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen() -> tuple[Any, int]:
        torch.manual_seed(0)
        model = make()
        example = torch.randn(2, 3, 8, 8) if isinstance(model, Residual) else torch.randn(2, 5, 4)
        shadow = Shadow(model, fake=True)
        registry = pk.default_registry()
        shadow.watch(registry.opaque)
        trace = record(shadow, Example.of(example), registry.op_rules, label="eval", training=False)
        return (str(trace.operations), trace.shapes, trace.dtypes, trace.shares), len(shadow.fakes.known_results)

    remembered, count = seen()
    assert count > 0
    monkeypatch.setattr("prunekit_core.fakes._described", lambda value: None)
    computed, none = seen()
    assert none == 0
    assert remembered == computed
