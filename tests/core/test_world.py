"""The world around an analysis stays as it is: the caller's inputs, and everybody's random numbers."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import prunekit as pk


class Cache:
    def __init__(self) -> None:
        self.keys = torch.randn(2, 5, 16)
        self.log: list[Any] = []

    def update(self, keys: torch.Tensor) -> torch.Tensor:
        self.keys = torch.cat([self.keys, keys], 1)
        self.log.append(len(self.log))
        return self.keys


class SlotCache:
    __slots__ = ("keys", "log")
    __init__, update = Cache.__init__, Cache.update


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    cache: Any


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.up, self.out = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, batch: Any) -> torch.Tensor:
        x, cache = batch.x, batch.cache
        keys = cache.update(self.k(x))
        for _ in cache.log:
            x = x * 0.5
        return self.out(self.up((self.q(x) @ keys.transpose(1, 2)).softmax(-1) @ keys).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Cache, SlotCache])
@pytest.mark.parametrize("around", [Batch, lambda x, cache: types.SimpleNamespace(x=x, cache=cache)])
def test_objects_among_the_inputs_are_copied_for_each_run(kind: type, around: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model, cache, x = Decoder(), kind(), torch.randn(2, 1, 8)
    keys = cache.keys
    original = copy.deepcopy(model)
    result = pk.prune(model, (around(x, cache),))
    assert result.report.pruned == {"up": (32, 16)}
    assert pk.check_exact(original, model, result.plan, (around(x, cache),))
    assert cache.keys is keys
    assert cache.log == []
    assert result.report.pinned["k.weight[0]"] == "an input of the model"


def test_a_tensor_that_is_given_twice_is_one() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.other = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, query: torch.Tensor, key: torch.Tensor, held: Any) -> torch.Tensor:
            same = query is key and held["key"] is key and held["object"].x is key
            return (self.b if same else self.other)(self.a(query).relu())  # type: ignore[no-any-return]

    x = torch.randn(2, 4)
    result = pk.prune(Asks(), (x, x, {"key": x, "object": types.SimpleNamespace(x=x)}))
    assert result.report.untouched == ("other.weight", "other.bias")


def test_an_input_that_cannot_be_copied_is_told() -> None:
    class Held:
        def __init__(self) -> None:
            self.lock = threading.Lock()

    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    example = (torch.randn(2, 4), Held())
    report = pk.prune(model, example, forward_fn=lambda m, inputs: m(inputs[0])).report
    assert any("an input of class Held can't be deep-copied" in note for note in report.notes)


def states() -> tuple[Any, ...]:
    numpy = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), numpy[1].tolist(), numpy[2]


class Draws(nn.Module):
    """A program that depends on values, so that it is run on real tensors."""

    def __init__(self, draw: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.draw, self.seen = draw, list[Any]()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum().item() > 1e9:
            raise ValueError("out of bounds")
        x = self.a(x)
        for _ in range(int(self.draw(x) * 1000) % 7):
            x = x.relu()
        assert torch.initial_seed() == 1234  # no other thread sees another seed
        return self.b(x)  # type: ignore[no-any-return]


DRAWS: dict[str, Callable[[torch.Tensor], Any]] = {
    "nothing": lambda x: 0,
    "rand": lambda x: float(torch.rand(())),
    "randn": lambda x: float(torch.randn(2)[1].abs()),
    "randint": lambda x: int(torch.randint(7, ())),
    "a range": lambda x: int(torch.randint(3, 7, (1,))),
    "randperm": lambda x: int(torch.randperm(9)[0]),
    "like": lambda x: float(torch.rand_like(torch.ones(3))[0]),
    "normal like": lambda x: float(torch.randn_like(torch.ones(3))[0].abs()),
    "in place": lambda x: float(torch.empty(3).uniform_()[0]),
    "bernoulli": lambda x: float(torch.bernoulli(torch.full((9,), 0.5)).sum()) / 1000,
    "multinomial": lambda x: int(torch.multinomial(torch.ones(9), 1)),
    "dropout": lambda x: float(nn.functional.dropout(torch.ones(9), 0.5).sum()) / 1000,
    "dropout in place": lambda x: float(nn.functional.dropout(torch.ones(9), 0.5, inplace=True).sum()) / 1000,
    "dropout of channels": lambda x: float(nn.functional.dropout1d(torch.ones(9, 9, 1), 0.5).sum()) / 1000,
    "a generator of its own": lambda x: float(torch.rand((), generator=torch.Generator().manual_seed(3))),
    "python": lambda x: random.random(),
    "numpy": lambda x: np.random.rand(),
    "all": lambda x: float(torch.rand(())) + random.random() + np.random.rand(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_are_the_same_in_each_run_and_nobody_elses(name: str) -> None:
    torch.manual_seed(1234)
    random.seed(1)
    np.random.seed(2)
    model, x = Draws(DRAWS[name]), torch.randn(2, 4)
    before = states()
    graph = pk.DependencyGraph().build_dependency(model, x)
    assert states() == before
    plan = pk.BasePruner(model, x).plan()
    assert states() == before
    assert {cut.group for cut in plan.cuts} == {"a"}  # the replays took the path that was recorded
    assert list(graph.analysis.groups) == ["a"]


def test_train_mode_draws_for_itself() -> None:
    torch.manual_seed(1234)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    before = states()
    pk.prune(model, torch.zeros(2, 4))
    assert states() == before


def test_a_program_that_seeds_the_generator_is_pruned() -> None:
    class Seeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.manual_seed(7)
            return self.b(self.a(x + torch.randn(x.shape)))  # type: ignore[no-any-return]

    torch.manual_seed(1234)
    model = Seeds()
    before = states()
    assert pk.prune(model, torch.zeros(2, 4)).report.pruned == {"a": (16, 8)}
    assert torch.initial_seed() == 1234
    assert states() == before


def _in_place(weight: torch.Tensor) -> None:
    weight.mul_(2.0)


def _past_autograd(weight: torch.Tensor) -> None:
    weight.data.mul_(2.0)


def _through_a_view(weight: torch.Tensor) -> None:
    weight[:2].flatten().add_(1.0)


def _of_a_list(weight: torch.Tensor) -> None:
    torch._foreach_mul_([weight], 2.0)


def _as_an_output(weight: torch.Tensor) -> None:
    torch.mul(weight, 2.0, out=weight)


def _whatever_it_raises(weight: torch.Tensor) -> None:
    with contextlib.suppress(Exception):
        weight.mul_(2.0)


class Writes(nn.Module):
    """Writes to a weight, in one mode or in both, in a program that depends on values.

    Args:
        write: How.
        always: Whether in eval mode as well.
    """

    def __init__(self, write: Callable[[torch.Tensor], None], *, always: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.write, self.always = write, always

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training or self.always:
            with torch.no_grad():
                self.write(self.first.weight)
        hidden = self.first(x)
        if hidden.sum().item() > 1e9:
            hidden = hidden * 2
        return self.last(hidden.relu())


@pytest.mark.slow
@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize(
    "write", [_in_place, _past_autograd, _through_a_view, _of_a_list, _as_an_output, _whatever_it_raises]
)
def test_parameters_that_a_forward_writes_to_are_the_recordings_own(
    write: Callable[[torch.Tensor], None], always: bool
) -> None:
    torch.manual_seed(0)
    model, x = Writes(write, always=always).eval(), torch.randn(2, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    original = copy.deepcopy(model)
    if write is _of_a_list:  # which has no rule
        with pytest.raises(pk.NothingToPruneError):
            pk.prune(model, x)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        return
    result = pk.prune(model, x)
    assert "depends on values" in str(result.report)
    kept = next(result.plan.positions(cut)[0] for cut in result.plan.parameters if cut.parameter == "first.weight")
    assert len(kept) == (5 if write is _through_a_view else 4)  # the two rows that it says stay
    assert torch.equal(model.first.weight, before["first.weight"][kept])
    assert torch.equal(model.last.weight, before["last.weight"][:, kept])
    assert pk.check_exact(original, model, result.plan, x).exact
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())


class Aliased(nn.Module):
    """Writes to a weight by another name, in train mode or in both modes."""

    def __init__(self, way: str, *, always: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        alias = self.first.weight.data
        self.way, self.always = way, always
        self.alias = alias if way == "attribute" else None
        self.shrink: Any = self.first.weight.data.mul_ if way == "method" else lambda factor: alias.mul_(factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training or self.always:
            if self.way == "array":
                array = self.first.weight.detach().numpy()
                array *= 0.5
            elif self.alias is not None:
                self.alias.mul_(0.5)
            else:
                self.shrink(0.5)
        y: torch.Tensor = self.last(self.first(x).relu())
        return y


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("way", ["attribute", "method", "closure", "array"])
def test_no_name_of_a_weight_lets_a_recording_write_to_it(way: str, always: bool) -> None:
    torch.manual_seed(0)
    model, x = Aliased(way, always=always).eval(), torch.randn(2, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with contextlib.suppress(pk.RecordingError):
        pk.DependencyGraph().build_dependency(model, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_parameters_in_one_memory_are_told() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 4)), torch.randn(2, 4)
    with torch.no_grad():
        model[2].weight.data = model[0].weight.data.view(4, 8)  # the same memory in another shape is a view
        model[2].bias.data = torch.zeros(4)
    assert not any("one memory" in note for note in pk.DependencyGraph().build_dependency(model, x).report().notes)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    model[1].weight.data = model[0].weight.data
    original, x = copy.deepcopy(model), torch.randn(2, 8)
    result = pk.prune(model, x)
    (note,) = (note for note in result.report.notes if "one memory" in note)
    assert note.startswith("0.weight and 1.weight are several tensors in one memory")
    assert model[0].weight.data_ptr() != model[1].weight.data_ptr()
    assert pk.check_exact(original, model, result.plan, x).exact


class Counter(nn.Module):
    """Writes to a buffer, and reads from it what it does: a queue's place, a cache's length, a warm-up."""

    def __init__(self, write: Callable[[torch.Tensor, int], object]) -> None:
        super().__init__()
        self.first, self.last, self.write = nn.Linear(4, 8), nn.Linear(8, 3), write
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))
        self.register_buffer("queue", torch.zeros(12, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu()
        start = int(self.place)
        self.queue[start : start + len(h)] = h
        self.write(self.place, start + len(h))
        y: torch.Tensor = self.last(h + self.queue[: start + len(h)].mean(0))
        return y


def _put(tensor: torch.Tensor, value: int) -> None:
    tensor[0] = value


@pytest.mark.parametrize("write", [torch.Tensor.fill_, _put, lambda t, v: t.copy_(torch.tensor([v]))])
def test_buffers_are_as_they_were_when_the_next_run_begins(write: Callable[[torch.Tensor, int], object]) -> None:
    model, x = Counter(write).eval(), torch.randn(2, 4)
    original = copy.deepcopy(model)
    result = pk.prune(model, x, verify="always")
    assert (model.first.out_features, model.queue.shape, int(model.place)) == (4, (12, 4), 0)
    assert result.verification.check is not None
    assert pk.check_exact(original, model, result.plan, x).exact
    assert int(model.place) == int(original.place) == 0


class Profiled(nn.Module):
    """Names what it runs for the profiler, and steps an optimizer that has nothing to do."""

    def __init__(self, *, steps: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.optimizers = [torch.optim.SGD(self.parameters(), 0.1)] if steps else []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.profiler.record_function("all"):
            for optimizer in self.optimizers:
                optimizer.step()
            return torch.add(self.last(self.first(x).relu()), 0)


@pytest.mark.parametrize("steps", [False, True])
def test_ranges_of_the_profiler_are_no_operations(steps: bool) -> None:
    model, x = Profiled(steps=steps).eval(), torch.randn(2, 4)
    original = copy.deepcopy(model)
    result = pk.prune(model, x, verify="always")
    assert model.first.out_features == 4
    assert not result.report.not_understood
    assert result.verification.check is not None
    with torch.profiler.profile() as profile:
        pk.check_exact(original, model, result.plan, x)
    assert "all" in {event.key for event in profile.key_averages()}


@pytest.mark.slow
def test_dlpack_of_weights_without_data_is_recorded_on_real_ones() -> None:
    class Exported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.from_dlpack(self.first.weight.detach()).mul_(0.5)
            y: torch.Tensor = self.last(self.middle(self.first(x).relu()).relu())
            return y

    model, x = Exported().eval(), torch.randn(2, 4)
    before = model.first.weight.clone()
    result = pk.prune(model, x)
    assert torch.equal(model.first.weight, before)
    assert result.report.pinned["first.weight[0]"].endswith("its values leave PyTorch by __dlpack__")
    assert model.middle.out_features == 4


def test_tensors_that_are_plain_attributes_stay_as_they_were() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
            self.runs = torch.zeros(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.runs.add_(1)
            y: torch.Tensor = self.last(self.first(x).relu())
            return y

    model = Counts()
    pk.prune(model, torch.randn(2, 4))
    assert torch.equal(model.runs, torch.zeros(3))
