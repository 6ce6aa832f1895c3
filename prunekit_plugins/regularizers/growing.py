"""Growing regularization: a decay that gets stronger where units matter little."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from prunekit.plugin import ArgumentError, Group
from prunekit_plugins.regularizers.arguments import check_strength
from prunekit_plugins.regularizers.members import GroupMembers, GroupSource


class GrowingRegularizer:
    """Weight decay with a coefficient per unit, which grows step by step where the unit matters little.

    After Wang et al., "Neural Pruning via Growing Regularization", ICLR 2021: ``grad += lambda_c * w`` for every weight
    ``w`` of unit ``c``. All ``lambda_c`` start at ``reg``; each `grow` adds ``delta_reg * (max I - I_c) / (max I - min
    I)``, with ``max`` and ``min`` over the group: nothing for its best unit, ``delta_reg`` for its worst. Where all
    units are equal, nothing grows.

    Args:
        groups: Called for the groups as they are now, for example ``graph.get_all_groups``.
        reg: The coefficients at the start.
        delta_reg: How much those of the worst units grow in one step.
        importance: A criterion that gives ``I_c``; None for the L2 norm of all weights of the unit.

    Raises:
        ArgumentError: A number is negative or not finite, or the groups hold no weight.
    """

    def __init__(
        self,
        groups: GroupSource,
        reg: float = 1e-5,
        delta_reg: float = 1e-5,
        importance: Callable[[Group], torch.Tensor | None] | None = None,
    ) -> None:
        self.reg = check_strength(reg, "reg")
        self.delta_reg = check_strength(delta_reg, "delta_reg")
        self.importance = importance
        self.members = GroupMembers(groups)
        self._strengths = self.members.full(self.reg)

    def refresh(self) -> None:
        """Takes the groups as they are now, and sets all coefficients back to ``reg``."""
        self.members.refresh()
        self._strengths = self.members.full(self.reg)

    def _keep_up(self) -> None:
        if self.members.refresh_if_changed():
            self._strengths = self.members.full(self.reg)

    @property
    def group_reg(self) -> dict[str, torch.Tensor]:
        """The coefficients: group name to tensor ``[units]``."""
        self._keep_up()
        return self.members.by_group(self._strengths.clone())

    def state_dict(self) -> dict[str, list[float]]:
        """Returns the coefficients as plain data: group name to one number per unit."""
        return {name: values.tolist() for name, values in self.group_reg.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Takes coefficients that `state_dict` returned, for groups of the same sizes.

        Raises:
            ArgumentError: The groups are others, or have other sizes.
        """
        self._keep_up()
        given = {name: len(values) for name, values in state.items()}
        if given != self.members.sizes:
            raise ArgumentError(
                "The coefficients are for other groups.", why=f"got {given}, the groups have {self.members.sizes} units"
            )
        values = [value for name in self.members.sizes for value in state[name]]
        self._strengths = torch.tensor(values, dtype=self._strengths.dtype, device=self._strengths.device)

    def grow(self) -> None:
        """Lets the coefficients grow by one step, by the importance that the units have now."""
        self._keep_up()
        scores = self.members.norms() if self.importance is None else self.members.scores(self.importance)
        self._strengths += self.delta_reg * self.members.deficit(scores).to(self._strengths)

    def regularize(self, bias: bool = False) -> None:
        """Adds to the gradients, between ``loss.backward()`` and ``optimizer.step()``.

        Args:
            bias: Whether biases are shrunk, too.

        Raises:
            ArgumentError: No parameter has a gradient; nothing was changed.
        """
        self._keep_up()
        self.members.add_to_gradients(self._strengths, bias=bias)
