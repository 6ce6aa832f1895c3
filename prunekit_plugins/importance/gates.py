"""Branches by the derivative of the loss with respect to a gate of one that each is multiplied by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from prunekit.plugin import BranchGroup, BranchNeed, Group, SeenBranch


class GateTaylorImportance:
    """Branches matter if the loss changes without them, to first order: ``mean |dL/dg|`` over examples.

    With a gate ``g = 1`` on the branch ``q``, ``dL/dg = <dL/dq, q>`` is summed over all places where the
    module's calls are added. Switching it off changes the loss of an example by ``-dL/dg``, to first order.

    Args:
        loss_fn: ``loss_fn(outputs, batch)``, the mean over the examples of a batch. None: the outputs times random
            signs, added up: no labels are needed, and it is by how much the outputs move.
    """

    def __init__(self, loss_fn: Callable[[Any, Any], torch.Tensor] | None = None) -> None:
        self.loss_fn = loss_fn

    def __call__(self, group: Group) -> None:
        """Has nothing to say about the units of a group."""

    def branch(self, group: BranchGroup) -> GateGatherer:
        """Returns what gathers the mean."""
        return GateGatherer(torch.abs)


class GateFisherImportance:
    """Branches matter if the loss changes without them, to second order: ``mean (dL/dg)^2`` over examples.

    It is the diagonal of the empirical Fisher matrix of the gates; see `GateTaylorImportance`.

    Args:
        loss_fn: See there; without it, half of the score is what the squared error of the outputs grows by.
    """

    def __init__(self, loss_fn: Callable[[Any, Any], torch.Tensor] | None = None) -> None:
        self.loss_fn = loss_fn

    def __call__(self, group: Group) -> None:
        """Has nothing to say about the units of a group."""

    def branch(self, group: BranchGroup) -> GateGatherer:
        """Returns what gathers the mean."""
        return GateGatherer(torch.square)


class GateGatherer:
    """Gathers the mean of a function of the derivative by a gate, over examples.

    Args:
        function: Applied to the derivatives of a batch: tensor ``[examples]``, float64.
    """

    needs = BranchNeed.GRADIENTS

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._function, self._sum, self._count = function, 0.0, 0

    def add(self, seen: SeenBranch) -> None:
        """Adds up the derivatives of each example over all places."""
        count = max((int(one.examples.max()) + 1 for one in seen.sums if len(one.examples)), default=0)
        slopes = torch.zeros(count, dtype=torch.float64, device="cpu")
        for one in seen.sums:
            if one.gradient is not None:
                slopes.index_add_(0, one.examples, (one.gradient.double() * one.added.double()).sum(1).cpu())
        self._sum += float(self._function(slopes).sum())
        self._count += count

    def score(self) -> float | None:
        """Returns the mean; None without examples."""
        return self._sum / self._count if self._count else None
