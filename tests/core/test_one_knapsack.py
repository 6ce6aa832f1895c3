"""The knapsack over sizes and branches against exhaustive search, on a model whose costs are counted by hand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.budgets.budget import Budget
from prunekit_plugins.budgets.options import Options
from prunekit_plugins.depth.costs import CostsWithout
from prunekit_plugins.depth.items import Items, Scales, Solution
from prunekit_plugins.depth.nesting import Offer
from prunekit_plugins.depth.scales import Measured, fitted

WIDTH, INNER = 6, (8, 4, 8, 6, 4, 8)
STEPS = (1.0, 0.5, 0.25)


class Part(nn.Module):
    """A branch; the first ones have a branch of their own."""

    def __init__(self, inner: int, nested: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, inner), nn.Linear(inner, WIDTH)
        self.extra = nn.Linear(inner, inner) if nested else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.up(x).relu()
        if self.extra is not None:
            h = h + self.extra(h)
        out: torch.Tensor = self.down(h.relu())
        return out


class Six(nn.Module):
    """Six layers, each with a branch of one inner width."""

    def __init__(self, nested: int = 0) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)
        self.layers = nn.ModuleList(Part(inner, place < nested) for place, inner in enumerate(INNER))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x)
        out: torch.Tensor = self.head(x)
        return out


@attrs.frozen(eq=False)
class Toy:
    """A knapsack with damages that are drawn, and all that may be chosen: sizes of groups, and branches that go."""

    items: Items
    widths: Mapping[str, Mapping[int, float]]
    offers: Sequence[Offer]
    allowed: float
    nested: int
    most: int

    def params(self, sizes: Mapping[str, int], gone: set[str]) -> int:
        """Counts parameters by hand."""
        stream = sizes.get(STREAM, WIDTH)
        total = 3 * stream + stream + 2 * stream + 2
        for place in range(len(INNER)):
            if f"layers.{place}" not in gone:
                inner = sizes[group_of(place, self.nested)]
                total += 2 * inner * stream + inner + stream
                if place < self.nested and f"layers.{place}.extra" not in gone:
                    total += inner * inner + inner
        return total

    def optimum(self) -> float:
        """Tries everything."""
        best = float("inf")
        names = list(self.widths)
        damage_of = {offer.branches[0]: offer.damage for offer in self.offers}
        for count in range(min(self.most, len(self.offers)) + 1):
            for gone in map(set, itertools.combinations(damage_of, count)):
                if any(name.endswith(".extra") and name[: -len(".extra")] in gone for name in gone):
                    continue  # a part of a branch that goes
                dead = {group_of(place, self.nested) for place in range(6) if f"layers.{place}" in gone}
                living = [name for name in names if name not in dead]
                base = sum(damage_of[name] for name in gone)
                for sizes in itertools.product(*(self.widths[name] for name in living)):
                    units = dict(zip(living, sizes, strict=True))
                    damage = base + sum(self.widths[name][size] for name, size in units.items())
                    if damage < best and self.params(units, gone) <= self.allowed:
                        best = damage
        return best


STREAM = "embed#stream"


def group_of(place: int, nested: int) -> str:
    return f"layers.{place}.up#stream" if place < nested else f"layers.{place}.up"


def toy(seed: int, *, stream: bool = False, nested: int = 0, most: int = 6) -> Toy:
    """Damages, and what is allowed, are drawn; a choice of three sizes for each layer, and of two for the stream."""
    r = random.Random(seed)
    graph = pk.Graph.of(Six(nested).eval(), torch.randn(2, 3))
    groups = graph.analysis.groups
    part = r.uniform(0.2, 0.9)
    budget = Budget.on(graph, {"params": part})
    names = [group_of(place, nested) for place in range(len(INNER))] + [STREAM] * stream
    widths = {}
    for name in names:
        sizes = [int(groups[name].size * step) for step in STEPS[: 2 if name == STREAM else 3]]
        widths[name] = dict(zip(sizes, [0.0, *sorted(r.random() ** 3 for _ in sizes[1:])], strict=True))
    offers = [Offer((branch.name,), r.random() ** 2) for branch in graph.branches()]

    def damages(options: Options) -> list[float]:
        return [sum(widths[name][size] for name, size in option.items()) for option in options]

    choices = [tuple({name: size} for size in widths[name]) for name in names]
    fixed = {name: group.size for name, group in groups.items() if name not in names}
    costs = CostsWithout(graph, budget)
    found = Items(graph, costs, budget.allowed, choices, damages, offers, fixed, most)
    return Toy(found, widths, offers, budget.allowed["params"], nested, most)


def checked(problem: Toy) -> tuple[float, Solution | None]:
    """The solver's damage, after its solution was counted and added up by hand."""
    found = problem.items.solve()
    if found is None:
        return float("inf"), None
    gone = set(problem.items.names(found.absent))
    units = {}
    for option, choice in zip(found.picked, problem.items.choices, strict=True):
        units.update(choice[option])
    assert problem.params(units, gone) <= problem.allowed
    assert len(gone) <= problem.most
    damage = sum(problem.offers[number].damage for number in found.absent)
    damage += sum(
        problem.widths[name][size]
        for name, size in units.items()
        if not any(name == group_of(p, problem.nested) and f"layers.{p}" in gone for p in range(6))
    )
    assert found.damage == pytest.approx(damage)
    return damage, found


