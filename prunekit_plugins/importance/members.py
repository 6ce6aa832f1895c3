"""What all criteria share: which members of a group count, in which order, and how their scores become one per unit."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import nn

from prunekit.plugin import Group, MemberView, Role
from prunekit_plugins.importance.reductions import Normalizer, check_reduction, find_normalizer, reduce_members
from prunekit_plugins.layers import PrunableMultiheadAttention

ATTENTION: tuple[type[nn.Module], ...] = (nn.MultiheadAttention, PrunableMultiheadAttention)
CONVOLUTIONS_AND_LINEAR: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.Linear)
NORMS: tuple[type[nn.Module], ...] = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
TARGET_TYPES: tuple[type[nn.Module], ...] = (*CONVOLUTIONS_AND_LINEAR, *NORMS)

Local = Callable[[MemberView], "torch.Tensor | None"]
"""Scores the positions of one member, tensor ``[positions]``; None when it has nothing to say about the member."""


class Members:
    """Chooses the members of a group that count, and joins their scores.

    With the default target types, weights of foreign classes that act like a linear layer count, too, and a group
    without any member that counts is scored by all its parameters of more than one dim (stacks of experts, say).

    Args:
        group_reduction: How members are joined: ``mean``, ``sum``, ``max``, ``prod``, ``first`` (the root layer's own
            output), ``gate`` (the last layer), or None for the stack ``[members, units]``.
        normalizer: A name, a callable on the joined scores, or None.
        bias: Whether biases along the units count as members of their own.
        target_types: Layer types that count. Attention and recurrent layers count where ``nn.Linear`` does.

    Raises:
        ArgumentError: The reduction or the normalizer is unknown.
    """

    def __init__(
        self,
        group_reduction: str | None,
        normalizer: str | Normalizer | None,
        bias: bool = False,
        target_types: Sequence[type[nn.Module]] = TARGET_TYPES,
    ) -> None:
        self.group_reduction = check_reduction(group_reduction)
        self.normalizer = normalizer
        self.bias = bias
        self.target_types = tuple(target_types)
        self._normalize = find_normalizer(normalizer)
        self._types = (
            (*self.target_types, *ATTENTION, nn.RNNBase, nn.RNNCellBase)
            if nn.Linear in self.target_types
            else self.target_types
        )
        self._strangers = self.target_types == TARGET_TYPES
        self._known: dict[tuple[type[nn.Module], str, Role], bool] = {}

    def of(self, group: Group, views: Sequence[MemberView] | None = None) -> list[MemberView]:
        """Lists the members that count: producers first, led by the root layer where only the first one matters.

        Args:
            group: The group.
            views: Its views, where the caller has them already.
        """
        known = self._known
        found: list[MemberView] = []
        rest: list[MemberView] = []
        for view in group.views() if views is None else views:
            kind = (type(view.module), view.name, view.role)
            counts = known.get(kind)
            if counts is None:
                counts = known[kind] = self._counts(view)
            if view.module._parameters.get(view.name) is view.tensor:
                (found if counts else rest).append(view)
        if not found and self._strangers:
            found = [view for view in rest if view.tensor.dim() > 1]
        if self.group_reduction in ("first", "gate", None) and len(found) > 1:
            root = group.root.layer if self.group_reduction == "first" else None
            found.sort(key=lambda view: _place(view, root))
        return found

    def _counts(self, view: MemberView) -> bool:
        if not isinstance(view.module, self._types):
            return self._strangers and acts_like_a_linear_layer(view)
        return self.bias if is_bias(view) else "weight" in view.name

    def score(
        self,
        group: Group,
        local: Local,
        key: Hashable,
        *,
        members: Sequence[MemberView] | None = None,
        absolute: bool = False,
    ) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Args:
            group: The group.
            local: Scores the positions of one member.
            key: Names what ``local`` computes; it is computed once per parameter dim in a scoring pass.
            members: What `of` returned for the group, where the caller has it already.
            absolute: Whether a member's score is made positive once the occurrences of a unit are added up.

        Returns:
            Tensor ``[units]`` in the order of the selection (``[members, units]`` without reduction); None when no
            member counts.
        """
        with torch.no_grad():
            units = group.size()
            scored, scores = [], []
            for view in self.of(group) if members is None else members:
                place = (view.path, view.name, view.dim, key)
                values = view.shared.get(place)
                if values is None:
                    values = local(view)
                    if values is None:
                        continue
                    view.shared[place] = values
                total = unit_sums(view, values, units)
                scored.append(view)
                scores.append(total.abs() if absolute else total)
            return self.join(group, scored, scores)

    def join(self, group: Group, members: Sequence[MemberView], scores: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Joins and normalises the scores of members.

        Args:
            group: The group.
            members: Those of its members that have scores.
            scores: Per member, tensor ``[units]``; zero where the member doesn't hold a unit.

        Returns:
            Tensor ``[units]`` (``[members, units]`` without reduction), float32 or wider; None without members.
        """
        if not scores:
            return None
        first = scores[0]
        if any(score.dtype is not first.dtype or score.device != first.device for score in scores):
            scores = [score.to(first) for score in scores]
        # every member of a group holds all units of it; only a selection from several groups has members without some
        covered = [_covered(view, group.size()) for view in members] if len(group.units) > 1 else None
        joined = reduce_members(scores, covered, self.group_reduction)
        return joined if self.group_reduction is None else self._normalize(joined)


def unit_sums(view: MemberView, values: torch.Tensor, units: int) -> torch.Tensor:
    """Adds up values of positions by unit, like ``view.per_unit``, but takes them as they are where nothing repeats.

    Args:
        view: The member.
        values: Tensor ``[positions]``.
        units: Number of units.

    Returns:
        Tensor ``[units]``.
    """
    if units == len(values) == len(view.units):
        order = view.shared.get(units)
        if order is None:
            order = view.shared[units] = torch.arange(units, device="cpu")
        if torch.equal(view.units, order):
            return values
    return view.per_unit(values, units)


def sums_over_slices(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Adds up a tensor over everything but one dim; returns tensor ``[values.shape[dim]]``."""
    others = [other for other in range(values.dim()) if other != dim]
    return values.sum(others) if others else values


def wide(values: torch.Tensor) -> torch.Tensor:
    """Returns a tensor as float32, or as it is where it is float64."""
    return values if values.dtype is torch.float64 else values.float()


def name_of(view: MemberView) -> str:
    """Returns the dotted name of a member's parameter."""
    return f"{view.path}.{view.name}" if view.path else view.name


def acts_like_a_linear_layer(view: MemberView) -> bool:
    """Tells whether a member is the matrix of a class that isn't PyTorch's, and makes or reads units with it."""
    foreign = not type(view.module).__module__.startswith("torch.")
    return foreign and view.name == "weight" and view.tensor.dim() == 2 and view.role in (Role.OUT, Role.IN)


def is_bias(view: MemberView) -> bool:
    """Tells whether a member is a bias: ``bias``, ``in_proj_bias``, ``bias_ih_l0``."""
    return view.name.endswith("bias") or view.name.startswith("bias")


def _covered(view: MemberView, units: int) -> torch.Tensor:
    held = torch.zeros(units, dtype=torch.bool, device="cpu")
    held[view.units] = True
    return held


def _place(view: MemberView, root: nn.Module | None) -> int:
    if view.role is not Role.OUT or is_bias(view):
        return 2
    return 0 if view.module is root else 1
