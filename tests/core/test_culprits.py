"""Of many branches that are asked for together, the error names those that can't go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.branches.culprits import blaming
from tests.core.test_branch_reasons import Written
from tests.core.test_entries import made

X = torch.randn(2, 5, 8)


class Tower(nn.Module):
    """Blocks whose attentions are written in their forward, and a sum behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Written() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def refusal_of(model: nn.Module, inputs: Any, names: Sequence[str]) -> pk.RehearsalError:
    with pytest.raises(pk.RehearsalError) as refused:
        pk.Graph.of(model, inputs).plan_without(names)
    return refused.value


def test_one_at_fault_is_named_with_its_reason_and_the_others_are_said_to_go() -> None:
    model = Tower().eval()
    names = ["blocks.2.up", "blocks.1.qkv", "blocks.0.up"]
    error = refusal_of(model, X, names)
    assert error.where == "blocks.1.qkv"
    assert (error.why, error.hint) == (refusal_of(model, X, names[1:2]).why, "leave it out: the other 2 can go")
    pk.Graph.of(model, X).plan_without(names[::2])
    with pytest.raises(pk.RehearsalError) as pruned:
        pk.prune(model, X, branches=names)
    assert (pruned.value.where, pruned.value.hint) == (error.where, error.hint)


def test_what_a_run_of_the_program_finds_is_found_too() -> None:
    model, x, _ = made("twice", "plain", "twice", "plain")  # the cache is measured by the first layer
    error = refusal_of(model, x, ["layers.0.key", "layers.1.key", "layers.2.key"])
    assert (error.where, error.hint) == ("layers.0.key", "leave it out: the other 2 can go")
    assert error.why == refusal_of(model, x, ["layers.0.key"]).why


def test_several_at_fault_are_named_each_with_its_reason() -> None:
    error = refusal_of(Tower().eval(), X, ["blocks.0.qkv", "blocks.1.up", "blocks.2.qkv"])
    assert error.where == "blocks.0.qkv, blocks.2.qkv"
    assert error.why.startswith("blocks.0.qkv: blocks.0.qkv returns a tensor of shape (2, 5, 24), which nothing has")
    assert "; blocks.2.qkv: blocks.2.qkv returns" in error.why
    assert error.hint == "leave them out: blocks.1.up can go"
    assert error.branches == ("blocks.0.qkv", "blocks.2.qkv")
    assert refusal_of(Tower().eval(), X, ["blocks.0.qkv"]).branches == ("blocks.0.qkv",)


def test_what_goes_together_with_the_rest_of_its_layer_is_not_blamed() -> None:
    model = Tower().eval()
    whole = ["blocks.0.qkv", "blocks.0.up"]
    pk.Graph.of(model, X).plan_without(whole)  # the whole block goes
    error = refusal_of(model, X, [*whole, "blocks.2.qkv"])
    assert (error.where, error.hint) == ("blocks.2.qkv", "leave it out: the other 2 can go")


def test_two_that_cannot_go_together_are_named_together() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.left(x) + self.right(x)
            return x + self.last(x)

    error = refusal_of(Both().eval(), X, ["last", "left", "right"])
    assert error.where == "left with right"
    assert error.why == "nothing would be left of a sum: aten::add.Tensor in the model"
    assert error.hint == "leave right out: the other 2 can go"
    assert error.branches == ("right",)


@pytest.mark.parametrize("wrong", [(3,), (0, 7), (6, 7)])
def test_few_rehearsals_find_it(wrong: tuple[int, ...]) -> None:
    asked: list[Sequence[str]] = []
    names = [f"b{number}" for number in range(64)]

    def draft(some: Sequence[str]) -> str:
        asked.append(tuple(some))
        if {f"b{number}" for number in wrong} <= set(some):
            raise pk.RehearsalError("No.", why="together they are too many")
        return "a plan"

    with pytest.raises(pk.RehearsalError) as refused:
        blaming(draft, names, dict)
    assert refused.value.where == " with ".join(f"b{number}" for number in wrong)
    assert refused.value.hint.endswith(" out: the other 63 can go")
    assert len(asked) <= 20
    assert len({frozenset(some) for some in asked}) == len(asked)  # no set is tried again
    assert blaming(draft, names[8:], dict) == "a plan"


def test_where_branches_are_not_at_fault_the_error_stays() -> None:
    def draft(some: Sequence[str]) -> str:
        raise pk.RehearsalError("No.", where="units", why="the units are wrong")

    with pytest.raises(pk.RehearsalError) as refused:
        blaming(draft, ["a", "b"], dict)
    assert (refused.value.where, refused.value.why) == ("units", "the units are wrong")
    assert refused.value.branches == ()
