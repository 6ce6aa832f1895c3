"""Growing regularization with the arguments of Torch-Pruning's pruner."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunekit_plugins import pruners
from prunekit_plugins.compat.torch_pruning.pruner.algorithms.base_pruner import (
    BasePruner,
    full_signature,
    shared_arguments,
)


class GrowingRegPruner(pruners.GrowingRegPruner, BasePruner):
    """See ``prunekit_plugins.pruners.GrowingRegPruner``.

    Args:
        model, example_inputs, importance: As for `BasePruner`.
        reg: The coefficients at the start.
        delta_reg: How much the coefficients of the worst units grow with each `update_reg`.
        shared, options: All other arguments of `BasePruner`, by position or name.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        importance: Any,
        reg: float = 1e-5,
        delta_reg: float = 1e-5,
        *shared: Any,
        **options: Any,
    ) -> None:
        super().__init__(model, example_inputs, importance, reg, delta_reg, **shared_arguments(shared), **options)

    @property
    def group_reg(self) -> dict[str, torch.Tensor]:
        """The coefficients: group name to tensor ``[units]``."""
        return self.regularizer.group_reg


GrowingRegPruner.__signature__ = full_signature(GrowingRegPruner)  # type: ignore[attr-defined]
