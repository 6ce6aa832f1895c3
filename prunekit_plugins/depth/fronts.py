"""Fronts of a knapsack: solutions of its parts of which none costs less and damages less than another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch

from prunekit_plugins.budgets.knapsack import undominated, wide

_FRONTIER = 512
"""Partial solutions that are kept at once; sizes are chosen among more, once it is known which branches go."""


@attrs.frozen(eq=False)
class Front:
    """Solutions of a part of the problem of which none costs less and damages less than another.

    Attributes:
        costs: Tensor ``[solutions]``.
        damages: Tensor ``[solutions]``.
        pick: Number of a solution to what it picks: options by choice, and the offers that it takes.
    """

    costs: torch.Tensor
    damages: torch.Tensor
    pick: Callable[[int], tuple[dict[int, int], set[int]]]


def either(front: Front, damage: float, number: int) -> Front:
    """Adds a solution that costs nothing: an offer is taken, in the place of all that is chosen in it.

    Args:
        front: What may be chosen where it isn't taken.
        damage: What it damages.
        number: The offer.
    """
    costs, damages = torch.cat([front.costs, wide([0.0])]), torch.cat([front.damages, wide([damage])])
    chosen, last = undominated(costs, damages, torch.inf), len(front.costs)

    def pick(place: int) -> tuple[dict[int, int], set[int]]:
        found = int(chosen[place])
        return ({}, {number}) if found == last else front.pick(found)

    return Front(costs[chosen], damages[chosen], pick)


def joined(fronts: Sequence[Front], allowed: float | None) -> Front:
    """Combines parts of the problem: one solution of each.

    Args:
        fronts: The parts.
        allowed: What their costs may add up to; None for anything. Where nothing fits, what costs least is left.
    """
    if allowed is None and len(fronts) == 1:
        return fronts[0]
    least = sum(float(front.costs.min()) for front in fronts)
    limit = torch.inf if allowed is None else max(allowed, least)
    spent, lost = wide([0.0]), wide([0.0])
    trail: list[tuple[torch.Tensor, Front]] = []
    for front in fronts:
        least -= float(front.costs.min())
        total, harm = (spent[:, None] + front.costs).flatten(), (lost[:, None] + front.damages).flatten()
        chosen = undominated(total, harm, limit - least, _FRONTIER)
        trail.append((chosen, front))
        spent, lost = total[chosen], harm[chosen]

    def pick(place: int) -> tuple[dict[int, int], set[int]]:
        options, taken = dict[int, int](), set[int]()
        for chosen, front in reversed(trail):
            place, own = divmod(int(chosen[place]), len(front.costs))
            more, gone = front.pick(own)
            options.update(more)
            taken |= gone
        return options, taken

    return Front(spent, lost, pick)
