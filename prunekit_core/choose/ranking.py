"""Ranking the units of several groups in one list, once, and reading off how many each keeps at any ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs
import torch

from prunekit_core.choose.candidates import TOLERANCE, Candidate


class Ranking:
    """All units of some groups in the order in which they go: the lowest score first.

    Among equal scores the last one goes first. A group's last units, which it must keep, never go.

    Args:
        candidates: The groups by name.
    """

    def __init__(self, candidates: Mapping[str, Candidate]) -> None:
        self._candidates = dict(candidates)
        self._names = list(candidates)
        self._sort()

    def _sort(self) -> None:
        candidates = self._candidates
        chosen = list(candidates.values())
        self._present = torch.tensor([len(c.present) for c in chosen], device="cpu")
        least = [attrs.evolve(c.limits, round_to=None, numbers=None).count(1, c.size, len(c.present)) for c in chosen]
        floors = torch.tensor(least, device="cpu")
        self._blocks = torch.tensor([c.blocks for c in chosen], device="cpu")
        self._total = sum(c.size * c.blocks for c in chosen)
        self._gone = self._total - sum(len(c.present) * c.blocks for c in chosen)
        if not chosen:
            return
        joined = torch.cat([c.scores.detach().double().cpu() for c in chosen])
        order = len(joined) - 1 - torch.argsort(joined.flip(0), stable=True)
        self._owners = torch.repeat_interleave(torch.arange(len(chosen), device="cpu"), self._present)[order]
        rank = _occurrence(self._owners)
        spare = self._present - floors
        self._places = (rank < spare[self._owners]).nonzero().flatten()
        """Places in the order of the units that may go."""
        last = (rank == self._present[self._owners] - 1).nonzero().flatten()
        self._last = torch.zeros(len(chosen), dtype=torch.long, device="cpu").index_copy(0, self._owners[last], last)
        self._last[floors > 1] = len(joined) + 1

    def at(self, ratio: float) -> tuple[dict[str, int], list[str]]:
        """Tells how many positions each group keeps when a ratio of all units has gone.

        Args:
            ratio: Fraction of the units at analysis.

        Returns:
            Group to number of positions, limits applied; and the groups that the ratio would have emptied.
        """
        missing = math.floor(self._total * ratio + TOLERANCE) - self._gone
        if not self._names or missing <= 0:
            return {name: len(c.present) for name, c in self._candidates.items()}, []
        taken, end = self._taken(missing)
        removed = torch.bincount(self._owners[taken], minlength=len(self._names))
        left = self._present - removed
        emptied = ((left == 1) & (self._last <= end)).nonzero().flatten()
        spared = [self._names[owner] for owner in emptied[torch.argsort(self._last[emptied])].tolist()]
        counts = dict(zip(self._names, left.tolist(), strict=True))
        return {n: c.limits.count(counts[n], c.size, len(c.present)) for n, c in self._candidates.items()}, spared

    def _taken(self, missing: int) -> tuple[torch.Tensor, int]:
        """Returns the places of the units that go, and the place at which enough have gone."""
        weights = self._blocks[self._owners[self._places]]
        sure = int((weights.cumsum(0) <= missing).sum())
        missing -= int(weights[:sure].sum())
        places = self._places[:sure].tolist()
        for place, weight in zip(self._places[sure:].tolist(), weights[sure:].tolist(), strict=True):
            if not missing:
                break
            if weight <= missing:  # a position that stands for several units may be too much where a single one isn't
                places.append(place)
                missing -= weight
        end = len(self._owners) if missing else places[-1]
        return torch.tensor(places, dtype=torch.long, device="cpu"), end


def _occurrence(owners: torch.Tensor) -> torch.Tensor:
    """Numbers the occurrences of every value, in order: ``[a, b, a, a]`` gives ``[0, 0, 1, 2]``."""
    order = torch.argsort(owners, stable=True)
    counts = torch.bincount(owners)
    starts = (counts.cumsum(0) - counts)[owners[order]]
    return torch.zeros_like(owners).index_copy(0, order, torch.arange(len(owners), device="cpu") - starts)
