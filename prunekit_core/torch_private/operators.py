"""Operators: their names, schemas and decompositions.

Relied on: ``OpOverload._schema``, ``_overloadname``, ``_overloadpacket``, ``_can_decompose`` and ``decompose``;
``torch._C._dispatch_get_all_op_names``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._ops import HigherOrderOperator

__all__ = [
    "HigherOrderOperator",
    "arguments_of",
    "decomposes",
    "overload_of",
    "overloads",
    "packet_name",
    "packet_of",
    "returns_of",
]


def packet_name(op: Any) -> str:
    """Returns the qualified name of an operator without its overload, ``"aten::add"``."""
    return str(op._schema.name)


def overload_of(op: Any) -> str:
    """Returns the name of the overload, ``"Tensor"`` or ``"default"``."""
    return str(op._overloadname)


def packet_of(op: Any) -> Any:
    """Returns the packet of all overloads."""
    return op._overloadpacket


def arguments_of(op: Any) -> Sequence[Any]:
    """Lists the arguments of the schema: name, default, alias info; none where the operator has no schema."""
    schema = getattr(op, "_schema", None)
    return () if schema is None else schema.arguments


def returns_of(op: Any) -> Sequence[Any]:
    """Lists what the schema returns."""
    return op._schema.returns  # type: ignore[no-any-return]


def decomposes(op: Any) -> bool:
    """Tells whether ``op.decompose`` can run an operator as the operators that it is made of."""
    return bool(op._can_decompose())


def overloads() -> dict[str, list[str]]:
    """Lists the operators that are registered now: qualified name without overload to the names of its overloads."""
    found: dict[str, list[str]] = {}
    for name in torch._C._dispatch_get_all_op_names():
        packet, _, overload = name.partition(".")
        found.setdefault(packet, []).append(overload or "default")
    return found
