"""Operators that take functions (``torch.cond`` and its kin) are refused by name and place."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._higher_order_ops import scan, while_loop
from torch._higher_order_ops.map import map as mapped
from torch.nn.attention.flex_attention import flex_attention

import prunekit as pk
from prunekit import plugin

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def branching(h: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = torch.cond(h.sum() > 0, lambda h: h.sin(), lambda h: h * 2.0, (h,))
    return y


def looping(h: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, h.relu() + 1), (torch.tensor(0), h))[1]
    return y


def scanning(h: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = scan(lambda carry, row: (carry + row, carry * row), h[0].clone(), h)[1]
    return y


def mapping(h: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = mapped(lambda row: row.relu(), h)
    return y


def attending(h: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = flex_attention(h[None, None], h[None, None], h[None, None])[0, 0]
    return y


class Step(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.function(h)


def net(function: Callable[[torch.Tensor], torch.Tensor]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), Step(function), nn.Linear(16, 4)).eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (branching, "cond"),
        (looping, "while_loop"),
        (scanning, "scan"),
        (mapping, "map_impl"),
        (attending, "flex_attention"),
    ],
)
def test_the_refusal_names_the_operator_and_the_module(
    function: Callable[[torch.Tensor], torch.Tensor], name: str
) -> None:
    model = net(function)
    expected, before = model(X), copy.deepcopy(model.state_dict())
    with pytest.raises(pk.RecordingError, match="calls a higher-order operator") as caught:
        pk.prune(model, X)
    assert caught.value.where == f"higher_order::{name} in 1"
    assert "Python's if and for" in caught.value.hint
    assert "make that run first" not in str(caught.value)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
    assert torch.equal(model(X), expected)


class TrainingOnly(nn.Module):
    """Calls one in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        y: torch.Tensor = self.last(branching(h) if self.training else h.sin())
        return y


@pytest.mark.slow
def test_a_mode_that_calls_one_is_told_in_a_note() -> None:
    report = pk.prune(TrainingOnly(), X).report
    assert any(re.match("train mode was not recorded: .*functions as arguments", note) for note in report.notes)


class Switched(nn.Module):
    """Branches in Python while it is pruned, with ``torch.cond`` afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.plain = nn.Linear(8, 16), nn.Linear(16, 4), True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        positive = h.sum() > 0
        if self.plain:
            h = h.sin() if positive else h * 2.0
        else:
            h = torch.cond(positive, lambda h: h.sin(), lambda h: h * 2.0, (h,))
        y: torch.Tensor = self.last(h)
        return y


def test_what_the_hint_says_works() -> None:
    torch.manual_seed(0)
    model = Switched().eval().requires_grad_(False)
    assert pk.prune(model, X).report.pruned == {"first": (16, 8)}
    expected = model(X)
    model.plain = False
    torch.testing.assert_close(model(X), expected)


def pointwise(call: plugin.OpCall) -> list[plugin.Axis]:
    return list(call["h"].axes)


@pytest.mark.parametrize("fake", [None, lambda module, h: torch.empty_like(h)])
def test_a_layer_that_calls_one_may_be_opaque(fake: Callable[..., Any] | None) -> None:
    @plugin.hookimpl(specname="prunekit_layer_types")
    def step() -> Mapping[type[nn.Module], plugin.LayerType]:
        return {Step: plugin.LayerType("step", opaque=plugin.Opaque(pointwise, fake=fake))}

    registry = pk.Registry(extra={"opaque": SimpleNamespace(step=step)})
    model = net(looping)
    original = copy.deepcopy(model)
    result = pk.prune(model, X, registry=registry)
    assert result.report.pruned == {"0": (16, 8)}
    kept = list(result.plan.cuts[0].kept)
    hidden = looping(original[0](X))
    hidden[:, [unit for unit in range(16) if unit not in kept]] = 0
    torch.testing.assert_close(model(X), original[2](hidden))


class StaticCondition(Switched):
    """Its condition is known without looking at values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        y: torch.Tensor = self.last(torch.cond(len(x) > 2, lambda h: h.sin(), lambda h: h * 2.0, (h,)))
        return y


def test_a_condition_that_python_knows_is_an_ordinary_branch() -> None:
    model = StaticCondition().eval()
    original = copy.deepcopy(model)
    result = pk.prune(model, X)
    assert result.report.pruned == {"first": (16, 8)}
    assert pk.check_exact(original, model, result.plan, X).exact
