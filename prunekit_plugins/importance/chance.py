"""Random scores: the baseline that every criterion must beat."""

from __future__ import annotations

import torch

from prunekit.plugin import BranchGroup, Group


class RandomImportance:
    """Scores units at random, uniformly in [0, 1).

    Args:
        seed: Seed of the generator; two instances with the same seed give the same scores in the same order of calls.
        generator: A generator to draw from instead.
    """

    def __init__(self, seed: int = 0, generator: torch.Generator | None = None) -> None:
        self._generator = generator or torch.Generator().manual_seed(seed)

    def __call__(self, group: Group) -> torch.Tensor:
        """Returns tensor ``[units]``, on the generator's device."""
        return torch.rand(group.size(), generator=self._generator, device=self._generator.device)

    def branch(self, group: BranchGroup) -> float:
        """Scores a branch at random, too."""
        return float(torch.rand((), generator=self._generator, device=self._generator.device))
