"""What is read of a model's outputs and of a batch: logits with the classes along the last dim, labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

from prunekit_core.errors import ArgumentError
from prunekit_core.program.outputs import is_logits, named_outputs
from prunekit_plugins.calibration.batches import Batch

INSTEAD = 'weights={"hidden": 1} compares hidden states instead'
"""What to do where a model has no logits."""


@attrs.frozen(eq=False)
class Reader:
    """Reads outputs and batches.

    Attributes:
        logits: Called with the outputs; returns the logits. None: the output called ``logits``, or the only one.
        labels: Called with a batch; returns the labels. None: ``"labels"`` of a mapping.
        class_dim: The dim of the logits that the classes lie along; None for the last one, of at most three.
    """

    logits: Callable[[Any], Any] | None = None
    labels: Callable[[Any], Any] | None = None
    class_dim: int | None = None

    def logits_of(self, outputs: Any, whose: str) -> torch.Tensor:
        """Returns the logits among outputs, ``[..., classes]``.

        Raises:
            ArgumentError: There are none, or it isn't known where their classes are.
        """
        found = _find_logits(outputs, whose) if self.logits is None else self.logits(outputs)
        if not isinstance(found, torch.Tensor) or not found.is_floating_point() or found.dim() < 2:
            raise ArgumentError(
                "Logits are a tensor of real numbers with examples and classes.",
                where=whose,
                why=f"got {tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__}",
                hint=f"{INSTEAD}; in Python logits=lambda outputs: ... returns them",
            )
        if self.class_dim is None and found.dim() > 3:
            raise ArgumentError(
                "It isn't known which dim of the logits the classes lie along.",
                where=whose,
                why=f"they have the shape {tuple(found.shape)}",
                hint="class_dim=1 for maps of classes [batch, classes, height, width]; class_dim=-1 for the last one",
            )
        if self.class_dim is not None and not -found.dim() <= self.class_dim < found.dim():
            raise ArgumentError("The logits have no such dim.", where=f"class_dim={self.class_dim}")
        return found if self.class_dim is None else found.movedim(self.class_dim, -1)

    def labels_of(self, batch: Batch) -> torch.Tensor | None:
        """Returns the labels of a batch; None where it has none."""
        if self.labels is not None:
            found = self.labels(batch.given)
        else:
            found = batch.given.get("labels") if isinstance(batch.given, Mapping) else None
        return found if isinstance(found, torch.Tensor) else None


def loss_in(outputs: Any) -> torch.Tensor | None:
    """Returns the loss that a model computed itself from labels among its inputs; None where it didn't."""
    found = outputs.get("loss") if isinstance(outputs, Mapping) else None
    return found if isinstance(found, torch.Tensor) and found.numel() == 1 else None


def _find_logits(outputs: Any, whose: str) -> torch.Tensor:
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), torch.Tensor):
        found: torch.Tensor = outputs["logits"]
        return found
    real = {name: tensor for name, tensor in named_outputs(outputs) if tensor.is_floating_point()}
    named = [name for name in real if is_logits(name)] or list(real)
    if len(named) != 1:
        raise ArgumentError(
            "It isn't known which output holds the logits.",
            where=whose,
            why=f"there are {', '.join(map(repr, named[:8])) or 'none'}",
            hint=f"{INSTEAD}; in Python logits=lambda outputs: outputs[0] says which one it is",
        )
    return real[named[0]]