@pytest.mark.parametrize("seed", range(12))
def test_what_is_chosen_is_the_optimum(seed: int) -> None:
    """Six branches with three widths each: all of 4096 choices were tried."""
    problem = toy(seed)
    damage, found = checked(problem)
    assert found is not None
    assert damage == pytest.approx(problem.optimum(), abs=1e-12)


@pytest.mark.parametrize("options", [{"stream": True}, {"most": 2}, {"nested": 2}])
def test_a_stream_a_limit_and_branches_in_branches_are_solved_as_well(options: dict[str, Any]) -> None:
    for seed in range(100, 106):
        problem = toy(seed, **options)
        damage, found = checked(problem)
        assert (damage if found else float("inf")) == pytest.approx(problem.optimum(), abs=1e-12), seed


def test_branches_go_that_the_scales_say_cost_less() -> None:
    """Branches at no damage go alone; where they are dear none does; damages are counted by their scales."""
    problem = toy(0)
    cheap, dear = problem.items.solve(Scales(depth=1e-9)), problem.items.solve(Scales(depth=1e9))
    assert cheap is not None
    assert dear is not None
    assert cheap.damage < 1e-6
    assert dear.absent == frozenset()
    doubled, plain = problem.items.solve(Scales(2.0, 2.0)), problem.items.solve()
    assert doubled is not None
    assert plain is not None
    assert (doubled.absent, doubled.picked) == (plain.absent, plain.picked)
    assert doubled.damage == pytest.approx(2 * plain.damage)


def test_the_smallest_model_is_the_one_with_the_fewest_parameters() -> None:
    problem = toy(3, stream=True, most=4)
    widths = {name: min(sizes) for name, sizes in problem.widths.items()}
    names = [f"layers.{place}" for place in range(len(INNER))]
    fewest = min(problem.params(widths, set(gone)) for gone in itertools.combinations(names, 4))
    assert problem.items.smallest() == {"params": fewest}


def test_what_can_t_be_met_has_no_solution() -> None:
    problem = toy(1, most=0)
    allowed = {"params": problem.items.smallest()["params"] - 1}
    assert attrs.evolve(problem, items=problem.items.within(allowed)).items.solve() is None
    just = problem.items.within({"params": allowed["params"] + 1}).solve()
    assert just is not None
    assert just.picked == (2,) * len(INNER)


def test_scales_are_those_that_explain_what_was_measured() -> None:
    """Two measurements of choices that differ say both scales; a single one of units leaves that of branches."""
    points = [Measured(2.0, 0.0, 6.0), Measured(1.0, 4.0, 5.0)]
    both = fitted(points, Scales(1.0, 1.0))
    assert both.width == pytest.approx(3.0, rel=0.05)
    assert both.depth == pytest.approx(0.5, rel=0.1)
    alone = fitted(points[:1], Scales(1.0, 7.0))
    assert alone.width == pytest.approx(3.0, rel=0.05)
    assert alone.depth == pytest.approx(7.0)
    assert fitted([], Scales(2.0, 3.0)) == Scales(2.0, 3.0)
    assert fitted([Measured(1.0, 0.0, 0.0)], Scales(2.0, 3.0)) == Scales(2.0, 3.0)
