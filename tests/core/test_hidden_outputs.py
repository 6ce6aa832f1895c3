"""Outputs in things that are no containers: each is found, or what may be one is pinned; classes never leave."""

from __future__ import annotations

import collections
import copy
import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.program.outputs import named_outputs

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


@dataclass(slots=True)
class Slots:
    logits: torch.Tensor
    unset: Any = None


class MoreSlots(Slots):
    pass


class Steps:
    """An iterator that computes as it goes."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.step = x, 0

    def __iter__(self) -> Steps:
        return self

    def __next__(self) -> torch.Tensor:
        self.step += 1
        if self.step > 2:
            raise StopIteration
        return self.x * self.step


class Lookup:
    """A mapping in all but its class."""

    def __init__(self, x: torch.Tensor) -> None:
        self._found = {"logits": x}

    def keys(self) -> Any:
        return self._found.keys()

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._found[key]


class Elsewhere:
    """Keeps its tensor where nobody can see that it does."""

    kept: ClassVar[list[torch.Tensor]] = []

    def __init__(self, x: torch.Tensor) -> None:
        self.kept[:] = [x]


class Model(nn.Module):
    """Four classes behind 32 neurons; what is done with the scores differs."""

    def __init__(self, hide: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.hide = hide
        self.store: dict[str, Any] = {}
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.hide(self, self.b(self.a(x).relu()))


def nested(x: Any, depth: int) -> Any:
    for _ in range(depth):
        x = types.SimpleNamespace(inside=x)
    return x


def generator(model: Model, x: torch.Tensor) -> Iterator[torch.Tensor]:
    for step in range(2):
        yield model.b(torch.relu(x @ model.b.weight)) * (step + 1)


def stored(model: Model, x: torch.Tensor) -> None:
    model.scores = x


def stored_deep(model: Model, x: torch.Tensor) -> torch.Tensor:
    model.store["scores"] = [x.softmax(-1)]
    return x.new_ones(1)


def partly_python(model: Model, x: torch.Tensor) -> Any:
    return model.a.bias.sum(), x.softmax(-1).tolist()


def partly_numpy(model: Model, x: torch.Tensor) -> Any:
    return model.a.bias.sum(), x.detach().cpu().numpy()


FOUND: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "slots": lambda m, x: Slots(x),
    "inherited slots": lambda m, x: [MoreSlots(x)],
    "set": lambda m, x: {x},
    "frozenset": lambda m, x: {"all": frozenset([x, x.softmax(-1)])},
    "generator": generator,
    "generator in a dict": lambda m, x: {"steps": generator(m, x)},
    "generator in an object": lambda m, x: types.SimpleNamespace(steps=generator(m, x)),
    "map": lambda m, x: map(torch.sigmoid, [x]),
    "list iterator": lambda m, x: iter([x]),
    "iterator of one's own": lambda m, x: Steps(x),
    "closure": lambda m, x: lambda: x,
    "default argument": lambda m, x: lambda y=x: y,
    "partial": lambda m, x: functools.partial(print, [x]),
    "partial by keyword": lambda m, x: functools.partial(print, end=x),
    "bound method": lambda m, x: Lookup(x).keys,
    "deque": lambda m, x: collections.deque([x]),
    "user dict": lambda m, x: collections.UserDict(x=x),
    "chain map": lambda m, x: collections.ChainMap({}, {"x": x}),
    "values": lambda m, x: {"x": x}.values(),
    "lookup": lambda m, x: Lookup(x),
    "deep": lambda m, x: nested(x, 20),
    "stored": stored,
    "stored deep": stored_deep,
    "elsewhere": lambda m, x: Elsewhere(x),
    "python numbers": partly_python,
    "an array": partly_numpy,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
def test_classes_stay(name: str) -> None:
    model = Model(FOUND[name])
    graph = pk.DependencyGraph().build_dependency(model, X)
    assert {axis: group.size for axis, group in graph.analysis.groups.items()} == {"a": 32}
    assert graph.report().pinned["b.weight[0]"].startswith(("an output of the model", "it may be an output"))
    assert not model.store
    assert not hasattr(model, "scores")
    try:
        result = pk.prune(model, X, verify="always")
    finally:
        del Elsewhere.kept[:]
    assert "verified" in str(result.verification)
    assert (model.a.out_features, model.b.out_features) == (16, 4)


def test_a_result_that_is_stored_is_compared() -> None:
    torch.manual_seed(0)
    model = Model(stored)
    original = copy.deepcopy(model)
    plan = pk.prune(model, X).plan
    check = pk.check_exact(original, model, plan, X)
    assert check
    assert check.outputs == 1
    model.b.bias.data[0] += 0.5
    assert not pk.check_exact(original, model, plan, X)


def test_a_result_that_is_stored_is_named() -> None:
    graph = pk.DependencyGraph().build_dependency(Model(stored), X)
    assert graph.report().pinned["b.weight[0]"] == (
        "it may be an output of the model: no operation reads it, and it is stored as scores"
    )


@pytest.mark.parametrize("way", ["numpy", "tolist"])
def test_what_leaves_pytorch_on_its_way_is_pinned(way: str) -> None:
    class Leaves(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.a(x).relu()
            mean = torch.tensor(getattr(hidden, way)()).mean()  # over the units, where nobody sees it
            return self.b(hidden) * mean  # type: ignore[no-any-return]

    reasons = pk.DependencyGraph().build_dependency(Leaves(lambda m, x: x), X).report().pinned
    assert reasons["a.weight[0]"] == f"it may be an output of the model: its values leave PyTorch by {way}"


def test_what_is_stored_on_the_way_may_shrink_and_is_told() -> None:
    class Features(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.features = self.a(x).relu()
            return self.b(self.features)  # type: ignore[no-any-return]

    report = pk.prune(Features(lambda m, x: x), X).report
    assert report.pruned == {"a": (32, 16)}
    assert report.notes == (
        "what the forward leaves stored as features may lose units; where that is wanted whole, return it",
    )


def test_what_is_dropped_says_nothing() -> None:
    def drop(model: Model, x: torch.Tensor) -> torch.Tensor:
        x[:, 0]
        return x

    class Drops(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.a(x)
            hidden[:, 0]
            return self.b(hidden)  # type: ignore[no-any-return]

    assert pk.prune(Drops(drop), X).report.pruned == {"a": (32, 16)}


NOTHING: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "none": lambda m, x: None,
    "a number": lambda m, x: x.shape[0],
    "python numbers": lambda m, x: x.tolist(),
    "a module": lambda m, x: m,
}


@pytest.mark.parametrize("name", ["none", "a number", "a module"])
def test_a_model_that_returns_no_tensor_is_refused(name: str) -> None:
    model = Model(NOTHING[name])
    with pytest.raises(pk.RecordingError, match="no tensor among the outputs") as caught:
        pk.prune(model, X)
    assert "forward_fn or an output_transform" in str(caught.value)
    assert model.b.out_features == 4


def test_outputs_that_never_end_are_refused() -> None:
    with pytest.raises(pk.UnsupportedModelError, match="doesn't end"):
        pk.prune(Model(lambda m, x: (x for _ in iter(int, 1))), X)
    with pytest.raises(pk.UnsupportedModelError, match="too deep in each other"):
        pk.prune(Model(lambda m, x: nested(x, 100)), X)


def test_a_set_is_listed_in_an_order_that_holds() -> None:
    tensors = [torch.full((2,), float(n)) for n in range(8)]
    listed = [[float(t[0]) for _, t in named_outputs(set(order))] for order in (tensors, tensors[::-1])]
    assert listed[0] == listed[1] == [float(n) for n in range(8)]
