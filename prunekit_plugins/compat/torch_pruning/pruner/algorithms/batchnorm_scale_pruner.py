"""Network slimming with the arguments of Torch-Pruning's pruner."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit_plugins import pruners
from prunekit_plugins.compat.torch_pruning.pruner.algorithms.base_pruner import (
    BasePruner,
    full_signature,
    shared_arguments,
)


class BNScalePruner(pruners.BNScalePruner, BasePruner):
    """See ``prunekit_plugins.pruners.BNScalePruner``.

    Args:
        model, example_inputs, importance: As for `BasePruner`.
        reg: Strength.
        group_lasso: Whether the scales of a unit in all BatchNorms of its group are penalised together.
        shared, options: All other arguments of `BasePruner`, by position or name.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        importance: Any,
        reg: float = 1e-5,
        group_lasso: bool = False,
        *shared: Any,
        **options: Any,
    ) -> None:
        super().__init__(model, example_inputs, importance, reg, group_lasso, **shared_arguments(shared), **options)


BNScalePruner.__signature__ = full_signature(BNScalePruner)  # type: ignore[attr-defined]
