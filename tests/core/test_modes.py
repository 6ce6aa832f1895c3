"""Which modules ask for their mode decides whether one recording stands for both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

import prunekit as pk
from prunekit_core.record import programs
from prunekit_core.record.recorder import try_to_record


class Asks(nn.Module):
    """Has a branch of its own in train mode, found in the way that ``ask`` looks."""

    def __init__(self, ask: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.ask = ask
        self.first, self.last, self.aside = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> object:
        x = torch.relu(self.first(x))
        return (self.last(x), self.aside(x)) if self.ask(self) else self.last(x)


class OwnNorm(nn.BatchNorm1d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if self.training else x * self.weight


def trainings(model: nn.Module, inputs: torch.Tensor) -> list[bool | None]:
    graph = pk.DependencyGraph().build_dependency(model, inputs)
    return [recording.training for recording in graph.analysis.recordings]


@pytest.mark.parametrize(
    "ask",
    [
        lambda module: module.training,
        lambda module: module.last.training,
        lambda module: getattr(module, "training", False),
        lambda module: hasattr(module, "training") and module.training,
    ],
    ids=["own", "child's", "getattr", "hasattr"],
)
def test_a_module_that_asks_is_recorded_in_both_modes(ask: Callable[[nn.Module], bool]) -> None:
    model = Asks(ask)
    graph = pk.DependencyGraph().build_dependency(model, torch.randn(2, 4))
    assert [recording.training for recording in graph.analysis.recordings] == [False, True]
    members = {member.parameter for group in graph.groups() for member in group.members}
    assert "aside.weight" in members
    assert model.training
    assert vars(model)["training"] is True


def test_programs_that_nobody_asks_about_are_recorded_once() -> None:
    assert trainings(Asks(lambda module: False), torch.randn(2, 4)) == [False]


def test_a_mode_that_is_set_during_the_forward_counts_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sets(Asks):
        def forward(self, x: torch.Tensor) -> object:
            self.last.eval()
            return super().forward(x)

    modes = []

    def noted(*args: Any, **options: Any) -> Any:
        modes.append(options["training"])
        return try_to_record(*args, **options)

    monkeypatch.setattr(programs, "try_to_record", noted)
    assert trainings(Sets(lambda module: False), torch.randn(2, 4)) == [False]  # it was the same program
    assert modes == [False, True]


class Pair(nn.Module):
    """Does in train mode what it is told; its layers are of the same shapes."""

    def __init__(self, act: Callable[[Any, torch.Tensor, bool], object]) -> None:
        super().__init__()
        self.act = act
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> object:
        return self.act(self, self.drop(self.norm(self.a(x))), self.training)


SAME: dict[str, Callable[[Any, torch.Tensor, bool], object]] = {
    "nothing": lambda m, x, training: m.b(x),
    "another way to the same": lambda m, x, training: torch.relu(m.b(x)) if training else m.b(x).relu(),
}
OTHER: dict[str, Callable[[Any, torch.Tensor, bool], object]] = {
    "a switch of its own": lambda m, x, training: nn.functional.dropout(m.b(x), 0.3, training),
    "another number": lambda m, x, training: m.b(x) * (0.5 if training else 2.0),
    "another type of number": lambda m, x, training: m.b(x) * (2 if training else 2.0),
    "another weight": lambda m, x, training: (m.a if training else m.b)(x),
    "another order of operands": lambda m, x, training: x - m.b(x) if training else m.b(x) - x,
    "another order of outputs": lambda m, x, training: (x, m.b(x)) if training else (m.b(x), x),
    "names of outputs": lambda m, x, training: {"x" if training else "y": m.b(x)},
    "more": lambda m, x, training: m.b(x).relu() if training else m.b(x),
    "less": lambda m, x, training: m.b(x) if training else m.b(x).relu(),
    "another layer in between": lambda m, x, training: m.b(m.drop(x) if training else x),
    "another shape": lambda m, x, training: m.b(x).view(*((4, 2) if training else (2, 4))).sum(),
    "the same twice": lambda m, x, training: m.b(x) + (x if training else m.b(x)),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_program_in_both_modes_counts_once_though_a_module_asks(name: str) -> None:
    assert trainings(Pair(SAME[name]), torch.randn(2, 4)) == [False]


@pytest.mark.parametrize("name", OTHER)
def test_another_program_in_train_mode_counts(name: str) -> None:
    assert trainings(Pair(OTHER[name]), torch.randn(2, 4)) == [False, True]


def test_of_two_examples_each_has_its_own_programs() -> None:
    model = Pair(lambda m, x, training: m.b(x).relu() if training and len(x) > 2 else m.b(x))
    graph = pk.DependencyGraph().build_dependency(model, torch.randn(2, 4), more_inputs=[torch.randn(3, 4)])
    assert [recording.training for recording in graph.analysis.recordings] == [False, False, True]


def test_layers_that_tie_the_same_axes_in_both_modes_may_ask() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    assert trainings(model, torch.randn(2, 4)) == [False]


def test_a_subclass_with_a_forward_of_its_own_is_another_program() -> None:
    model = nn.Sequential(nn.Linear(4, 8), OwnNorm(8), nn.Linear(8, 3))
    assert trainings(model, torch.randn(2, 4)) == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vgg11_bn", "mobilenet_v3_small"])
def test_what_is_skipped_would_have_said_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def groups() -> tuple[list[object], int]:
        model = models.get_model(name, num_classes=4)
        graph = pk.DependencyGraph().build_dependency(model, torch.randn(2, 3, 64, 64))
        return [(group.name, group.size, group.kind, group.mixes, group.members) for group in graph.groups()], len(
            graph.analysis.recordings
        )

    skipped, few = groups()
    monkeypatch.setattr(pk.Registry, "same_in_training", lambda registry, module: False)
    recorded, many = groups()
    assert (few, many) == (1, 2)
    assert skipped == recorded


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_what_counts_once_would_have_said_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def groups() -> tuple[list[object], int]:
        model = models.get_model(name, num_classes=4, aux_logits=False, init_weights=False)
        graph = pk.DependencyGraph().build_dependency(model, torch.randn(2, 3, 96, 96))
        return [(group.name, group.size, group.kind, group.mixes, group.members) for group in graph.groups()], len(
            graph.analysis.recordings
        )

    once, few = groups()
    monkeypatch.setattr(programs, "same_program", lambda *args: False)
    twice, many = groups()
    assert (few, many) == (1, 2)
    assert once == twice


class Drawing(nn.Module):
    """In train mode, a drawn number decides whether the output of one layer is added to that of another.

    Args:
        likely: How likely that is.
        broken: Whether train mode can't run at all.
    """

    def __init__(self, likely: float = 1.0, *, broken: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)
        self.likely, self.broken = likely, broken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        if self.training and torch.rand(()).item() < self.likely:
            if self.broken:
                raise ValueError("no labels")
            hidden = hidden + self.second(x)
        return self.last(hidden.relu())


def test_a_train_mode_that_needs_values_is_recorded_on_real_tensors() -> None:
    model = Drawing()
    result = pk.prune(model, torch.randn(2, 4))
    assert result.report.pruned == {"first#stream": (8, 4)}
    assert model.second.out_features == 4
    assert [note for note in result.report.notes if "mode" in note] == [
        "train mode depends on values: recorded on real tensors instead of fake ones"
    ]
    assert model.train()(torch.randn(2, 4)).shape == (2, 4)


def test_a_train_mode_that_runs_on_nothing_keeps_its_widths() -> None:
    model = Drawing(broken=True)
    graph = pk.DependencyGraph().build_dependency(model, torch.randn(2, 4))
    assert (
        any(note.startswith("train mode was not recorded: DataDependentOutput") for note in graph.notes_of_analysis)
        if hasattr(graph, "notes_of_analysis")
        else True
    )
    with pytest.raises(pk.NothingToPruneError):
        pk.prune(model, torch.randn(2, 4))
    assert graph.analysis.shadow.fake_mode is not None
