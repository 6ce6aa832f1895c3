"""Random networks, pruned at random, must equal the masked original."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from hypothesis import event, given, settings, strategies as st

import prunekit as pk
from tests.programs import pictures, tokens
from tests.programs.spec import Block
from tests.programs.trial import compare, make, relative, same_state, shapes_of, state_of
from tests.strategies import blocks

FAMILIES = {"pictures": pictures, "tokens": tokens}
IDLE = {
    "pictures: lookup": "its channels are looked up by position, so they are pinned",
}
"""Blocks behind which nothing goes by default, with the reason."""

SETTINGS = settings() if os.environ.get("HYPOTHESIS_PROFILE") else settings(max_examples=25)


def programs(exact: bool) -> st.SearchStrategy[tuple[str, tuple[Block, ...]]]:
    options = []
    for name, family in FAMILIES.items():
        kinds = [kind for kind in family.KINDS if not exact or kind not in family.INEXACT]
        options.append(st.tuples(st.just(name), blocks(kinds, family.NESTED)))
    return st.one_of(*options)


class Scores:
    """Random scores that depend on the group alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, group: pk.Group) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed + sum(map(ord, group.name)))
        return torch.rand(group.size(), generator=generator)


ratios = st.sampled_from([0.25, 0.5, 0.75, 0.9])
seeds = st.integers(0, 10_000)


def prune_and_compare(
    program: tuple[str, tuple[Block, ...]], head: int, ratio: float, seed: int, ranked: bool, exact: bool
) -> None:
    original, x = make(*program, head, seed)
    pruned = copy.deepcopy(original)
    before = state_of(pruned)
    pruner = pk.BasePruner(pruned, x, Scores(seed), pruning_ratio=ratio, global_pruning=ranked)
    plan = pruner.plan()
    assert same_state(before, state_of(pruned)), "deciding changed the model"
    pruner.graph.apply(plan)
    if not plan.cuts:
        event("nothing to prune")
        return
    event("pruned")
    assert shapes_of(pruned) != shapes_of(original)
    compare(original, pruned, plan, x, exact=exact)
    other = plan.apply(copy.deepcopy(original))
    with torch.no_grad():
        assert torch.equal(other(x), pruned(x))


@SETTINGS
@given(programs(exact=True), st.integers(0, 19), ratios, seeds, st.booleans())
def test_pruned_equals_masked(program, head, ratio, seed, ranked) -> None:  # type: ignore[no-untyped-def]
    prune_and_compare(program, head, ratio, seed, ranked, exact=True)


@pytest.mark.slow
@SETTINGS
@given(programs(exact=False), st.integers(0, 19), ratios, seeds, st.booleans())
def test_pruned_passes_the_check(program, head, ratio, seed, ranked) -> None:  # type: ignore[no-untyped-def]
    prune_and_compare(program, head, ratio, seed, ranked, exact=False)


@pytest.mark.slow
@SETTINGS
@given(programs(exact=True), st.integers(0, 19), seeds, st.booleans())
def test_three_steps(program, head, seed, ranked) -> None:  # type: ignore[no-untyped-def]
    """Steps are applied one on top of the other; the plan of the whole leads there from the original, too."""
    original, x = make(*program, head, seed)
    pruned = copy.deepcopy(original)
    pruner = pk.BasePruner(pruned, x, Scores(seed), pruning_ratio=0.7, iterative_steps=3, global_pruning=ranked)
    for _ in range(3):
        pruner.graph.apply(pruner.plan())
        pruner.current_step += 1
    plan = pruner.graph.applied
    if not plan.cuts:
        event("nothing to prune")
        return
    compare(original, pruned, plan, x, exact=True)
    other = plan.apply(copy.deepcopy(original))
    assert shapes_of(other) == shapes_of(pruned)
    with torch.no_grad():
        assert relative(other(x), pruned(x)) < 1e-10


@pytest.mark.slow
@SETTINGS
@given(programs(exact=True), st.integers(0, 19), seeds, st.data())
def test_single_groups(program, head, seed, data) -> None:  # type: ignore[no-untyped-def]
    """A few units of one group leave, then a few of another: exact, or refused with the model untouched."""
    original, x = make(*program, head, seed)
    pruned = copy.deepcopy(original)
    graph = pk.DependencyGraph().build_dependency(pruned, x)
    for _ in range(2):
        groups = [group.name for group in graph.get_all_groups() if group.size() > 1]
        if not groups:
            event("no group")
            return
        name = data.draw(st.sampled_from(groups))
        present = graph.remaining(name)
        gone = data.draw(st.lists(st.sampled_from(present), min_size=1, max_size=len(present) - 1, unique=True))
        before = state_of(pruned)
        try:
            plan = pk.Group(graph, {name: sorted(gone)}, None).prune()
        except pk.RehearsalError:
            event("refused")
            assert same_state(before, state_of(pruned)), "a refused cut changed the model"
            continue
        event("pruned")
        assert graph.remaining(name) == tuple(unit for unit in present if unit not in gone)
        compare(original, pruned, plan, x, exact=True)


@pytest.mark.slow
def test_nothing_is_vacuous() -> None:
    """Most constructs can be pruned: otherwise the tests above would hold of a library that does nothing."""
    idle = []
    for name, family in FAMILIES.items():
        for kind in family.KINDS:
            original, x = make(name, (Block(kind, 1, 1, (Block("act"),)),), 0, 0)
            plan = pk.BasePruner(original, x, Scores(0)).plan()
            if not plan.cuts:
                idle.append(f"{name}: {kind}")
    assert sorted(idle) == sorted(IDLE)
