"""Criteria: what scores the units of a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch

from prunekit_core.errors import ArgumentError, PluginError, nearest
from prunekit_core.graph.group import Group
from prunekit_core.plugins.registry import Registry

Criterion = Callable[[Group], "torch.Tensor | None"]
"""Gives scores ``[units]`` of a group, or None when it has nothing to say about it."""


@runtime_checkable
class AdditiveCriterion(Protocol):
    """A criterion whose scores may be damages.

    Attributes:
        additive: Whether a score estimates what the model loses with a unit, on one scale for all groups, so that the
            scores of what goes add up.
    """

    @property
    def additive(self) -> bool:
        """Whether they are."""


def additive(criterion: Criterion) -> bool:
    """Tells whether the scores of a criterion are damages that add up."""
    return isinstance(criterion, AdditiveCriterion) and criterion.additive


def criterion_of(importance: Criterion | str, registry: Registry) -> Criterion:
    """Returns a criterion, or makes the one that is registered under a name.

    Raises:
        ArgumentError: It is no callable, a class, or there is none of that name.
    """
    if isinstance(importance, str):
        made: Criterion = registry.named("prunekit_importance", importance)()
        if not callable(made):
            raise PluginError("A registered criterion makes none.", where=importance, why=f"it returned {made!r}")
        return made
    if isinstance(importance, type):
        raise ArgumentError(
            "A criterion is an object, not a class.",
            why=f"got the class {importance.__name__}",
            hint=f"make one: importance={importance.__name__}()",
        )
    if not callable(importance):
        raise ArgumentError(
            "The importance must be a callable on groups, or the name of a registered criterion.",
            why=f"got {importance!r}",
            hint=nearest(str(importance), registry.entries("prunekit_importance")),
        )
    return importance


def checked_scores(criterion: Criterion, group: Group, name: str) -> torch.Tensor | None:
    """Scores the units of a group, and checks what a criterion returned.

    Args:
        criterion: The criterion.
        group: The group.
        name: The group's name, for messages.

    Returns:
        Tensor ``[units]``, or None when the criterion has nothing to say about the group.

    Raises:
        ArgumentError: The criterion returned values that are not numbers, as the model's weights hold some.
        PluginError: The criterion returned something else, or values that are not numbers.
    """
    scores = criterion(group)
    if scores is None:
        return None
    where = f"{type(criterion).__name__} on group {name}"
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != (group.size(),):
        shape = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise PluginError(
            "A criterion must return one score per unit.", where=where, why=f"{group.size()} units, got {shape}"
        )
    if not bool(torch.isfinite(scores).all()):
        for view in group.views():
            if (view.load is not None or not view.tensor.is_meta) and not bool(torch.isfinite(view.values()).all()):
                raise ArgumentError(
                    "The model has weights that are not finite, which can't be scored.",
                    where=f"{view.path}.{view.name}".lstrip("."),
                    hint="load the weights anew, or leave the layer out: ignored_layers=[...]",
                )
        raise PluginError("A criterion returned values that are not finite.", where=where)
    return scores
