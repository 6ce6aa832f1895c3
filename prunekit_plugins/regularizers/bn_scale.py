"""BatchNorm scales: an L1 penalty that drives the scales of weak channels to zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from prunekit.plugin import MemberView
from prunekit_plugins.regularizers.arguments import check_strength
from prunekit_plugins.regularizers.members import GroupMembers, GroupSource


class BNScaleRegularizer:
    """Penalises the scales of BatchNorms (Liu et al., Network Slimming, ICCV 2017, eq. 1).

    The penalty is ``reg * sum |gamma|``, so ``grad(gamma) += reg * sign(gamma)``. With ``group_lasso`` it is ``reg *
    sum_c ||gamma_c||``, where ``gamma_c`` are the scales of unit ``c`` in all BatchNorms of its group (those along a
    residual stream, for example): ``grad(gamma) += reg * gamma / ||gamma_c||``, and nothing where all of them are 0.

    Args:
        groups: Called for the groups as they are now, for example ``graph.get_all_groups``.
        reg: Strength.
        group_lasso: Whether the scales of a unit are penalised together.
        target_types: Layer types whose scales count.

    Raises:
        ArgumentError: ``reg`` is negative or not finite, or the groups have no such layer with a scale.
    """

    def __init__(
        self,
        groups: GroupSource,
        reg: float = 1e-5,
        group_lasso: bool = False,
        target_types: Sequence[type[nn.Module]] = (nn.modules.batchnorm._BatchNorm,),
    ) -> None:
        self.reg = check_strength(reg, "reg")
        self.group_lasso = group_lasso
        self.target_types = tuple(target_types)
        self.members = GroupMembers(groups, self._counts)

    def _counts(self, view: MemberView) -> bool:
        return isinstance(view.module, self.target_types)

    def refresh(self) -> None:
        """Takes the groups as they are now."""
        self.members.refresh()

    def regularize(self, reg: float | None = None, bias: bool = False) -> None:
        """Adds to the gradients, between ``loss.backward()`` and ``optimizer.step()``.

        Args:
            reg: Overrides the strength of the constructor.
            bias: Whether the shifts of the BatchNorms are penalised like their scales (with ``group_lasso``, they
                count in the norm as well).

        Raises:
            ArgumentError: No BatchNorm has a gradient; nothing was changed.
        """
        strength = self.reg if reg is None else check_strength(reg, "reg")
        self.members.refresh_if_changed()
        if self.group_lasso:
            norms = self.members.norms(bias=bias)
            self.members.add_to_gradients(torch.where(norms > 0, strength / norms, 0), bias=bias)
        else:
            # a channel that is a unit of two groups at once is still one scale in the sum
            self.members.add_to_gradients(self.members.full(strength), bias=bias, direction=torch.sign, limit=strength)
