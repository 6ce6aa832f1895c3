"""Routers that are no plain top-k: what is left is the mixture without the experts that left, or they stay."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk

WIDTH, EXPERTS, HIDDEN, CAPACITY, SLOTS = 12, 6, 8, 3, 2
GONE = ([0, 2], [1], [3, 4, 5])


class Mixture(nn.Module):
    """A mixture with its experts in stacks; `gone` experts are switched off by hand, for the oracle.

    Attributes:
        gone: Experts that can't be chosen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.gone = EXPERTS, list[int]()
        self.stem, self.out = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) / 3)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) / 3)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.router(x) * 4
        return found.index_fill(-1, torch.tensor(self.gone), -math.inf) if self.gone else found

    def all_experts(self, x: torch.Tensor) -> torch.Tensor:
        """What experts put out for ``[experts, n, features]``."""
        return torch.bmm(torch.bmm(x, self.up).relu(), self.down)

    def looked_up(self, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """What the expert of each token puts out."""
        hidden = torch.einsum("td,tdh->th", x, self.up[chosen]).relu()
        return torch.einsum("th,thd->td", hidden, self.down[chosen])

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        found: torch.Tensor = self.out(x + self.mix(x))
        return found


class ExpertChoice(Mixture):
    """Each expert chooses the tokens that it likes best."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.logits(x).softmax(-1).t().topk(CAPACITY, dim=-1)
        picked = F.one_hot(chosen, len(x)).to(x.dtype)
        each = self.all_experts(torch.einsum("ect,td->ecd", picked, x))
        return torch.einsum("ect,ec,ecd->td", picked, weights, each)


class ExpertChoiceByIndex(Mixture):
    """The same, with the tokens looked up and added by their numbers."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.logits(x).softmax(-1).t().topk(CAPACITY, dim=-1)
        each = self.all_experts(x[chosen]) * weights[..., None]
        return torch.zeros_like(x).index_add_(0, chosen.flatten(), each.reshape(-1, WIDTH))


class Sinkhorn(Mixture):
    """Shares are balanced over tokens and experts in turn before one expert is chosen."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.logits(x)
        shares = logits.exp()
        for _ in range(3):
            loads = shares.sum(0, keepdim=True)
            shares = shares / (loads.masked_fill(loads == 0, 1) if self.gone else loads)
            shares = shares / shares.sum(1, keepdim=True)
        chosen = shares.argmax(-1)
        return logits.sigmoid().gather(1, chosen[:, None]) * self.looked_up(x, chosen)


class Capacity(Mixture):
    """A token goes to one expert, which drops those beyond its capacity."""

    def capacity(self, tokens: int) -> int:
        return CAPACITY

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        capacity = self.capacity(len(x))
        weights, chosen = self.logits(x).softmax(-1).max(-1)
        mask = F.one_hot(chosen, self.num_experts)
        place = mask.cumsum(0) * mask - 1
        kept = mask * (place < capacity)
        sent = (F.one_hot(place.clamp(0, capacity - 1), capacity) * kept[..., None]).to(x.dtype)
        each = self.all_experts(torch.einsum("tec,td->ecd", sent, x))
        return torch.einsum("tec,t,ecd->td", sent, weights, each)


class CapacityOfExperts(Capacity):
    """The capacity is a share of the tokens for each expert: fewer experts take more each."""

    def capacity(self, tokens: int) -> int:
        return math.ceil(1.25 * tokens / self.num_experts)


class SecondChoices(Mixture):
    """Second choices queue up behind all first ones, and both are dropped beyond the capacity."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.logits(x).softmax(-1)
        first = F.one_hot(shares.argmax(-1), self.num_experts)
        second = F.one_hot(shares.masked_fill(first.bool(), -1).argmax(-1), self.num_experts)
        behind = second.cumsum(0) - 1 + first.sum(0, keepdim=True)
        first, second = first * (first.cumsum(0) - 1 < CAPACITY), second * (behind < CAPACITY)
        gates = shares * first + shares * second
        gates = gates / gates.sum(-1, keepdim=True).clamp(min=1e-9)
        return torch.einsum("te,etd->td", gates, self.all_experts(x.expand(self.num_experts, -1, -1)))


class NumberedSlots(Mixture):
    """Slots are numbered through over experts: the expert's number times its capacity, and the place."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.logits(x).softmax(-1).max(-1)
        mask = F.one_hot(chosen, self.num_experts)
        place = ((mask.cumsum(0) - 1) * mask).sum(-1)
        slot = chosen * CAPACITY + place.clamp(max=CAPACITY - 1)
        sent = torch.zeros(self.num_experts * CAPACITY, WIDTH).index_add_(0, slot, x * (place < CAPACITY)[:, None])
        each = self.all_experts(sent.view(self.num_experts, CAPACITY, WIDTH)).reshape(-1, WIDTH)
        return each[slot] * (weights * (place < CAPACITY))[:, None]


class HashedChoice(Mixture):
    """The number of the best expert is hashed to that of another one."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        return self.looked_up(x, (self.logits(x).argmax(-1) * 5 + 1) % self.num_experts)


class HashedTokens(Mixture):
    """What a token is says which expert it is sent to: no router."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.randint(0, EXPERTS, (32,), generator=torch.Generator().manual_seed(3))
        self.register_buffer("table", table)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        bits = (x[:, :5] > 0).long() * 2 ** torch.arange(5)
        assert isinstance(self.table, torch.Tensor)
        return self.looked_up(x, self.table[bits.sum(1)])


class Soft(Mixture):
    """Slots of experts read mixtures of all tokens, and tokens get mixtures of all slots."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Identity()  # type: ignore[assignment]
        self.slots = nn.Parameter(torch.randn(WIDTH, EXPERTS, SLOTS) / 3)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.einsum("td,des->tes", x, self.slots)
        combine = logits.index_fill(1, torch.tensor(self.gone), -math.inf) if self.gone else logits
        combine = combine.flatten(1).softmax(-1).view_as(logits)
        each = self.all_experts(torch.einsum("tes,td->esd", logits.softmax(0), x))
        return torch.einsum("tes,esd->td", combine, each)


class Counts(Mixture):
    """A loop over counts that have left PyTorch, which stops at experts without tokens."""

    def counts(self, chosen: torch.Tensor) -> Sequence[int]:
        found: list[int] = torch.bincount(chosen, minlength=self.num_experts).tolist()
        return found

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.logits(x).softmax(-1).max(-1)
        order, result, start = chosen.argsort(stable=True), torch.zeros_like(x), 0
        for number, count in enumerate(self.counts(chosen)):
            rows = order[start : start + int(count)]
            start += int(count)
            if len(rows):
                each = (x[rows] @ self.up[number]).relu() @ self.down[number]
                result[rows] = each * weights[rows, None]
        return result


class Arrays(Counts):
    def counts(self, chosen: torch.Tensor) -> Sequence[int]:
        found: Sequence[int] = F.one_hot(chosen, self.num_experts).sum(0).numpy()
        return found


class Ends(Counts):
    def counts(self, chosen: torch.Tensor) -> Sequence[int]:
        ends = F.one_hot(chosen, self.num_experts).sum(0).cumsum(0).tolist()
        return [after - before for before, after in zip([0, *ends], ends, strict=False)]


class Split(Mixture):
    """Sorted rows are split by a list of counts, and all experts run."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.logits(x).softmax(-1).max(-1)
        order = chosen.argsort(stable=True)
        rows = x[order].split(F.one_hot(chosen, self.num_experts).sum(0).tolist())
        each = [(rows[n] @ self.up[n]).relu() @ self.down[n] for n in range(self.num_experts)]
        return torch.zeros_like(x).index_copy(0, order, torch.cat(each) * weights[order][:, None])


TOKENS = torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
OTHERS = torch.randn(24, 5, generator=torch.Generator().manual_seed(2)) * 2
LIST = "the order of its positions is known outside of PyTorch: its values leave PyTorch by tolist"
STAYS = {
    ExpertChoiceByIndex: "its positions are looked up (aten::index.Tensor",
    NumberedSlots: "its positions are used as numbers (aten::mul.Tensor",
    HashedChoice: "its positions are used as numbers (aten::mul.Tensor",
    Counts: LIST,
    Arrays: LIST.replace("tolist", "numpy"),
    Ends: LIST,
    Split: LIST,
}


def made(kind: type[Mixture]) -> Mixture:
    torch.manual_seed(0)
    return kind().eval()


def experts_of(graph: pk.Graph) -> str:
    """The group that the stacks of experts lie along."""
    (found,) = (group.name for group in graph.groups() if ("up", 0) in {(m.parameter, m.dim) for m in group.members})
    return found


@pytest.mark.parametrize("gone", GONE, ids=str)
@pytest.mark.parametrize("kind", [ExpertChoice, Sinkhorn, Capacity, SecondChoices, Soft])
def test_what_is_left_is_the_mixture_that_cant_choose_what_left(kind: type[Mixture], gone: list[int]) -> None:
    model, oracle = made(kind), made(kind)
    graph = pk.Graph.of(model, TOKENS)
    small = graph.draft({experts_of(graph): tuple(n for n in range(EXPERTS) if n not in gone)}).apply(
        copy.deepcopy(model)
    )
    oracle.gone = gone
    with torch.no_grad():
        for tokens in (TOKENS, OTHERS):
            torch.testing.assert_close(small(tokens), oracle(tokens), rtol=0, atol=1e-6)
        assert float((model(TOKENS) - oracle(TOKENS)).abs().max()) > 1e-3
    assert len(small.up) == EXPERTS - len(gone)


@pytest.mark.parametrize("kind", STAYS)
def test_experts_stay_whose_numbers_are_computed_with(kind: type[Mixture]) -> None:
    graph = pk.Graph.of(made(kind), TOKENS)
    members = {(member.parameter, member.dim) for group in graph.groups() for member in group.members}
    assert members.isdisjoint({("up", 0), ("down", 0), ("router.weight", 0)})
    assert graph.report().pinned["router.weight[0]"].startswith(STAYS[kind])


def test_experts_stay_that_a_table_says_the_tokens_of() -> None:
    pinned = pk.Graph.of(made(HashedTokens), TOKENS).report().pinned
    assert pinned["table[0]"] == "table holds integers or booleans"
    assert pinned["up[0]"].startswith("its positions are looked up")


def test_a_capacity_that_follows_the_number_of_experts_is_refused_with_the_number() -> None:
    graph = pk.Graph.of(made(CapacityOfExperts), TOKENS)
    with pytest.raises(pk.RehearsalError, match="argument other is 8, recorded was 5") as caught:
        graph.draft({experts_of(graph): (0, 1, 2, 3)})
    assert caught.value.where.startswith("aten::lt.Scalar")
