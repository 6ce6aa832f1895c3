"""What whole heads, which stay unless a call lets them go, would be worth to a target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from prunekit_core.choose.pruner import Pruner
from prunekit_core.choose.scopes import is_heads
from prunekit_plugins.budgets.allocation import ESTIMATED
from prunekit_plugins.budgets.budget import Budget, Target
from prunekit_plugins.budgets.knapsack import Problem
from prunekit_plugins.prune.kind_scales import Agreed

MUCH = 0.75
"""The part of the damage that has to be left, at most, for whole heads to be mentioned."""


def about_heads(
    pruner: Pruner,
    target: Target,
    found: Agreed,
    scores: Mapping[str, torch.Tensor],
    counts: Callable[[], Mapping[str, tuple[int, ...]]] | None,
) -> Iterator[str]:
    """Says where a target would do much less damage, by the scores, if whole heads might go.

    Args:
        pruner: The pruner, which leaves whole heads alone; its criterion has statistics.
        target: The target that it met.
        found: The plan, and how the budget was shared out.
        scores: Those of the groups that may shrink.
        counts: Finds out which numbers of heads may be left, see `ServingProfile`; None for all.
    """
    budget, groups = Budget.of(pruner, target), pruner.graph.analysis.groups
    weighs = found.allotment.chosen == ESTIMATED and pruner.additive and found.problem is not None
    if not weighs or budget.measured or pruner.graph.current.stored is not None:
        return
    if not any(is_heads(group) for group in groups.values()):
        return
    other = pruner.with_heads({} if counts is None else counts())
    more = [scope for scope in other.scopes() if any(is_heads(groups[name]) for name in scope.groups)]
    known = {**scores, **other.scores(more)} if more else scores
    if known.keys() == scores.keys():
        return
    scopes = [scope for scope in other.scopes() if scope.groups]
    chooser = other.chooser({name: known[name] for s in scopes for name in s.groups if name in known})
    problems: list[Problem] = []
    select = found.allotment.selector(other, None, problems.append)
    assert select is not None
    assert found.problem is not None
    sizes = select(chooser, scopes, budget)
    before = found.problem.damage_of({cut.group: len(cut.kept) for cut in found.plan.cuts})
    after = problems[-1].damage_of(sizes)
    if before > 0 and after < MUCH * before:
        expected = f"is expected to do {after / before:.0%} of the damage"
        yield f"whole heads stay by default: with prune_num_heads=True the same target {expected}"
