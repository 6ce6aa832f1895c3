"""Magnitude: how large the weights of a unit are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from prunekit.plugin import ArgumentError, BranchGroup, Group, MemberView
from prunekit_plugins.importance.members import NORMS, TARGET_TYPES, Members
from prunekit_plugins.importance.reductions import Normalizer

_BLOCK = 2**18
"""Elements looked at in one go: they stay in the cache, and no copy of a large weight is made."""


def powered_sums(weights: torch.Tensor, dim: int, p: float) -> torch.Tensor:
    """Adds up ``|w|^p`` over everything but one dim.

    Args:
        weights: Any tensor.
        dim: The dim that stays.
        p: The power.

    Returns:
        Tensor ``[weights.shape[dim]]``, float32 or wider.
    """
    if weights.dim() == 1:
        return _powered(weights, p)
    if weights.numel() <= _BLOCK:
        return _sums(_powered(weights, p), dim)
    rows = max(1, _BLOCK * weights.shape[0] // weights.numel())
    parts = [_sums(_powered(block, p), dim) for block in weights.split(rows)]
    return torch.cat(parts) if dim == 0 else torch.stack(parts).sum(0)


def _sums(values: torch.Tensor, dim: int) -> torch.Tensor:
    if dim > 0:  # whole rows first: several times faster than all dims at once
        values, dim = values.sum(0), dim - 1
    return values if values.dim() == 1 else values.sum([other for other in range(values.dim()) if other != dim])


def _powered(weights: torch.Tensor, p: float) -> torch.Tensor:
    weights = weights if weights.dtype is torch.float64 else weights.float()
    return weights.square() if p == 2 else weights.abs() if p == 1 else weights.abs() ** p


def check_degree(p: float) -> float:
    """Returns the degree of a norm.

    Raises:
        ArgumentError: It is not a positive number.
    """
    if not 0 < p < math.inf:
        raise ArgumentError("The degree p must be a positive number.", why=f"got {p!r}")
    return p


class GroupMagnitudeImportance:
    """Scores a unit by the magnitude of all weights that belong to it (Fang et al., DepGraph, CVPR 2023, eq. 4).

    Each member scores ``s[c] = sum |W_c|^p`` over the slice ``W_c`` that belongs to unit ``c`` (no p-th root): rows
    where it produces units, columns where it consumes them, ``|gamma_c|^p`` for norm layers. A member that holds a unit
    several times adds up its occurrences. The members' scores are joined, then normalised.

    Args:
        p: Degree of the norm, above 0.
        group_reduction: How members are joined: ``mean``, ``sum``, ``max``, ``prod``, ``first`` (the root layer's own
            output), ``gate`` (the last layer), or None for the stack ``[members, units]``.
        normalizer: ``mean``, ``sum``, ``max``, ``standarization``, ``gaussian``, ``sentinel_<quantile>``, ``lamp``, a
            callable on the scores, or None.
        bias: Whether biases along the units count as members of their own.
        target_types: Layer types that count. Attention modules count as linear layers.

    Raises:
        ArgumentError: The reduction or the normalizer is unknown, or p is not positive.
    """

    def __init__(
        self,
        p: float = 2,
        group_reduction: str | None = "mean",
        normalizer: str | Normalizer | None = "mean",
        bias: bool = False,
        target_types: Sequence[type[nn.Module]] = TARGET_TYPES,
    ) -> None:
        self.p = check_degree(p)
        self.members = Members(group_reduction, normalizer, bias, target_types)

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection (``[members, units]`` without reduction), float32 or
            wider; None when no member counts.
        """
        return self.members.score(group, self.local, ("magnitude", self.p))

    def local(self, view: MemberView) -> torch.Tensor:
        """Scores the positions of one member.

        Returns:
            Tensor ``[positions]``.
        """
        return powered_sums(view.values(), view.dim, self.p)

    def branch(self, group: BranchGroup) -> float | None:
        """Scores a branch by the mean of ``|w|^p`` of each of its parameters, a mean over them: a weak guess.

        How much a branch adds depends on what it is given, which weights don't say.
        """
        weights = [tensor for tensor in group.parameters().values() if tensor.is_floating_point()]
        means = [float(_powered(tensor, self.p).mean()) for tensor in weights if tensor.numel()]
        return sum(means) / len(means) if means else None


class LAMPImportance:
    """Layer-adaptive magnitude (Lee et al., ICLR 2021, eq. 3), for units instead of single weights.

    The magnitude ``m[c] = sum |W_c|^p`` of a unit, in ascending order, is divided by the sum of all that are at least
    as large: ``s[c] = m[c] / sum_{m[j] >= m[c]} m[j]``. The largest unit of every group scores 1, so that no group is
    emptied when all are ranked together.

    Args:
        p: Degree of the norm, above 0.
        group_reduction: How members are joined; see `GroupMagnitudeImportance`.
        normalizer: What is done with the joined magnitudes; ``lamp`` is the criterion of the paper.
        bias: Whether biases along the units count as members of their own.
        target_types: Layer types that count. Attention modules count as linear layers.

    Raises:
        ArgumentError: The reduction or the normalizer is unknown, or p is not positive.
    """

    def __init__(
        self,
        p: float = 2,
        group_reduction: str | None = "mean",
        normalizer: str | Normalizer | None = "lamp",
        bias: bool = False,
        target_types: Sequence[type[nn.Module]] = TARGET_TYPES,
    ) -> None:
        self._magnitude = GroupMagnitudeImportance(p, group_reduction, normalizer, bias, target_types)

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection; None when no member counts.
        """
        return self._magnitude(group)


class BNScaleImportance:
    """Scores a unit by the scale that BatchNorm gives it: ``s[c] = |gamma_c|`` (Liu et al., Network Slimming, 2017).

    Only BatchNorm layers with a scale count; a group without one has no score.

    Args:
        group_reduction: How several BatchNorm layers of a group are joined; see `GroupMagnitudeImportance`.
        normalizer: What is done with the joined scales.

    Raises:
        ArgumentError: The reduction or the normalizer is unknown.
    """

    def __init__(self, group_reduction: str | None = "mean", normalizer: str | Normalizer | None = "mean") -> None:
        self._magnitude = GroupMagnitudeImportance(1, group_reduction, normalizer, target_types=NORMS[:1])

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection; None when no BatchNorm scales the units.
        """
        return self._magnitude(group)
