"""What a report says of sizes that meet a target: why groups stay whole, and why less is left than was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prunekit_core.choose.chooser import Chooser
from prunekit_core.errors import many
from prunekit_plugins.budgets.budget import Budget

_LITTLE = 0.005
"""Shares of the original that aren't worth taking units of a group for."""
_FAR = 0.01
"""Shares of the original up to which a model may be smaller than was asked for without a word."""


def why_whole(chooser: Chooser, units: Mapping[str, int], budget: Budget) -> dict[str, str]:
    """Finds the reason why groups keep all units that they have, of those that could lose some.

    Args:
        chooser: The groups that were scored.
        units: Group to the number of units that it keeps.
        budget: The budget that these meet.
    """
    found, spent = {}, budget.spent(units)
    for name, candidate in chooser.candidates.items():
        fewest = chooser.fewest(name)
        if units.get(name) == len(candidate.present) * candidate.blocks != fewest[name]:
            less = budget.spent({**units, **fewest})
            saved = max((spent[cost] - less[cost]) / (budget.dense[cost] or 1.0) for cost in spent)
            same = f"{' and '.join(spent)} would be about the same without some of them"
            found[name] = "the target is met without taking any" if saved > _LITTLE else same
    return found


def coarse_sizes(chooser: Chooser, units: Mapping[str, int], budget: Budget, asked: str) -> Iterator[str]:
    """Says which steps between sizes are the reason where a model is smaller than it would have to be.

    Args:
        chooser: The groups that were scored.
        units: Group to the number of units that it keeps.
        budget: The budget that these meet.
        asked: Who asked for multiples, in words; empty where that was the call itself.

    Yields:
        One line, or none: where the model is as large as was asked for, sizes may be of any number, or a cost is
        measured, which the caller compares.
    """
    spent = budget.spent(units)
    over: list[tuple[float, str, str, dict[str, int]]] = []
    if budget.measured or all(budget.now[name] <= allowed for name, allowed in budget.allowed.items()):
        return
    if any((budget.allowed[name] - cost) <= _FAR * budget.dense[name] for name, cost in spent.items()):
        return
    for group in units:
        larger = chooser.larger(units, group) if group in chooser.candidates else None
        if larger is not None:
            found = budget.spent({**units, **larger})
            used = {name: cost / budget.allowed[name] for name, cost in found.items()}
            worst = max(used, key=lambda name: used[name])
            over.append((used[worst], worst, group, larger))
    if not over:
        return
    _, cost, group, larger = min(over, key=lambda one: one[0])
    candidate = chooser.candidates[group]
    if larger[group] - units[group] > candidate.blocks:
        shares = (spent[cost], budget.allowed[cost], budget.spent({**units, **larger})[cost])
        left, wanted, more = (f"{share / budget.dense[cost]:.1%}" for share in shares)
        tied = f", in step with {many(len(larger) - 1, 'other group', 'other groups')}," if len(larger) > 1 else ""
        yield (
            f"{cost}: {left} is left where {wanted} was asked for: {group}{tied} may keep {units[group]} or "
            f"{larger[group]} units{candidate.limits}{asked}, and with {larger[group]} {more} would be left"
        )
