"""Targets: met closely and from below, on counts that PyTorch's own counter makes of the pruned model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prunekit as pk
from prunekit import plugin
from prunekit_core.choose.candidates import Candidate, Limits
from prunekit_core.choose.chooser import Chooser, Tie
from prunekit_core.choose.ranking import Ranking
from prunekit_core.groups.costs import costs_after
from prunekit_plugins.budgets.budget import Budget
from tests.core.test_heads import Decoder
from tests.models import Chain, Encoder

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(1, 6, 10, generator=torch.Generator().manual_seed(0))


class WaveNet(nn.Module):
    """Four layers whose width is one attribute, by which the program slices."""

    def __init__(self, width: int = 8, skipped: int = 12) -> None:
        super().__init__()
        self.width = width
        self.stem, self.head = nn.Conv1d(1, width, 1), nn.Conv1d(skipped, 6, 1)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**step) for step in range(3))
        self.mixes = nn.ModuleList(nn.Conv1d(width, width + skipped, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, skips = self.stem(x), []
        for gate, mix in zip(self.gates, self.mixes, strict=True):
            h = gate(x)
            y = mix(h[:, : self.width].tanh() * h[:, self.width :].sigmoid())
            x = x[..., -y.shape[-1] :] + y[:, : self.width]
            skips.append(y[:, self.width :])
        return self.head(sum(skip[..., -skips[-1].shape[-1] :] for skip in skips).relu())  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("round_to", [1, 2])
def test_layers_of_one_width_are_in_step_at_any_target(round_to: int) -> None:
    for target in (0.9, 0.7, 0.5, 0.3):
        torch.manual_seed(0)
        model, x = WaveNet(), torch.randn(2, 1, 12)
        original = copy.deepcopy(model)
        result = pk.prune(model, x, target={"params": target}, round_to=round_to)
        sizes = {model.stem.out_channels, model.width, *(gate.out_channels // 2 for gate in model.gates)}  # type: ignore[operator]
        assert len(sizes) == 1
        assert not any("given back" in why for why in result.report.left.values())
        assert result.preview.params_after <= target * result.preview.params_before
        assert pk.check_exact(original, model, result.plan, x).exact


class Wide(nn.Module):
    """Residual blocks with enough channels for a percent to be more than one of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.up = nn.ModuleList(nn.Conv2d(64, width, 3, padding=1) for width in (96, 128, 96))
        self.down = nn.ModuleList(nn.Conv2d(width, 64, 3, padding=1) for width in (96, 128, 96))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        return self.fc(x.mean((2, 3)))


