"""Taylor: how much the loss changes, to first order, when a unit goes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from prunekit.plugin import ArgumentError, Group, MemberView
from prunekit_plugins.importance.members import TARGET_TYPES, Members, name_of, sums_over_slices, wide
from prunekit_plugins.importance.reductions import Normalizer


class GroupTaylorImportance:
    """Scores a unit by the first-order change of the loss without it (Molchanov et al., CVPR 2019).

    With ``g`` the gradient of the loss, each member scores ``s[c] = sum |w * g|`` over the slice of unit ``c``, or
    ``|sum w * g|`` with ``multivariable``: the change if all weights of the slice go at once. Norm layers score
    ``|gamma_c * g_c|``. Gradients are read from ``.grad``: call ``loss.backward()`` first, over as many batches as
    wanted (they add up there).

    Args:
        group_reduction: How members are joined: ``mean``, ``sum``, ``max``, ``prod``, ``first``, ``gate``, or None for
            the stack ``[members, units]``.
        normalizer: A name, a callable on the scores, or None; see `GroupMagnitudeImportance`.
        multivariable: Whether the products are added up before the absolute value is taken.
        bias: Whether biases along the units count as members of their own.
        target_types: Layer types that count. Attention modules count as linear layers.

    Raises:
        ArgumentError: The reduction or the normalizer is unknown.
    """

    def __init__(
        self,
        group_reduction: str | None = "mean",
        normalizer: str | Normalizer | None = "mean",
        multivariable: bool = False,
        bias: bool = False,
        target_types: Sequence[type[nn.Module]] = TARGET_TYPES,
    ) -> None:
        self.multivariable = multivariable
        self.members = Members(group_reduction, normalizer, bias, target_types)

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection (``[members, units]`` without reduction), float32 or
            wider; None when no member counts.

        Raises:
            ArgumentError: Parameters of members that count have no gradient; the message names them.
        """
        members = self.members.of(group)
        missing = [view for view in members if view.tensor.grad is None]
        if missing:
            frozen = [name_of(view) for view in missing if not view.tensor.requires_grad]
            raise ArgumentError(
                "Parameters have no gradient.",
                where=", ".join(dict.fromkeys(map(name_of, missing))),
                why="frozen: " + ", ".join(dict.fromkeys(frozen)) if frozen else "",
                hint="call loss.backward() before scoring, in the mode in which these parameters are used"
                + (", and requires_grad_() on frozen ones before that" if frozen else ""),
            )
        # the occurrences of a unit are one slice, so they are added up before the absolute value is taken
        return self.members.score(
            group, self.local, ("taylor", self.multivariable), members=members, absolute=self.multivariable
        )

    def local(self, view: MemberView) -> torch.Tensor:
        """Scores the positions of one member, signed with ``multivariable``.

        Returns:
            Tensor ``[positions]``.
        """
        gradient = view.gradient()
        assert gradient is not None
        products = wide(view.values()) * wide(gradient)
        return sums_over_slices(products if self.multivariable else products.abs_(), view.dim)
