"""Group lasso: the sum of the units' norms as a penalty, with its proximal step."""

from __future__ import annotations

import torch

from prunekit_plugins.regularizers.arguments import check_strength
from prunekit_plugins.regularizers.members import GroupMembers, GroupSource


class GroupLassoRegularizer:
    """Penalises ``reg * sum_c ||w_c||``, where ``w_c`` are all weights of unit ``c`` in all members of its group.

    Yuan and Lin, "Model selection and estimation in regression with grouped variables", 2006. Two ways to use it:

    - `proximal_step` after ``optimizer.step()``: ``w_c <- w_c * max(0, 1 - lr * reg / ||w_c||)``. Units become exactly
      zero, all at once.
    - `regularize` before it: the (sub)gradient ``grad += reg * w_c / ||w_c||``, 0 where the norm is 0. Units become
      small.

    A weight that belongs to a unit of one group by its row and to a unit of another by its column gets both parts, from
    the norms before the step: gradients are added, factors multiplied.

    Args:
        groups: Called for the groups as they are now, for example ``graph.get_all_groups``.
        reg: Strength.

    Raises:
        ArgumentError: ``reg`` is negative or not finite, or the groups hold no weight.
    """

    def __init__(self, groups: GroupSource, reg: float = 1e-4) -> None:
        self.reg = check_strength(reg, "reg")
        self.members = GroupMembers(groups)

    def refresh(self) -> None:
        """Takes the groups as they are now."""
        self.members.refresh()

    def regularize(self, bias: bool = False) -> None:
        """Adds the gradient of the penalty, between ``loss.backward()`` and ``optimizer.step()``.

        Args:
            bias: Whether biases belong to their units.

        Raises:
            ArgumentError: No parameter has a gradient; nothing was changed.
        """
        self.members.refresh_if_changed()
        self.members.require_gradients(bias=bias)
        norms = self.members.norms(bias=bias)
        self.members.add_to_gradients(torch.where(norms > 0, self.reg / norms, 0), bias=bias)

    @torch.no_grad()
    def proximal_step(self, lr: float, bias: bool = False) -> None:
        """Shrinks the weights themselves, after ``optimizer.step()``; frozen ones count in the norm and stay.

        Args:
            lr: The learning rate of the step that was just made.
            bias: Whether biases belong to their units.

        Raises:
            ArgumentError: ``lr`` is negative or not finite.
        """
        threshold = check_strength(lr, "lr") * self.reg
        self.members.refresh_if_changed()
        norms = self.members.norms(bias=bias)
        factors = torch.where(norms > 0, 1 - threshold / norms, 0).clamp(min=0)
        for slot, rows, share in self.members.shares(factors, bias=bias, product=True):
            if slot.parameter().requires_grad:
                slot.local()[rows].mul_(share)
