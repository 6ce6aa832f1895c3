"""What callbacks for the trainers of other libraries share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import nn

from prunekit.plugin import ArgumentError, BasePruner
from prunekit_plugins.integrations.training import Regularizer, TrainingPruner

Unit = Literal["steps", "epochs"]


class PruningWhileTraining:
    """A callback's arguments, and what it prunes with.

    Args:
        pruner: A pruner of the model that is trained, or of a part of it.
        at: After which optimizer steps, or epochs, to prune; as many as the pruner has ``iterative_steps``.
        unit: What ``at`` counts.
        copies, regularizer, grow_every: As for `TrainingPruner`.

    Attributes:
        unit: What the times to prune at count.
        training: Makes the cuts.

    Raises:
        ArgumentError: An argument is wrong.
    """

    def __init__(
        self,
        pruner: BasePruner,
        at: Sequence[int],
        *,
        unit: Unit = "steps",
        copies: Iterable[nn.Module] | Callable[[], Iterable[nn.Module]] = (),
        regularizer: Regularizer | None = None,
        grow_every: int | None = None,
    ) -> None:
        self.unit = check_unit(unit)
        self.training = TrainingPruner(
            pruner,
            at,
            optimizer=lambda: self._optimizers,
            copies=copies,
            regularizer=regularizer,
            grow_every=grow_every,
        )
        self._optimizers: list[torch.optim.Optimizer] = []

    def _check_model(self, model: nn.Module) -> None:
        """Makes sure that the pruner's model is the one that is trained, or a part of it."""
        if all(module is not self.training.pruner.graph.model for module in model.modules()):
            raise ArgumentError(
                "The pruner is for another model.",
                where=type(model).__name__,
                hint="make it for the model that is trained, or for a part of it",
            )

    def _take(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Takes over the optimizers that hold parameters of the pruner's model: their state is cut along."""
        own = {id(parameter) for parameter in self.training.pruner.graph.model.parameters()}
        self._optimizers = [
            optimizer
            for optimizer in optimizers
            if any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])
        ]


def check_unit(unit: str) -> Unit:
    """Returns ``"steps"`` or ``"epochs"``.

    Raises:
        ArgumentError: It is something else.
    """
    if unit == "steps":
        return "steps"
    if unit == "epochs":
        return "epochs"
    raise ArgumentError("The unit must be 'steps' or 'epochs'.", why=f"got {unit!r}")
