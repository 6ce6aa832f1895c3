"""Caches of the user's program, outside of its modules: no tensor of a recording stays in them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.record.caches import Made

X = torch.randn(2, 5, 6)
TABLES: dict[int, torch.Tensor] = {}
NESTED: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {"tables": {}}
LAST: list[Any] = []


def made(length: int) -> torch.Tensor:
    return torch.arange(length).float()[:, None].cos()


@functools.cache
def unbounded(length: int) -> torch.Tensor:
    return made(length)


@functools.lru_cache(maxsize=2)
def bounded(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return made(length), made(length).sin()


def in_a_dict(length: int) -> torch.Tensor:
    if length not in TABLES:
        TABLES[length] = made(length)
    return TABLES[length]


def in_a_dict_of_a_dict(length: int) -> torch.Tensor:
    tables = NESTED["tables"]
    if length not in tables:
        tables[length] = (made(length), made(length).sin())
    return tables[length][0]


class Net(nn.Module):
    def __init__(self, table: Callable[[int], Any], by_value: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.table, self.by_value = table, by_value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.by_value and x.sum() > 1e9:
            x = -x
        table = self.table(x.shape[1])
        table = table[1] if isinstance(table, tuple) else table
        y: torch.Tensor = self.last((self.first(x) + table).relu())
        return y


@pytest.fixture(autouse=True)
def empty() -> None:
    unbounded.cache_clear()
    bounded.cache_clear()
    TABLES.clear()
    NESTED["tables"].clear()


@pytest.mark.slow
@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("table", [unbounded, bounded, in_a_dict, in_a_dict_of_a_dict])
def test_a_table_that_is_kept_is_made_in_every_run(table: Callable[[int], Any], by_value: bool) -> None:
    torch.manual_seed(0)
    model = Net(table, by_value)
    original = copy.deepcopy(model)
    result = pk.prune(model, X, verify="always")
    assert result.report.pruned == {"first": (16, 8)}
    assert result.verification.check is not None
    for network in (model, original):
        assert type(network(X)) is torch.Tensor
    assert pk.check_exact(original, model, result.plan, X)
    kept = table(5)
    assert type(kept[0] if isinstance(kept, tuple) else kept) is torch.Tensor


def test_what_a_failing_forward_keeps_is_let_go() -> None:
    class Failing(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError(f"after {self.table(x.shape[1]).shape}")

    with pytest.raises(pk.RecordingError):
        pk.prune(Failing(unbounded, False), X)
    assert type(unbounded(5)) is torch.Tensor


def test_what_was_in_a_cache_before_is_used_as_it_is() -> None:
    expected = unbounded(5)
    model = Net(unbounded, False)
    pk.prune(model, X)
    assert unbounded(5) is expected


class Keeper:
    table: Any = None


@pytest.mark.slow
def test_what_is_no_cache_is_told() -> None:
    def stored(length: int) -> torch.Tensor:
        Keeper.table = made(length)
        return Keeper.table  # type: ignore[no-any-return]

    model = Net(stored, False)
    try:
        notes = pk.prune(model, X).report.notes
        assert any("outside of the model" in note and "Keeper.table" in note for note in notes)
        model(X)
        assert type(Keeper.table) is torch.Tensor
    finally:
        Keeper.table = None


class Rotary(nn.Module):
    """Keeps its table by device, and by length what it cuts out of that."""

    def __init__(self, by_value: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.table, self.by_value = made(8), by_value

    @functools.cache  # noqa: B019
    def moved(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        return self.table.to(device), -self.table

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def cut(self, length: int, device: torch.device) -> torch.Tensor:
        return self.moved(device)[0][:length].clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.by_value and x.sum() > 1e9:
            x = -x
        y: torch.Tensor = self.last((self.first(x) + self.cut(x.shape[1], x.device)).relu())
        return y + self.moved(x.device)[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("by_value", [False, True])
def test_caches_that_are_filled_from_each_other_are_emptied(by_value: bool) -> None:
    torch.manual_seed(0)
    model = Rotary(by_value)
    original = copy.deepcopy(model)
    table = model.table.clone()
    result = pk.prune(model, X)
    assert result.report.pruned == {"first": (16, 8)}
    assert Rotary.moved.cache_info().currsize == Rotary.cut.cache_info().currsize == 0
    assert torch.equal(model.table, table)
    kept = list(result.plan.cuts[0].kept)
    hidden = (original.first(X) + table[:5])[..., kept].relu()
    expected = hidden @ original.last.weight[:, kept].T + original.last.bias + table[0]
    torch.testing.assert_close(model(X), expected)
    assert pk.check_exact(original, model, result.plan, X).exact


def test_an_identity_that_is_used_again_is_another_tensor() -> None:
    made = Made()
    made.start([])
    first = torch.zeros(1)
    made.add(first)
    assert made.passed(first) is first
    identity = id(first)
    del first
    others = []
    for _ in range(1000):
        other = torch.zeros(1)
        if id(other) == identity:
            break
        others.append(other)
    else:
        pytest.skip("the identity wasn't used again")
    alias = made.passed(other)
    assert alias is not other
    assert made.passed(alias) is alias
