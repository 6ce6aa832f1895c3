"""Outputs by name: how they are called, that they pin, and that the ones released by the user don't."""

from __future__ import annotations

import copy
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.program.outputs import is_free, named_outputs
from prunekit_plugins.importance import RandomImportance

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Cache:
    layers: list[Any] = field(default_factory=list)
    length: int = 0


def test_key_paths_are_made_of_keys_positions_and_attributes() -> None:
    a, b, c, d = (torch.zeros(1) for _ in range(4))
    cache = Cache([Pair(a, b)])
    outputs = {"logits": c, "cache": cache, "none": None, "again": [d, (d, 3)], 5: cache}
    assert [(name, id(tensor)) for name, tensor in named_outputs(outputs)] == [
        ("logits", id(c)),
        ("cache.layers.0.first", id(a)),
        ("cache.layers.0.second", id(b)),
        ("again.0", id(d)),
        ("again.1.0", id(d)),
    ]  # an object that was met before is not listed again
    assert [name for name, _ in named_outputs(a)] == [""]


@pytest.mark.parametrize(
    ("name", "pattern", "free"),
    [
        ("past.0.keys", "past", True),
        ("past.0.keys", "past.0", True),
        ("past.0.keys", "past.*.keys", True),
        ("past.0.keys", "*.keys", True),
        ("past.0.keys", "pas", False),
        ("past.0.keys", "keys", False),
        ("past.0.keys", "past.1*", False),
        ("logits", "*", True),
        ("", "*", True),
    ],
)
def test_a_pattern_names_a_path_or_what_is_around_it(name: str, pattern: str, free: bool) -> None:
    assert is_free(name, [pattern]) is free


class Stateful(nn.Module):
    """Returns its hidden states along with its scores."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        first = self.a(x).relu()
        second = self.b(first).relu()
        return {"scores": self.out(second), "states": [first, second]}


def test_the_report_names_the_output_that_pins() -> None:
    graph = pk.DependencyGraph().build_dependency(Stateful(), X)
    assert graph.report().pinned["a.weight[0]"] == "an output of the model: states.0"
    assert graph.report().pinned["b.weight[0]"] == "an output of the model: states.1"
    assert graph.report().pinned["out.weight[0]"] == "an output of the model: scores"


@pytest.mark.parametrize(
    ("free", "pruned"),
    [
        (["states"], {"a": (8, 4), "b": (6, 3)}),
        (["states.1"], {"b": (6, 3)}),
        (["s*.0"], {"a": (8, 4)}),
    ],
)
def test_released_outputs_lose_units_and_are_compared(free: list[str], pruned: dict[str, tuple[int, int]]) -> None:
    torch.manual_seed(0)
    model = Stateful()
    original = copy.deepcopy(model)
    result = pk.prune(model, X, importance=RandomImportance(), free_outputs=free)
    assert result.report.pruned == pruned
    check = pk.check_exact(original, model, result.plan, X, free_outputs=free)
    assert check.outputs == 3
    assert check.error < 1e-6
    model.b.bias.data[0] += 0.5
    assert not pk.check_exact(original, model, result.plan, X, free_outputs=free)


def test_names_that_are_no_output_are_refused_with_those_that_are() -> None:
    model = Stateful()
    with pytest.raises(pk.ArgumentError, match=r"(?s)has that name.*'state'\n.*'states\.0'") as caught:
        pk.prune(model, X, free_outputs=["scores", "state"])
    assert "'scores'" in str(caught.value)
    with pytest.raises(pk.ArgumentError, match="free_outputs is a list of names"):
        pk.prune(model, X, free_outputs="states")
    assert model.a.out_features == 8


def test_what_a_transform_returns_has_names_of_its_own() -> None:
    def transform(outputs: dict[str, Any]) -> torch.Tensor:
        total: torch.Tensor = outputs["states"][0] * 2
        return total

    graph = pk.DependencyGraph().build_dependency(Stateful(), X, output_transform=transform, free_outputs=["states"])
    assert graph.report().pinned["a.weight[0]"] == "an output of the model: output_transform"
    assert set(graph.analysis.groups) == {"b"}


def test_queries_that_are_returned_are_not_scaled() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.out = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            q, k = self.q(x), self.k(x)
            scores = q @ k.t()
            return {"scores": scores, "out": self.out(scores / k.shape[-1] ** 0.5)}

    torch.manual_seed(0)
    model = Attention().double()
    masked, x = copy.deepcopy(model), X.double()
    plan = pk.prune(model, x).plan
    assert {rescale.parameter for rescale in plan.rescales} == {"out.weight"}
    gone = [unit for unit in range(8) if unit not in plan.kept["q"]]
    with torch.no_grad():
        for layer in (masked.q, masked.k):
            layer.weight[gone], layer.bias[gone] = 0, 0
        for name, expected in masked(x).items():
            assert torch.allclose(model(x)[name], expected, rtol=1e-12, atol=1e-12), name
