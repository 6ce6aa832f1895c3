"""Calls of operations: names, arguments by name, and the tensors among them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunekit_core.errors import RecordingError
from prunekit_core.program.rules import ModuleOp
from prunekit_core.torch_private.operators import HigherOrderOperator, arguments_of, overload_of, packet_name

WRITTEN = frozenset({type(None), bool, int, float, str, torch.dtype})
"""Types of arguments that are what they say: no tensors, and none in them."""
NESTED = (list, tuple, dict)
"""Types of arguments that may have tensors in them."""


@functools.cache
def _schema(op: Any) -> tuple[str, tuple[tuple[str, Any], ...]]:
    overload = overload_of(op)
    name = packet_name(op) + (f".{overload}" if overload != "default" else "")
    return name, tuple((argument.name, argument.default_value) for argument in arguments_of(op))


def operation_name(op: Any) -> str:
    """Returns the qualified name of an operation with its overload, ``"aten::add.Tensor"``."""
    if isinstance(op, ModuleOp):
        return op.name
    return _schema(op)[0]


@functools.cache
def written_arguments(op: Any) -> tuple[str, ...]:
    """Names the arguments that an operation writes into, as its schema says; none where it has no schema."""
    return tuple(a.name for a in arguments_of(op) if a.alias_info is not None and a.alias_info.is_write)


def writes(op: Any) -> bool:
    """Tells whether an operation writes into one of its arguments, as its schema says."""
    return bool(written_arguments(op))


def check_no_callables(func: Any, stack: Sequence[str]) -> None:
    """Refuses an operator that takes callables, such as ``torch.cond``: what they do isn't dispatched one by one.

    Raises:
        RecordingError: It is one.
    """
    if isinstance(func, HigherOrderOperator):
        raise RecordingError(
            "The forward calls a higher-order operator, which can't be recorded.",
            where=f"higher_order::{func.name()} in {(stack[-1] if stack else '') or 'the model'}",
            why="it takes functions as arguments and runs them by itself, so the operations in them aren't seen",
            hint="let the forward use Python's if and for, or a plain operation, while the model is pruned, and switch "
            "back afterwards: modules and weights are the same; or declare the layer opaque",
        )


def bind_arguments(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Names the arguments of an operation by its schema, defaults filled in."""
    if isinstance(op, ModuleOp):
        return dict(kwargs)
    bound: dict[str, Any] = dict(_schema(op)[1])
    for (name, _), value in zip(_schema(op)[1], args, strict=False):
        bound[name] = value
    bound.update(kwargs)
    return bound


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Lists the tensors in a value: a tensor, or any nesting of tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    found: list[torch.Tensor] = []
    if isinstance(value, NESTED):
        for item in value.values() if isinstance(value, dict) else value:
            if type(item) in WRITTEN:
                continue
            if isinstance(item, torch.Tensor):
                found.append(item)
            elif isinstance(item, NESTED):
                found.extend(tensors_of(item))
    return found
