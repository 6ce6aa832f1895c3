"""Twins of module trees: a copy whose tensors are exchanged, and keeping track of what is done to it.

``copy.deepcopy`` walks every object by the pickle protocol, which for the hundreds of modules of an ordinary model
costs more than running their forward on fake tensors. A module that doesn't define how it is copied is copied here,
attribute by attribute; everything else still is ``copy.deepcopy``'s, with the same memo.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Copier = Callable[[Any], Any]

_AS_IS = {int, float, complex, bool, str, bytes, type(None), type, torch.dtype, torch.device}
_CONTAINERS = {dict, collections.OrderedDict, list, set}
_PROTOCOL = ("__reduce_ex__", "__reduce__", "__getstate__")
_NEVER_COPIED = "_compiled_call_impl"


def deep_twin(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copies a model as ``copy.deepcopy(model, memo)`` would.

    Args:
        model: The model; it is not touched.
        memo: Identity of an object to what stands in for it; copies made on the way are added.

    Raises:
        Exception: Whatever copying one of the model's attributes raises.
    """
    return _twin(model, memo, lambda value: _deep(value, memo), {})


def shallow_twin(model: nn.Module, memo: Mapping[int, Any]) -> nn.Module:
    """Copies the module tree only, sharing every other attribute with the model but those that the memo exchanges."""
    return _twin(model, dict(memo), lambda value: memo.get(id(value), value), None)


def _twin(module: nn.Module, memo: dict[int, Any], copier: Copier, plain: dict[type, bool] | None) -> nn.Module:
    """Copies one module and, through the copier and here, everything below it.

    Args:
        plain: Whether a class leaves its copying to `nn.Module`, as far as known; None if it isn't to be asked.
    """
    known = memo.get(id(module))
    if known is not None:
        return known  # type: ignore[no-any-return]
    cls = type(module)
    if plain is not None:
        if cls not in plain:
            plain[cls] = _copies_as_module(cls)
        if not plain[cls]:
            return copy.deepcopy(module, memo)
    twin: nn.Module = cls.__new__(cls)
    memo[id(module)] = twin
    state: dict[str, Any] = {}
    for key, value in vars(module).items():
        kind = type(value)
        if kind in _AS_IS:  # most are, or are empty
            state[key] = value
        elif kind in _CONTAINERS and not value:
            state[key] = kind()
        elif key == "_modules":
            state[key] = {
                name: None if child is None else _twin(child, memo, copier, plain) for name, child in value.items()
            }
        elif key in ("_parameters", "_buffers"):
            state[key] = {name: copier(tensor) for name, tensor in value.items()}
        elif isinstance(value, nn.Module):
            state[key] = _twin(value, memo, copier, plain)
        elif key != _NEVER_COPIED:
            state[key] = value if kind is tuple and all(type(item) in _AS_IS for item in value) else copier(value)
    twin.__setstate__(state)  # what copying does, too: layers add what older pickles lack
    return twin


def _copies_as_module(cls: type) -> bool:
    if hasattr(cls, "__deepcopy__") or hasattr(cls, "__getnewargs__") or hasattr(cls, "__getnewargs_ex__"):
        return False
    slots = any("__slots__" in vars(base) for base in cls.__mro__[:-1])
    return not slots and all(getattr(cls, name, None) is getattr(nn.Module, name, None) for name in _PROTOCOL)


def _deep(value: Any, memo: dict[int, Any]) -> Any:
    known = memo.get(id(value))
    return copy.deepcopy(value, memo) if known is None else known


class Marks:
    """The attributes of all modules of a tree at one moment, to return to.

    Containers among the attributes (parameters, buffers, children, hooks, lists) are noted with their contents, one
    level deep.

    Args:
        model: The root of the tree.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._filled: list[tuple[Any, Any]] = []
        self._empty: list[Any] = []
        for module in model.modules():
            attributes = dict(vars(module))
            self._modules.append((vars(module), attributes))
            for value in attributes.values():
                if type(value) in _CONTAINERS or isinstance(value, dict):
                    if value:
                        self._filled.append((value, copy.copy(value)))
                    else:
                        self._empty.append(value)

    def restore(self) -> None:
        """Gives every attribute and every container the value that it had."""
        for now, then in self._modules:
            now.clear()
            now.update(then)
        for container in self._empty:
            if container:
                container.clear()
        for container, content in self._filled:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
