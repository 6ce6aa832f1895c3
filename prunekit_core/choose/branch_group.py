"""A branch as a criterion sees it: a group of one unit."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import attrs
import torch

from prunekit_core.branches.branch import Branch, BranchKind
from prunekit_core.errors import ArgumentError
from prunekit_core.graph.graph import Graph
from prunekit_core.modules.sharding import whole_tensor
from prunekit_core.plans.plan import Plan


@attrs.frozen(eq=False)
class BranchGroup:
    """Everything that leaves with a branch, to be scored.

    Attributes:
        graph: The analysed model.
        branch: The branch.
        keep_names: Whether layers stay in their lists where it is pruned, so that all others keep their names.
    """

    graph: Graph
    branch: Branch
    keep_names: bool = False

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
        """Returns the parameters and buffers that only this branch reads and that are there now, detached.

        What is sharded is gathered, see `whole_tensor`.

        Returns:
            Name at analysis to the values.

        Raises:
            ArgumentError: They are on the meta device, and nobody said where their values are.
        """
        tensors = {name: self.graph.current.tensor(name) for name in self.branch.parameters}
        return {name: self._values(name, tensor) for name, tensor in tensors.items() if tensor is not None}

    def prune(self) -> Plan:
        """Takes the branch out of the model, proven first.

        Returns:
            The plan from the model as it was at analysis to the model as it is now.

        Raises:
            RehearsalError: The program can't go on without it.
            PlanError: The model was changed otherwise since it was analysed.
        """
        return self.graph.apply(self.graph.plan_without([self.name], keep_names=self.keep_names))

    def __str__(self) -> str:
        return str(self.branch)

    def _values(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        stored = self.graph.current.stored
        if not tensor.is_meta:
            return whole_tensor(tensor)
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
