"""Which modules read their ``training`` flag while a forward runs.

A model has as many programs as modes, and nothing but that flag tells them apart. Where no module reads it, the program
that ran in one mode is the program of the other.

Reads have to be seen without changing a class: the user's program may test for ``type(m) is nn.Linear``. What happens
at ``module.training``, before and while a forward is watched:

- ordinarily, Python finds ``"training"`` in the instance's ``__dict__``, past anything that could note it;
- while watched, the key is gone from ``__dict__``. Python then calls ``nn.Module.__getattr__``, which looks among
  parameters, buffers and children: ``if name in self._modules: return self._modules[name]``. ``_modules`` is a
  `_Children`, which says that it has a child ``training``, notes the read, and returns the flag.

To everything else the modules have to look as before: ``_Children`` says so to `nn.Module.__getattr__` only, and
``__dict__`` is an `_Attributes`, which shows the flag to copies, pickles and programs that look into ``vars(module)``.
(Attribute look-up reads a ``__dict__`` by C functions of ``dict``, which don't call the methods of a subclass.)
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from prunekit_core.torch_private.objects import caller

_FLAG = "training"
_LOOK_UP = nn.Module.__getattr__.__code__
"""Who may see the flag among the children: the code of attribute look-up."""


class _Children(dict[str, Any]):
    """The children of a module; to attribute look-up, and to nothing else, its flag is one of them.

    Attributes:
        path: Dotted path of the module.
        flag: Its flag; None where its class answers for it, with a property.
        readers: Paths of the modules whose flag was read, shared by all modules of a shadow.
    """

    path = ""
    flag: bool | None = False
    readers: dict[str, None]

    def __contains__(self, key: object) -> bool:
        if key == _FLAG:
            return caller() is _LOOK_UP
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        if key == _FLAG:
            self.readers[self.path] = None
            return self.flag
        return super().__getitem__(key)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(dict(self), memo)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (dict(self),)


class _Attributes(dict[str, Any]):
    """The ``__dict__`` of a module, as it is in the model: with its flag, and without what the shadow put in.

    Look-up of attributes goes past these methods; copies and pickles of a module, and programs, don't. Reading all of
    its values (``copy``, a loop over items) counts as reading the flag; listing its keys doesn't.

    Attributes:
        children: The table that has the flag.
        hidden: Keys that the shadow put in, such as its wrapper of ``forward``.
    """

    children: _Children
    hidden: frozenset[str]

    def _shown(self) -> dict[str, Any]:
        """What the model's own ``__dict__`` would hold."""
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
            self.children.readers[self.children.path] = None
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
    """Returns a module's flag, past whatever notes reads of it."""
    attributes = vars(module)
    own = dict.get(attributes, _FLAG)  # the program may have set it meanwhile: then it is an ordinary attribute
    flag = getattr(attributes["_modules"], "flag", None) if own is None else own
    return module.training if flag is None else bool(flag)


def set_mode(modules: Collection[nn.Module], training: bool) -> None:
    """Sets the flag of all modules of a tree, the root first, as ``root.train(training)`` does.

    Where no class has a ``train`` or ``training`` of its own, it is written past their ``__setattr__``, which may
    refuse.
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
        readers: The dotted paths of the modules that did, since `start`, in order.
    """

    def __init__(self, modules: Mapping[str, nn.Module], hidden: Mapping[str, frozenset[str]]) -> None:
        self.readers: dict[str, None] = {}
        self._watched: list[tuple[str, dict[str, Any], _Children]] = []
        for path, module in modules.items():
            children = _Children(module._modules)
            children.path, children.readers = path, self.readers
            attributes = _Attributes(vars(module))
            attributes.children, attributes.hidden = children, hidden[path]
            attributes["_modules"] = children
            object.__setattr__(module, "__dict__", attributes)
            self._watched.append((path, attributes, children))

    def start(self) -> None:
        """Moves the flags, as they are now, out of the instances; forgets who read them before."""
        self.readers.clear()
        for _, attributes, children in self._watched:
            children.flag = dict.pop(attributes, _FLAG, None)  # None: the class answers, with a property

    def finish(self) -> None:
        """Counts modules that had their mode set while the forward ran, too; call it before attributes are restored."""
        for path, attributes, _ in self._watched:
            if dict.__contains__(attributes, _FLAG):
                self.readers[path] = None
