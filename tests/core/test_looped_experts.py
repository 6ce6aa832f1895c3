"""Loops over experts that are modules of their own, in the shapes that programs have: cut, and compensated.

The oracle is independent of the library: the original with zeros for the widths that left, and a hook that puts the
router's scores of the experts that left at minus infinity.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit_core.plugins.registry import default_registry
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.calibration.observation import Watched
from prunekit_plugins.calibration.rows.following import Runs
from prunekit_plugins.compensation.rows.common import matched
from prunekit_plugins.compensation.rows.steady import steadiness

WIDTH, EXPERTS, HIDDEN, TOP_K = 8, 4, 12, 2


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(self.up(x).relu())
        return result


class Looped(nn.Module):
    """A residual mixture between layers; how the experts are run is the subclass's."""

    experts: nn.ModuleList

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, EXPERTS)
        self.make()
        self.mid, self.out = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, 3)

    def make(self) -> None:
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        weights, chosen = self.router(x).softmax(-1).topk(TOP_K)
        result: torch.Tensor = self.out(self.mid(x + self.mixed(x, weights, chosen)).relu())
        return result

    def mixed(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Enumerated(Looped):
    """All experts in turn, each on the tokens of a mask; Python reads no number."""

    def mixed(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = chosen == number
            sent = mask.any(-1)
            result[sent] += expert(x[sent]) * (weights * mask).sum(-1, keepdim=True)[sent]
        return result


class Unique(Looped):
    """The numbers that were chosen, as a list of Python's."""

    def mixed(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(x)
        for number in chosen.unique().tolist():
            token, place = (chosen == number).nonzero(as_tuple=True)
            result.index_add_(0, token, self.experts[number](x[token]) * weights[token, place, None])
        return result


class OneHot(Looped):
    """The experts with a token, as transformers ran them."""

    def mixed(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        mask = F.one_hot(chosen, num_classes=len(self.experts)).permute(2, 1, 0)
        result = torch.zeros_like(x)
        for number in (mask.sum((1, 2)) > 0).nonzero():
            place, token = torch.where(mask[number].squeeze(0))
            read = x[None, token].reshape(-1, x.shape[-1])
            result.index_add_(0, token, self.experts[number](read) * weights[token, place, None])  # type: ignore[index]
        return result


class Lettered(Looped):
    """Entries of a dict, under names without numbers."""

    def make(self) -> None:
        self.experts = nn.ModuleDict({f"expert_{letter}": Expert() for letter in "abcd"})  # type: ignore[assignment]

    def mixed(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts.children()):
            token, place = torch.where(chosen == number)
            if len(token):
                result.index_add_(0, token, expert(x[token]) * weights[token, place, None])
        return result


class TokenByToken(Looped):
    """One token after the other, each through the experts with its numbers."""

    def mixed(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [
                sum(  # type: ignore[misc]
                    weights[token, place] * self.experts[int(chosen[token, place])](x[token]) for place in range(TOP_K)
                )
                for token in range(len(x))
            ]
        )


class Segments(Looped):
    """Tokens sorted by expert, cut into runs by counts that numpy reads, as DeepSeek's own code does."""

    def mixed(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        counts = chosen.new_zeros((len(chosen), len(self.experts))).scatter_(1, chosen, 1).sum(0)
        order = chosen.reshape(-1).argsort()
        rows, outputs, start = x[order // TOP_K], [], 0
        for number, count in enumerate(counts.cpu().numpy()):
            if count:
                outputs.append(self.experts[number](rows[start : start + count]))
            start += count
        together = torch.cat(outputs)
        back = torch.empty_like(together)
        back[order] = together
        return (back.view(*chosen.shape, -1) * weights[:, :, None]).sum(1)


class ExpertsChoose(Looped):
    """Each expert takes as many tokens, those with the highest scores: numbers of rows say nothing."""

    def mixed(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(x)
        gates, tokens = self.router(x).softmax(-1).topk(len(x) // 3, dim=0)
        for number, expert in enumerate(self.experts):
            result.index_add_(0, tokens[:, number], expert(x[tokens[:, number]]) * gates[:, number, None])
        return result


class Capacity(Looped):
    """Tokens come into slots of experts by products with a mask of zeros and ones, as in GShard."""

    def mixed(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        hot = F.one_hot(chosen[:, 0], num_classes=len(self.experts))
        slot = F.one_hot((hot.cumsum(0) * hot).sum(-1) - 1, num_classes=len(x))
        dispatch = (hot[:, :, None] * slot[:, None]).to(x.dtype)
        rows = torch.einsum("tes,tw->esw", dispatch, x)
        outputs = torch.stack([expert(rows[number]) for number, expert in enumerate(self.experts)])
        return torch.einsum("tes,esw->tw", dispatch * weights[:, :1, None], outputs)


SHAPES = (Enumerated, Unique, OneHot, Lettered, TokenByToken, Segments, ExpertsChoose, Capacity)


def batches(count: int = 5, tokens: int = 60, seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(
        5, WIDTH, generator=torch.Generator().manual_seed(0)
    )  # units that repeat each other, as real ones
    return [torch.randn(tokens, 5, generator=generator) @ mix for _ in range(count)]


def made(kind: Callable[[], Looped]) -> Looped:
    torch.manual_seed(0)
    return kind().eval()


def computed(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(x)
    return found


def masked(original: Looped, plan: pk.Plan, x: torch.Tensor, gone: Sequence[int]) -> torch.Tensor:
    """Runs the original with zeros for the widths that left, and experts that left at minus infinity in the router."""
    model = copy.deepcopy(original)
    with torch.no_grad():
        for cut in plan.parameters:
            values = model.get_parameter(cut.parameter)
            for dim, kept in plan.positions(cut).items():
                if not cut.parameter.startswith("router") or dim:
                    left = torch.zeros(values.shape[dim], dtype=torch.bool)
                    left[kept] = True
                    values.mul_(left.reshape([-1 if one == dim else 1 for one in range(values.dim())]))
    model.router.register_forward_hook(
        lambda module, given, result: result.index_fill(-1, torch.tensor(gone, dtype=torch.int64), -torch.inf)
    )
    return computed(model, x)


def error(model: nn.Module, original: nn.Module, x: torch.Tensor) -> float:
    wanted = computed(original, x)
    return float((computed(model, x) - wanted).square().sum() / wanted.square().sum())


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("asked", [{"target": {"params": 0.7}}, {"ratio": 0.4}], ids=["target", "ratio"])
def test_what_is_left_is_the_masked_original_and_is_compensated(kind: type[Looped], asked: dict[str, Any]) -> None:
    model, original, plain = made(kind), made(kind), made(kind)
    result = pk.prune(model, batches()[0], **asked, calibration=batches())
    assert sum(p.numel() for p in model.parameters()) <= 0.7 * sum(p.numel() for p in original.parameters())
    result.plan.apply(plain)
    (unseen,) = batches(1, seed=9)
    gone = sorted({*range(EXPERTS)} - {*result.plan.kept.get("router#experts", range(EXPERTS))})
    assert torch.allclose(computed(plain, unseen), masked(original, result.plan, unseen, gone), atol=1e-5)
    assert result.compensation is not None
    fitted = {layer.consumer: layer for layer in result.compensation.layers}
    assert all(layer.after < layer.before for layer in fitted.values())
    assert bool(fitted) == (error(model, original, unseen) < error(plain, original, unseen))
    assert bool(fitted) == ("ratio" in asked or kind is not Capacity)
    if "ratio" in asked:
        assert {"router.weight", "mid.weight", "out.weight"} <= fitted.keys()
    unlike = {name for name, _ in model.named_parameters() if not same(model, plain, name)}
    assert {name.rpartition(".")[0] for name in unlike} == {name.rpartition(".")[0] for name in fitted}


def same(model: nn.Module, other: nn.Module, name: str) -> bool:
    return torch.equal(model.get_parameter(name), other.get_parameter(name))


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind is not Capacity])
def test_experts_are_fitted_where_their_tokens_are_known(kind: type[Looped]) -> None:
    model, plain, original = made(kind), made(kind), made(kind)
    result = pk.prune(model, batches()[0], target={"params": 0.7}, calibration=batches())
    assert result.compensation is not None
    fitted = [layer.consumer for layer in result.compensation.layers]
    assert len([name for name in fitted if name.endswith("down.weight")]) == EXPERTS
    result.plan.apply(plain)
    (unseen,) = batches(1, seed=9)
    assert error(model, original, unseen) < 0.5 * error(plain, original, unseen)


def test_experts_whose_tokens_cant_be_told_are_left_as_they_were_cut() -> None:
    result = pk.prune(made(Capacity), batches()[0], ratio=0.4, calibration=batches())
    assert result.compensation is not None
    left = {name: why for name, why in result.compensation.left.items() if name.startswith("experts")}
    assert len(left) == 2 * EXPERTS
    assert {*left.values()} == {
        "which tokens it is sent changes with the cut, and can't be told, so there is nothing to fit it to"
    }


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind is not Capacity])
def test_the_tokens_of_experts_are_followed(kind: type[Looped]) -> None:
    model, (x,) = made(kind), batches(1)
    runs = Runs.of(Watched(model, default_registry()), next(iter(Batches.of([x]).read(None))))
    assert runs.decides
    with torch.no_grad():
        scores = model.router(model.stem(x).relu())
    tokens = scores.softmax(-1).topk(len(x) // 3, dim=0).indices if kind is ExpertsChoose else None
    sent = torch.zeros_like(scores).scatter(1, scores.topk(TOP_K).indices, 1.0)
    for number, name in enumerate(model.experts._modules):
        rows = runs.rows[f"experts.{name}.up.weight"]
        found = torch.cat([one.known for one in rows])
        wanted = sent[:, number].nonzero().flatten() if tokens is None else tokens[:, number].sort().values
        assert {one.count for one in rows} == {len(x)}
        assert torch.equal(found.sort().values, wanted)
    for name in ("stem", "router", "mid", "out"):
        assert all(one.known.tolist() == [*range(len(x))] for one in runs.rows[f"{name}.weight"])


def test_numbers_that_are_there_several_times_go_with_as_many() -> None:
    here, there = matched(torch.tensor([5, 2, 5, 7, 5]), torch.tensor([5, 5, 1, 2]))
    assert [(int(a), int(b)) for a, b in zip(here, there, strict=True)] == [(0, 0), (1, 3), (2, 1)]
    assert [len(one) for one in matched(torch.tensor([1]), torch.tensor([], dtype=torch.int64))] == [0, 0]


class Unrolled(nn.Module):
    """A recurrent layer in a Python loop, and parts of tensors: values decide nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.packed, self.cell, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.packed(x).reshape(*x.shape[:2], 3, WIDTH).permute(2, 0, 1, 3).unbind(0)
        x, state = (query @ key.mT).softmax(-1) @ value, torch.zeros(len(x), WIDTH)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step] + state).relu()
        result: torch.Tensor = self.out(state)
        return result


def test_loops_over_positions_decide_nothing() -> None:
    x = torch.randn(4, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    watched = Watched(Unrolled().eval(), default_registry())
    batch = next(iter(Batches.of([x]).read(None)))
    runs = Runs.of(watched, batch)
    assert not runs.decides
    assert [one.known.tolist() for one in runs.rows["packed.weight"]] == [[*range(20)]]
    assert steadiness(watched, lambda: watched, pk.Plan().renaming, [batch]) is None
