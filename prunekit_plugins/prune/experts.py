"""What `prune` has to say about experts: what can't be had, before calibration starts, and what came out."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from prunekit_core.choose.pruner import Pruner
from prunekit_core.plans.plan import Plan
from prunekit_core.program.op_call import Kind
from prunekit_plugins.budgets.budget import Budget, Target
from prunekit_plugins.budgets.options import fixed_units, free_options


def check_reach(pruner: Pruner, target: Target) -> None:
    """Raises `OutOfReachError` for a target that isn't met even if everything goes that may, whatever the scores.

    It is told before anything is calibrated. As many experts stay as a token is sent to.

    Args:
        pruner: The pruner, before its criterion has seen anything.
        target: The target; one on measured costs isn't looked at.
    """
    budget = Budget.of(pruner, target)
    smallest = {} if budget.measured else smallest_widths(pruner)
    if not budget.measured and not budget.fits(smallest):
        raise budget.refuse(smallest)


def smallest_widths(pruner: Pruner) -> dict[str, int]:
    """Returns how many units each group keeps at least, whatever the scores."""
    scopes = [scope for scope in pruner.scopes() if scope.groups]
    names = [name for scope in scopes for name in scope.groups]
    chooser = pruner.chooser({name: torch.zeros(len(pruner.graph.remaining(name)), device="cpu") for name in names})
    free = free_options(chooser, scopes)
    smallest = fixed_units(chooser, scopes, free)
    for options in free:
        smallest.update(options[-1])
    return smallest


def about_experts(pruner: Pruner, plan: Plan) -> Iterator[str]:
    """Says where layers keep different numbers of experts, which no configuration with one number can say."""
    groups = pruner.graph.analysis.groups
    kept = plan.kept
    counts: dict[int, set[int]] = {}
    for group in groups.values():
        if group.kind is Kind.EXPERTS:
            counts.setdefault(group.size, set()).add(len(kept.get(group.name, range(group.size))))
    for found in counts.values():
        if len(found) > 1:
            yield (
                f"layers keep different numbers of experts ({min(found)} to {max(found)}): a configuration with one "
                "number for all can't say that; with uniform=True all keep the same"
            )
