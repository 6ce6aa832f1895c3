"""Choosing what goes: how many units each group keeps, and which."""

from __future__ import annotations

import math

import attrs
import torch

from prunekit_core.arguments import is_number
from prunekit_core.errors import ArgumentError, UnitsError

TOLERANCE = 1e-9
"""Ratios are decimals: what differs by less than this is meant to be equal."""


@attrs.frozen
class Limits:
    """Bounds on what a group keeps.

    Attributes:
        max_ratio: Largest fraction of the units that may go, over all steps together.
        round_to: Sizes are kept at multiples of this; None leaves them as they come.
        least: Units that must stay, so that every operation has a value.
        numbers: The only numbers of units that may stay where some go, ascending; None for all.
    """

    max_ratio: float = 1.0
    round_to: int | None = None
    least: int = 1
    numbers: tuple[int, ...] | None = None

    def __str__(self) -> str:
        bounds = [f"round_to={self.round_to}"] if self.round_to not in (None, 1) else []
        bounds += [f"max_pruning_ratio={self.max_ratio:g}"] if self.max_ratio < 1 else []
        bounds += [f"possible: {', '.join(map(str, self.numbers))}"] if self.numbers else []
        return f" ({', '.join(bounds)})" if bounds else ""

    def count(self, wanted: int, size: int, present: int) -> int:
        """Returns how many units stay when ``wanted`` should.

        Args:
            wanted: The number asked for.
            size: Units at analysis.
            present: Units there now; no more than these can stay.
        """
        floor = max(self.least, math.ceil(size * (1 - self.max_ratio) - TOLERANCE))
        count = min(present, max(wanted, floor))
        if count == present:
            return count
        if self.numbers is not None:
            possible = [number for number in self.numbers if floor <= number < present and not number % self.step]
            return min([*possible, present], key=lambda number: (abs(number - count), -number))
        if self.round_to is None:
            return count
        step = self.round_to
        nearest = max(step, step * math.floor(count / step + 0.5))
        if nearest < floor:
            nearest += step * math.ceil((floor - nearest) / step)
        return min(present, nearest)

    @property
    def step(self) -> int:
        """What sizes are multiples of."""
        return self.round_to or 1

    def after(self, count: int, present: int) -> int:
        """Returns the smallest larger number of units that may stay.

        Args:
            count: Units that would stay, fewer than there are.
            present: Units there now.
        """
        if self.numbers is None:
            return min(present, (count // self.step + 1) * self.step)
        return min((n for n in self.numbers if count < n < present and not n % self.step), default=present)

    def per_block(self, blocks: int) -> Limits:
        """Returns the bounds on the positions of blocks that lose the same ones."""
        step = None if self.round_to is None else self.round_to // math.gcd(self.round_to, blocks)
        whole = self.numbers and tuple(number // blocks for number in self.numbers if not number % blocks)
        return attrs.evolve(self, round_to=step, least=-(-self.least // blocks), numbers=whole)


def target_count(size: int, ratio: float) -> int:
    """Returns how many of ``size`` units stay at a pruning ratio: ``floor(size * (1 - ratio))``, exact for decimals."""
    return max(1, math.floor(size * (1 - ratio) + TOLERANCE))


@attrs.frozen(eq=False)
class Candidate:
    """A group whose units are up for removal.

    Where the channels of a layer form blocks that must lose the same positions (``out_channel_groups``), a position
    stands for one unit of every block; everywhere else there is one block, and a position is a unit.

    Attributes:
        size: Positions at analysis.
        present: Positions that are there now, ascending.
        scores: Tensor ``[len(present)]``.
        limits: Bounds on how many stay.
        blocks: Units per position.
    """

    size: int
    present: tuple[int, ...]
    scores: torch.Tensor
    limits: Limits
    blocks: int = 1

    @classmethod
    def of(
        cls, size: int, present: tuple[int, ...], scores: torch.Tensor, limits: Limits, blocks: int = 1
    ) -> Candidate:
        """Makes a candidate from units, joining the scores of blocks by their mean.

        Args:
            size: Units at analysis, a multiple of ``blocks``.
            present: Units that are there now.
            scores: Tensor ``[len(present)]``.
            limits: Bounds on units.
            blocks: Number of blocks.

        Raises:
            UnitsError: The blocks have lost different positions.
        """
        if blocks == 1:
            return cls(size, present, scores, limits)
        width = size // blocks
        positions = tuple(unit for unit in present if unit < width)
        if [block * width + position for block in range(blocks) for position in positions] != list(present):
            raise UnitsError(
                "The channel groups of a layer have lost different channels.",
                why=f"{blocks} groups of {width} channels were declared; some lost channels that others kept",
                hint="remove the same channels from every group, or don't declare channel groups",
            )
        joined = scores.reshape(blocks, len(positions)).mean(0)
        return cls(width, positions, joined, limits.per_block(blocks), blocks)

    def best(self, units: int) -> tuple[int, ...]:
        """Chooses the units that stay: those with the highest scores; among equals, those that come first.

        Args:
            units: How many, a multiple of ``blocks``.

        Returns:
            The chosen units, ascending.
        """
        order = torch.argsort(-self.scores.detach().double().cpu(), stable=True)[: units // self.blocks]
        places: list[int] = order.sort().values.tolist()
        chosen = places if len(self.present) == self.size else [self.present[place] for place in places]
        if self.blocks == 1:
            return tuple(chosen)
        return tuple(block * self.size + position for block in range(self.blocks) for position in chosen)


@attrs.frozen
class Scope:
    """Groups that are ranked together.

    Attributes:
        name: What the scope is called in listings.
        groups: Names of its groups.
        ratio: Fraction of the scope's units that goes.
        ranked: True ranks all units of the scope in one list; False takes the ratio in each group by itself.
        fixed: Whether the ratio was stated for these groups alone, so that a target doesn't change it.
    """

    name: str
    groups: tuple[str, ...]
    ratio: float
    ranked: bool
    fixed: bool = False


def check_ratio(value: float, name: str, *, closed: bool = False, of: str = "units") -> float:
    """Returns a ratio of something that lies in [0, 1), or in [0, 1] if ``closed``.

    Raises:
        ArgumentError: It is no number or lies outside.
    """
    if not is_number(value) or not 0 <= value <= 1 or (value == 1 and not closed):
        bounds = "[0, 1]" if closed else "[0, 1)"
        raise ArgumentError(f"{name} must lie in {bounds}.", why=f"got {value!r}", hint=f"0.5 removes half of the {of}")
    return float(value)
