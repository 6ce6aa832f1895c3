"""Lists of layers that the model indexes, slices or walks beside another one: a layer leaves where that stays right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.modules.absent import Absent
from tests.core.residual import applied_as_json, close

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


class Five(nn.Module):
    """Five blocks; `run` says how the model goes through them."""

    def __init__(self, run: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.run, self.taps = run, [1, 3]
        self.layers = nn.ModuleList(Block() for _ in range(5))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(5))

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


def taps(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Features are taken behind blocks 1 and 3."""
    found = []
    for number, layer in enumerate(model.layers):
        x = layer(x)
        if number in model.taps:
            found.append(x)
    return [*found, x]


def head_and_tail(model: Any, x: torch.Tensor) -> Any:
    """The last block runs behind a norm."""
    for layer in model.layers[:-1]:
        x = layer(x)
    return model.layers[-1](model.norms[0](x))


def first_and_rest(model: Any, x: torch.Tensor) -> Any:
    """The first block runs before a norm, two of the others twice."""
    x = model.norms[0](model.layers[0](x))
    for layer in (*model.layers[1:], *model.layers[3:]):
        x = layer(x)
    return x


def by_number(model: Any, x: torch.Tensor) -> Any:
    for number in range(5):
        x = model.layers[number](x)
    return x


def skips(model: Any, x: torch.Tensor) -> Any:
    """What each block is given is added to what comes later, in reverse order."""
    given = []
    for layer in model.layers:
        given.append(x)
        x = layer(x)
    for norm in model.norms:
        x = norm(x + given.pop())
    return x


def reads(model: Any, x: torch.Tensor) -> Any:
    """The last block says in which dtype the model computes."""
    x = x.to(model.layers[-1].up.weight.dtype)
    for layer in model.layers:
        x = layer(x)
    return x


def switched_off(model: Any, numbers: Sequence[int]) -> Any:
    off = copy.deepcopy(model)
    for number in numbers:
        off.layers[number] = nn.Identity()
    return off


CASES = [
    (taps, [4], 4),  # nothing is taken behind it
    (taps, [2], 5),  # what was taken behind block 3 would be taken behind block 4
    (taps, [3, 4], 4),  # block 4 leaves; what is taken behind block 3 is taken behind what stands in for it
    (taps, [0, 1, 2, 3], 5),
    (head_and_tail, [1, 2], 3),
    (head_and_tail, [4], 5),
    (head_and_tail, [1, 4], 4),
    (first_and_rest, [0], 5),
    (first_and_rest, [1], 5),  # another block would run twice
    (first_and_rest, [4], 4),
    (by_number, [4], 5),
    (skips, [2], 5),
]


@pytest.mark.parametrize(("run", "numbers", "left"), CASES)
def test_a_layer_leaves_only_where_the_model_finds_the_others(run: Any, numbers: list[int], left: int) -> None:
    torch.manual_seed(0)
    model, x = Five(run).double().eval(), X.double()
    plan = pk.Graph.of(model, x).plan_without([f"layers.{number}.up" for number in numbers])
    small: Any = applied_as_json(plan, model)
    expected, found = switched_off(model, numbers)(x), small(x)
    for one, other in zip(expected, found, strict=True) if isinstance(expected, list) else [(expected, found)]:
        assert close(one, other)
    assert len(small.layers) == left
    stand_ins = [layer for layer in small.layers if isinstance(layer, Absent)]
    assert len(stand_ins) == len(numbers) - (5 - left)
    assert pk.check_exact(model, small, plan, x)


def test_what_is_read_of_a_layer_elsewhere_is_read_of_another_one() -> None:
    torch.manual_seed(0)
    model, x = Five(reads).double().eval(), X.double()
    graph = pk.Graph.of(model, x)
    assert len(graph.plan_without(["layers.1.up"]).apply(copy.deepcopy(model)).layers) == 4  # type: ignore[arg-type]
    plan = graph.plan_without(["layers.4.up"])  # the block before it says the same, and what stands in would not
    small: Any = applied_as_json(plan, model)
    assert len(small.layers) == 4
    assert close(small(x), nn.Sequential(*model.layers[:4])(x))
    with pytest.raises(pk.RehearsalError, match="has no attribute 'up'"):
        graph.plan_without(["layers.4.up"], keep_names=True)


class Beside(nn.Module):
    """Norms of blocks stand in a list of their own, walked beside that of the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=False):
            x = x + layer(norm(x))
        return x


def test_lists_that_are_walked_beside_each_other_stay_in_step() -> None:
    torch.manual_seed(0)
    model, x = Beside().double().eval(), X.double()
    plan = pk.Graph.of(model, x).plan_without(["layers~2"])
    small: Any = applied_as_json(plan, model)
    off = copy.deepcopy(model)
    nn.init.zeros_(off.layers[1][2].weight)  # type: ignore[index, arg-type]
    nn.init.zeros_(off.layers[1][2].bias)  # type: ignore[index, arg-type]
    assert close(small(x), off(x))
    assert len(small.norms) == len(small.layers)


class Stages(nn.Module):
    """Two stages of two blocks each; the first one may lose both."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.ModuleList([Block(), Block()]) for _ in range(2))
        self.between = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                x = block(x)
            x = self.between(x)
        return x


def test_a_list_may_lose_all_its_entries_and_steps_lead_there() -> None:
    torch.manual_seed(0)
    model, x = Stages().double().eval(), X.double()
    original, graph = copy.deepcopy(model), pk.Graph.of(model, x)
    first = graph.apply(graph.plan_without(["stages.0.0.up"]))
    assert [len(stage) for stage in model.stages] == [1, 2]  # type: ignore[arg-type]
    both = graph.apply(graph.plan_without(["stages.0.1.up"]))
    assert [len(stage) for stage in model.stages] == [0, 2]  # type: ignore[arg-type]
    assert close(model(x), original.between(_blocks(original.stages[1], original.between(x))))
    assert pk.check_exact(original, model, both, x)
    again = both.since(first).apply(first.apply(copy.deepcopy(original)))
    assert torch.equal(again(x), model(x))
    assert torch.equal(pk.Plan.from_json(both.to_json()).apply(copy.deepcopy(original))(x), model(x))
    assert str(both.entries.deletions[0]) == "stages.0.0, stages.0.1 are gone"


def _blocks(stage: Any, x: torch.Tensor) -> torch.Tensor:
    for block in stage:
        x = block(x)
    return x
