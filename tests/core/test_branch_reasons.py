"""What is said of branches: their names, and why some can't go, before anything is planned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit_plugins.reports import inspection_data
from tests.core.test_decoding import Always

X = torch.randn(2, 5, 8)


class Written(nn.Module):
    """A block whose attention is written in its forward, beside a feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        return x + self.down(self.up(x).relu())


WHY = (
    "qkv returns a tensor of shape (2, 5, 24), which nothing has that it is given; what reads it is written in a "
    "module that stays: aten::chunk in the model"
)


def test_what_holds_a_branch_is_said_before_it_is_planned() -> None:
    graph = pk.Graph.of(Written().eval(), X)
    assert all(branch.removable for branch in graph.branches())
    assert graph.branch_obstacles() == {"qkv": WHY}
    with pytest.raises(pk.RehearsalError) as refused:
        graph.plan_without(["qkv"])
    assert refused.value.why == WHY
    graph.plan_without(["up"])
    assert graph.branch_obstacles() == {"qkv": WHY}  # whatever was rehearsed


def test_inspection_says_which_branches_may_go() -> None:
    rows = inspection_data(pk.Graph.of(Written().eval(), X)).branches
    assert {row.name: row.why for row in rows} == {"qkv": WHY, "up": ""}


class Narrow(nn.Linear):
    """A layer that is given single precision and returns half of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).bfloat16()


class Cast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.out = Narrow(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out((x.bfloat16() + self.narrow(x).chunk(1, -1)[0]).float())
        return out


def test_a_dtype_that_nothing_given_has_is_named() -> None:
    assert pk.Graph.of(Cast().eval(), X).branch_obstacles() == {
        "narrow": "narrow returns a tensor of shape (2, 5, 8) and torch.bfloat16, which nothing has that it is given; "
        "what reads it is written in a module that stays: aten::chunk in the model"
    }


class Listed(nn.Module):
    """Layers in one list, two of them for each branch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers: Any = self.layers
        x = x + layers[1](layers[0](x).relu())
        return x + layers[3](layers[2](x).relu())


def test_branches_are_named_after_layers_in_a_list_not_after_the_list() -> None:
    model = Listed().eval()
    graph = pk.Graph.of(model, X)
    assert [branch.name for branch in graph.branches()] == ["layers.0", "layers.2"]
    graph.apply(graph.plan_without(["layers.0"]))
    assert [branch.name for branch in pk.Graph.of(model, X).branches()] == ["layers.2"]


def test_a_branch_that_later_calls_need_says_so() -> None:
    torch.manual_seed(0)
    graph = pk.Graph.of(Always().eval(), X)
    first = graph.branches()[0].name
    with pytest.raises(pk.RehearsalError, match="why: in a call that is given the cache of an earlier one: aten::"):
        graph.plan_without([first])


class Mixer(nn.Module):
    """``y + y * gain`` in the module, whose own parameter is the gain; and the whole is added to a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gain = nn.Linear(8, 8), nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        return y + y * self.gain


class Mixing(nn.Module):
    """Three mixers, and a layer whose weights are read a second time, by a branch that has none of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"mixer": Mixer()}) for _ in range(3))
        self.table = nn.Linear(8, 8)
        self.again = nn.Sequential(self.table, nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.table(x)
        x = x + self.again(x)
        for layer in self.layers:
            x = x + layer["mixer"](x)  # type: ignore[index]
        return x


MIXERS = [f"layers.{number}.mixer" for number in range(3)]


def test_a_whole_branch_has_its_modules_name_and_parts_of_it_are_numbered() -> None:
    found = pk.Graph.of(Mixing().eval(), X).branches()
    branches = {branch.name: branch for branch in found}
    assert list(branches) == ["table", *(name + end for name in MIXERS for end in ("~2", ""))]  # as in the program
    for name in MIXERS:
        assert branches[name].parameters == tuple(f"{name}.{part}" for part in ("gain", "inner.weight", "inner.bias"))
        assert branches[f"{name}~2"].parameters == (f"{name}.gain",)
        assert branches[f"{name}~2"].is_part_of(branches[name])
        assert not branches[name].is_part_of(branches[f"{name}~2"])


def test_ratios_and_numbers_are_of_branches_with_parameters_of_their_own() -> None:
    assert pk.Graph.of(Mixing().eval(), X).branches()[0].parameters == ()
    result = pk.prune(Mixing().eval(), X, branch_ratio=0.5, global_pruning=True, keep_first=2)  # of six
    assert result.plan.absent == tuple(MIXERS[1:])
    assert result.report.branches["layers.0.mixer"] == "one of the first 2 (keep_first)"
    assert result.report.branches["table"] == "it has no parameters of its own: name it in branches to take it out"
    named = pk.prune(Mixing().eval(), X, branches=["table"], max_pruning_ratio=0.0)
    assert named.plan.absent == ("table",)