def counted(model: nn.Module, inputs: torch.Tensor) -> dict[str, float]:
    """Counts a model without prunekit."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            model.eval()(inputs)
    return {"macs": counter.get_total_flops() / 2, "params": float(sum(p.numel() for p in model.parameters()))}


OPTIONS: list[dict[str, Any]] = [
    {},
    {"global_pruning": True},
    {"global_pruning": True, "isomorphic": True},
    {"pruning_ratio_dict": {"up.0": 0.25}},
    {"max_pruning_ratio": 0.6},
    {"global_pruning": True, "max_pruning_ratio": 0.6, "importance": "random"},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "local")
@pytest.mark.parametrize("target", [{"macs": 0.5}, {"params": 0.37}, {"macs": 0.6, "params": 0.5}, {"macs": 5e6}])
def test_targets_are_met_within_a_percent(options: dict[str, Any], target: dict[str, float]) -> None:
    model = Wide()
    dense = counted(model, IMAGE)
    allowed = {name: value * dense[name] if value <= 1 else value for name, value in target.items()}
    result = pk.prune(model, IMAGE, target=target, **options)
    found = counted(model, IMAGE)
    assert {name: result.preview.costs[name] for name in found} == {n: (dense[n], found[n]) for n in found}
    used = {name: found[name] / limit for name, limit in allowed.items()}
    assert max(used.values()) <= 1
    assert max(used.values()) > 0.99
    if "pruning_ratio_dict" in options:
        assert model.up[0].out_channels == 72
    if "max_pruning_ratio" in options:
        assert all(len(cut.kept) >= 0.4 * cut.size for cut in result.plan.cuts)


def test_nothing_more_fits_and_the_same_comes_out_twice() -> None:
    target = {"macs": 0.5, "params": 0.45}
    pruner = pk.BasePruner(Wide(), IMAGE, "magnitude")
    plan = pk.plan_to_target(pruner, target)
    assert pk.plan_to_target(pk.BasePruner(Wide(), IMAGE, "magnitude"), target) == plan
    dense = counted(Wide(), IMAGE)
    for cut in plan.cuts:
        whole = set(range(cut.size)) - set(cut.kept)
        larger = {**plan.kept, cut.group: tuple(sorted({*cut.kept, min(whole)}))}
        model = pruner.graph.draft(larger).apply(Wide())
        found = counted(model, IMAGE)
        assert any(found[name] > share * dense[name] for name, share in target.items()), cut.group


@pytest.mark.parametrize("global_pruning", [False, True])
def test_the_best_units_of_every_group_stay(global_pruning: bool) -> None:
    pruner = pk.BasePruner(Wide(), IMAGE, "magnitude", global_pruning=global_pruning)
    for cut in pk.plan_to_target(pruner, {"macs": 0.5}).cuts:
        order = torch.argsort(-pruner.score(cut.group).double(), stable=True)
        assert cut.kept == tuple(sorted(order[: len(cut.kept)].tolist()))


def test_round_to_is_counted_in_the_budget() -> None:
    model = Wide()
    dense = counted(model, IMAGE)
    pk.prune(model, IMAGE, target={"macs": 0.5}, round_to=8)
    widths = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths)
    assert 0.46 < counted(model, IMAGE)["macs"] / dense["macs"] <= 0.5


def test_sizes_that_the_program_computes_from_each_other_stay_in_step() -> None:
    torch.manual_seed(0)
    model = Encoder(width=64, heads=4)
    dense = counted(model, TOKENS)
    pruner = pk.BasePruner(model, TOKENS, "magnitude")
    plan = pk.plan_to_target(pruner, {"macs": 0.5})
    assert pruner.graph.knowledge.ties
    pruner.graph.apply(plan)
    used = counted(model, TOKENS)["macs"] / dense["macs"]
    # one step of the tie is four channels of the stream and one dim of every head: a seventh of what is left; the
    # hidden neurons, which are free, fill the rest
    assert 0.495 < used <= 0.5
    width = model.embed.out_features
    assert width % 4 == 0
    assert all(a.qkv.weight.shape == (3 * width, width) for a in model.attention)


def test_ties_and_round_to_together() -> None:
    torch.manual_seed(0)
    model = Encoder(width=128, heads=4)
    result = pk.prune(model, TOKENS, target={"macs": 0.5}, round_to=8)
    assert result.plan.cuts
    assert all(len(cut.kept) % 8 == 0 for cut in result.plan.cuts)
    other = Encoder(width=128, heads=4)
    pk.prune(other, TOKENS, ratio=0.4, round_to=8)
    assert other.embed.out_features % 32 == 0  # the head dim is a quarter of it, and a multiple of 8


def test_head_ratios_hold_and_their_saving_counts() -> None:
    torch.manual_seed(0)
    model, inputs = Decoder(), torch.randn(3, 5, 6)
    dense = counted(model, inputs)
    pruner = pk.BasePruner(model, inputs, "magnitude", prune_num_heads=True, head_pruning_ratio=0.5)
    pruner.graph.apply(pk.plan_to_target(pruner, {"macs": 0.4}))
    used = counted(model, inputs)["macs"] / dense["macs"]
    assert (model.a.heads, model.a.kv, model.b.heads) == (4, 4, 4)
    assert 0.35 < used <= 0.4
    alone = pk.BasePruner(Decoder(), inputs, "magnitude", prune_num_heads=True, head_pruning_ratio=0.5)
    plan = pk.plan_to_target(alone, {"macs": 1.0})
    assert {name: len(units) for name, units in plan.kept.items()} == {"a.q#heads": 4, "b.q#heads": 4}


def test_in_steps_down_to_the_last_target() -> None:
    model = Wide()
    dense = counted(model, IMAGE)
    pruner = pk.BasePruner(model, IMAGE, "magnitude")
    kept: list[Mapping[str, tuple[int, ...]]] = [{}]
    for share in (0.8, 0.6, 0.4):
        pruner.graph.apply(pk.plan_to_target(pruner, {"macs": share}))
        assert 0.99 * share < counted(model, IMAGE)["macs"] / dense["macs"] <= share
        now = pruner.graph.applied.kept
        assert all(set(now[name]) <= set(units) for name, units in kept[-1].items())
        kept.append(now)


def test_a_target_out_of_reach_names_the_smallest_model() -> None:
    model = Wide()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pk.ArgumentError) as caught:
        pk.prune(model, IMAGE, target={"macs": 0.001, "params": 0.9}, max_pruning_ratio=0.5)
    smallest = Wide()
    pk.prune(smallest, IMAGE, ratio=0.5)
    macs, dense = counted(smallest, IMAGE)["macs"], counted(model, IMAGE)["macs"]
    assert caught.value.headline == "The target can't be reached."
    assert f"macs={macs:,.0f} ({macs / dense:.1%} of {dense:,.0f})" in caught.value.why
    assert f"asked for macs={0.001 * dense:,.0f}, params=" in caught.value.why
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_target_that_is_met_already_takes_nothing() -> None:
    pruner = pk.BasePruner(Wide(), IMAGE, "magnitude")
    assert pk.plan_to_target(pruner, {"macs": 1.0}).cuts == ()


@pytest.mark.parametrize("value", [0, -1, True, float("nan"), float("inf"), "half", None, "12 bananas"])
def test_targets_that_are_no_costs(value: Any) -> None:
    with pytest.raises(pk.ArgumentError, match="must be a positive number"):
        pk.prune(Chain(4, 8, 3), torch.randn(1, 4), target={"macs": value})


@pytest.mark.parametrize("costs", [("macs",), ("params", "memory"), ("macs", "params", "weights", "memory")])
def test_costs_after_changes_are_those_of_changed_sizes(costs: tuple[str, ...]) -> None:
    pruner = pk.BasePruner(Chain(4, 9, 8, 7, 3), torch.randn(1, 4), "magnitude")
    budget = Budget.of(pruner, dict.fromkeys(costs, 0.5))
    changes = [{}, {"layers.0": 5}, {"layers.1": 1}, {"layers.0": 2, "layers.2": 3}, {"layers.2": 7}]
    units = {"layers.2": 6}
    found = budget.spent_after(units, changes)
    assert found == [budget.spent({**units, **change}) for change in changes]
    assert len({tuple(one.values()) for one in found}) == len(changes)


def test_a_cost_may_have_any_attributes() -> None:
    class Price:
        each = 0.25

        def __call__(self, sizes: Mapping[str, int]) -> float:
            return self.each * sum(sizes.values())

    assert costs_after(Price(), {"a": 3, "b": 1}, [{"a": 2}, {}]) == [0.75, 1.0]


def test_a_function_is_a_cost_model() -> None:
    seen: list[dict[str, int]] = []

    def widest(analysis: plugin.Analysis, kept: Mapping[str, Any]) -> float:
        seen.append({name: len(units) for name, units in kept.items()})
        return float(max(len(kept.get(name, range(group.size))) for name, group in analysis.groups.items()))

    class Plugin:
        @plugin.hookimpl
        def prunekit_budgets(self) -> dict[str, Callable[..., float]]:
            return {"widest": widest}

    model = Chain(4, 100, 40, 3)
    pk.prune(model, torch.randn(1, 4), target={"widest": 30}, registry=pk.Registry(extra={"mine": Plugin()}))
    # the ratio takes 70 % of both; the narrow one has room for all the units up to the limit
    assert [layer.out_features for layer in model.layers] == [30, 30, 3]
    assert {"layers.0": 30, "layers.1": 30} in seen


# -- the parts


def removal_by_hand(candidates: dict[str, Candidate], ratio: float) -> tuple[dict[str, int], list[str]]:
    """The definition: walk up from the lowest score, and take what may go until enough has gone."""
    left = {name: len(c.present) for name, c in candidates.items()}
    total = sum(c.size * c.blocks for c in candidates.values())
    missing = math.floor(total * ratio + 1e-9) - total + sum(left[n] * c.blocks for n, c in candidates.items())
    rows = [(float(s), n) for n, c in candidates.items() for s in c.scores]
    order = sorted(range(len(rows)), key=lambda i: (rows[i][0], -i))
    spared: list[str] = []
    for place in order:
        if missing <= 0:
            break
        name = rows[place][1]
        c = candidates[name]
        if left[name] > Limits(c.limits.max_ratio).count(1, c.size, len(c.present)) and c.blocks <= missing:
            left[name] -= 1
            missing -= c.blocks
        elif left[name] == 1:
            spared.append(name)
    return {n: c.limits.count(left[n], c.size, len(c.present)) for n, c in candidates.items()}, spared


@st.composite
def candidates(draw: st.DrawFn) -> dict[str, Candidate]:
    found = {}
    for name in "abcd"[: draw(st.integers(0, 4))]:
        size = draw(st.integers(1, 9))
        present = tuple(sorted(draw(st.sets(st.integers(0, size - 1), min_size=1))))
        scores = torch.tensor(draw(st.lists(st.integers(0, 4), min_size=len(present), max_size=len(present))))
        limits = Limits(draw(st.sampled_from([1.0, 0.5])), draw(st.sampled_from([None, 2, 4])))
        found[name] = Candidate(size, present, scores.float(), limits, draw(st.sampled_from([1, 1, 2, 3])))
    return found


@given(candidates(), st.integers(0, 20).map(lambda n: n / 20))
def test_ranking_equals_its_definition(found: dict[str, Candidate], ratio: float) -> None:
    assert Ranking(found).at(ratio) == removal_by_hand(found, ratio)


def candidate(size: int, round_to: int | None = None, max_ratio: float = 1.0) -> Candidate:
    return Candidate(size, tuple(range(size)), torch.arange(size).float(), Limits(max_ratio, round_to))


@given(st.integers(2, 24), st.data())
def test_numbers_that_are_possible_are_the_only_ones_besides_all(size: int, data: st.DataObject) -> None:
    numbers = tuple(sorted(data.draw(st.sets(st.integers(1, size)))))
    step, ratio = data.draw(st.sampled_from([None, 2])), data.draw(st.sampled_from([1.0, 0.5]))
    limits = Limits(ratio, step, numbers=numbers)
    possible = {n for n in numbers if n >= size * (1 - ratio) and n % (step or 1) == 0} | {size}
    for wanted in range(1, size + 1):
        found = limits.count(wanted, size, size)
        distance = abs(found - max(wanted, math.ceil(size * (1 - ratio))))
        assert found in possible
        assert distance == min(abs(n - max(wanted, math.ceil(size * (1 - ratio)))) for n in possible)
        if wanted < size:
            assert limits.after(wanted, size) == min(
                [n for n in numbers if wanted < n < size and n % (step or 1) == 0], default=size
            )


def test_numbers_of_units_are_numbers_of_positions_where_blocks_lose_the_same_ones() -> None:
    halves = Candidate.of(8, tuple(range(8)), torch.arange(8.0), Limits(numbers=(2, 3, 4, 8)), blocks=2)
    assert halves.limits.numbers == (1, 2, 4)
    assert str(halves.limits) == " (possible: 1, 2, 4)"


def test_ties_step_through_sizes_that_suit_all() -> None:
    pair = {"stream": candidate(96, 8), "dims": candidate(24, 8)}
    tie = Tie.of(pair, pair)
    assert tie.steps == 24
    assert [tie.at(step) for step in tie.allowed] == [
        {"dims": 8, "stream": 32},
        {"dims": 16, "stream": 64},
        {"dims": 24, "stream": 96},
    ]
    assert tie.nearest({"stream": 50, "dims": 12}) == {"dims": 16, "stream": 64}
    held = {"stream": candidate(96, 8, 0.5), "dims": candidate(24, 8)}
    assert Tie.of(held, held).allowed == (16, 24)


def test_larger_goes_to_the_next_multiple_or_the_next_step() -> None:
    parts = {"a": candidate(20, 8), "b": candidate(12), "c": candidate(6)}
    chooser = Chooser(parts, [frozenset({"b", "c"})])
    units = {"a": 8, "b": 4, "c": 2}
    assert chooser.larger(units, "a") == {"a": 16}
    assert chooser.larger({**units, "a": 16}, "a") == {"a": 20}
    assert chooser.larger({**units, "a": 20}, "a") is None
    assert chooser.larger(units, "b") == {"b": 6, "c": 3}
    back = chooser.returned(units, {"b": 6, "c": 3})
    assert {name: scores.tolist() for name, scores in back.items()} == {"b": [7.0, 6.0], "c": [3.0]}
    assert chooser.kept({"a": 3, "b": 12, "c": 1}) == {"a": (17, 18, 19), "c": (5,)}


class TakesMultiples(nn.Module):
    """Works at multiples of some number of features only, as kernels do that ask for aligned memory."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self.first, self.second = nn.Linear(4, 64), nn.Linear(64, 64)
        self.other, self.last = nn.Linear(64, 42), nn.Linear(42, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.second(self.aligned(self.first(x).relu())).relu()
        result: torch.Tensor = self.last(self.other(self.aligned(hidden)).relu())
        return result

    def aligned(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape[-1] % self.step:
            raise RuntimeError(f"multiples of {self.step} only")
        return hidden


@pytest.mark.parametrize("step", [4, 16])
@pytest.mark.parametrize("options", [{"target": {"params": 0.55}}, {"ratio": 0.4}])
def test_sizes_are_multiples_where_a_kernel_takes_no_others(step: int, options: dict[str, Any]) -> None:
    model, x = TakesMultiples(step), torch.randn(2, 4)
    result = pk.prune(model, x, **options, verify="always")
    left = (model.first.out_features, model.second.out_features, model.other.out_features)
    assert left[0] < 64
    assert left[1] < 64
    assert (left[0] % step, left[1] % step) == (0, 0)
    assert left[2] % step  # this one takes any size
    assert result.preview.params_after <= 0.55 * result.preview.params_before or "ratio" in options
    (note,) = [note for note in result.report.notes if "are multiples of" in note]
    assert note.startswith(f"sizes of first and 1 more are multiples of {step}: ")
    assert note.endswith(f"the model raised RuntimeError: multiples of {step} only")


def test_sizes_are_multiples_of_what_is_asked_for_and_of_what_the_kernel_takes() -> None:
    model, x = TakesMultiples(4), torch.randn(2, 4)
    pk.prune(model, x, target={"params": 0.55}, round_to=6)
    assert (model.first.out_features % 12, model.second.out_features % 12, model.other.out_features % 6) == (0, 0, 0)


def test_units_that_are_chosen_by_hand_are_not_rounded() -> None:
    model, x = TakesMultiples(4), torch.randn(2, 4)
    with pytest.raises(pk.RehearsalError, match="multiples of 4 only"):
        pk.Graph.of(model, x).remove({"first": (0, 1)})
    assert model.first.out_features == 64


class TakesFew(nn.Module):
    """Works at multiples of 32 features only, which no kernel asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 64), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).relu()
        if hidden.shape[-1] % 32:
            raise RuntimeError("multiples of 32 only")
        result: torch.Tensor = self.second(hidden)
        return result


def test_a_target_says_which_sizes_the_program_refused() -> None:
    model, x = TakesFew(), torch.randn(2, 4)
    with pytest.raises(pk.ArgumentError, match="The target can't be reached") as caught:
        pk.prune(model, x, target={"params": 0.7})
    assert "given back, because the program can't have other sizes: first: " in caught.value.why
    assert "multiples of 32 only" in caught.value.why
    assert "round_to" in caught.value.hint
    result = pk.prune(model, x, target={"params": 0.7}, round_to=32)
    assert (result.preview.params_after <= 0.7 * result.preview.params_before, model.first.out_features % 32) == (
        True,
        0,
    )


def test_a_target_that_coarse_sizes_miss_says_which_and_what_the_next_would_leave() -> None:
    """836 parameters with 64 units, 628 with 48, 420 with 32."""
    x = torch.randn(2, 8)

    def pruned(share: float, round_to: int | None) -> list[str]:
        model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
        notes = pk.prune(model, x, target={"params": share}, round_to=round_to).report.notes
        return [note for note in notes if "is left where" in note]

    (note,) = pruned(0.7, 16)
    assert note == (
        "params: 50.2% is left where 70.0% was asked for: 0 may keep 32 or 48 units (round_to=16), and with 48 75.1% "
        "would be left"
    )
    assert pruned(0.76, 16) == []  # 75.1 % are near enough
    assert pruned(0.7, None) == []  # any number of units is possible
    assert pruned(0.7, 1) == []


def test_a_group_that_a_target_leaves_whole_says_so() -> None:
    """A wide layer in front that may lose units, but needn't: a smaller one behind it saves enough."""
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    result = pk.prune(model, torch.randn(2, 8), target={"params": 0.85}, round_to=32)
    assert set(result.report.pruned) | set(result.report.left) == {"0", "2"}
    (whole,) = result.report.left.values()
    assert whole == "all 64 units stay: the target is met without taking any"
