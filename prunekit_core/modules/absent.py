"""A module that takes the place of one whose results are zero, and what it returns, as data."""

from __future__ import annotations

import math
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
    """A tensor of zeros with the shape, dtype and device of an argument.

    Attributes:
        like: The argument.
        joined: How many of its first dims are one in the tensor, ``[batch * tokens, features]`` for two of ``[batch,
            tokens, features]``; 0 where it has the argument's shape.
    """

    like: Given
    joined: int = 0


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


@attrs.frozen
class Called:
    """What a module in the exchanged one returns, which stays under its name.

    Attributes:
        child: Its path in the exchanged module.
        arguments: What it is given.
    """

    child: str
    arguments: tuple[tuple[Given, Result], ...]


@attrs.frozen
class Item:
    """One of several results of a call."""

    call: Called
    position: int


Result = Zeros | Handed | Plain | Several | Called | Item
"""What a call returns."""


class Absent(nn.Module):
    """Takes the place of a module that computed nothing but branches; keeps the modules in it that go on to run.

    Programs read settings of modules without calling them (``batch_first`` of an attention, in
    ``nn.TransformerEncoder``): flags, texts and real numbers stay, and biases are None. Integers don't: they are sizes
    or positions, which later cuts change.

    Args:
        result: What it returns.
        module: The module that it takes the place of.

    Raises:
        AttributeError: That has no such modules in it.
    """

    def __init__(self, result: Result, module: nn.Module | None = None) -> None:
        super().__init__()
        self.result = result
        if module is not None:
            self._keep_settings(module)
        for path in children_of(result):
            assert module is not None
            _put(self, path, module.get_submodule(path))

    def _keep_settings(self, module: nn.Module) -> None:
        for name, value in vars(module).items():
            if value is None or type(value) in (bool, float, str):
                vars(self).setdefault(name, value)
        for name in module._parameters:
            if name.endswith("bias") and not hasattr(self, name):
                self.register_parameter(name, None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns zeros, arguments, plain values, and what modules in it return, as `result` says."""
        return _Run(self, args, kwargs).made(self.result)

    def extra_repr(self) -> str:
        """What it returns, for ``print(model)``."""
        return _text(self.result)


class _Run:
    """One call: what the same modules make of the same is made once."""

    def __init__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._module, self._args, self._kwargs = module, args, kwargs
        self._called: dict[Called, Any] = {}

    def made(self, result: Result) -> Any:
        match result:
            case Zeros(like, joined):
                # by their schemas, as recordings have them
                given = like.of(self._args, self._kwargs)
                if not joined:
                    return torch.ops.aten.zeros_like.default(given)
                return torch.ops.aten.new_zeros.default(given, joined_shape(given.shape, joined))
            case Handed(argument):
                return argument.of(self._args, self._kwargs)
            case Plain(value):
                return value
            case Several(items, as_list):
                made = [self.made(item) for item in items]
                return made if as_list else tuple(made)
            case Item(call, position):
                return self._item(call, position)
            case Called(child, arguments):
                if result not in self._called:
                    self._called[result] = self._call(self._module.get_submodule(child), arguments)
                return self._called[result]

    def _item(self, call: Called, position: int) -> Any:
        results: Any = self.made(call)
        return results[position]

    def _call(self, module: nn.Module, arguments: Sequence[tuple[Given, Result]]) -> Any:
        made = [(given, self.made(value)) for given, value in arguments]
        placed = {given.position: value for given, value in made if given.position >= 0}
        first = next(place for place in range(len(placed) + 1) if place not in placed)  # those before it have values
        by_name = {given.name: value for given, value in made if not 0 <= given.position < first}
        return module(*(placed[place] for place in range(first)), **by_name)


def joined_shape(shape: Sequence[int], count: int) -> list[int]:
    """Returns a shape whose first dims are one."""
    return [math.prod(shape[:count]), *shape[count:]]


def children_of(result: Result) -> tuple[str, ...]:
    """Lists the modules, by their paths in the exchanged one, that a result needs."""
    match result:
        case Several(items, _):
            return tuple(dict.fromkeys(path for item in items for path in children_of(item)))
        case Item(call, _):
            return children_of(call)
        case Called(child, arguments):
            inner = (path for _, value in arguments for path in children_of(value))
            return tuple(dict.fromkeys([*inner, child]))
        case _:
            return ()


def _put(module: nn.Module, path: str, child: nn.Module) -> None:
    """Registers a module under a path, with empty modules around it."""
    *around, name = path.split(".")
    for part in around:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.add_module(name, child)


def _text(result: Result) -> str:
    match result:
        case Zeros(like, joined):
            return f"zeros like {like.name or like.position}{f' with {joined} dims joined' if joined else ''}"
        case Handed(argument):
            return str(argument.name or argument.position)
        case Plain(value):
            return repr(value)
        case Several(items):
            return f"({', '.join(map(_text, items))})"
        case Item(call, position):
            return f"{_text(call)}[{position}]"
        case Called(child, arguments):
            return f"{child}({', '.join(_text(value) for _, value in arguments)})"


def to_json(result: Result) -> Any:
    """Writes a result as plain data."""
    match result:
        case Zeros(like, joined):
            return {"zeros": [like.name, like.position, *([joined] if joined else [])]}
        case Handed(argument):
            return {"argument": [argument.name, argument.position]}
        case Plain(value):
            return {"value": value}
        case Several(items, as_list):
            return {"list" if as_list else "tuple": [to_json(item) for item in items]}
        case Item(call, position):
            return {"item": [to_json(call), position]}
        case Called(child, arguments):
            given = [[argument.name, argument.position, to_json(value)] for argument, value in arguments]
            return {"module": [child, given]}


def from_json(data: Any, depth: int = 0) -> Result:
    """Reads what `to_json` wrote.

    Raises:
        PlanError: It is something else.
    """
    if isinstance(data, dict) and len(data) == 1 and depth < _DEEPEST:
        ((kind, value),) = data.items()
        if kind in ("zeros", "argument") and isinstance(value, list) and len(value) == 2 and _is_given(*value):
            return (Zeros if kind == "zeros" else Handed)(Given(*value))
        if kind == "zeros" and isinstance(value, list) and len(value) == 3 and _is_given(*value[:2]):
            *given, joined = value
            if type(joined) is int and joined > 1:
                return Zeros(Given(*given), joined)
        if kind == "value" and (value is None or type(value) in (bool, int, float, str)):
            return Plain(value)
        if kind in ("tuple", "list") and isinstance(value, list):
            return Several(tuple(from_json(item, depth + 1) for item in value), kind == "list")
        if kind == "item" and isinstance(value, list) and len(value) == 2 and type(value[1]) is int:
            call = from_json(value[0], depth + 1)
            if isinstance(call, Called):
                return Item(call, value[1])
        if kind == "module" and isinstance(value, list) and len(value) == 2 and _is_path(value[0]):
            child, given = value
            if isinstance(given, list) and all(isinstance(one, list) and len(one) == 3 for one in given):
                return Called(child, tuple((_given(*one[:2]), from_json(one[2], depth + 1)) for one in given))
    raise PlanError("The plan is malformed.", why=f"{str(data)[:80]!r} is not what a module returns")


def _is_given(name: Any, position: Any) -> bool:
    return isinstance(name, str) and type(position) is int and position >= -1 and bool(name or position >= 0)


def _given(name: Any, position: Any) -> Given:
    if not _is_given(name, position):
        raise PlanError("The plan is malformed.", why=f"{name!r}, {position!r} is no argument")
    return Given(name, position)


def _is_path(path: Any) -> bool:
    return isinstance(path, str) and all(path.split("."))


_DEEPEST = 64
"""Results in each other up to which a plan is read: a block's layers one after the other."""
