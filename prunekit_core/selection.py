"""Choosing what goes: how many units each group keeps, and which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs
import torch

from prunekit_core.errors import ArgumentError
from prunekit_core.ladder import counts_in_step

_TOLERANCE = 1e-9


@attrs.frozen
class Limits:
    """Bounds on what a group keeps.

    Attributes:
        max_ratio: Largest fraction of the units that may go, over all steps together.
        round_to: Sizes are kept at multiples of this; None leaves them as they come.
    """

    max_ratio: float = 1.0
    round_to: int | None = None

    def count(self, wanted: int, size: int, present: int) -> int:
        """Returns how many units stay when ``wanted`` should.

        Args:
            wanted: The number asked for.
            size: Units at analysis.
            present: Units there now; no more than these can stay.
        """
        floor = max(1, math.ceil(size * (1 - self.max_ratio) - _TOLERANCE))
        count = min(present, max(wanted, floor))
        if self.round_to is None or count == present:
            return count
        step = self.round_to
        nearest = max(step, step * math.floor(count / step + 0.5))
        if nearest < floor:
            nearest += step * math.ceil((floor - nearest) / step)
        return min(present, nearest)


def target_count(size: int, ratio: float) -> int:
    """Returns how many of ``size`` units stay at a pruning ratio: ``floor(size * (1 - ratio))``, exact for decimals."""
    return max(1, math.floor(size * (1 - ratio) + _TOLERANCE))


def best_units(scores: torch.Tensor, present: Sequence[int], count: int) -> tuple[int, ...]:
    """Chooses the units with the highest scores; among equals, those that come first.

    Args:
        scores: Tensor ``[len(present)]``.
        present: The units that the scores are for, ascending.
        count: How many to choose.

    Returns:
        The chosen units, ascending.
    """
    order = torch.argsort(-scores.detach().double().cpu(), stable=True)[:count]
    return tuple(present[position] for position in sorted(order.tolist()))


@attrs.frozen
class Scope:
    """Groups that are ranked together.

    Attributes:
        name: What the scope is called in listings.
        groups: Names of its groups.
        ratio: Fraction of the scope's units that goes.
        ranked: True ranks all units of the scope in one list; False takes the ratio in each group by itself.
    """

    name: str
    groups: tuple[str, ...]
    ratio: float
    ranked: bool


def choose_counts(
    scope: Scope,
    sizes: Mapping[str, int],
    scores: Mapping[str, torch.Tensor],
    limits: Limits,
) -> dict[str, int]:
    """Decides how many units each group of a scope keeps.

    Args:
        scope: The scope.
        sizes: Units per group at analysis.
        scores: Per group, one score for each unit that is there now.
        limits: Bounds.
    """
    if not scope.ranked:
        return {
            group: limits.count(target_count(sizes[group], scope.ratio), sizes[group], len(scores[group]))
            for group in scope.groups
        }
    floors = {group: limits.count(1, sizes[group], len(scores[group])) for group in scope.groups}
    if limits.round_to is not None:
        plain = Limits(limits.max_ratio)
        floors = {group: plain.count(1, sizes[group], len(scores[group])) for group in scope.groups}
    total = sum(sizes[group] for group in scope.groups)
    gone = total - sum(len(scores[group]) for group in scope.groups)
    missing = math.floor(total * scope.ratio + _TOLERANCE) - gone
    counts = {group: len(scores[group]) for group in scope.groups}
    joined = torch.cat([scores[group].detach().double().cpu() for group in scope.groups])
    owners = [group for group in scope.groups for _ in range(len(scores[group]))]
    for position in _ascending(joined):
        if missing <= 0:
            break
        owner = owners[position]
        if counts[owner] > floors[owner]:
            counts[owner] -= 1
            missing -= 1
    return {g: limits.count(count, sizes[g], len(scores[g])) for g, count in counts.items()}


def _ascending(scores: torch.Tensor) -> list[int]:
    """Positions from the lowest score up; among equal scores, from the last position back."""
    order: list[int] = torch.argsort(scores.flip(0), stable=True).tolist()
    return [len(order) - 1 - position for position in order]


def keep_in_step(counts: dict[str, int], ties: Sequence[frozenset[str]], sizes: Mapping[str, int]) -> dict[str, int]:
    """Gives groups whose sizes the program computes from each other the same fraction."""
    result = dict(counts)
    for tie in ties:
        names = sorted(name for name in tie if name in sizes)
        fraction = sum(result.get(name, sizes[name]) for name in names) / sum(sizes[name] for name in names)
        for name, count in zip(names, counts_in_step([sizes[n] for n in names], fraction), strict=True):
            result[name] = count
    return result


def linear_scheduler(ratio: float, steps: int) -> list[float]:
    """Cumulative pruning ratios in equal steps.

    Args:
        ratio: The final ratio.
        steps: Number of steps, at least one.

    Returns:
        ``[i / steps * ratio for i in 0..steps]``.
    """
    return [step / steps * ratio for step in range(steps + 1)]


def check_ratio(value: float, name: str, *, closed: bool = False) -> float:
    """Returns a ratio that lies in [0, 1), or in [0, 1] if ``closed``.

    Raises:
        ArgumentError: It is no number or lies outside.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not 0 <= value <= 1 or (value == 1 and not closed):
        bounds = "[0, 1]" if closed else "[0, 1)"
        raise ArgumentError(f"{name} must lie in {bounds}.", why=f"got {value!r}", hint="0.5 removes half of the units")
    return float(value)
