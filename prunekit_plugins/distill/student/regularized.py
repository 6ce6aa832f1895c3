"""Regularizers in the loop of a distillation: sparse training beside a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

from prunekit_core.arguments import shown
from prunekit_core.errors import ArgumentError
from prunekit_core.graph.graph import Graph
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.examples import Example
from prunekit_core.projects.config import Config
from prunekit_core.projects.making import regularizer_of


@runtime_checkable
class Regularizer(Protocol):
    """What is added to the gradients of a step."""

    def regularize(self) -> None:
        """Adds to the gradients, between the backward pass and the optimizer's step."""


@runtime_checkable
class Growing(Protocol):
    """A regularizer that gets stronger, by a state that is plain data."""

    def grow(self) -> None:
        """Gets stronger by one step."""

    def state_dict(self) -> Mapping[str, Any]:
        """Returns the state."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes a state that `state_dict` returned."""


def regularizer_for(student: nn.Module, wanted: Any, example: Example, registry: Registry) -> Regularizer | None:
    """Makes the regularizer of a run.

    Args:
        student: The student.
        wanted: A registered name, a table of a name and arguments, what makes one of a function that lists the groups
            (a class, say), or one that was made for the student. None for none.
        example: Inputs that the student is analysed on.
        registry: Where names are found.

    Raises:
        ArgumentError: It is none of these, there is none of the name, or the student has nothing to regularize.
        PrunekitError: The student can't be analysed.
    """
    if wanted is None:
        return None
    if isinstance(wanted, Regularizer) and not isinstance(wanted, type):
        return wanted
    groups = Graph.of(student, example, registry=registry).get_all_groups
    if isinstance(wanted, str) or (isinstance(wanted, Mapping) and "name" in wanted):
        made = regularizer_of(Config(stepwise={"regularizer": wanted}), registry, groups, {})
    elif callable(wanted):
        made = wanted(groups)
    else:
        made = None
    if not isinstance(made, Regularizer):
        raise ArgumentError(
            "regularizer is a name, a table with one, a function of groups, or a regularizer.",
            why=f"got {shown(wanted)}",
            hint='"group_norm", {"name": "group_lasso", "reg": 1e-3}; it has a method regularize()',
        )
    return made
