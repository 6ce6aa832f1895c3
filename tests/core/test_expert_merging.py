"""Merging of experts, against averages that are made here: tokens counted one by one, neurons in every order."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.plugin import ArgumentError
from prunekit_plugins.compensation import MergeExperts
from tests.core import test_experts
from tests.core.test_experts import EXPERTS, KINDS, TOKENS, WIDTH, Grouped, LookedUp, Mixture, Sorted, Straight, made

GONE = (0, 2, 3)
STAY = [expert for expert in range(EXPERTS) if expert not in GONE]
HIDDEN = 4


@pytest.fixture(autouse=True)
def few_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few that all orders can be tried."""
    monkeypatch.setattr(test_experts, "HIDDEN", HIDDEN)


def data(batches: int = 5, tokens: int = 40) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(tokens, WIDTH, generator=generator) for _ in range(batches)]


def removed(model: nn.Module, gone: Sequence[int] = GONE) -> pk.Plan:
    """Takes experts out of a model by their numbers."""
    graph = pk.Graph.of(model, TOKENS)
    return graph.remove({test_experts.experts_of(graph): gone})


def merged(original: Mixture, compensator: Any = "merge_experts", **options: Any) -> tuple[Mixture, pk.Compensation]:
    model = copy.deepcopy(original)
    plan = removed(model)
    batches = options.pop("batches", None) or data()
    return model, pk.compensate(model, plan, batches, original=original, methods=[compensator])


def chosen(model: Mixture, x: torch.Tensor, gone: Sequence[int] = ()) -> torch.Tensor:
    """The experts that tokens are sent to if some can't be: a bool for each token and expert."""
    with torch.no_grad():
        logits = model.router(model.stem(x))
        logits[:, list(gone)] = -torch.inf
        return torch.zeros_like(logits).scatter(1, logits.topk(model.top_k).indices, 1.0).bool()


