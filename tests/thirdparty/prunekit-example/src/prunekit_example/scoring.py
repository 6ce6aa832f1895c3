"""A criterion, a regularizer and a cost model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from prunekit import ArgumentError, Group, Role
from prunekit.plugin import Analysis, Kept, Sizer


class LargestRow:
    """Scores a unit by the largest weight in the rows that produce it.

    Args:
        floor: Scores below this are zero.

    Raises:
        ArgumentError: The floor is negative.
    """

    def __init__(self, floor: float = 0.0) -> None:
        if floor < 0:
            raise ArgumentError("The floor must not be negative.", why=f"got {floor!r}")
        self.floor = floor

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Returns one score per unit, ``[units]``; None where no rows produce them."""
        scores = None
        for view in group.views():
            if view.role is Role.OUT and view.tensor.dim() > 1:
                rows = view.slices(view.tensor.detach()).abs().amax(1)
                found = view.per_unit(rows, group.size())
                scores = found if scores is None else torch.maximum(scores, found)
        return None if scores is None else torch.where(scores < self.floor, 0.0, scores)


class Shrink:
    """Weight decay of every weight that units lie along: adds ``strength * weight`` to its gradient."""

    def __init__(self, groups: Callable[[], Iterable[Group]], strength: float = 1e-4) -> None:
        self.groups, self.strength = groups, strength
        self.refresh()

    def refresh(self) -> None:
        """Looks the weights up anew, after units were removed."""
        views = (view for group in self.groups() for view in group.views())
        self.tensors = {id(view.tensor): view.tensor for view in views}

    def regularize(self) -> None:
        """Adds to the gradients."""
        for tensor in self.tensors.values():
            if tensor.grad is not None:
                tensor.grad.add_(tensor.detach(), alpha=self.strength)


@dataclass(frozen=True)
class Storage:
    """How quantised weights are stored.

    Attributes:
        scale_bytes: What the scale of a row takes.
    """

    scale_bytes: int = 4


def int8_bytes(analysis: Analysis, kept: Kept, *, settings: Storage = Storage()) -> float:
    """Bytes of the parameters as 8-bit integers: one for each weight, and the scale of each row of a matrix."""
    sizer, total = Sizer(kept), 0
    for parameter in analysis.parameters.values():
        shape = [sizer(dim) for dim in parameter.dims]
        total += math.prod(shape) + (settings.scale_bytes * shape[0] if len(shape) > 1 else 0)
    return float(total)
