"""How many units each group keeps, and which: everything that follows from the scores, with no program run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import attrs
import torch

from prunekit_core.choose.candidates import TOLERANCE, Candidate, Scope, target_count
from prunekit_core.choose.ranking import Ranking


@attrs.frozen
class Counts:
    """How many units groups keep.

    Attributes:
        units: Group to the number of units, a multiple of its blocks.
        spared: Groups that the ratio would have emptied.
    """

    units: dict[str, int]
    spared: tuple[str, ...]


@attrs.frozen
class Tie:
    """Groups whose sizes the program computes from each other, so that they must keep the same fraction.

    Attributes:
        sizes: Group to its units at analysis.
        steps: Number of equal steps from nothing to all units.
        allowed: Steps at which every size is whole, a multiple of ``round_to``, and within its limits; ascending.
    """

    sizes: Mapping[str, int]
    steps: int
    allowed: tuple[int, ...]

    @classmethod
    def of(cls, names: Iterable[str], candidates: Mapping[str, Candidate]) -> Tie:
        """Makes the tie of some groups."""
        chosen = {name: candidates[name] for name in sorted(names)}
        sizes = {name: c.size * c.blocks for name, c in chosen.items()}
        steps = math.gcd(*sizes.values())
        now = min(len(c.present) * c.blocks * steps // sizes[name] for name, c in chosen.items())
        fitting = [
            step for step in range(1, now) if all(_fits(c, sizes[name] * step // steps) for name, c in chosen.items())
        ]
        return cls(sizes, steps, (*fitting, now))

    def at(self, step: int) -> dict[str, int]:
        """Returns the sizes at a step."""
        return {name: size * step // self.steps for name, size in self.sizes.items()}

    def nearest(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Returns the possible sizes nearest to what the groups should keep together; the larger of two."""
        fraction = sum(counts[name] for name in self.sizes) / sum(self.sizes.values())
        return self.at(min(self.allowed, key=lambda step: (abs(step - fraction * self.steps), -step)))


def _fits(candidate: Candidate, units: int) -> bool:
    if units % candidate.blocks:
        return False
    positions = units // candidate.blocks
    return candidate.limits.count(positions, candidate.size, len(candidate.present)) == positions


class Chooser:
    """Chooses counts and units for fixed scores.

    Args:
        candidates: The groups that were scored, by name.
        ties: Groups that must keep the same fraction of their units.
    """

    def __init__(self, candidates: Mapping[str, Candidate], ties: Iterable[frozenset[str]] = ()) -> None:
        self.candidates = dict(candidates)
        scored = [tie & self.candidates.keys() for tie in ties]
        self.ties = tuple(Tie.of(tie, self.candidates) for tie in scored if len(tie) > 1)
        self._tied = {name: tie for tie in self.ties for name in tie.sizes}
        self._rankings: dict[tuple[str, ...], Ranking] = {}
        self._descending: dict[str, torch.Tensor] = {}

    def counts(self, scopes: Sequence[Scope]) -> Counts:
        """Decides how many units each group keeps when every scope loses its ratio."""
        units: dict[str, int] = {}
        spared: list[str] = []
        for scope in scopes:
            names = tuple(name for name in scope.groups if name in self.candidates)
            found, emptied = self._ranking(names).at(scope.ratio) if scope.ranked else self._local(names, scope.ratio)
            units.update({name: count * self.candidates[name].blocks for name, count in found.items()})
            spared.extend(emptied)
        return Counts(self.in_step(units), tuple(spared))

    def _ranking(self, names: tuple[str, ...]) -> Ranking:
        if names not in self._rankings:
            self._rankings[names] = Ranking({name: self.candidates[name] for name in names})
        return self._rankings[names]

    def _local(self, names: Sequence[str], ratio: float) -> tuple[dict[str, int], list[str]]:
        chosen = {name: self.candidates[name] for name in names}
        counts = {n: c.limits.count(target_count(c.size, ratio), c.size, len(c.present)) for n, c in chosen.items()}
        left = 1 - ratio
        spared = [n for n, c in chosen.items() if 2 * (c.size * left + TOLERANCE) < (c.limits.round_to or 2)]
        return counts, spared

    def in_step(self, units: Mapping[str, int]) -> dict[str, int]:
        """Gives groups whose sizes the program computes from each other the same fraction."""
        result = dict(units)
        for tie in self.ties:
            if any(name in units for name in tie.sizes):
                result.update(tie.nearest({name: result.get(name, size) for name, size in tie.sizes.items()}))
        return result

    def larger(self, units: Mapping[str, int], group: str) -> dict[str, int] | None:
        """Gives the smallest possible number of units back to a group, and to those tied to it.

        Returns:
            The groups that grow, with their new numbers; None where all is back already.
        """
        tie = self._tied.get(group)
        if tie is not None:
            now = units[group] * tie.steps // tie.sizes[group]
            after = [step for step in tie.allowed if step > now]
            return tie.at(after[0]) if after else None
        candidate = self.candidates[group]
        positions, present = units[group] // candidate.blocks, len(candidate.present)
        if positions >= present:
            return None
        return {group: candidate.limits.after(positions, present) * candidate.blocks}

    def fewest(self, group: str) -> dict[str, int]:
        """Returns the smallest possible numbers of units of a group, and of those tied to it."""
        tie = self._tied.get(group)
        if tie is not None:
            return tie.at(tie.allowed[0])
        candidate = self.candidates[group]
        return {group: candidate.limits.count(1, candidate.size, len(candidate.present)) * candidate.blocks}

    def returned(self, units: Mapping[str, int], larger: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """Returns the scores of the units that come back when groups grow: group to a tensor ``[positions]``."""
        found = {}
        for group, count in larger.items():
            if group not in self._descending:
                self._descending[group] = self.candidates[group].scores.detach().double().cpu().sort(descending=True)[0]
            blocks = self.candidates[group].blocks
            found[group] = self._descending[group][units[group] // blocks : count // blocks]
        return found

    def kept(self, units: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Chooses the units that stay, in the groups that lose any."""
        return {
            name: self.candidates[name].best(count)
            for name, count in units.items()
            if count < len(self.candidates[name].present) * self.candidates[name].blocks
        }
