"""Branches as values: an operand of a sum, and what a program has only for it."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

import attrs

from prunekit_core.errors import ArgumentError, many, nearest
from prunekit_core.program.trace import TensorRef


class BranchKind(enum.Enum):
    """How a branch is related to what it is added to."""

    RESIDUAL = "residual"
    """It is computed from what it is added to: ``x + f(x)``."""
    FORK = "fork"
    """Both are computed from the same: ``f(x) + g(x)``."""
    OTHER = "other"
    """They have nothing in common, as tokens and their positions: ``embed(tokens) + positions``."""


@attrs.frozen
class Summand:
    """One place where a recorded program adds a branch.

    Attributes:
        recording: Position of the recording.
        operation: Index of the operation that adds.
        argument: Name of its argument that is the branch.
        tensor: The tensor that it is.
        rest: The tensor that it is added to.
        operations: Indices, ascending, of the operations that the program runs for nothing else.
        reads: Names of the parameters and buffers that these read, in the model's order.
    """

    recording: int
    operation: int
    argument: str
    tensor: TensorRef
    rest: TensorRef
    operations: tuple[int, ...]
    reads: tuple[str, ...]


@attrs.frozen
class Branch:
    """An operand of a sum that can be switched off: the program goes on as if it were zero.

    A module that is called several times makes one branch with several sums, which go together.

    Attributes:
        name: Stable name: the module that holds its parameters; where the sum is made in that as well, the one in it
            that holds most of its matrices (unless the branch is a sum itself), and likewise in a list of modules. Of
            several of that name those that can't go and parts of others come later, with ``~2``.
        kind: How it is related to what it is added to.
        sums: Where it is added, in all recordings.
        parameters: Parameters and buffers that nothing else reads, in the model's order.
        shared: Those that it reads and something else, too.
        reason: Why it can't be switched off; empty where it can.
    """

    name: str
    kind: BranchKind
    sums: tuple[Summand, ...]
    parameters: tuple[str, ...]
    shared: tuple[str, ...] = ()
    reason: str = ""

    @property
    def removable(self) -> bool:
        """Whether it can be switched off."""
        return not self.reason

    def operations(self, recording: int) -> frozenset[int]:
        """Returns the indices of the operations that a recorded program runs for nothing else.

        Args:
            recording: Position of the recording.
        """
        return frozenset(index for one in self.sums if one.recording == recording for index in one.operations)

    def is_part_of(self, other: Branch) -> bool:
        """Tells whether all of its sums are computed for another branch only."""
        within = {recording: other.operations(recording) for recording in {one.recording for one in self.sums}}
        return other is not self and all(one.operation in within[one.recording] for one in self.sums)

    def __str__(self) -> str:
        text = f"{self.name}: {self.kind.value}, {many(len(self.parameters), 'parameter')}"
        text += f", added {len(self.sums)} times" if len(self.sums) > 1 else ""
        return f"{text}; stays: {self.reason}" if self.reason else text


def named_branches(branches: Sequence[Branch], names: Iterable[str]) -> list[Branch]:
    """Returns the branches with some names, each once, in the order of the program.

    Args:
        branches: All branches of the program.
        names: Names of branches, or of modules around them: a layer stands for all branches in it.

    Raises:
        ArgumentError: There is none of that name.
    """
    found: set[str] = set()
    for name in [names] if isinstance(names, str) else names:
        inside = {branch.name for branch in branches if branch.name == name or branch.name.startswith(f"{name}.")}
        if not name or not inside:
            known = [branch.name for branch in branches]
            raise ArgumentError("The model has no such branch.", where=repr(name), hint=nearest(name, known))
        found |= {name} if name in inside else inside
    return [branch for branch in branches if branch.name in found]
