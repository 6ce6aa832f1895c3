"""What branches and units together can reach, told before anything is calibrated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch

from prunekit_core.choose.demands import WITHOUT
from prunekit_core.choose.pruner import Pruner
from prunekit_core.graph.graph import Graph
from prunekit_plugins.budgets.budget import Budget, OutOfReachError, Target
from prunekit_plugins.budgets.options import fixed_units, free_options
from prunekit_plugins.depth.costs import CostsWithout
from prunekit_plugins.depth.items import Items
from prunekit_plugins.depth.nesting import Offer
from prunekit_plugins.depth.offers import possible_items
from prunekit_plugins.depth.settings import BOTH, WIDTH, DepthSettings
from prunekit_plugins.depth.stays import counted_branches, most_of
from prunekit_plugins.prune.experts import smallest_widths

HOLDS: Mapping[str, Any] = {
    "ignored_layers": (),
    "max_pruning_ratio": 1.0,
    "round_to": None,
    "keep_first": 0,
    "keep_last": 0,
    "uniform": False,
    "pruning_ratio_dict": {},
    "head_pruning_ratio_dict": {},
}
"""Arguments that keep a model from getting smaller, with the value that doesn't."""


def check_reach_of_both(pruner: Pruner, settings: DepthSettings, target: Target) -> None:
    """Raises `OutOfReachError` for a target that isn't met even if everything goes that may, whatever the damages.

    The error says which arguments hold the model up, what it would have without each of them, and the nearest target
    that can be met. Branches that the program can't go on without are found out later.

    Args:
        pruner: The pruner, before its criterion has seen anything.
        settings: What is asked for of branches.
        target: The target; one on measured costs isn't looked at.
    """
    budget = Budget.on(pruner.graph, target)
    if not budget.measured:
        smallest = _smallest(pruner, settings, budget)
        if not budget.allows(smallest):
            raise out_of_reach(pruner, settings, budget, smallest)


def out_of_reach(
    pruner: Pruner, settings: DepthSettings, budget: Budget, smallest: Mapping[str, float]
) -> OutOfReachError:
    """Words the error for a target that branches and units together don't meet.

    Args:
        pruner: The pruner.
        settings: What is asked for of branches.
        budget: The budget.
        smallest: What the smallest model costs.
    """
    wanted = [f"{name}={budget.models[name].text(allowed)}" for name, allowed in budget.allowed.items()]
    parts = [f"the smallest model has {_shown(budget, smallest)}; asked for {', '.join(wanted)}"]
    parts += [
        f"without {held} it would have {_shown(budget, left)}" for held, left in _lifted(pruner, settings, budget)
    ]
    nearest = {
        name: math.ceil(1e4 * smallest[name] / budget.dense[name]) / 1e4
        for name, allowed in budget.allowed.items()
        if smallest[name] > allowed and budget.dense[name]
    }
    return OutOfReachError(
        "The target can't be reached by depth and width.",
        why="; ".join(parts),
        hint=f"the nearest target is about {nearest}; or let more go: ignored_layers, max_pruning_ratio, round_to, "
        "keep_first, keep_last and stated ratios hold, and one branch always stays",
    )


def name_profile(error: OutOfReachError, pruner: Pruner, settings: DepthSettings, target: Target) -> None:
    """Adds to an error that a serving profile holds the model up, where it does, and how small it would be without it.

    Args:
        error: The error about the target.
        pruner: The pruner that can't reach it.
        settings: What is asked for of branches.
        target: The target.
    """
    demands = pruner.settings.demands
    freed = Pruner(pruner.graph, pruner.settings.freed())
    budget = Budget.of(pruner, target)
    if settings.by == WIDTH and not budget.measured:
        found, left = (budget.spent(smallest_widths(one)) for one in (pruner, freed))
    elif settings.by == BOTH and not budget.measured:
        branches = attrs.evolve(settings, uniform=freed.settings.uniform)
        found, left = _smallest(pruner, settings, budget), _smallest(freed, branches, budget)
    elif settings.uniform and "uniform" in demands.asked:
        error.why += f"; uniform=True{demands.about('uniform')}"
        return
    else:
        return
    if any(left[cost] < found[cost] * (1 - 1e-3) for cost in left):
        error.why += f"; {demands.text}: without it the smallest model would have {_shown(budget, left)}"
        error.hint += f"; {WITHOUT}"


def _shown(budget: Budget, costs: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name}={budget.models[name].text(cost)} ({cost / budget.dense[name]:.1%})" for name, cost in costs.items()
    )


def _lifted(pruner: Pruner, settings: DepthSettings, budget: Budget) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yields each argument that holds the model up, and what the smallest model would cost without it."""
    smallest = _smallest(pruner, settings, budget)
    for name, free in HOLDS.items():
        owners = [one for one in (pruner.settings, settings) if name in attrs.fields_dict(type(one))]
        if all(getattr(one, name) == free for one in owners):
            continue
        change: dict[str, Any] = {name: free}
        branches = attrs.evolve(settings, **change) if settings in owners else settings
        units = Pruner(pruner.graph, attrs.evolve(pruner.settings, **change)) if pruner.settings in owners else pruner
        left = _smallest(units, branches, budget)
        if any(left[cost] < smallest[cost] * (1 - 1e-3) for cost in left):
            value = next(getattr(one, name) for one in owners)
            stated = f"{name}={value:g}" if isinstance(value, int | float) else name
            yield stated + pruner.settings.demands.about(name), left


def _smallest(pruner: Pruner, settings: DepthSettings, budget: Budget) -> dict[str, float]:
    """Returns what the model costs without all that may go."""
    graph: Graph = pruner.graph
    scopes = [scope for scope in pruner.scopes() if scope.groups]
    names = [name for scope in scopes for name in scope.groups]
    chooser = pruner.chooser({name: torch.zeros(len(graph.remaining(name)), device="cpu") for name in names})
    free, (open_, _) = free_options(chooser, scopes), possible_items(graph, settings)
    items = Items(
        graph,
        CostsWithout(graph, budget),
        budget.allowed,
        free,
        lambda options: [0.0] * len(options),
        [Offer(item.branches, 0.0) for item in open_],
        fixed_units(chooser, scopes, free),
        most_of(settings, len(counted_branches(graph))) - len(graph.applied.absent),
    )
    return items.smallest()