def counted(model: Mixture, batches: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """How many tokens each expert has, and how many of each other one's it takes over, counted one by one."""
    own, taken = torch.zeros(EXPERTS), torch.zeros(EXPERTS, EXPERTS)
    for batch in batches:
        for before, after in zip(chosen(model, batch), chosen(model, batch, GONE), strict=True):
            new = [expert for expert in range(EXPERTS) if after[expert] and not before[expert]]
            for expert in range(EXPERTS):
                own[expert] += before[expert]
                for other in new if before[expert] and expert in GONE else ():
                    taken[expert, other] += 1 / len(new)
    return own, taken


def averaged(model: Mixture, batches: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The stacks of the experts that stay with the others merged into them."""
    own, taken = counted(model, batches)
    weights = {name: getattr(model, name).detach().double() for name in ("up", "down", "scale")}
    found: dict[str, list[torch.Tensor]] = {name: [] for name in weights}
    for stay in STAY:
        total = {name: own[stay] * values[stay] for name, values in weights.items()}
        for gone in GONE:
            best = min(
                itertools.permutations(range(HIDDEN)),
                key=lambda order, gone=gone, stay=stay: float(  # type: ignore[misc]
                    (weights["up"][gone][:, order] - weights["up"][stay]).square().sum()
                    + (weights["down"][gone][list(order)] - weights["down"][stay]).square().sum()
                ),
            )
            share = taken[gone, stay]
            total["up"] = total["up"] + share * weights["up"][gone][:, best]
            total["down"] = total["down"] + share * weights["down"][gone][list(best)]
            total["scale"] = total["scale"] + share * weights["scale"][gone]
        for name, values in total.items():
            found[name].append(values / (own[stay] + taken[:, stay].sum()))
    return {name: torch.stack(values) for name, values in found.items()}


def fraction(result: pk.Compensation) -> float:
    """The part of the change that a report says was kept."""
    (repair,) = result.layers
    return float(repair.detail.rpartition(", ")[2].partition("%")[0]) / 100 if "%" in repair.detail else 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_averages_by_the_tokens_that_they_take_over(kind: type[Mixture]) -> None:
    original = made(kind)
    model, result = merged(original)
    part, expected = fraction(result), averaged(original, data()[:4])  # the last batch is held out
    for name, values in expected.items():
        cut = getattr(original, name).detach()[STAY]
        assert getattr(model, name).shape == cut.shape
        assert torch.allclose(getattr(model, name).detach(), torch.lerp(cut, values.float(), part), atol=1e-6), name
    assert torch.equal(model.router.weight, original.router.weight[STAY])


def test_the_report_has_the_held_out_error_of_the_outputs() -> None:
    original = made(LookedUp)
    model, result = merged(original)
    plain = copy.deepcopy(original)
    removed(plain)
    held = data()[4]
    with torch.no_grad():
        wanted = original(held)
        before, after = (float((one(held) - wanted).square().sum() / wanted.square().sum()) for one in (plain, model))
    (repair,) = result.layers
    assert (repair.consumer, repair.method) == ("router#experts", "merge_experts")
    assert (repair.before, repair.after) == pytest.approx((before, after), rel=1e-5)
    assert after < before
    assert repair.detail.startswith("held-out error of the model's outputs, 3 experts merged")


def twins(model: Mixture, gone: int, stay: int, order: Sequence[int]) -> None:
    """Makes an expert another one with its neurons in another order."""
    with torch.no_grad():
        model.up[gone], model.down[gone] = model.up[stay][:, list(order)], model.down[stay][list(order)]
        model.scale[gone] = model.scale[stay]


def test_twins_with_their_neurons_in_another_order_are_merged_to_what_they_were() -> None:
    original = made(LookedUp)
    generator = torch.Generator().manual_seed(1)
    for expert in range(1, EXPERTS):
        twins(original, expert, 0, torch.randperm(HIDDEN, generator=generator).tolist())
    model = copy.deepcopy(original)
    plan = removed(model)
    cut = {name: model.get_parameter(name).detach().clone() for name in ("up", "down")}
    pk.compensate(model, plan, data(), original=original, methods=["merge_experts"])
    for name, before in cut.items():
        assert torch.allclose(model.get_parameter(name).detach(), before, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(model(TOKENS), test_experts.without_experts(original, GONE), atol=1e-5)


def test_a_twin_that_is_sent_other_tokens_is_as_good_as_the_original() -> None:
    """Each token has one expert with weight one: what is left computes what the original does."""

    class One(LookedUp):
        def mix(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
            return super().mix(x, torch.ones_like(weights), chosen)

    torch.manual_seed(0)
    original = One(top_k=1).eval()
    twins(original, 3, 1, [2, 0, 3, 1])
    with torch.no_grad():
        original.router.weight[3], original.router.bias[3] = original.router.weight[1], original.router.bias[1] + 1e-5
    model = copy.deepcopy(original)
    plan = removed(model, [3])
    result = pk.compensate(model, plan, data(), original=original, methods=["merge_experts"])
    assert result.output_error[1] < 1e-10
    with torch.no_grad():
        assert torch.allclose(model(TOKENS), original(TOKENS), atol=1e-5)


def test_into_one_takes_only_the_one_that_takes_most_tokens() -> None:
    original = made(LookedUp)
    model, result = merged(original, MergeExperts(into=1))
    assert result.layers
    _, taken = counted(original, data()[:4])
    takers = {int(taken[expert].argmax()) for expert in GONE}
    changed = [not torch.equal(model.up[place], original.up[expert]) for place, expert in enumerate(STAY)]
    assert changed == [expert in takers for expert in STAY]
    assert not all(changed)


class Wrong(MergeExperts):
    """Merges to what nobody wants."""

    def merged(self, experts: Any, values: Any, tokens: Any) -> dict[str, torch.Tensor]:
        return {name: -9 * stack for name, stack in values.items()}


def test_what_would_make_it_worse_is_left_out() -> None:
    original = made(LookedUp)
    model = copy.deepcopy(original)
    plan = removed(model)
    cut = copy.deepcopy(model.state_dict())
    result = pk.compensate(model, plan, data(), original=original, methods=[Wrong()])
    assert result.layers == ()
    assert result.left["router#experts"].startswith("merge_experts would make it worse (held-out output error ")
    assert all(torch.equal(values, cut[name]) for name, values in model.state_dict().items())


def test_one_example_alone_says_nothing() -> None:
    original = made(LookedUp)
    model = copy.deepcopy(original)
    plan = removed(model)
    result = pk.compensate(model, plan, [TOKENS[:1]], original=original, methods=["merge_experts"])
    assert result.left == {
        "router#experts": "merge_experts: no example is left to hold out, and one alone says nothing about others"
    }


def test_experts_at_the_same_place_of_several_groups_are_merged_with_those_of_their_group() -> None:
    original = made(Grouped)
    model = copy.deepcopy(original)
    plan = removed(model, [1])
    result = pk.compensate(model, plan, data(), original=original, methods=[MergeExperts()])
    assert fraction(result) == 1
    names = ("up", "down")
    for group in range(3):  # experts 2 * group and 2 * group + 1
        own, other = ([getattr(original, name)[2 * group + place].detach() for name in names] for place in (0, 1))
        found = [getattr(model, name)[group].detach() for name in names]
        gaps = []
        for order in itertools.permutations(range(HIDDEN)):
            moved = [other[0][:, order], other[1][list(order)]]
            way = moved[0] - own[0]
            part = float((found[0] - own[0]).flatten() @ way.flatten() / way.square().sum())
            between = [torch.lerp(a, b, part) for a, b in zip(own, moved, strict=True)]
            gaps.append(max(float((a - b).abs().max()) for a, b in zip(found, between, strict=True)))
        assert min(gaps) < 1e-5


def test_experts_that_lie_beside_others_that_stay_are_left_with_the_reason() -> None:
    original = made(Straight)
    model = copy.deepcopy(original)
    plan = removed(model, [1])
    result = pk.compensate(model, plan, data(), original=original, methods=["merge_experts"])
    assert result.left == {"router#experts": "merge_experts: the weights of an expert don't lie together in up"}


@pytest.mark.parametrize("kind", KINDS)
def test_prune_merges_with_widths_cut_beside(kind: type[Mixture]) -> None:
    original = made(kind)
    model = copy.deepcopy(original)
    result = pk.prune(
        model,
        TOKENS,
        ratio=0.5,
        expert_pruning_ratio=0.5,
        calibration=data(),
        compensation=["merge_experts", "least_squares"],
    )
    assert result.compensation is not None
    hidden = HIDDEN if kind is Sorted else HIDDEN // 2  # its product takes multiples of four
    assert model.up.shape == (3, WIDTH // 2, hidden)
    assert model.down.shape == (3, hidden, WIDTH // 2)
    first, *_ = result.compensation.layers
    assert first.method == "merge_experts"
    before, after = result.compensation.output_error
    assert after < before


def test_a_model_without_experts_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    result = pk.prune(model, torch.randn(2, 4), 0.5, calibration=[torch.randn(20, 4)], compensation="merge_experts")
    assert result.compensation is not None
    assert (result.compensation.layers, result.compensation.left) == ((), {})


@pytest.mark.parametrize("into", [0, -1, 1.5, "all"])
def test_into_is_a_positive_integer(into: Any) -> None:
    with pytest.raises(ArgumentError, match=r"into must be a positive integer"):
        MergeExperts(into)
