"""Experts leave: what is left is the mixture whose router can't choose them.

The oracle is independent of the library: a hook on the router of the original sets the logits of the experts that left
to minus infinity.
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
from prunekit.plugin import RehearsalError, UnitsError

WIDTH, EXPERTS, HIDDEN = 8, 6, 8
TOKENS = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(1))


class Mixture(nn.Module):
    """A router and two stacks of expert weights, after a layer and before a classifier."""

    def __init__(self, top_k: int = 2) -> None:
        super().__init__()
        self.num_experts, self.top_k = EXPERTS, top_k
        self.stem, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH))
        self.scale = nn.Parameter(torch.rand(EXPERTS) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        weights, chosen = self.router(x).softmax(-1).topk(self.top_k)
        result: torch.Tensor = self.out(x + self.mix(x, weights, chosen))
        return result

    def mix(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class LookedUp(Mixture):
    """The weights of each token's experts are looked up."""

    def mix(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        hidden = torch.einsum("td,tkdh->tkh", x, self.up[chosen]).relu()
        each = torch.einsum("tkh,tkhd->tkd", hidden, self.down[chosen])
        return (each * (weights * F.embedding(chosen, self.scale[:, None])[..., 0])[..., None]).sum(1)


class Sorted(Mixture):
    """Rows sorted by expert, and one product per expert at once; counts say where the rows of an expert end."""

    def mix(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        numbers, order = chosen.flatten().sort()
        counts = torch.histc(numbers.float(), bins=self.num_experts, min=0, max=self.num_experts - 1)
        ends = counts.cumsum(0).to(torch.int32)
        rows = x[order // self.top_k]
        hidden = torch._grouped_mm(rows, self.up, offs=ends).relu()
        each = torch._grouped_mm(hidden, self.down, offs=ends)
        each = each * (weights.flatten()[order] * self.scale[numbers])[:, None]
        return torch.zeros_like(x).index_add(0, order // self.top_k, each)


class Looped(Mixture):
    """A loop over those experts that some token was sent to."""

    def mix(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(x)
        mask = F.one_hot(chosen, num_classes=self.num_experts).permute(2, 1, 0)
        for expert in (mask.sum((1, 2)) > 0).nonzero():
            number = expert[0]
            place, token = torch.where(mask[number])
            each = (x[token] @ self.up[number]).relu() @ self.down[number] * self.scale[number]
            result.index_add_(0, token, each * weights[token, place, None])
        return result


class Dense(Mixture):
    """All experts see all tokens; the weights of those that weren't chosen are zero."""

    def mix(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        dense = torch.zeros(len(x), self.num_experts).scatter(1, chosen, weights) * self.scale
        hidden = torch.einsum("td,edh->eth", x, self.up).relu()
        return torch.einsum("te,eth,ehd->td", dense, hidden, self.down)


class Grouped(LookedUp):
    """Experts are chosen out of the two best of three groups."""

    def __init__(self) -> None:
        super().__init__()
        self.groups, self.top_groups = 3, 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        scores = self.router(x).sigmoid()
        grouped = scores.view(len(x), self.groups, -1)
        best = grouped.topk(1, -1).values.sum(-1).topk(self.top_groups).indices
        mask = torch.zeros(len(x), self.groups).scatter(1, best, 1.0)
        mask = mask[..., None].expand(grouped.shape).reshape(scores.shape)
        chosen = scores.masked_fill(mask == 0, -1.0).topk(self.top_k).indices
        result: torch.Tensor = self.out(x + self.mix(x, scores.gather(1, chosen), chosen))
        return result


class Straight(LookedUp):
    """The second expert is told apart from the others by its number."""

    def mix(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        return super().mix(x, weights * (chosen != 1), chosen)


class Numbered(LookedUp):
    """The numbers of experts are used as numbers."""

    def mix(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        return super().mix(x, weights * chosen, chosen)


class Read(LookedUp):
    """One stack is looked up by a number that Python holds."""

    def mix(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        rows = []
        for token, experts in enumerate(chosen):
            for place, expert in enumerate(experts):
                number = self.number(expert)
                hidden = (x[token] @ self.up[number]).relu()
                rows.append(hidden @ self.down[number] * weights[token, place])
        return torch.stack(rows).view(len(x), -1, WIDTH).sum(1)

    def number(self, expert: torch.Tensor) -> int:
        return int(expert.item())


class Converted(Read):
    """The same, by another method."""

    def number(self, expert: torch.Tensor) -> int:
        return int(expert)


class AsList(Read):
    """The same, out of a list."""

    def number(self, expert: torch.Tensor) -> int:
        found: int = expert.tolist()
        return found


class Listed(Mixture):
    """The places of each expert's tokens are listed at once."""

    def mix(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        mask = F.one_hot(chosen, num_classes=self.num_experts).permute(2, 1, 0)
        expert, place, token = torch.where(mask)
        hidden = torch.einsum("nd,ndh->nh", x[token], self.up[expert]).relu()
        each = torch.einsum("nh,nhd->nd", hidden, self.down[expert]) * self.scale[expert, None]
        return torch.zeros_like(x).index_add(0, token, each * weights[token, place, None])


KINDS = (Listed, LookedUp, Sorted, Looped, Dense)


def made(kind: Callable[[], Mixture]) -> Mixture:
    torch.manual_seed(0)
    return kind().eval()


def graph_of(model: nn.Module) -> pk.DependencyGraph:
    return pk.DependencyGraph().build_dependency(model, TOKENS)


def experts_of(graph: pk.DependencyGraph) -> str:
    """The name of the group of experts."""
    return next(group.name for group in graph.groups() if group.kind is pk.Kind.EXPERTS)


def without_experts(model: nn.Module, gone: Sequence[int], tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    """What the original computes when its router can't choose some experts."""

    def barred(module: nn.Module, args: object, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor(gone), -torch.inf)

    handle = model.get_submodule("router").register_forward_hook(barred)
    with torch.no_grad():
        found: torch.Tensor = model(tokens)
    handle.remove()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_a_group_of_router_rows_stacks_and_scales(kind: type[Mixture]) -> None:
    graph = graph_of(made(kind))
    group = next(group for group in graph.groups() if group.name == experts_of(graph))
    assert (group.size, group.least) == (EXPERTS, 2)
    places = {(member.parameter, member.dim) for member in group.members}
    assert places == {("up", 0), ("down", 0), ("scale", 0), ("router.weight", 0), ("router.bias", 0)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gone", [(0, 3, 4), (1,), (2, 3, 4, 5)])
def test_what_is_left_is_the_mixture_that_cant_choose_them(kind: type[Mixture], gone: tuple[int, ...]) -> None:
    model, original = made(kind), made(kind)
    graph = graph_of(model)
    plan = graph.remove({experts_of(graph): gone})
    assert len(model.up) == EXPERTS - len(gone)
    assert kind is LookedUp or model.num_experts == len(model.up)
    with torch.no_grad():
        found = model(TOKENS)
    expected = without_experts(original, gone)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, original(TOKENS), atol=1e-3)
    check = pk.check_exact(original, model, plan, TOKENS)
    assert check, check
    assert check.decisions > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_finds_an_expert_in_the_wrong_place(kind: type[Mixture]) -> None:
    model = made(kind)
    graph = graph_of(model)
    plan = graph.remove({experts_of(graph): (0, 3, 4)})
    with torch.no_grad():
        model.up.copy_(model.up.roll(1, 0))
    assert not pk.check_exact(made(kind), model, plan, TOKENS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_finds_a_router_row_in_the_wrong_place(kind: type[Mixture]) -> None:
    model = made(kind)
    graph = graph_of(model)
    plan = graph.remove({experts_of(graph): (0, 3, 4)})
    with torch.no_grad():
        model.router.bias.copy_(model.router.bias.roll(1, 0))
    assert not pk.check_exact(made(kind), model, plan, TOKENS)


def test_fewer_experts_than_a_token_is_sent_to_are_refused_before_anything_changes() -> None:
    model = made(LookedUp)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RehearsalError, match="2 of them are chosen"):
        graph_of(model).remove({"router#experts": (0, 1, 2, 3, 4)})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_ratio_leaves_as_many_as_a_token_is_sent_to() -> None:
    model = made(lambda: LookedUp(4))
    result = pk.prune(model, TOKENS, ratio=0.0, expert_pruning_ratio=0.9)
    assert result.report.pruned == {"router#experts": (6, 4)}


def test_experts_stay_unless_they_are_asked_for() -> None:
    model = made(LookedUp)
    result = pk.prune(model, TOKENS)
    assert "router#experts" not in result.report.pruned
    assert result.report.left["router#experts"].startswith("experts are left alone by default")
    assert tuple(model.up.shape) == (EXPERTS, WIDTH // 2, HIDDEN // 2)


@pytest.mark.parametrize("kind", KINDS)
def test_experts_leave_by_a_ratio_of_their_own_with_widths_beside_them(kind: type[Mixture]) -> None:
    model = made(kind)
    name = experts_of(graph_of(model))
    result = pk.prune(model, TOKENS, expert_pruning_ratio=0.5, verify="always")
    assert result.report.pruned[name] == (6, 3)
    assert tuple(model.up.shape) == (3, WIDTH // 2, HIDDEN // 2)
    assert result.verification.check
    assert model(TOKENS).shape == (10, 3)


class Side(nn.Module):
    """Several operations that leave with one module, so that what is left is numbered anew."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).tanh() * 2


class Beside(nn.Module):
    """Two mixtures, each behind a branch that can go."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = nn.ModuleList(Side() for _ in range(2))
        self.mixtures = nn.ModuleList(LookedUp() for _ in range(2))
        for mixture in self.mixtures:
            mixture.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for side, mixture in zip(self.sides, self.mixtures, strict=True):
            x = mixture(x + side(x))
        return x


def test_experts_leave_together_with_branches_before_them() -> None:
    torch.manual_seed(0)
    model = Beside().eval()
    original = copy.deepcopy(model)
    result = pk.prune(
        model,
        TOKENS,
        ratio=0.0,
        expert_pruning_ratio=0.5,
        branches=["sides.0.linear", "sides.1.linear"],
        verify="always",
    )
    names = [f"mixtures.{number}.router#experts" for number in range(2)]
    assert result.report.pruned == dict.fromkeys(names, (6, 3))
    assert result.verification.check
    for side in original.sides:
        nn.init.zeros_(side.linear.weight)
    for name, mixture in zip(names, original.mixtures, strict=True):
        gone = torch.tensor(sorted(set(range(EXPERTS)) - set(result.plan.kept[name])))
        mixture.router.register_forward_hook(lambda _, __, logits, gone=gone: logits.index_fill(-1, gone, -torch.inf))
    with torch.no_grad():
        assert torch.allclose(model(TOKENS), original(TOKENS), atol=1e-5)


@pytest.mark.parametrize("units", [[6], [-1], ["1"], [0.5], torch.tensor([1.0])])
def test_units_that_a_group_doesnt_have_are_refused(units: Any) -> None:
    model = made(LookedUp)
    with pytest.raises(UnitsError, match=r"(?s)(out of range|must be integers).*router#experts"):
        graph_of(model).remove({"router#experts": units})
    assert len(model.up) == EXPERTS


def test_units_may_be_a_tensor_of_integers() -> None:
    model = made(LookedUp)
    graph_of(model).remove({"router#experts": torch.tensor([0, 3])})
    assert len(model.up) == 4


def test_a_group_that_isnt_there_is_refused() -> None:
    with pytest.raises(pk.ArgumentError, match=r"(?s)no such group.*'router'.*did you mean 'router#experts'"):
        graph_of(made(LookedUp)).remove({"router": [1]})


def test_a_draft_for_a_group_that_isnt_there_is_refused() -> None:
    with pytest.raises(pk.ArgumentError, match=r"(?s)no such group.*'router'.*did you mean 'router#experts'"):
        graph_of(made(LookedUp)).draft({"router": (1, 2)})


def test_removed_experts_are_exact_in_the_report() -> None:
    result = pk.prune(made(LookedUp), TOKENS, ratio=0.0, expert_pruning_ratio=0.5)
    assert result.report.mixes == {}
    assert "not exact" not in str(result.report)


def test_groups_of_experts_lose_the_same_places() -> None:
    model, original = made(Grouped), made(Grouped)
    graph = graph_of(model)
    kinds = {group.name: (group.kind, group.size, group.outer) for group in graph.groups()}
    assert kinds["router#expert_groups"] == (pk.Kind.EXPERT_GROUPS, 3, True)
    assert kinds["router#experts"] == (pk.Kind.EXPERTS, 2, False)
    plan = graph.remove({"router#experts": (0,)})
    with torch.no_grad():
        assert torch.allclose(model(TOKENS), without_experts(original, (0, 2, 4)), atol=1e-6)
    assert pk.check_exact(original, model, plan, TOKENS)


def test_whole_groups_of_experts_leave() -> None:
    model, original = made(Grouped), made(Grouped)
    plan = graph_of(model).remove({"router#expert_groups": (1,)})
    assert (model.groups, len(model.up)) == (2, 4)
    assert pk.check_exact(original, model, plan, TOKENS)


def test_experts_of_one_group_alone_are_refused() -> None:
    model = made(Grouped)
    with pytest.raises(UnitsError, match="not whole units"):
        graph_of(model).group(model.router, "out", [0, 1, 2])


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Numbered, "its positions are used as numbers"),
        (Read, "a position of it is read as a number"),
        (Converted, "a position of it is read as a number"),
        (AsList, "a position of it is read as a number"),
    ],
)
def test_experts_that_a_program_knows_by_number_stay(kind: type[Mixture], why: str) -> None:
    graph = graph_of(made(kind))
    assert "router#experts" not in {group.name for group in graph.groups()}
    assert graph.report().pinned["router.weight[0]"].startswith(why)


def test_only_the_expert_that_is_told_apart_and_those_before_it_stay() -> None:
    model, original = made(Straight), made(Straight)
    graph = graph_of(model)
    name = experts_of(graph)
    assert {group.size for group in graph.groups() if group.name == name} == {4}
    plan = graph.remove({name: (0, 3)})
    with torch.no_grad():
        assert torch.allclose(model(TOKENS), without_experts(original, (2, 5)), atol=1e-6)
    assert pk.check_exact(original, model, plan, TOKENS)


def test_numbers_of_experts_that_are_returned_pin_them() -> None:
    class Returned(LookedUp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return y, self.router(self.stem(x)).argmax(-1)  # type: ignore[return-value]

    assert "router#experts" not in {group.name for group in graph_of(made(Returned)).groups()}


def test_sums_along_experts_that_arent_zero_for_those_that_left_pin_them() -> None:
    class Cumulated(LookedUp):
        def mix(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
            weights = weights * self.scale[chosen]
            return super().mix(x, weights * self.scale.exp().cumsum(0)[chosen], chosen)

    graph = graph_of(made(Cumulated))
    assert pk.Kind.EXPERTS not in {group.kind for group in graph.groups()}
    assert "isn't zero for units that weren't chosen" in graph.report().pinned["router.weight[0]"]


def test_a_plan_without_experts_is_data() -> None:
    model, other = made(Sorted), made(Sorted)
    plan = graph_of(model).remove({"router#experts": (0, 3, 4)})
    pk.Plan.from_json(plan.to_json()).apply(other)
    assert torch.equal(model(TOKENS), other(TOKENS))


def test_fewer_experts_than_a_ratio_says_are_reported() -> None:
    result = pk.prune(made(LookedUp), TOKENS, ratio=0.0, expert_pruning_ratio=0.9)
    told = (
        "router#experts keeps 2 of 6 experts, as many as are chosen for a token: expert_pruning_ratio=0.9 would leave 1"
    )
    assert told in result.report.notes


def test_a_ratio_of_experts_in_a_model_without_any_is_reported() -> None:
    result = pk.prune(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(3, 4), expert_pruning_ratio=0.5)
    assert "expert_pruning_ratio=0.5: the model has no experts that could leave" in result.report.notes
    assert result.report.pruned == {"0": (8, 4)}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"expert_pruning_ratio": 0.5}, "expert_pruning_ratio=0.5: the model has no experts that could leave; "),
        ({"head_pruning_ratio": 0.5, "prune_num_heads": True}, "head_pruning_ratio=0.5: the model has no heads"),
        (
            {"head_pruning_ratio": 0.5},
            "head_pruning_ratio=0.5 takes none: whole heads stay unless prune_num_heads",
        ),
    ],
)
def test_asking_for_experts_or_heads_alone_where_none_can_leave_is_an_error(asked: dict[str, Any], why: str) -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(3, 4)
    with pytest.raises(pk.NothingToPruneError) as caught:
        pk.prune(model, x, ratio=0.0, **asked)
    assert caught.value.why.startswith(why)
    with pytest.raises(pk.NothingToPruneError, match="Nothing can be pruned"):
        pk.BasePruner(model, x, pruning_ratio=0.0, **asked).step()
    result = pk.prune(model, x, ratio=0.5, **asked)  # units went: a note is enough
    assert result.report.pruned == {"0": (8, 4)}
    assert any(note.startswith(why.rstrip("; ")) for note in result.report.notes)
