"""Snapshots: what the modules of a tree hold at one moment, to return to after whatever a forward does to them.

Objects of the user's classes are looked at and put back by the methods of the builtin classes that they derive from:
their own may refuse (a frozen configuration), count, or write to a file.
"""

from __future__ import annotations

import collections
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from prunekit_core.modules.attributes import attributes_of, slots_of

_NO_STATE = (torch.Tensor, nn.Module, type, types.ModuleType, types.FunctionType)
_UNSET = object()


def _refill_ordered(table: Any, items: Iterable[tuple[Any, Any]]) -> None:
    collections.OrderedDict.clear(table)
    for key, value in items:
        collections.OrderedDict.__setitem__(table, key, value)


def _refill_dict(table: Any, items: Iterable[tuple[Any, Any]]) -> None:
    dict.clear(table)
    dict.update(table, items)


def _refill_list(values: Any, items: Iterable[Any]) -> None:
    list.__setitem__(values, slice(None), items)


def _refill_set(values: Any, items: Iterable[Any]) -> None:
    set.clear(values)
    set.update(values, items)


def _refill_deque(values: Any, items: Iterable[Any]) -> None:
    collections.deque.clear(values)
    collections.deque.extend(values, items)


_BUILTIN: tuple[tuple[type, Callable[[Any], Iterable[Any]], Callable[[Any, Any], None]], ...] = (
    (collections.OrderedDict, collections.OrderedDict.items, _refill_ordered),
    (dict, dict.items, _refill_dict),
    (list, list.__iter__, _refill_list),
    (set, set.__iter__, _refill_set),
    (collections.deque, collections.deque.__iter__, _refill_deque),
)
"""The classes whose contents can be exchanged: how they are read, and how they are filled anew."""


class _Container:
    """A dict, list, set or deque, or an object of a class derived from one, with its contents."""

    def __init__(
        self, held: Any, read: Callable[[Any], Iterable[Any]], refill: Callable[[Any, Any], None], table: bool
    ) -> None:
        self._held, self._read, self._refill, self._table = held, read, refill, table
        self._items = list(read(held))
        self._ids = self._identities(self._items)

    def _identities(self, items: Iterable[Any]) -> list[Any]:
        return [(id(key), id(value)) for key, value in items] if self._table else [*map(id, items)]

    def restore(self) -> None:
        if self._identities(self._read(self._held)) != self._ids:  # by identity: tensors have no equality
            self._refill(self._held, self._items)


class _Slots:
    """An object with ``__slots__``, with their values."""

    def __init__(self, held: Any) -> None:
        self._held = held
        self._values = [(slot, self._value(slot)) for slot in slots_of(type(held))]

    def _value(self, slot: types.MemberDescriptorType) -> Any:
        try:
            return slot.__get__(self._held)
        except AttributeError:
            return _UNSET

    def restore(self) -> None:
        for slot, then in self._values:
            now = self._value(slot)
            if now is then:
                continue
            if then is _UNSET:
                slot.__delete__(self._held)
            else:
                slot.__set__(self._held, then)


def _is_plain(kind: type) -> bool:
    """Whether instances are dicts that are read and changed by dict's own methods."""
    if kind is dict or kind is collections.OrderedDict:
        return True
    own = ("copy", "clear", "update", "__iter__", "__len__")
    return kind.__base__ is dict and all(getattr(kind, name) is getattr(dict, name) for name in own)


def _contents(held: Any, kind: type) -> list[_Container | _Slots]:
    for builtin, read, refill in _BUILTIN:
        if issubclass(kind, builtin):
            return [_Container(held, read, refill, table=issubclass(builtin, dict))]
    return []


def _marked(held: Any) -> list[_Container | _Slots]:
    kind = type(held)
    if issubclass(kind, _NO_STATE):
        return []
    found = _contents(held, kind)
    if kind.__module__ == "builtins":
        return found
    attributes = attributes_of(held)
    if attributes is not None:
        found.append(_Container(attributes, dict.items, _refill_dict, table=True))
    if slots_of(kind):
        found.append(_Slots(held))
    return found


class Snapshot:
    """The attributes of all modules of a tree at one moment, to return to.

    Containers among the attributes (parameters, buffers, children, hooks, lists) are noted with their contents, one
    level deep.

    Args:
        modules: The modules of the tree.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._plain: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._others: list[_Container | _Slots] = []
        slotted: dict[type, bool] = {}
        plain: dict[type, bool | None] = {}  # None for what holds nothing
        for module in modules:
            attributes = dict(dict.items(vars(module)))  # as it is, whatever it shows
            self._modules.append((vars(module), attributes))
            for value in attributes.values():
                kind = type(value)
                if kind not in plain:
                    plain[kind] = _is_plain(kind) if any(issubclass(kind, held) for held, _, _ in _BUILTIN) else None
                if plain[kind]:  # nearly all that hold something are
                    self._plain.append((value, value.copy()))
                elif plain[kind] is False:
                    self._others.extend(_contents(value, kind))
            cls = type(module)
            if cls not in slotted:
                slotted[cls] = bool(slots_of(cls))
            if slotted[cls]:
                self._others.append(_Slots(module))

    def restore(self) -> None:
        """Gives every attribute and every container the value that it had."""
        for now, then in self._modules:
            now.clear()
            now.update(then)
        for table, content in self._plain:
            if table or content:
                table.clear()
                table.update(content)
        for held in self._others:
            held.restore()


class ObjectSnapshot:
    """What some objects hold at one moment, items, attributes and slots, to return to.

    Args:
        objects: The objects; of tensors, modules, classes and functions nothing is noted.
        modules: The modules of the tree that holds them; what a `Snapshot` of them holds is left to that.
    """

    def __init__(self, objects: Iterable[Any], modules: Iterable[nn.Module]) -> None:
        noted = {id(value) for module in modules for value in (vars(module), *dict.values(vars(module)))}
        objects = [value for value in objects if id(value) not in noted or not _contents(value, type(value))]
        self._held = [held for value in objects for held in _marked(value)]

    def restore(self) -> None:
        """Gives every object back what was exchanged, added or taken away."""
        for held in self._held:
            held.restore()
