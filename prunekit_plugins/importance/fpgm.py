"""FPGM: how far a unit's weights are from those of the other units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from prunekit.plugin import Group, MemberView
from prunekit_plugins.importance.magnitude import check_degree
from prunekit_plugins.importance.members import CONVOLUTIONS_AND_LINEAR, Members
from prunekit_plugins.importance.reductions import Normalizer

_BLOCK = 2**24
"""Distances that are held at a time."""


class FPGMImportance:
    """Scores a unit by how far its weights are from those of all other units (He et al., FPGM, CVPR 2019).

    Each member scores ``s[c] = sum_j ||W_c - W_j||_p`` over all units ``j`` of the group, on the weights as they are,
    with their signs. ``W_c`` is the slice of unit ``c``, all its occurrences one after another. A unit near the
    geometric median of all can be stood in for by the others, whatever its magnitude is. Units are compared with all
    units that are there, also when only some of them are scored.

    Args:
        p: Degree of the distance, above 0.
        group_reduction: How members are joined: ``mean``, ``sum``, ``max``, ``prod``, ``first``, ``gate``, or None for
            the stack ``[members, units]``.
        normalizer: A name, a callable on the scores, or None; see `GroupMagnitudeImportance`.
        bias: Whether biases along the units count as members of their own.
        target_types: Layer types that count. Attention modules count as linear layers. A norm layer has one weight per
            unit, no filter; it counts only if it is named.

    Raises:
        ArgumentError: The reduction or the normalizer is unknown, or p is not positive.
    """

    def __init__(
        self,
        p: float = 2,
        group_reduction: str | None = "mean",
        normalizer: str | Normalizer | None = "mean",
        bias: bool = False,
        target_types: Sequence[type[nn.Module]] = CONVOLUTIONS_AND_LINEAR,
    ) -> None:
        self.p = check_degree(p)
        self.members = Members(group_reduction, normalizer, bias, target_types)

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection (``[members, units]`` without reduction), float32 or
            wider; None when no member counts.
        """
        whole = Group(group.graph, {name: group.graph.remaining(name) for name in group.units}, None)
        # both list the members of the same groups, in the same order
        full = dict(zip(group.views(), whole.views(), strict=True))
        members = self.members.of(group, list(full))
        with torch.no_grad():
            scores = [self._selected(view, full[view], group.size()) for view in members]
            return self.members.join(group, members, scores)

    def _selected(self, view: MemberView, full: MemberView, units: int) -> torch.Tensor:
        present, which = full.units.unique(return_inverse=True)
        distances = self.distances(full, present)
        # every position of a unit carries that unit's score; any of them leads from the selected unit to it
        at = distances.new_zeros(view.tensor.shape[view.dim])
        at[full.positions.to(at.device)] = distances[which.to(at.device)]
        scores = at.new_zeros(units)
        scores[view.units.to(at.device)] = at[view.positions.to(at.device)]
        return scores

    def distances(self, view: MemberView, units: torch.Tensor) -> torch.Tensor:
        """Adds up the distances of each unit's slice to those of the others.

        Args:
            view: A member with all its units.
            units: Tensor ``[held]``: the units that it holds.

        Returns:
            Tensor ``[held]``.
        """
        weights = view.values()
        order = view.units.argsort(stable=True)
        slices = view.slices(weights)[view.positions[order].to(weights.device)].reshape(len(units), -1)
        # in double precision, because cdist works by a matrix product, in which close slices lose half of the digits
        slices = slices.double()
        step = max(1, _BLOCK // max(1, len(units)))
        sums = torch.cat([torch.cdist(block, slices, self.p).sum(1) for block in slices.split(step)])
        return sums if weights.dtype is torch.float64 else sums.float()
