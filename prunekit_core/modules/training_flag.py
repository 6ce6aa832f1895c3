"""Who asks for the mode: which modules read their ``training`` flag while a forward runs.

A model has as many programs as modes, and nothing but that flag tells them apart. Where no module reads it, the program
that ran in one mode is the program of the other. ``nn.Module`` looks up what an instance doesn't have among its
parameters, buffers and children: so the flag is taken out of the instance, and the table of children answers for it. To
a program that looks into ``__dict__``, it is there.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from prunekit_core.torch_private.objects import caller

_FLAG = "training"
_LOOK_UP = nn.Module.__getattr__.__code__


class _Children(dict[str, Any]):
    """The children of a module; to attribute look-up, and to nothing else, its flag is one of them."""

    path = ""
    flag: bool | None = False
    asked: dict[str, None]

    def __contains__(self, key: object) -> bool:
        if key == _FLAG:
            return caller() is _LOOK_UP
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        if key == _FLAG:
            self.asked[self.path] = None
            return self.flag
        return super().__getitem__(key)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(dict(self), memo)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (dict(self),)


class _Attributes(dict[str, Any]):
    """The ``__dict__`` of a module, as it is in the model: with its flag, and without what the shadow put in.

    Look-up of attributes goes past these methods; copies and pickles of a module, and programs, don't.
    """

    children: _Children
    hidden: frozenset[str]

    def _shown(self) -> dict[str, Any]:
        shown = {key: value for key, value in dict.items(self) if key not in self.hidden}
        if self.children.flag is not None:
            shown.setdefault(_FLAG, self.children.flag)
        return shown

    def __contains__(self, key: object) -> bool:
        return (key == _FLAG and self.children.flag is not None) or (
            dict.__contains__(self, key) and key not in self.hidden
        )

    def __missing__(self, key: str) -> Any:
        if key == _FLAG and self.children.flag is not None:
            return self.children[_FLAG]
        raise KeyError(key)

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key] if key not in self.hidden else default
        except KeyError:
            return default

    def keys(self) -> Any:
        return self._shown().keys()

    def values(self) -> Any:
        return self.copy().values()

    def items(self) -> Any:
        return self.copy().items()

    def copy(self) -> dict[str, Any]:
        if not dict.__contains__(self, _FLAG):
            self.children.asked[self.children.path] = None
        return self._shown()

    def __iter__(self) -> Iterator[str]:
        return iter(self._shown())

    def __len__(self) -> int:
        return len(self._shown())

    def __eq__(self, other: object) -> bool:
        return self._shown() == other

    __hash__ = None

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(self._shown(), memo)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (self._shown(),)


def mode_of(module: nn.Module) -> bool:
    """Returns a module's flag; this doesn't count as asking for it."""
    attributes = vars(module)
    own = dict.get(attributes, _FLAG)
    flag = getattr(attributes["_modules"], "flag", None) if own is None else own
    return module.training if flag is None else bool(flag)


def set_mode(modules: Collection[nn.Module], training: bool) -> None:
    """Sets the flag of all modules of a tree, the root first, as ``root.train(training)`` does.

    Where no class has a ``train`` of its own, it is written past their ``__setattr__``, which may refuse.
    """
    root = next(iter(modules))
    kinds = {type(module) for module in modules}
    if any(kind.train is not nn.Module.train or hasattr(kind, _FLAG) for kind in kinds):
        root.train(training)
        return
    for module in modules:
        vars(module)[_FLAG] = training


class ModeWatch:
    """Notes which modules of a shadow read their flag.

    Args:
        modules: The modules by dotted path; the tables of their attributes and children are exchanged.
        hidden: Names of attributes that were put into each module, and aren't the model's.

    Attributes:
        asked: The dotted paths of the modules that did, since `start`, in order.
    """

    def __init__(self, modules: Mapping[str, nn.Module], hidden: Mapping[str, frozenset[str]]) -> None:
        self.asked: dict[str, None] = {}
        self._watched: list[tuple[str, dict[str, Any], _Children]] = []
        for path, module in modules.items():
            children = _Children(module._modules)
            children.path, children.asked = path, self.asked
            attributes = _Attributes(vars(module))
            attributes.children, attributes.hidden = children, hidden[path]
            attributes["_modules"] = children
            object.__setattr__(module, "__dict__", attributes)
            self._watched.append((path, attributes, children))

    def start(self) -> None:
        """Takes the flags as they are now, and forgets who asked."""
        self.asked.clear()
        for _, attributes, children in self._watched:
            children.flag = dict.pop(attributes, _FLAG, None)  # None: the class answers, with a property

    def finish(self) -> None:
        """Counts modules that had their mode set while the forward ran, too; call it before attributes are restored."""
        for path, attributes, _ in self._watched:
            if dict.__contains__(attributes, _FLAG):
                self.asked[path] = None
