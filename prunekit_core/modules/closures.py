"""Closures over parts of a model: in a copy, functions are remade around what stands for those parts there.

``copy.deepcopy`` shares functions, so that ``self.width = lambda: weight.shape[0]`` in a copy reads the size of the
model's own parameter, and a hook reaches the model's own modules.
"""

from __future__ import annotations

import collections
import functools
import types
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

DEPTH = 4
"""How far a function may be from a module: hooks lie in a dict, a partial holds a function, a closure holds another."""

CACHE = type(functools.lru_cache(lambda: None))
"""The type of the caches of functions."""
_METHODS = (types.MethodType, types.BuiltinMethodType)
_CONTAINERS = (dict, collections.OrderedDict, list, tuple)
_HOLDERS = frozenset({types.FunctionType, types.BuiltinMethodType, functools.partial, CACHE, *_CONTAINERS})
_TABLES = ("_parameters", "_buffers", "_modules")


class Closures:
    """The functions that modules hold and that have captured tensors or modules of the model.

    Args:
        modules: The modules of the model.
        stand_ins: Identity of each of its tensors to what stands for it; what stands for the functions is added.

    Attributes:
        holders: What of the new functions holds what stands for something of the model: variables, default arguments.
        caches: Caches of functions that the copy has of its own; every run begins with empty ones.
        notes: Warnings of functions that refer to the model by global variables, which can't be followed.
    """

    def __init__(self, modules: Sequence[nn.Module], stand_ins: dict[int, Any]) -> None:
        self._modules = {id(module) for module in modules}
        self._stand_ins = stand_ins
        self.holders: list[Any] = []
        self.caches: list[Any] = []
        self._open: list[tuple[types.CellType, Any]] = []
        self._defaults: list[tuple[types.FunctionType, types.FunctionType]] = []
        self.notes: list[str] = []
        self._weak = [
            (module, key, value)
            for module in modules
            for key, value in vars(module).items()
            if type(value) is weakref.ReferenceType
        ]
        for module in modules:
            for key, value in vars(module).items():
                if type(value) in _HOLDERS and value and key not in _TABLES:  # most are numbers, or empty
                    for held in _functions(value, DEPTH):
                        self._renew_held(held)

    def _renew_held(self, held: Any) -> None:
        if isinstance(held, types.FunctionType):
            self._renew(held, DEPTH)
        elif isinstance(held, CACHE):  # a recording must not fill the one of the model
            if id(held) in self._stand_ins or held.cache_info().currsize:  # the program uses what it holds already
                return
            function = held.__wrapped__
            renewed = self._renew(function, DEPTH) if isinstance(function, types.FunctionType) else None
            fresh = functools.lru_cache(**held.cache_parameters())(renewed or function)
            self._stand_ins[id(held)] = fresh
            self.caches.append(fresh)
        elif isinstance(held.__self__, torch.Tensor) and id(held.__self__) in self._stand_ins:
            self._stand_ins[id(held)] = self._stands_for(held, {})

    def fill(self, copies: Mapping[int, nn.Module]) -> None:
        """Puts modules of the copy to where functions have captured modules of the model.

        Args:
            copies: Identity of each module of the model to its copy.
        """
        for cell, content in self._open:
            cell.cell_contents = self._stands_for(content, copies)
        for module, key, reference in self._weak:
            target = reference()
            stand_in = self._stands_for(target, copies)
            if target is not None and stand_in is not target:
                vars(copies[id(module)])[key] = weakref.ref(stand_in)
                self.holders.append([stand_in])
        for old, new in self._defaults:
            if old.__defaults__:
                new.__defaults__ = tuple(self._stands_for(value, copies) for value in old.__defaults__)
            if old.__kwdefaults__:
                named = {key: self._stands_for(value, copies) for key, value in old.__kwdefaults__.items()}
                new.__kwdefaults__ = named
            self.holders += [new.__defaults__, new.__kwdefaults__]

    def _stands_for(self, value: Any, copies: Mapping[int, nn.Module]) -> Any:
        """Returns what stands for a tensor, module, method or function of the model; any other value itself."""
        if isinstance(value, types.BuiltinMethodType) and isinstance(value.__self__, torch.Tensor):
            if not self._is_part(value):
                return value
            self.holders.append([self._stand_ins[id(value.__self__)]])
            return getattr(self._stand_ins[id(value.__self__)], value.__name__)
        if isinstance(value, types.MethodType):
            owner = copies.get(id(value.__self__))
            return value if owner is None else types.MethodType(value.__func__, owner)
        if isinstance(value, nn.Module):
            return copies.get(id(value), value)
        return self._stand_ins.get(id(value), value)

    def _is_part(self, value: Any) -> bool:
        """Tells whether a value is a tensor or module of the model, a method of one, or a function made anew."""
        bound = value.__self__ if isinstance(value, _METHODS) else value
        return id(bound) in self._modules if isinstance(bound, nn.Module) else id(bound) in self._stand_ins

    def _renew(self, function: types.FunctionType, depth: int) -> types.FunctionType | None:
        """Makes a function anew, if it has captured anything of the model; returns the new one."""
        if id(function) in self._stand_ins or not depth:
            return self._stand_ins.get(id(function))
        self._warn(function, function, depth)
        cells = tuple(self._cell(cell, depth) for cell in function.__closure__ or ())
        given = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        for value in given:
            if isinstance(value, types.FunctionType):
                self._renew(value, depth - 1)
        same = all(new is old for new, old in zip(cells, function.__closure__ or (), strict=True))
        if same and not any(map(self._is_part, given)):
            return None
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
        )
        made.__kwdefaults__, made.__qualname__ = function.__kwdefaults__, function.__qualname__
        vars(made).update(vars(function))
        self._stand_ins[id(function)] = made
        self._defaults.append((function, made))
        return made

    def _warn(self, holder: types.FunctionType, function: types.FunctionType, depth: int) -> None:
        """Warns of global variables that are parts of the model, in a function and in those that it calls."""
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            if id(value) in self._stand_ins if isinstance(value, torch.Tensor) else id(value) in self._modules:
                self.notes.append(
                    f"WARNING: a function that the model holds ({holder.__qualname__}) refers to a part of it by the "
                    f"global variable {name}: a size that it reads there isn't followed"
                )
            elif isinstance(value, types.FunctionType) and depth:
                self._warn(holder, value, depth - 1)

    def _cell(self, cell: types.CellType, depth: int) -> types.CellType:
        try:
            content = cell.cell_contents
        except ValueError:  # nothing is in it yet
            return cell
        if isinstance(content, types.FunctionType):
            renewed = self._renew(content, depth - 1)
            return cell if renewed is None else types.CellType(renewed)
        if isinstance(content, CACHE):
            self._renew_held(content)
            return types.CellType(self._stand_ins[id(content)]) if id(content) in self._stand_ins else cell
        if not self._is_part(content):
            return cell
        if isinstance(content, torch.Tensor):
            self.holders.append(types.CellType(self._stand_ins[id(content)]))
            return self.holders[-1]  # type: ignore[no-any-return]
        self._open.append((types.CellType(), content))
        return self._open[-1][0]


def _functions(value: Any, depth: int) -> Iterator[Any]:
    """Yields the functions, caches of functions and methods of builtin types in a value."""
    if isinstance(value, (types.FunctionType, types.BuiltinMethodType, CACHE)):
        yield value
    elif isinstance(value, functools.partial):
        yield from _functions(value.func, depth)
    elif depth and isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _functions(item, depth - 1)
