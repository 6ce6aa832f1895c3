"""What an example doesn't show stays: rows behind its length, states that are zero in it, and what reads them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit_plugins.importance import RandomImportance

LONG = 16


class Table(nn.Module):
    """Reads the part of a table that an input is long."""

    def __init__(self, shape: tuple[int, ...], read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.embed, self.hidden, self.out = nn.Linear(5, 12), nn.Linear(12, 20), nn.Linear(20, 3)
        self.table, self.read = nn.Parameter(torch.randn(shape)), read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.hidden(self.read(self.embed(x), self.table)).relu())
        return y


TABLES: dict[str, Table] = {
    "positions": Table((1, LONG, 12), lambda h, t: h + t[:, : h.shape[1]]),
    "the last ones": Table((LONG, 12), lambda h, t: h + t[-h.shape[1] :]),
    "in the middle": Table((LONG, 12), lambda h, t: h + t[2 : 2 + h.shape[1]]),
    "narrowed": Table((LONG, 12), lambda h, t: h + t.narrow(0, 0, h.shape[1])),
    "split": Table((LONG, 12), lambda h, t: h + t.split([h.shape[1], LONG - h.shape[1]])[0]),
    "scaled first": Table((LONG, 12), lambda h, t: h + (t * 2).tanh()[: h.shape[1]]),
    "mixing": Table((LONG, LONG), lambda h, t: t[: h.shape[1], : h.shape[1]] @ h),
    "a bias of scores": Table(
        (1, LONG, LONG),
        lambda h, t: ((h @ h.mT)[:, None] + t[:, : h.shape[1], : h.shape[1]]).softmax(-1).sum(1) @ h,
    ),
    "projected positions": Table((LONG, 4), lambda h, t: t[: h.shape[1]] @ (t[: h.shape[1]].mT @ h)),
    "a slimmable weight": Table((LONG, 12), lambda h, t: F.pad(F.linear(h, t[: h.shape[1]]), (0, 12 - h.shape[1]))),
    "classes by and by": Table((LONG, 12), lambda h, t: F.pad(F.linear(h, t)[..., :4], (0, 8))),
}


@pytest.mark.parametrize("name", TABLES)
def test_rows_behind_the_length_of_the_example_stay(name: str) -> None:
    model = copy.deepcopy(TABLES[name]).double().eval()
    original = copy.deepcopy(model)
    result = pk.prune(model, torch.randn(2, 6, 5).double(), importance=RandomImportance())
    assert model.hidden.out_features == 10
    long = [dim for dim, size in enumerate(original.table.shape) if size == LONG]
    assert [model.table.shape[dim] for dim in long] == [LONG] * len(long)
    masked = result.plan.mask(copy.deepcopy(original))
    for length in (6, 9, 12):
        x = torch.randn(2, length, 5).double()
        if name in ("a slimmable weight", "classes by and by") and length > 6:
            continue  # its sizes are those of the example
        torch.testing.assert_close(model(x), masked(x))


def test_layers_that_an_example_does_not_reach_stay() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.stack, self.last = nn.Linear(4, 8), nn.Parameter(torch.randn(6, 8, 8)), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            for weight in self.stack[: len(x)]:
                h = h + (h @ weight).relu()
            y: torch.Tensor = self.last(h)
            return y

    model = Stacked()
    graph = pk.DependencyGraph().build_dependency(model, torch.randn(2, 4))
    assert all(member.parameter != "stack" or member.dim for group in graph.groups() for member in group.members)
    assert "stack[0]" in graph.report().pinned


def test_the_reason_says_that_nobody_reads_them() -> None:
    model = nn.ParameterList([torch.randn(4, 8), torch.randn(6, 8)])

    def forward(held: nn.Module, x: torch.Tensor) -> torch.Tensor:
        first, second = model
        rows: torch.Tensor = (x @ first) @ torch.cat([second[:1], second[3:]]).mT
        return rows

    report = pk.DependencyGraph().build_dependency(model, torch.randn(3, 4), forward_fn=forward).report()
    assert report.pinned["1[0]"] == "an output of the model"
    head = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6))
    report = (
        pk.DependencyGraph().build_dependency(head, torch.randn(3, 4), forward_fn=lambda m, x: m(x)[:, 4:]).report()
    )
    assert report.pinned["1.bias[0]"] == "no recording reads these units"


class Steps(nn.Module):
    """A recurrence by hand, or by a layer, from a state of zeros."""

    def __init__(self, kind: type[nn.Module] | None) -> None:
        super().__init__()
        self.into, self.back, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.layer = None if kind is None else kind(4, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor
        if self.layer is not None:
            y = self.out(self.layer(x)[0])
            return y
        state = x.new_zeros(len(x), self.back.in_features)
        for step in x.unbind(1):
            state = (self.into(step) + self.back(state)).tanh()
        y = self.out(state)
        return y


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("kind", [None, nn.RNN, nn.LSTM, nn.GRU])
def test_what_reads_a_first_state_of_zeros_keeps_step(kind: type[nn.Module] | None, length: int) -> None:
    model = Steps(kind).double().eval()
    original = copy.deepcopy(model)
    example = torch.randn(2, length, 4).double()
    if length == 1 and kind is not nn.GRU:  # which adds its state to what it makes
        with pytest.raises(pk.NothingToPruneError, match=r"it reads constants only \(a first state\?\): a"):
            pk.prune(model, example)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters(), strict=True))
        return
    plan = pk.prune(model, example, importance=RandomImportance()).plan
    masked, x = plan.mask(copy.deepcopy(original)), torch.randn(3, 5, 4).double()
    torch.testing.assert_close(model(x), masked(x))


class Extremum(nn.Module):
    def __init__(self, name: str, *, located: bool) -> None:
        super().__init__()
        self.conv, self.gate, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.name, self.located = name, located

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(x).relu()
        values, places = getattr(h, self.name)(1, keepdim=True)
        y: torch.Tensor = self.out(h * self.gate(values).sigmoid())
        return y + places if self.located else y


@pytest.mark.parametrize("name", ["max", "min", "median"])
def test_positions_that_nobody_reads_pin_nothing(name: str) -> None:
    x = torch.randn(2, 3, 4, 4)
    model = Extremum(name, located=False)
    result = pk.prune(model, x)
    assert model.conv.out_channels == 4
    assert result.report.mixes == {"conv": (f"aten::{name}.dim in the model",)}
    pinned = pk.DependencyGraph().build_dependency(Extremum(name, located=True), x).report().pinned
    looked_up = f"its positions are looked up (aten::{name}.dim)"
    numbers = "its positions are used as numbers (aten::add.Tensor)"
    assert pinned["conv.weight[0]"] == (looked_up if name == "median" else numbers)
