"""What differs between training and evaluation: small models, each with the groups that must be found in it."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torchvision.ops import StochasticDepth, drop_block2d

import prunekit as pk
from prunekit_plugins.importance import RandomImportance

PICTURE = (2, 3, 8, 8)
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # nothing has, in a recording


class Auxiliary(nn.Module):
    """A head that exists in training only; its inner channels are found there, its classes are an output there."""

    inputs: ClassVar = torch.randn(PICTURE)
    groups: ClassVar = {"trunk": 8, "aux.0": 6}

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)
        self.aux = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 1))

    def forward(self, x: torch.Tensor) -> Any:
        x = self.trunk(x).relu()
        return (self.out(x), self.aux(x)) if self.training else self.out(x)


class Distilled(nn.Module):
    """Evaluation adds what training keeps apart (LeViT, DeiT): two heads with classes for outputs."""

    inputs: ClassVar = torch.randn(2, 6)
    groups: ClassVar = {"trunk": 8}

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head, self.other = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.trunk(x).relu()
        a, b = self.head(x), self.other(x)
        return (a, b) if self.training else (a + b) / 2


class TiedInTraining(nn.Module):
    """Two widths that meet in training only have to shrink together all the same."""

    inputs: ClassVar = torch.randn(2, 6)
    groups: ClassVar = {"a": 8}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out, self.other = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        a, b = self.a(x).tanh(), self.b(x).tanh()
        loss = (a - b).square().mean() if self.training else None
        return self.out(a), self.other(b), loss


class Skipped(nn.Module):
    """Stochastic depth by rows and by batch; the residual stream is one group."""

    inputs: ClassVar = torch.randn(PICTURE)
    groups: ClassVar = {"stem#stream": 8, "blocks.0.0": 6, "blocks.1.0": 6}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 1), StochasticDepth(0.5, mode))
            for mode in ("row", "batch")
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


class Dropped(nn.Module):
    """Dropout of elements, channels and blocks, alpha dropout, and noise that is as wide as the channels."""

    inputs: ClassVar = torch.randn(PICTURE)
    groups: ClassVar = {"first": 8, "second#stream": 6}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 5)
        self.element, self.channel, self.alpha = nn.Dropout(0.2), nn.Dropout2d(0.2), nn.AlphaDropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.channel(self.first(x)).relu()
        x = drop_block2d(x, 0.1, 3, training=self.training)
        x = self.element(self.second(x))
        x = x + torch.randn_like(x) * 0.1 if self.training else x
        return self.out(self.alpha(x.mean((2, 3))))


class Recomputed(nn.Module):
    """Checkpoints of both kinds and of a sequence, in training only."""

    inputs: ClassVar = torch.randn(2, 6)
    groups: ClassVar = {"stem": 8, "first": 10, "second": 12, "steps.0": 7, "steps.2": 9}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.out = (
            nn.Linear(6, 8),
            nn.Linear(8, 10),
            nn.Linear(10, 12),
            nn.Linear(9, 3),
        )
        self.steps = nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 9), nn.ReLU())

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x)
        if not self.training:
            return self.out(self.steps(self.second(self.first(x))))
        x = checkpoint(self.first, x, use_reentrant=True)
        x = checkpoint(self.second, x, use_reentrant=False)
        return self.out(checkpoint_sequential(self.steps, 2, x, use_reentrant=False))


MODELS = (Auxiliary, Distilled, TiedInTraining, Skipped, Dropped, Recomputed)


@pytest.fixture(params=MODELS, ids=lambda kind: kind.__name__)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param().eval()


def tensors(output: Any) -> list[torch.Tensor]:
    return [tensor for tensor in (output if isinstance(output, tuple) else (output,)) if tensor is not None]


def test_the_expected_groups_are_found(model: nn.Module) -> None:
    graph = pk.DependencyGraph().build_dependency(model, model.inputs)
    assert {name: group.size for name, group in graph.analysis.groups.items()} == model.groups
    assert not graph.report().not_understood
    assert not any("not recorded" in note for note in graph.report().notes)


def test_both_modes_run_after_the_cut_and_evaluation_is_exact(model: nn.Module) -> None:
    original = copy.deepcopy(model)
    shapes = {mode: [t.shape for t in tensors(original.train(mode)(model.inputs))] for mode in (True, False)}
    result = pk.prune(model, model.inputs, importance=RandomImportance())
    assert set(result.report.pruned) == set(model.groups)
    check = pk.check_exact(original, model, result.plan, model.inputs)
    assert check.error < 1e-5, str(check)
    assert [t.shape for t in tensors(model.eval()(model.inputs))] == shapes[False]
    outputs = tensors(model.train()(model.inputs))
    assert [t.shape for t in outputs] == shapes[True]
    sum(t.sum() for t in outputs).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("kind", [Auxiliary, Distilled, Recomputed])
def test_training_is_exact_where_nothing_is_random(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind()
    original = copy.deepcopy(model)
    plan = pk.prune(model, kind.inputs, importance=RandomImportance()).plan
    check = pk.check_exact(original, model, plan, kind.inputs, training=True)
    assert check.error < 1e-5, str(check)


def test_in_evaluation_alone_widths_that_meet_in_training_are_free() -> None:
    graph = pk.DependencyGraph().build_dependency(TiedInTraining(), TiedInTraining.inputs, modes=(False,))
    assert {name: group.size for name, group in graph.analysis.groups.items()} == {"a": 8, "b": 8}


def test_a_head_of_training_is_untouched_when_only_evaluation_is_recorded() -> None:
    graph = pk.DependencyGraph().build_dependency(Auxiliary(), Auxiliary.inputs, modes=(False,))
    assert "aux.0.weight" in graph.report().untouched
    assert "trunk" not in graph.analysis.groups or all(
        member.parameter != "aux.0.weight" for member in graph.analysis.groups["trunk"].members
    )
