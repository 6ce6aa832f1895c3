"""A branch as a criterion sees it: a group of one unit."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import attrs
import torch

from prunekit_core.branches.branch import Branch, BranchKind
from prunekit_core.errors import ArgumentError
from prunekit_core.graph.graph import Graph
from prunekit_core.modules.tree import named_tensors


@attrs.frozen(eq=False)
class BranchGroup:
    """Everything that leaves with a branch, to be scored.

    Attributes:
        graph: The analysed model.
        branch: The branch.
    """

    graph: Graph
    branch: Branch

    @property
    def name(self) -> str:
        """The branch's name."""
        return self.branch.name

    @property
    def kind(self) -> BranchKind:
        """How it is related to what it is added to."""
        return self.branch.kind

    def size(self) -> int:
        """Returns the number of units: a branch goes whole."""
        return 1

    def parameters(self) -> dict[str, torch.Tensor]:
        """Returns the parameters and buffers that only this branch reads, by name at analysis, detached.

        Raises:
            ArgumentError: They are on the meta device, and nobody said where their values are.
        """
        tensors = named_tensors(self.graph.model)
        places = self.graph.applied.places(self.branch.parameters)
        return {name: self._values(name, tensors[place]) for name, place in places.items()}

    def _values(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        stored = self.graph.current.stored
        if not tensor.is_meta:
            return tensor.detach()
        if stored is None or name not in stored:
            raise ArgumentError(
                "A model on the meta device has no values to score.",
                where=name,
                hint="name the checkpoint that holds them: weights=...",
            )
        return stored.read(name, self.graph.applied)


@runtime_checkable
class BranchCriterion(Protocol):
    """A criterion that has something to say about branches."""

    def branch(self, group: BranchGroup) -> object:
        """Scores a branch; those with the lowest scores go first.

        Returns:
            The score, a finite number; None for a branch that it has nothing to say about, which stays; or, for a
            criterion that reads calibration data, what gathers its score from them (a ``BranchGatherer``).
        """


@runtime_checkable
class GreedyCriterion(BranchCriterion, Protocol):
    """A criterion whose scores of branches change with every branch that goes.

    Attributes:
        greedy: Whether all are scored anew after each removal, with what is chosen by then switched off.
    """

    @property
    def greedy(self) -> bool:
        """Whether they are."""
