"""Copies of module trees: a copy whose tensors are exchanged.

``copy.deepcopy`` walks every object by the pickle protocol, which for the hundreds of modules of an ordinary model
costs more than running their forward on fake tensors. A module that doesn't define how it is copied is copied here,
attribute by attribute; everything else still is ``copy.deepcopy``'s, with the same memo.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import gc
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from prunekit_core.modules.attributes import slots_of

Copier = Callable[[Any], Any]

_AS_IS = {int, float, complex, bool, str, bytes, type(None), type, torch.dtype, torch.device}
_CONTAINERS = {dict, collections.OrderedDict, list, set}
_NO_TENSORS = _AS_IS | _CONTAINERS
_NOT_ENTERED = (torch.Tensor, nn.Module, type, types.ModuleType, types.FunctionType)
MANY = 20_000
"""Objects in a copy up to which those that hold tensors are looked for."""
_PROTOCOL = ("__reduce_ex__", "__reduce__", "__getstate__")
_NEVER_COPIED = "_compiled_call_impl"


class ModuleCopy:
    """A copy of a model, made as ``copy.deepcopy(model, memo)`` would as far as that goes.

    What can't be deep-copied (a lock, a read-only mapping) is shared with the model; lists, dicts, sets and tuples
    around it are copied.

    Args:
        model: The model; it is not touched.
        stand_ins: Identity of an object to what stands in for it.

    Attributes:
        module: The copy.
        copied: The objects other than modules and tensors that were made on the way.
        shared: Per attribute value that couldn't be copied, its class and why.
    """

    def __init__(self, model: nn.Module, stand_ins: Mapping[int, Any]) -> None:
        self.shared: dict[str, str] = {}
        self._memo = dict(stand_ins)
        try:
            self.module = _copy_module(model, self._memo, self._deep, {})
        except Exception:  # whatever copying one of its attributes raises
            self._memo = dict(stand_ins)
            self.module = _copy_module(model, self._memo, self._as_far_as_possible, {}, self._tried)
        given = {id(self._memo), *stand_ins}
        self.copied = [
            value
            for key, value in self._memo.items()
            if key not in given and not isinstance(value, nn.Module | torch.Tensor)
        ]

    def held(self, tensors: Mapping[int, str], others: Iterable[Any]) -> set[str]:
        """Names the tensors of the copy that something holds besides the tables of modules.

        Args:
            tensors: Identity of each parameter and buffer of the copy to its name.
            others: Further objects that may hold some, such as variables of functions.
        """
        found: set[str] = set()
        pending = [*self.copied, *others]
        seen = set(map(id, pending))
        while pending:
            for item in gc.get_referents(pending.pop()):
                if id(item) in tensors:
                    found.add(tensors[id(item)])
                elif gc.is_tracked(item) and id(item) not in seen and not isinstance(item, _NOT_ENTERED):
                    seen.add(id(item))
                    pending.append(item)
            if len(seen) > MANY:  # more than is worth the walk
                return set(tensors.values())
        modules = list(self.module.modules())
        slots = {cls: names for cls in {type(module) for module in modules} if (names := slots_of(cls))}
        for module in modules:
            values = [value for value in vars(module).values() if type(value) not in _NO_TENSORS]
            values += [getattr(module, slot.__name__, None) for slot in slots.get(type(module), ())]
            found.update(tensors[id(value)] for value in values if id(value) in tensors)
        return found

    def _deep(self, value: Any) -> Any:
        known = self._memo.get(id(value))
        return copy.deepcopy(value, self._memo) if known is None else known

    def _tried(self, value: Any) -> Any:
        """Deep-copies a value, or returns None where that raises; then nothing half made stays in the memo."""
        memo = dict(self._memo)
        try:
            made = copy.deepcopy(value, memo)
        except Exception as error:  # a class may refuse in any way
            self.shared[type(value).__name__] = f"{type(error).__name__}: {error}"
            return None
        memo[id(self._memo)] = [*self._memo.get(id(self._memo), ()), *memo.pop(id(memo), ())]  # kept alive
        self._memo.update(memo)
        return made

    def _as_far_as_possible(self, value: Any) -> Any:
        known = self._memo.get(id(value))
        if known is not None or value is None:
            return known
        kind = type(value)
        if kind not in _CONTAINERS and kind is not tuple:
            made = self._tried(value)
            return value if made is None else made
        if kind in (tuple, set):
            return kind([self._as_far_as_possible(item) for item in value])
        made = self._memo[id(value)] = kind()
        if kind is list:
            made.extend([self._as_far_as_possible(item) for item in value])
        else:
            made.update({key: self._as_far_as_possible(item) for key, item in value.items()})
        return made


def shallow_copy(model: nn.Module, memo: Mapping[int, Any]) -> nn.Module:
    """Copies the module tree only, sharing every other attribute with the model but those that the memo exchanges."""
    return _copy_module(model, dict(memo), lambda value: memo.get(id(value), value), None)


def _copy_module(
    module: nn.Module,
    memo: dict[int, Any],
    copier: Copier,
    plain: dict[type, bool] | None,
    own_way: Copier | None = None,
) -> nn.Module:
    """Copies one module and, through the copier and here, everything below it.

    Args:
        plain: Whether a class leaves its copying to `nn.Module`, as far as known; None if it isn't to be asked.
        own_way: Copies a module whose class does define how; None, or a result of None, for attribute by attribute.
    """
    known = memo.get(id(module))
    if known is not None:
        return known  # type: ignore[no-any-return]
    cls = type(module)
    if plain is not None:
        if cls not in plain:
            plain[cls] = _copies_as_module(cls)
        if not plain[cls]:
            made = copy.deepcopy(module, memo) if own_way is None else own_way(module)
            if made is not None:
                return made
    result: nn.Module = cls.__new__(cls)
    memo[id(module)] = result
    state: dict[str, Any] = {}
    for key, value in vars(module).items():
        kind = type(value)
        if kind in _AS_IS:  # most are, or are empty
            state[key] = value
        elif kind in _CONTAINERS and not value:
            state[key] = kind()
        elif key == "_modules":
            state[key] = {
                name: None if child is None else _copy_module(child, memo, copier, plain, own_way)
                for name, child in value.items()
            }
        elif key in ("_parameters", "_buffers"):
            state[key] = {name: copier(tensor) for name, tensor in value.items()}
        elif isinstance(value, nn.Module):
            state[key] = _copy_module(value, memo, copier, plain, own_way)
        elif key != _NEVER_COPIED:
            state[key] = value if kind is tuple and all(type(item) in _AS_IS for item in value) else copier(value)
    result.__setstate__(state)  # what copying does, too: layers add what older pickles lack
    for slot in slots_of(cls):
        with contextlib.suppress(AttributeError):  # it may be empty
            slot.__set__(result, copier(slot.__get__(module)))
    return result


def _copies_as_module(cls: type) -> bool:
    if hasattr(cls, "__deepcopy__") or hasattr(cls, "__getnewargs__") or hasattr(cls, "__getnewargs_ex__"):
        return False
    return all(getattr(cls, name, None) is getattr(nn.Module, name, None) for name in _PROTOCOL)
