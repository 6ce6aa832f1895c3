"""Merging of experts that are modules of a list, against averages that are made with numpy: neurons in every order."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.compensation import MergeExperts
from tests.core.test_expert_lists import EXPERTS, WIDTH, Expert, InTurn, Named, Routed, made
from tests.core.test_expert_merging import data
from tests.core.test_experts import TOKENS

Array = npt.NDArray[np.float64]
GONE, HIDDEN = (0, 2, 3), 4
STAY = [expert for expert in range(EXPERTS) if expert not in GONE]


class Scaled(Expert):
    """With a scale of its own for each of its features, and one that is a buffer."""

    def __init__(self) -> None:
        super().__init__(HIDDEN)
        self.scale = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.register_buffer("gain", torch.rand(1) + 0.5)
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale * self.gain


class Few(Routed):
    """So few neurons that all orders can be tried."""

    def make(self) -> None:
        self.experts = nn.ModuleList(Expert(HIDDEN) for _ in range(EXPERTS))


class FewNamed(Named):
    def make(self) -> None:
        self.experts = nn.ModuleDict({f"expert_{number}": Expert(HIDDEN) for number in range(EXPERTS)})  # type: ignore[assignment]


class FewInTurn(InTurn):
    def make(self) -> None:
        self.experts = nn.ModuleList(Expert(HIDDEN) for _ in range(EXPERTS))


class FewScaled(Routed):
    def make(self) -> None:
        self.experts = nn.ModuleList(Scaled() for _ in range(EXPERTS))


KINDS = (Few, FewNamed, FewInTurn, FewScaled)


def of(expert: nn.Module) -> dict[str, Array]:
    tensors = {**dict(expert.named_parameters()), **dict(expert.named_buffers())}
    return {name: tensor.detach().numpy().astype(np.float64) for name, tensor in tensors.items()}


def counted(model: Routed, batches: Sequence[torch.Tensor]) -> tuple[Array, Array]:
    """How many tokens each expert has, and how many of each other one's it takes over, counted one by one."""
    own, taken = np.zeros(EXPERTS), np.zeros((EXPERTS, EXPERTS))
    for batch in batches:
        with torch.no_grad():
            scores = model.router(model.stem(batch)).numpy()
        for row in scores:
            before = {*np.argsort(-row)[: model.top_k].tolist()}
            after = {*sorted(STAY, key=lambda expert, row=row: -row[expert])[: model.top_k]}  # type: ignore[misc]
            for expert in before:
                own[expert] += 1
                for other in (after - before) if expert in GONE else ():
                    taken[expert, other] += 1 / len(after - before)
    return own, taken


def aligned(expert: dict[str, Array], to: dict[str, Array]) -> dict[str, Array]:
    """Puts the neurons in the order with the least squared distance of all weights, of all orders that there are."""

    def ordered(order: Sequence[int]) -> dict[str, Array]:
        moved = dict(expert)
        moved["up.weight"], moved["up.bias"] = expert["up.weight"][order], expert["up.bias"][order]
        moved["down.weight"] = expert["down.weight"][:, order]
        return moved

    orders = (ordered(list(order)) for order in itertools.permutations(range(HIDDEN)))
    return min(orders, key=lambda one: sum(float(np.square(one[name] - to[name]).sum()) for name in to))


def averaged(model: Routed, batches: Sequence[torch.Tensor]) -> list[dict[str, Array]]:
    own, taken = counted(model, batches)
    experts, found = [of(expert) for expert in model.experts.children()], []
    for stay in STAY:
        parts = [(own[stay], experts[stay])]
        parts += [(taken[gone, stay], aligned(experts[gone], experts[stay])) for gone in GONE]
        whole = sum(share for share, _ in parts)
        found.append({name: sum(share / whole * one[name] for share, one in parts) for name in experts[stay]})
    return found


def merged(kind: Callable[[], Routed], compensator: Any = "merge_experts") -> tuple[Routed, Routed, pk.Compensation]:
    original = made(kind)
    model = copy.deepcopy(original)
    plan = pk.Graph.of(model, TOKENS).remove({"router#experts": GONE})
    return original, model, pk.compensate(model, plan, data(), original=original, methods=[compensator])


@pytest.mark.parametrize("kind", KINDS)
def test_listed_experts_are_averages_by_the_tokens_that_they_take_over(kind: type[Routed]) -> None:
    original, model, result = merged(kind)
    (repair,) = result.layers
    detail = repair.detail.rpartition(", ")[2]
    part = float(detail.partition("%")[0]) / 100 if "%" in detail else 1.0
    assert (repair.consumer, repair.method) == ("router#experts", "merge_experts")
    whole = [of(expert) for expert in original.experts.children()]
    wanted = averaged(original, data()[:4])  # the last batch is held out
    for stay, expert, mean in zip(STAY, model.experts.children(), wanted, strict=True):
        for name, values in of(expert).items():
            if name == "steps":
                assert values == 3
                continue
            goal = (1 - part) * whole[stay][name] + part * mean[name]
            assert values.shape == goal.shape
            assert np.allclose(values, goal, atol=1e-6), name
            assert name == "gain" or not np.allclose(values, whole[stay][name], atol=1e-4)
    assert torch.equal(model.router.weight, original.router.weight[STAY])
    before, after = result.output_error
    assert after < before


def test_listed_experts_are_merged_into_the_most_likely_one_alone() -> None:
    _, everywhere, _ = merged(Few)
    original, model, result = merged(Few, MergeExperts(into=1))
    assert len(result.layers) == 1
    _, taken = counted(original, data()[:4])
    into = {STAY[int(taken[gone][STAY].argmax())] for gone in GONE if taken[gone].any()}
    changed = {
        stay
        for stay, expert in zip(STAY, model.experts.children(), strict=True)
        if not torch.equal(expert.up.weight, original.experts[stay].up.weight)  # type: ignore[union-attr]
    }
    assert changed == into
    assert not torch.equal(model.experts[1].up.weight, everywhere.experts[1].up.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prune_merges_listed_experts_before_it_fits_them(kind: type[Routed]) -> None:
    model, plain = made(kind), made(kind)
    result = pk.prune(model, TOKENS, ratio=0.25, expert_pruning_ratio=0.5, calibration=data())
    assert result.compensation is not None
    methods = [layer.method for layer in result.compensation.layers]
    assert methods[0] == "merge_experts"
    assert {*methods[1:]} == {"least_squares"}
    result.plan.apply(plain)
    assert result.compensation.output_error[1] < result.compensation.output_error[0]
    names = {
        name for name, parameter in model.named_parameters() if not torch.equal(parameter, plain.get_parameter(name))
    }
    assert any(name.startswith("experts") for name in names)
