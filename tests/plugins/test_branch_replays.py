"""Scoring branches by outputs runs a model once: what comes behind a branch is run again, or the model where it isn't
sure to be the same program."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import prunekit as pk
from prunekit.plugin import BranchNeed, SeenBranch
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.calibration.branch_runs import BranchRuns
from tests.core.residual import switched_off
from tests.models import small_llama


class Kept:
    """Keeps the outputs that it is shown."""

    needs = BranchNeed.OUTPUTS

    def __init__(self) -> None:
        self.outputs: list[dict[str, Tensor]] = []
        self.expected: list[dict[str, Tensor]] = []

    def add(self, seen: SeenBranch) -> None:
        self.outputs.append({name: tensor.clone() for name, tensor in seen.outputs.items()})
        self.expected.append({name: tensor.clone() for name, tensor in seen.expected.items()})

    def score(self) -> float | None:
        return None


RUNS: list[str] = []
"""Notes of forwards that ran."""


class Counted(nn.Module):
    """Notes that its forward ran."""

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(type(self).__name__)
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def shown(model: nn.Module, batches: list[Any], *off: str, example: Any = None) -> tuple[dict[str, Kept], int]:
    """What is shown of each branch, and how often the model ran for it."""
    graph = pk.Graph.of(model, batches[0] if example is None else example)
    names = [branch.name for branch in graph.branches() if branch.removable and branch.name not in off]
    found, runs = {name: Kept() for name in names}, BranchRuns(graph, Batches.of(batches))
    RUNS.clear()
    runs.gather(found, off)
    return found, len(RUNS)


class Block(nn.Module):
    """``x + f(x)``; a part of the sum is overwritten in place, through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.down(self.up(x).relu_())
        added += x
        added[:, :2].mul_(0.5)
        return added


class Blocks(Counted):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(4)), nn.Linear(6, 3)

    def run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Undecided(Blocks):
    """Goes another way where a mean is below zero."""

    def run(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 1 and x.mean() < 0:
                x = x * -2
        return self.head(x)


class Chosen(Blocks):
    """How many rows are doubled depends on values."""

    def run(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 1:
                rows = (x[:, 0] > 0).nonzero()[:, 0]
                x = x.index_add(0, rows, x.new_ones(rows.shape[0], 6))
        return self.head(x)


class Noisy(Blocks):
    def run(self, x: Tensor) -> Tensor:
        return super().run(x + torch.rand_like(x))


class Counting(Blocks):
    """Counts its runs in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def run(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().run(x) * self.runs


NAMES = [f"blocks.{number}.up" for number in range(4)]


def made(kind: type[nn.Module]) -> tuple[Any, list[Tensor]]:
    torch.manual_seed(1)
    return kind().eval(), [torch.randn(50, 6), torch.randn(70, 6)]


def down(name: str) -> str:
    return name.replace("up", "down")


@pytest.mark.parametrize("off", [(), (NAMES[2],), (NAMES[0], NAMES[3])], ids=len)
def test_outputs_are_those_of_the_model_without_the_branch(off: tuple[str, ...]) -> None:
    model, batches = made(Blocks)
    found, runs = shown(model, batches, *off)
    assert set(found) == set(NAMES) - set(off)
    assert runs == len(batches)
    for name, kept in found.items():
        for batch, outputs, expected in zip(batches, kept.outputs, kept.expected, strict=True):
            small = switched_off(model, *map(down, (*off, name)))
            assert torch.equal(outputs[""], small(batch))
            assert torch.equal(expected[""], model(batch))


@pytest.mark.parametrize(("kind", "most"), [(Undecided, 3), (Chosen, 3), (Counting, 5)], ids=lambda value: str(value))
def test_where_it_may_be_another_program_the_model_runs(kind: type[nn.Module], most: int) -> None:
    model, batches = made(kind)
    found, runs = shown(model, batches[:1])
    assert 1 < runs <= most
    for name, kept in found.items():
        small = switched_off(model, down(name))
        if isinstance(model, Counting):
            small.get_buffer("runs").zero_()
        assert torch.equal(kept.outputs[0][""], small(batches[0]))
    assert set(found) <= set(NAMES)
    assert {NAMES[2], NAMES[3]} <= set(found)


def test_random_numbers_are_those_of_the_whole_model() -> None:
    model, batches = made(Noisy)
    found, runs = shown(model, batches[:1])
    assert runs == 5
    with torch.no_grad():
        for name in NAMES:
            model.get_submodule(down(name)).weight.zero_()
            model.get_submodule(down(name)).bias.zero_()
    again, _ = shown(model, batches[:1])
    assert all(torch.equal(again[name].outputs[0][""], again[name].expected[0][""]) for name in again)
    assert not torch.equal(found[NAMES[0]].outputs[0][""], found[NAMES[0]].expected[0][""])


def test_networks_with_operations_in_place() -> None:
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18(num_classes=4).eval(), torch.randn(2, 3, 32, 32)
    found, _ = shown(model, [x])
    assert len(found) == 11
    for name in ("layer1.1.conv1", "layer2.0.downsample", "layer4.1.conv1"):
        path = name.replace("conv1", "bn2")
        assert torch.equal(found[name].outputs[0][""], switched_off(model, path)(x))


def test_language_models_with_masks_and_caches() -> None:
    model = small_llama()
    batch = {"input_ids": torch.randint(64, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.int64)}
    batch["attention_mask"][1, 6:] = 0
    found, _ = shown(model, [batch], "model.layers.1.mlp")
    counted = batch["attention_mask"].bool()
    for name, kept in found.items():
        with torch.no_grad():
            logits = without(model, name, "model.layers.1.mlp")(**batch).logits
        assert torch.equal(kept.outputs[0]["logits"], logits[counted])


def without(model: nn.Module, *names: str) -> nn.Module:
    """A copy in which attentions and feed-forwards return zeros."""
    copied = copy.deepcopy(model)
    for name in names:
        last = "o_proj" if name.endswith("self_attn") else "down_proj"
        nn.init.zeros_(copied.get_submodule(f"{name}.{last}").weight)  # type: ignore[arg-type]
    return copied


def test_modules_that_are_called_twice_are_off_everywhere() -> None:
    class Twice(Blocks):
        def run(self, x: Tensor) -> Tensor:
            for block in (*self.blocks, self.blocks[1]):
                x = block(x)
            return self.head(x)

    model, batches = made(Twice)
    found, runs = shown(model, batches)
    assert runs == 2
    assert torch.equal(found[NAMES[1]].outputs[0][""], switched_off(model, down(NAMES[1]))(batches[0]))
