"""Which modules ask for their mode decides whether one recording stands for both."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models

import prunekit_core as pk


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


def test_a_mode_that_is_set_during_the_forward_counts_as_asked() -> None:
    class Sets(Asks):
        def forward(self, x: torch.Tensor) -> object:
            self.last.eval()
            return super().forward(x)

    assert trainings(Sets(lambda module: False), torch.randn(2, 4)) == [False, True]


def test_layers_that_tie_the_same_axes_in_both_modes_may_ask() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    assert trainings(model, torch.randn(2, 4)) == [False]


def test_a_subclass_with_a_forward_of_its_own_is_another_program() -> None:
    model = nn.Sequential(nn.Linear(4, 8), OwnNorm(8), nn.Linear(8, 3))
    assert trainings(model, torch.randn(2, 4)) == [False, True]


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
