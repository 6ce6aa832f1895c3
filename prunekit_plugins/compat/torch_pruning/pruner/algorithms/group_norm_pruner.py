"""Group-norm sparse training with the arguments of Torch-Pruning's pruner."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from prunekit.plugin import ArgumentError
from prunekit_plugins import pruners
from prunekit_plugins.compat.torch_pruning.pruner.algorithms.base_pruner import (
    BasePruner,
    full_signature,
    shared_arguments,
)


class GroupNormPruner(pruners.GroupNormPruner, BasePruner):
    """See ``prunekit_plugins.pruners.GroupNormPruner``.

    Args:
        model, example_inputs, importance: As for `BasePruner`.
        reg: Strength.
        alpha: The weakest unit of a group shrinks ``2^alpha`` times as fast as the strongest.
        shared, options: All other arguments of `BasePruner`, by position or name.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        importance: Any,
        reg: float = 1e-4,
        alpha: float = 4,
        *shared: Any,
        **options: Any,
    ) -> None:
        super().__init__(model, example_inputs, importance, reg, alpha, **shared_arguments(shared), **options)

    def regularize(self, model: nn.Module, alpha: float | None = None, bias: bool = False) -> None:
        """Adds ``reg * gamma_c * w`` to the gradients.

        Args:
            model: The model, or a wrapper around it.
            alpha: The range of gamma as a factor, not as an exponent (16 is what the constructor calls 4); None for
                that of the constructor.
            bias: Whether biases are shrunk, too.

        Raises:
            ArgumentError: It is another model, no parameter has a gradient, or alpha is below 1.
        """
        if alpha is not None and not alpha >= 1:
            raise ArgumentError("alpha must be at least 1: the weakest unit shrinks that many times as fast.")
        super().regularize(model, None if alpha is None else math.log2(alpha), bias)


GroupNormPruner.__signature__ = full_signature(GroupNormPruner)  # type: ignore[attr-defined]
