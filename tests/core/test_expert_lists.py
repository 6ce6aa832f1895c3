"""Experts that a program finds by numbers of Python's: modules of a list, ``stack[int(expert)]``, choices in turn.

The oracle is independent of the library: a hook on the router of the original sets the logits of the experts that left
to minus infinity.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from tests.core.test_experts import TOKENS, without_experts

WIDTH, EXPERTS, HIDDEN = 8, 6, 12


class Expert(nn.Module):
    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(self.up(x).relu())
        return result


class Routed(nn.Module):
    """A router, and a loop over the experts that some token is sent to."""

    def __init__(self, top_k: int = 2) -> None:
        super().__init__()
        self.num_experts, self.top_k = EXPERTS, top_k
        self.stem, self.router, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 3)
        self.make()

    def make(self) -> None:
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, chosen = logits.softmax(-1).topk(self.top_k)
        return weights, chosen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        weights, chosen = self.route(self.router(x))
        mask = F.one_hot(chosen, num_classes=self.num_experts).permute(2, 1, 0)
        result = torch.zeros_like(x)
        for number in (mask.sum((1, 2)) > 0).nonzero():
            place, token = torch.where(mask[number].squeeze(0))
            result.index_add_(0, token, self.run(number, x[token]) * weights[token, place, None])
        found: torch.Tensor = self.out(x + result)
        return found

    def run(self, number: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.experts[number](x)  # type: ignore[index]
        return result


class Named(Routed):
    """The experts are entries of a ``ModuleDict``, with their numbers at the end of their names."""

    def make(self) -> None:
        self.experts = nn.ModuleDict({f"expert_{number}": Expert() for number in range(EXPERTS)})  # type: ignore[assignment]

    def run(self, number: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.experts[f"expert_{number[0]}"](x)  # type: ignore[index]
        return result


class Stacked(Routed):
    """One number is read, and looks up several stacks."""

    def make(self) -> None:
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) / 3)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) / 3)

    def run(self, number: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        index = int(number.item())
        return (x @ self.up[index]).relu() @ self.down[index]


class InTurn(Routed):
    """The second expert is the best one without the first; both stand in one tensor."""

    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = logits.argmax(-1, keepdim=True)
        second = logits.scatter(-1, first, -torch.inf).argmax(-1, keepdim=True)
        chosen = torch.cat([first, second], -1)
        return logits.softmax(-1).gather(-1, chosen), chosen


class Special(Routed):
    """The last experts hand on what they are given."""

    def run(self, number: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x if int(number) >= EXPERTS - 2 else super().run(number, x)


class Unlike(Routed):
    """One of the experts is wider than the others."""

    def make(self) -> None:
        self.experts = nn.ModuleList(Expert(HIDDEN + 4 * (number == 3)) for number in range(EXPERTS))


class Shared(Routed):
    """The first expert runs for all tokens as well."""

    def run(self, number: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = super().run(number, x) + self.experts[0](x)
        return result


KINDS = (Routed, Named, Stacked, InTurn)


def made(kind: Callable[[], Routed]) -> Routed:
    torch.manual_seed(0)
    return kind().eval()


def computed(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gone", [(0, 3, 4), (1,), (2, 3, 4, 5)])
def test_what_is_left_is_the_mixture_that_cant_choose_them(kind: type[Routed], gone: tuple[int, ...]) -> None:
    model, original = made(kind), made(kind)
    plan = pk.Graph.of(model, TOKENS).remove({"router#experts": gone})
    assert model.num_experts == model.router.out_features == EXPERTS - len(gone)
    assert torch.allclose(computed(model), without_experts(original, gone), atol=1e-6)
    assert not torch.allclose(computed(model), computed(original), atol=1e-4)
    assert pk.check_exact(original, model, plan, TOKENS)


@pytest.mark.parametrize("kind", KINDS)
def test_two_experts_are_needed_where_a_token_is_sent_to_two(kind: type[Routed]) -> None:
    group = next(group for group in pk.Graph.of(made(kind), TOKENS).groups() if group.kind is pk.Kind.EXPERTS)
    assert (group.size, group.least) == (EXPERTS, 2)


@pytest.mark.parametrize(("kind", "prefix"), [(Routed, ""), (Named, "expert_")])
def test_entries_behind_those_that_leave_move_up(kind: type[Routed], prefix: str) -> None:
    model, original = made(kind), made(kind)
    pk.Graph.of(model, TOKENS).remove({"router#experts": (0, 3, 4)})
    assert list(model.experts._modules) == [f"{prefix}{number}" for number in range(3)]
    whole, left = original.state_dict(), model.state_dict()
    for new, old in enumerate((1, 2, 5)):
        name = "up.weight"
        assert torch.equal(left[f"experts.{prefix}{new}.{name}"], whole[f"experts.{prefix}{old}.{name}"])
    assert not any(name.startswith(f"experts.{prefix}3") for name in left)


def test_a_check_finds_experts_that_are_exchanged() -> None:
    model = made(Routed)
    plan = pk.Graph.of(model, TOKENS).remove({"router#experts": (0, 3, 4)})
    model.experts[0], model.experts[1] = model.experts[1], model.experts[0]
    assert not pk.check_exact(made(Routed), model, plan, TOKENS)


def test_the_plan_is_data_and_plans_that_follow_each_other_are_one() -> None:
    model, other, last = made(Routed), made(Routed), made(Routed)
    graph = pk.Graph.of(model, TOKENS)
    plan = graph.remove({"router#experts": (1, 2)})
    pk.Plan.from_json(plan.to_json()).apply(other)
    assert torch.equal(computed(other), computed(model))
    graph.remove({"router#experts": (4,)})  # numbered as when the graph was made
    assert torch.allclose(computed(model), without_experts(made(Routed), (1, 2, 4)), atol=1e-6)
    graph.applied.apply(last)
    assert torch.equal(computed(last), computed(model))


@pytest.mark.parametrize("kind", KINDS)
def test_experts_and_their_widths_leave_together(kind: type[Routed]) -> None:
    model, original = made(kind), made(kind)
    result = pk.prune(model, TOKENS, ratio=0.5, expert_pruning_ratio=0.5, verify="always")
    assert result.report.pruned["router#experts"] == (EXPERTS, 3)
    assert result.verification.check
    assert tuple(model.out.weight.shape) == (3, WIDTH // 2)
    if kind in (Routed, Named):
        assert len(model.experts) == 3
        shapes = {tuple(expert.up.weight.shape) for expert in model.experts.children()}  # type: ignore[union-attr]
        assert shapes == {(HIDDEN // 2, WIDTH // 2)}
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in original.parameters()) / 2


def test_too_few_experts_are_refused_before_anything_changes() -> None:
    model = made(InTurn)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pk.RehearsalError, match="2 of them are chosen in turn"):
        pk.Graph.of(model, TOKENS).remove({"router#experts": (0, 1, 2, 3, 4)})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", [Special, Unlike, Shared])
def test_experts_stay_where_another_one_makes_another_program(kind: type[Routed]) -> None:
    graph = pk.Graph.of(made(kind), TOKENS)
    assert pk.Kind.EXPERTS not in {group.kind for group in graph.groups()}
    assert "is read as a number" in graph.report().pinned["router.weight[0]"]


class Skipping(Routed):
    """One more class of the router stands for none of the experts: its tokens go to the first one with weight zero."""

    def make(self) -> None:
        self.router = nn.Linear(WIDTH, EXPERTS + 1)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) / 3)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        weights, chosen = self.router(x).softmax(-1).topk(1)
        none = chosen == self.num_experts
        weights, chosen = weights.masked_fill(none, 0.0), chosen.masked_fill(none, 0)
        numbers, order = chosen.flatten().sort()
        counts = torch.histc(numbers.float(), bins=self.num_experts, min=0, max=self.num_experts - 1)
        ends = counts.cumsum(0).to(torch.int32)
        each = torch._grouped_mm(torch._grouped_mm(x[order], self.up, offs=ends).relu(), self.down, offs=ends)
        result = torch.zeros_like(x).index_add(0, order, each * weights.flatten()[order, None])
        found: torch.Tensor = self.out(x + result)
        return found


def test_experts_that_a_program_knows_by_number_stay_and_the_others_leave() -> None:
    model, original = made(lambda: Skipping(1)), made(lambda: Skipping(1))
    graph = pk.Graph.of(model, TOKENS)
    assert {group.name: group.size for group in graph.groups() if group.kind is pk.Kind.EXPERTS} == {
        "router#experts": EXPERTS - 1
    }
    plan = graph.remove({"router#experts": (1, 3)})
    assert (model.num_experts, model.router.out_features, len(model.up)) == (4, 5, 4)
    assert torch.allclose(computed(model), without_experts(original, (2, 4)), atol=1e-6)
    assert pk.check_exact(original, model, plan, TOKENS)


class Around(nn.Module):
    """What a mixture puts out is added to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mixture, self.head = nn.Linear(WIDTH, WIDTH), Routed(), nn.Linear(WIDTH, 2)
        self.other = nn.Linear(WIDTH, WIDTH)
        self.mixture.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x + self.other(x)
        result: torch.Tensor = self.head(x + self.mixture(x))
        return result


def test_a_mixture_of_listed_experts_leaves_as_a_branch() -> None:
    """It is run again with the experts chosen that were chosen when it was recorded."""
    torch.manual_seed(0)
    model = Around().eval()
    original = copy.deepcopy(model)
    result = pk.prune(model, TOKENS, branches=["mixture"], verify="always")
    assert result.plan.absent == ("mixture",)
    stream = original.first(TOKENS)
    assert torch.equal(model(TOKENS), original.head(stream + original.other(stream)))
    assert pk.check_exact(original, model, result.plan, TOKENS)
