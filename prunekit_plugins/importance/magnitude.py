"""Magnitude: how large the weights of a unit are."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from prunekit_core import ArgumentError, Group, MemberView, Role
from prunekit_plugins.importance.reductions import Normalizer, check_reduction, find_normalizer, reduce_members
from prunekit_plugins.layers import PrunableMultiheadAttention

TARGET_TYPES: tuple[type[nn.Module], ...] = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
)


_BLOCK = 2**18
"""Elements looked at in one go: they stay in the cache, and no copy of a large weight is made."""


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
        if not 0 < p < math.inf:
            raise ArgumentError("The degree p must be a positive number.", why=f"got {p!r}")
        self.p = p
        self.group_reduction = check_reduction(group_reduction)
        self.normalizer = normalizer
        self._normalize = find_normalizer(normalizer)
        self.bias = bias
        self.target_types = tuple(target_types)

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection (``[members, units]`` without reduction), float32 or
            wider; None when no member counts.
        """
        units = group.size()
        scores, covered = [], []
        with torch.no_grad():
            for view in sorted(group.views(), key=self._order(group)):
                if self._counts(view):
                    scores.append(
                        view.per_unit(view.once(("magnitude", self.p), functools.partial(self.local, view)), units)
                    )
                    held = torch.zeros(units, dtype=torch.bool)
                    held[view.units] = True
                    covered.append(held)
            if not scores:
                return None
            joined = reduce_members([s.to(scores[0]) for s in scores], covered, self.group_reduction)
            return joined if self.group_reduction is None else self._normalize(joined)

    def local(self, view: MemberView) -> torch.Tensor:
        """Scores the positions of one member.

        Returns:
            Tensor ``[positions]``.
        """
        weights = view.tensor.detach()
        others = [dim for dim in range(weights.dim()) if dim != view.dim]
        if not others:
            return self._powered(weights)
        rows = max(1, _BLOCK * weights.shape[0] // max(1, weights.numel()))
        parts = [self._powered(block).sum(others) for block in weights.split(rows)]
        return torch.cat(parts) if view.dim == 0 else torch.stack(parts).sum(0)

    def _powered(self, weights: torch.Tensor) -> torch.Tensor:
        weights = weights if weights.dtype is torch.float64 else weights.float()
        return weights.square() if self.p == 2 else weights.abs() if self.p == 1 else weights.abs() ** self.p

    def _counts(self, view: MemberView) -> bool:
        if not isinstance(view.tensor, nn.Parameter) or not isinstance(view.module, self._types()):
            return False
        return self.bias if view.name.endswith("bias") else view.name.endswith("weight")

    def _order(self, group: Group) -> Callable[[MemberView], int]:
        """Producers first; where the first member counts alone, the layer that the group starts at."""
        root = group.root.layer if self.group_reduction == "first" else None

        def order(view: MemberView) -> int:
            if view.role is not Role.OUT or view.name.endswith("bias"):
                return 2
            return 0 if view.module is root else 1

        return order

    def _types(self) -> tuple[type[nn.Module], ...]:
        attention = (nn.MultiheadAttention, PrunableMultiheadAttention)
        return (*self.target_types, *attention) if nn.Linear in self.target_types else self.target_types
