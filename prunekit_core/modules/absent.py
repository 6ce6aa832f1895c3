"""A module that takes the place of one whose results are zero, and what it returns, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.errors import PlanError


@attrs.frozen
class Given:
    """An argument of a call, however it is passed.

    Attributes:
        name: Its name; empty where it has none.
        position: Its position among the positional arguments; -1 where it is passed by name only.
    """

    name: str
    position: int

    def of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Returns its value in a call."""
        return args[self.position] if 0 <= self.position < len(args) else kwargs[self.name]


@attrs.frozen
class Zeros:
    """A tensor of zeros with the shape, dtype and device of an argument."""

    like: Given


@attrs.frozen
class Handed:
    """An argument as it is."""

    argument: Given


@attrs.frozen
class Plain:
    """A value that is no tensor."""

    value: bool | int | float | str | None


@attrs.frozen
class Several:
    """A tuple, or a list, of results."""

    items: tuple[Result, ...]
    as_list: bool = False


Result = Zeros | Handed | Plain | Several
"""What a call returns."""


class Absent(nn.Module):
    """Takes the place of a module whose results are zero; has no parameters.

    Args:
        result: What it returns.
    """

    def __init__(self, result: Result) -> None:
        super().__init__()
        self.result = result

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns zeros, arguments and plain values, as `result` says."""
        return _made(self.result, args, kwargs)

    def extra_repr(self) -> str:
        """What it returns, for ``print(model)``."""
        return _text(self.result)


def _made(result: Result, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    match result:
        case Zeros(like):
            return torch.ops.aten.zeros_like.default(like.of(args, kwargs))  # by its schema, as recordings have it
        case Handed(argument):
            return argument.of(args, kwargs)
        case Plain(value):
            return value
        case Several(items, as_list):
            made = [_made(item, args, kwargs) for item in items]
            return made if as_list else tuple(made)


def _text(result: Result) -> str:
    match result:
        case Zeros(like):
            return f"zeros like {like.name or like.position}"
        case Handed(argument):
            return str(argument.name or argument.position)
        case Plain(value):
            return repr(value)
        case Several(items):
            return f"({', '.join(map(_text, items))})"


def to_json(result: Result) -> Any:
    """Writes a result as plain data."""
    match result:
        case Zeros(like):
            return {"zeros": [like.name, like.position]}
        case Handed(argument):
            return {"argument": [argument.name, argument.position]}
        case Plain(value):
            return {"value": value}
        case Several(items, as_list):
            return {"list" if as_list else "tuple": [to_json(item) for item in items]}


def from_json(data: Any, depth: int = 0) -> Result:
    """Reads what `to_json` wrote.

    Raises:
        PlanError: It is something else.
    """
    if isinstance(data, dict) and len(data) == 1 and depth < _DEEPEST:
        ((kind, value),) = data.items()
        if kind in ("zeros", "argument") and isinstance(value, list) and len(value) == 2:
            name, position = value
            if isinstance(name, str) and type(position) is int and position >= -1 and (name or position >= 0):
                return (Zeros if kind == "zeros" else Handed)(Given(name, position))
        if kind == "value" and (value is None or type(value) in (bool, int, float, str)):
            return Plain(value)
        if kind in ("tuple", "list") and isinstance(value, list):
            return Several(tuple(from_json(item, depth + 1) for item in value), kind == "list")
    raise PlanError("The plan is malformed.", why=f"{str(data)[:80]!r} is not what a module returns")


_DEEPEST = 16
