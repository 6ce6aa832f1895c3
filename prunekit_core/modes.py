"""Who asks for the mode: which modules read their ``training`` flag while a forward runs.

A model has as many programs as modes, and nothing but that flag tells them apart. Where no module reads it, the program
that ran in one mode is the program of the other. ``nn.Module`` looks up what an instance doesn't have among its
parameters, buffers and children: so the flag is taken out of the instance, and the table of children answers for it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

_FLAG = "training"
_LOOK_UP = nn.Module.__getattr__.__code__


class _Children(dict[str, Any]):
    """The children of a module; to attribute look-up, and to nothing else, its flag is one of them."""

    path = ""
    flag = False
    asked: dict[str, None]

    def __contains__(self, key: object) -> bool:
        if key == _FLAG:
            return sys._getframe(1).f_code is _LOOK_UP
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        if key == _FLAG:
            self.asked[self.path] = None
            return self.flag
        return super().__getitem__(key)


def mode_of(module: nn.Module) -> bool:
    """Returns a module's flag; this doesn't count as asking for it."""
    attributes = vars(module)
    flag: bool = attributes[_FLAG] if _FLAG in attributes else attributes["_modules"].flag
    return flag


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
        modules: The modules by dotted path; the tables of their children are exchanged.

    Attributes:
        asked: The dotted paths of the modules that did, since `start`, in order.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.asked: dict[str, None] = {}
        self._watched: list[tuple[str, dict[str, Any], _Children]] = []
        for path, module in modules.items():
            children = _Children(module._modules)
            children.path, children.asked = path, self.asked
            vars(module)["_modules"] = children
            self._watched.append((path, vars(module), children))

    def start(self) -> None:
        """Takes the flags as they are now, and forgets who asked."""
        self.asked.clear()
        for _, attributes, children in self._watched:
            children.flag = attributes.pop(_FLAG)

    def finish(self) -> None:
        """Counts modules that had their mode set while the forward ran, too; call it before attributes are restored."""
        for path, attributes, _ in self._watched:
            if _FLAG in attributes:
                self.asked[path] = None
