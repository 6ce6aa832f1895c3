"""The hooks of prunekit. Every hook takes no arguments, is called once per registry, and returns a mapping.

A plugin is a module (or object) named by an entry point of group ``prunekit``; it marks its implementations with
``prunekit_core.hookimpl``. Third-party plugins take precedence over built-in ones; two third-party plugins that claim
the same key are an error. A hook that returns an empty mapping registers nothing. Hooks must not touch models, print,
or change global state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pluggy
import torch

from prunekit_core.layers import LayerType, Replacement
from prunekit_core.rules import Rule

hookspec = pluggy.HookspecMarker("prunekit")
hookimpl = pluggy.HookimplMarker("prunekit")


@hookspec
def prunekit_op_rules() -> Mapping[str | torch.Tag, Rule]:  # type: ignore[empty-body]
    """Rules for operations.

    Returns:
        Qualified operation name (``"aten::add.Tensor"`` or ``"aten::add"``) or ``torch.Tag`` to `Rule`. The exact
        overload wins over the packet, the packet over a tag.
    """


@hookspec
def prunekit_layer_types() -> Mapping[type[torch.nn.Module] | str, LayerType]:  # type: ignore[empty-body]
    """Layer types.

    Returns:
        Module class, or its dotted name where importing it would be costly, to `LayerType`. The most specific class of
        a module's method resolution order wins.
    """


@hookspec
def prunekit_importance() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Importance criteria.

    Returns:
        Name to a class (or function) that makes a criterion: a callable that takes a group and returns one score per
        selected unit as a 1-D tensor, or None when it has nothing to say about the group.
    """


@hookspec
def prunekit_regularizers() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Regularizers for sparse training.

    Returns:
        Name to a class (or function) that makes a regularizer: ``make(groups, **options)``, where ``groups`` lists the
        groups as they are now. A regularizer has ``regularize()``, which adds to the gradients after
        ``loss.backward()``, and ``refresh()``, which is called after units were removed.
    """


@hookspec
def prunekit_schedules() -> Mapping[str, Callable[[float, int], list[float]]]:  # type: ignore[empty-body]
    """Schedules of iterative pruning.

    Returns:
        Name to a function ``(ratio, steps) -> [0, ..., ratio]`` of ``steps + 1`` cumulative ratios.
    """


@hookspec
def prunekit_pruners() -> Mapping[str, type[Any]]:  # type: ignore[empty-body]
    """Pruner classes.

    Returns:
        Name to a class with the interface of `BasePruner`.
    """


@hookspec
def prunekit_budgets() -> Mapping[str, Callable[..., float]]:  # type: ignore[empty-body]
    """Cost models.

    Returns:
        Name to a function ``(analysis, kept) -> float``: the cost of the model when only the kept units stay (how many,
        not which); or to a `CostModel`, which does the work that all candidates of a search share once.
    """


@hookspec
def prunekit_compensators() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Compensators, which repair a model after the cut.

    Returns:
        Name to a class that makes a compensator.
    """


@hookspec
def prunekit_replacements() -> Mapping[str, Replacement]:  # type: ignore[empty-body]
    """Prunable equivalents for modules that can't hold a smaller shape.

    Returns:
        Name to `Replacement`; the name is stored in plans and must stay the same.
    """


@hookspec
def prunekit_commands() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Subcommands of the command line.

    Returns:
        Name to a function with typer annotations; its docstring is the help text.
    """
