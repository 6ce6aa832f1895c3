"""Objects of the user's classes in a model: they may refuse everything, and nothing of them is changed."""

from __future__ import annotations

import collections
import copy
import dataclasses
import threading
import types
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import prunekit as pk

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise TypeError("read-only")


class FrozenDict(collections.OrderedDict[str, Any]):
    """As diffusers keeps configurations: a copy can be filled, but not with ``update``."""

    update = clear = pop = __delitem__ = refuse  # type: ignore[assignment]


class ReadOnlyDict(dict[str, Any]):
    __setitem__ = __delitem__ = update = clear = pop = refuse  # type: ignore[assignment]


class ReadOnlyList(list[Any]):
    append = extend = clear = __setitem__ = refuse  # type: ignore[assignment]


class Loud(dict[str, Any]):
    """Counts how often it is asked or changed."""

    calls: ClassVar[list[str]] = []

    def __iter__(self) -> Any:
        self.calls.append("iter")
        return super().__iter__()

    def __len__(self) -> int:
        self.calls.append("len")
        return super().__len__()

    def clear(self) -> None:
        self.calls.append("clear")
        super().clear()


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots:
    width: int = 16
    names: tuple[str, ...] = ("a", "b")


class Guarded:
    """Refuses every attribute after it was made."""

    def __init__(self) -> None:
        vars(self)["width"] = 16

    __setattr__ = __delattr__ = refuse  # type: ignore[assignment]


class Uncomparable:
    def __eq__(self, other: object) -> bool:
        raise TypeError("no comparison")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError("no truth")


class Chain(nn.Module):
    def __init__(self, held: Any = None) -> None:
        super().__init__()
        self.held = held
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


HELD = {
    "frozen dict": lambda: FrozenDict(width=16, more=[1, 2]),
    "read-only dict": lambda: ReadOnlyDict(width=16),
    "mapping proxy": lambda: types.MappingProxyType({"width": 16}),
    "read-only list": lambda: ReadOnlyList([1, 2]),
    "frozen slots": FrozenSlots,
    "guarded": Guarded,
    "uncomparable": lambda: [Uncomparable(), {"of": Uncomparable()}],
    "a lock in a list": lambda: [threading.Lock(), {"count": 1}],
    "user dict": lambda: collections.UserDict(width=16),
    "counter": lambda: collections.Counter("abca"),
    "a default dict": lambda: collections.defaultdict(refuse, width=16),
    "a generator": lambda: (n for n in range(3)),
}


@pytest.mark.parametrize("name", HELD)
def test_a_model_that_holds_it_is_pruned_and_holds_it_afterwards(name: str) -> None:
    held = HELD[name]()
    model = Chain(held)
    result = pk.prune(model, X)
    assert result.report.pruned == {"a": (16, 8)}
    assert model.held is held
    assert model(X).shape == (2, 3)


def test_what_cannot_be_copied_is_named() -> None:
    notes = pk.prune(Chain(types.MappingProxyType({})), X).report.notes
    assert "a mappingproxy in the model can't be deep-copied" in notes[0]


def test_methods_of_the_users_classes_are_not_called_after_the_copy() -> None:
    graph = pk.DependencyGraph().build_dependency(Chain(Loud(width=16)), X)
    del Loud.calls[:]
    pk.BasePruner(graph.model, X)
    copying = len(Loud.calls)
    del Loud.calls[:]
    copy.deepcopy(graph.model)
    assert copying <= len(Loud.calls)


class Frozen(Chain):
    """Its attributes can't be set once it was made."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training" and "b" in self._modules:
            raise AttributeError("frozen")
        super().__setattr__(name, value)


class Slotted(Chain):
    __slots__ = ("scale", "unset")

    def __init__(self) -> None:
        super().__init__()
        self.scale = [2.0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.scale.append(1.0)
        self.unset = len(self.scale)
        return super().forward(x) * self.scale[0] * self.unset


class Described(Chain):
    @property
    def broken(self) -> int:
        raise RuntimeError("not to be read")


@pytest.mark.parametrize("cls", [Frozen, Slotted, Described])
def test_modules_that_guard_their_attributes(cls: type[Chain]) -> None:
    model = cls()
    original = cls()
    original.load_state_dict(model.state_dict())
    result = pk.prune(model, X)
    assert result.report.pruned == {"a": (16, 8)}
    result.plan.mask(original)
    if isinstance(model, Slotted):
        assert model.scale == [2.0]
        assert not hasattr(model, "unset")
    torch.testing.assert_close(model(X), original(X))


class Counting(Chain):
    """Its program depends on what is deep inside of its attributes, and changes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps, recent = self.held["state"].steps, self.held["recent"]
        steps.append(x.shape[0])
        recent.append(x)
        self.held["state"].last = x
        self.held["state"].total += 1
        x = self.a(x).relu()
        for _ in range(len(steps) + self.held["state"].total + len(recent)):
            x = x * 0.5
        return self.b(x)


class State:
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.total = 0


def test_what_a_forward_does_deep_inside_of_attributes_is_undone_after_each_run() -> None:
    state = State()
    model = Counting({"state": state, "recent": collections.deque([1, 2], maxlen=3)})
    original = copy.deepcopy(model)
    result = pk.prune(model, X)
    assert result.report.pruned == {"a": (16, 8)}
    assert (state.steps, state.total, hasattr(state, "last")) == ([], 0, False)
    assert list(model.held["recent"]) == [1, 2]
    assert pk.check_exact(original, model, result.plan, X)


def test_what_is_shared_with_the_model_is_put_back_too() -> None:
    class Log(list[Any]):
        __deepcopy__ = refuse

    class Logging(Chain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.held.append(x)
            return super().forward(x)

    log = Log(["kept"])
    model = Logging(log)
    assert pk.prune(model, X).report.pruned == {"a": (16, 8)}
    assert model.held is log
    assert log == ["kept"]
