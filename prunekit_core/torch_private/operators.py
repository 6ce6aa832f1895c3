"""Operators: their names, schemas and decompositions.

Relied on: ``OpOverload._schema``, ``_overloadname``, ``_overloadpacket``, ``_can_decompose`` and ``decompose``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch._ops import HigherOrderOperator

__all__ = ["HigherOrderOperator", "arguments_of", "decomposes", "overload_of", "packet_name", "packet_of", "returns_of"]


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
