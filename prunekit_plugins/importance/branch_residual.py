"""Branches by what a linear map of the rest of the sum can't make up for."""

from __future__ import annotations

import torch

from prunekit.plugin import BranchGroup, BranchNeed, Group, SeenBranch

WIDEST = 4096
"""Features up to which a covariance is gathered for each branch."""


class BranchResidualImportance:
    """Branches matter if the rest of the sum can't stand for them.

    With ``p`` what the branch ``q`` is added to, both over tokens, it is the part of the sum that the best linear map
    of ``p`` doesn't give: ``min over T, c of sum ||q - (p T + c)||^2 / sum ||p + q||^2``. What a linear layer behind
    could take over costs nothing. It has nothing to say about feature maps and about sums of more than 4,096 features.

    Args:
        ridge: Added to the diagonal of the covariance, relative to its mean.
    """

    def __init__(self, ridge: float = 1e-6) -> None:
        self.ridge = ridge

    def __call__(self, group: Group) -> None:
        """Has nothing to say about the units of a group."""

    def branch(self, group: BranchGroup) -> _Residual | None:
        """Returns what gathers the covariances."""
        recordings = group.graph.branch_analysis.recordings
        shapes = [recordings[one.recording].trace.shapes[one.tensor.index] for one in group.branch.sums]
        wide = any(not 2 <= len(shape) <= 3 or shape[-1] > WIDEST for shape in shapes)
        return None if wide else _Residual(self.ridge)


class _Residual:
    needs = BranchNeed.SUMS

    def __init__(self, ridge: float) -> None:
        self._ridge = ridge
        self._square: torch.Tensor | None = None
        self._cross: torch.Tensor | None = None
        self._added, self._total = 0.0, 0.0

    def add(self, seen: SeenBranch) -> None:
        for one in seen.sums:
            rest, added = one.rest.double(), one.added.double()
            rows = torch.cat([rest, torch.ones_like(rest[:, :1])], 1)
            square, cross = rows.T @ rows, rows.T @ added
            self._square = square if self._square is None else self._square + square
            self._cross = cross if self._cross is None else self._cross + cross
            self._added += float(added.square().sum())
            self._total += float((rest + added).square().sum())

    def score(self) -> float | None:
        if self._square is None or self._cross is None or not self._total:
            return None
        ridge = self._ridge * float(self._square.diagonal().mean())
        matrix = self._square + ridge * torch.eye(len(self._square), dtype=torch.float64, device=self._square.device)
        fitted = torch.linalg.solve(matrix, self._cross)
        explained = 2 * (fitted * self._cross).sum() - (fitted * (self._square @ fitted)).sum()
        return max(0.0, self._added - float(explained)) / self._total
