"""Criteria: what scores the units of a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch

from prunekit_core.errors import ArgumentError, nearest
from prunekit_core.graph.group import Group
from prunekit_core.plugins.blame import Blame
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


@runtime_checkable
class PartialCriterion(Protocol):
    """A criterion that knows nothing about some units, which is no reason to let them go."""

    def unknown(self, group: Group) -> Sequence[int]:
        """Lists these units, by their place in the selection: they stay, whatever their scores."""


def additive(criterion: Criterion) -> bool:
    """Tells whether the scores of a criterion are damages that add up."""
    return isinstance(criterion, AdditiveCriterion) and criterion.additive


def criterion_of(importance: Criterion | str, registry: Registry) -> Criterion:
    """Returns a criterion, or makes the one that is registered under a name.

    Raises:
        ArgumentError: It is no callable, a class, or there is none of that name.
        PluginError: What is registered under the name raises, or makes no callable.
    """
    if isinstance(importance, str):
        made: Criterion = registry.make("prunekit_importance", importance)
        if not callable(made):
            registered = registry.named("prunekit_importance", importance)
            blame = registry.owners.blame("prunekit_importance", registered)
            raise blame.error(
                "A registered criterion makes none.",
                f"it returned {made!r}",
                hint="return an object that is called with a group",
            )
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


def checked_scores(scores: object, group: Group, name: str, blame: Blame) -> torch.Tensor | None:
    """Checks what a criterion returned for a group.

    Args:
        scores: What it returned.
        group: The group.
        name: The group's name, for messages.
        blame: Whose the criterion is.

    Returns:
        The scores: tensor ``[units]``, finite, of a floating-point dtype (integers become float64), on any device
        with values. None when the criterion has nothing to say about the group.

    Raises:
        ArgumentError: The criterion returned values that are not numbers, as the model's weights hold some.
        PluginError: The criterion returned something else, or values that are not numbers.
    """
    if scores is None:
        return None
    at = f"group {name}"
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != (group.size(),):
        shape = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise blame.error(
            "A criterion must return one score per unit.",
            f"{group.size()} units, got {shape}",
            at=at,
            hint="return a tensor [group.size()], or None to leave the group whole",
        )
    unfit = _unfit(scores)
    if unfit is not None:
        raise blame.error("A criterion must return real numbers.", unfit[0], at=at, hint=unfit[1])
    if not scores.is_floating_point():
        scores = scores.cpu().double()
    if not bool(torch.isfinite(scores).all()):
        _check_weights(group)
        where = (~torch.isfinite(scores.detach())).nonzero().flatten().tolist()
        units = ", ".join(map(str, where[:5])) + (", ..." if len(where) > 5 else "")
        raise blame.error(
            "A criterion returned values that are not finite.", f"{len(where)} of {len(scores)}: units {units}", at=at
        )
    return scores


def _unfit(scores: torch.Tensor) -> tuple[str, str] | None:
    """Says why a tensor can't hold scores, and what to do; None if it can."""
    if scores.is_meta:
        return "the tensor is on the meta device, without values", "read values with view.values()"
    if scores.layout is not torch.strided:
        return f"the tensor is sparse ({scores.layout})", "scores.to_dense()"
    if scores.dtype is torch.bool:
        return "the tensor is torch.bool: a mask, in which most units are equal", "scores.float(), if that is meant"
    if scores.is_complex():
        return f"the tensor is {scores.dtype}, whose numbers have no order", "scores.abs()"
    return None


def _check_weights(group: Group) -> None:
    """Raises `ArgumentError` if the members of a group hold values that are not finite."""
    for view in group.views():
        if (view.load is not None or not view.tensor.is_meta) and not bool(torch.isfinite(view.values()).all()):
            raise ArgumentError(
                "The model has weights that are not finite, which can't be scored.",
                where=f"{view.path}.{view.name}".lstrip("."),
                hint="load the weights anew, or leave the layer out: ignored_layers=[...]",
            )
