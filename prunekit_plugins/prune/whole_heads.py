"""What whole heads, which stay unless a call lets them go, would be worth to a target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from prunekit_core.choose.pruner import Pruner
from prunekit_core.choose.scopes import is_heads
from prunekit_core.errors import PrunekitError
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
    assert found.problem is not None
    before = found.problem.damage_of({cut.group: len(cut.kept) for cut in found.plan.cuts})
    after = _damage(pruner.with_heads({}), budget, found, scores)
    try:
        if counts is not None and after < MUCH * before:  # finding them out takes a while
            after = _damage(pruner.with_heads(counts()), budget, found, scores)
    except PrunekitError as error:  # a remark doesn't stop a cut
        yield f"whole heads stay by default; what they would be worth isn't known: {error.headline}"
        return
    if after < MUCH * before:
        expected = f"is expected to do {after / before:.0%} of the damage"
        yield f"whole heads stay by default: with prune_num_heads=True the same target {expected}"


def _damage(other: Pruner, budget: Budget, found: Agreed, scores: Mapping[str, torch.Tensor]) -> float:
    """Returns the damage that a target does by the scores, with a pruner that may take whole heads."""
    groups = other.graph.analysis.groups
    more = [scope for scope in other.scopes() if any(is_heads(groups[name]) for name in scope.groups)]
    known = {**scores, **(other.scores(more) if more else {})}
    scopes = [scope for scope in other.scopes() if scope.groups]
    chooser = other.chooser({name: known[name] for s in scopes for name in s.groups if name in known})
    problems: list[Problem] = []
    select = found.allotment.selector(other, None, problems.append)
    assert select is not None
    sizes = select(chooser, scopes, budget)
    return problems[-1].damage_of(sizes)
