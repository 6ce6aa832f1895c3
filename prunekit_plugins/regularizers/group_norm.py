"""Group norm: every unit decays, the weaker the faster."""

from __future__ import annotations

import torch

from prunekit_plugins.regularizers.arguments import check_strength
from prunekit_plugins.regularizers.members import GroupMembers, GroupSource


class GroupNormRegularizer:
    """Shrinks all weights of a unit together, up to ``2^alpha`` times as fast as those of the strongest unit.

    Fang et al., DepGraph, CVPR 2023: ``grad += reg * gamma_c * w`` for every weight ``w`` of unit ``c``, with
    ``gamma_c = 2^(alpha * (max I - I_c) / (max I - min I))``, where ``I_c`` is the L2 norm of all weights of the unit,
    over all members of the group, and ``max`` and ``min`` are over the group. The strongest unit has ``gamma = 1``, the
    weakest ``2^alpha``; where all units are equally strong, gamma is 1.

    Args:
        groups: Called for the groups as they are now, for example ``graph.get_all_groups``.
        reg: Strength.
        alpha: Exponent of the largest gamma.

    Raises:
        ArgumentError: A number is negative or not finite, or the groups hold no weight.
    """

    def __init__(self, groups: GroupSource, reg: float = 1e-4, alpha: float = 4.0) -> None:
        self.reg = check_strength(reg, "reg")
        self.alpha = check_strength(alpha, "alpha")
        self.members = GroupMembers(groups)

    def refresh(self) -> None:
        """Takes the groups as they are now."""
        self.members.refresh()

    def gamma(self, alpha: float | None = None) -> dict[str, torch.Tensor]:
        """Returns gamma as it is now: group name to tensor ``[units]``."""
        self.members.refresh_if_changed()
        return self.members.by_group(self._gamma(alpha))

    def _gamma(self, alpha: float | None) -> torch.Tensor:
        exponent = self.alpha if alpha is None else check_strength(alpha, "alpha")
        return torch.exp2(exponent * self.members.deficit(self.members.norms()))

    def regularize(self, alpha: float | None = None, bias: bool = False) -> None:
        """Adds to the gradients, between ``loss.backward()`` and ``optimizer.step()``.

        Args:
            alpha: Overrides the alpha of the constructor.
            bias: Whether biases are shrunk, too; they never count in ``I_c``.

        Raises:
            ArgumentError: No parameter has a gradient; nothing was changed.
        """
        self.members.refresh_if_changed()
        self.members.require_gradients(bias=bias)
        self.members.add_to_gradients(self.reg * self._gamma(alpha), bias=bias)
