"""Entries of lists of modules that leave, and the numbers and lists that count them, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.errors import PlanError
from prunekit_core.modules.attributes import attributes_of

Plain = bool | int | float | str | None
Place = tuple[str, tuple[str, ...]]
"""Path of a module, and names of attributes: the first one is the module's, the others of the objects in it."""

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
"""Modules whose children are numbered, and may be numbered anew."""
_CLOSED = (nn.Module, torch.Tensor, type, str, bytes, int, float, complex, list, tuple, dict, set, frozenset)
"""What isn't an object that holds a configuration."""
_DEEPEST = 3


@attrs.frozen
class Deletion:
    """Entries that leave a list of modules; those behind them move up.

    Attributes:
        container: Path of the list.
        size: How many entries it has.
        entries: Those that leave, ascending.
        witness: A tensor that files with the weights of the whole list hold and those without the entries don't; empty
            where there is none.
        prefix: What stands before the number in the name of an entry (``encoder_layer_``); empty for most lists.
    """

    container: str
    size: int
    entries: tuple[int, ...]
    witness: str = attrs.field(default="", eq=False)
    prefix: str = ""

    def path(self, number: int) -> str:
        """Returns the path of an entry, by its number before or after, if only this list changes."""
        return f"{self.container}.{self.prefix}{number}".lstrip(".")

    def moved(self) -> dict[int, int]:
        """Returns the new number of each entry that stays."""
        return {old: new for new, old in enumerate(n for n in range(self.size) if n not in self.entries)}

    def __str__(self) -> str:
        """Says what is gone, and what the entries behind it are called now: runs of them where there are several."""
        gone = ", ".join(map(self.path, self.entries))
        parts = [f"{gone} {'is' if len(self.entries) == 1 else 'are'} gone"]
        runs: list[list[int]] = []
        for old, new in self.moved().items():
            if runs and old - new == runs[-1][0] - runs[-1][2]:
                runs[-1][1] = old
            else:
                runs.append([old, old, new])
        for first, last, new in runs:
            if last == first != new:
                parts.append(f"{self.path(first)} is {self.path(new)} now")
            elif first != new:
                parts.append(f"{self.path(first)} to {last} are {self.path(new)} to {new + last - first} now")
        return "; ".join(parts)


@attrs.frozen
class Recount:
    """A number that counts entries, or is an entry's own.

    Attributes:
        place: Where it is.
        old: Its value before.
        new: Its value after.
    """

    place: Place
    old: int
    new: int

    def undone(self, value: int) -> int:
        """Returns the number as it was before; one that was set to something else since stays."""
        return self.old if value == self.new else value


@attrs.frozen
class Shortening:
    """A list or tuple with one value for each entry.

    Attributes:
        place: Where it is.
        size: How many values it has.
        removed: The positions that leave, ascending.
        values: What they held.
    """

    place: Place
    size: int
    removed: tuple[int, ...]
    values: tuple[Plain, ...]

    def of(self, values: Any) -> Any:
        """Returns the list without them."""
        return type(values)(value for position, value in enumerate(values) if position not in self.removed)

    def undone(self, values: Any) -> Any:
        """Returns the whole list from what `of` left of it; one that was made longer or shorter since stays."""
        if len(values) != self.size - len(self.removed):
            return values
        held = dict(zip(self.removed, self.values, strict=True))
        left = iter(values)
        return type(values)(held[n] if n in held else next(left) for n in range(self.size))


@attrs.frozen
class Entries:
    """Entries that leave lists, and everything that counted them.

    Attributes:
        deletions: By list.
        changes: Numbers and lists.
    """

    deletions: tuple[Deletion, ...] = ()
    changes: tuple[Recount | Shortening, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.deletions)

    def renamed(self) -> dict[str, str]:
        """Returns the paths of entries that get another number, each with what it is if only its list changes."""
        return {
            deletion.path(old): deletion.path(new)
            for deletion in self.deletions
            for old, new in deletion.moved().items()
            if old != new
        }

    def deleted(self) -> frozenset[str]:
        """Returns the paths of the entries that leave."""
        return frozenset(deletion.path(number) for deletion in self.deletions for number in deletion.entries)

    def without(self, is_gone: Callable[[str], bool]) -> Entries:
        """Returns what is left to do where some modules, by path, aren't there."""
        return Entries(
            tuple(one for one in self.deletions if not is_gone(one.container)),
            tuple(change for change in self.changes if not is_gone(change.place[0])),
        )


NO_ENTRIES = Entries()


def to_json(entries: Entries) -> dict[str, Any]:
    """Writes entries as plain data."""
    numbers = [change for change in entries.changes if isinstance(change, Recount)]
    lists = [change for change in entries.changes if isinstance(change, Shortening)]
    return {
        "lists": {
            one.container: [one.size, list(one.entries), one.witness, *filter(None, [one.prefix])]
            for one in entries.deletions
        },
        "numbers": [[one.place[0], list(one.place[1]), one.old, one.new] for one in numbers],
        "values": [[one.place[0], list(one.place[1]), one.size, list(one.removed), list(one.values)] for one in lists],
    }


def from_json(data: Any) -> Entries:
    """Reads what `to_json` wrote.

    Raises:
        PlanError: It is something else.
    """
    try:
        deletions = [
            Deletion(_text(path), _number(size), _places(numbers, size), *map(_text, names))
            for path, (size, numbers, *names) in data["lists"].items()
        ]
        recounts = [Recount(_place(*place), _number(old), _number(new)) for *place, old, new in data["numbers"]]
        lists = [_shortening(*one) for one in data["values"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError("The plan is malformed.", where="entries", why=f"{type(error).__name__}: {error}") from error
    return Entries(tuple(deletions), (*recounts, *lists))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a name")
    return value


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a number")
    return value


def _places(values: Any, size: int) -> tuple[int, ...]:
    found = tuple(map(_number, values))
    if list(found) != sorted(set(found)) or not found or found[0] < 0 or found[-1] >= size:
        raise ValueError(f"{values!r} are no entries of {size}, ascending")
    return found


def _shortening(path: Any, names: Any, size: Any, removed: Any, values: Any) -> Shortening:
    place, gone = _place(path, names), _places(removed, _number(size))
    if not isinstance(values, list) or len(values) != len(gone) or not all(map(is_plain, values)):
        raise ValueError(f"{values!r} are no {len(gone)} plain values")
    return Shortening(place, size, gone, tuple(values))


def is_plain(value: Any) -> bool:
    """Tells whether a value is a number, a text, a flag or None."""
    return value is None or type(value) in (bool, int, float, str)


def _place(path: Any, names: Any) -> Place:
    if not isinstance(names, list) or not names:
        raise TypeError(f"{names!r} names no attribute")
    return _text(path), tuple(map(_text, names))


def left_of(container: nn.Module, deletion: Deletion) -> dict[str, nn.Module | None]:
    """Returns the children of a list without some, numbered anew."""
    children = list(container._modules.values())
    return {f"{deletion.prefix}{new}": children[old] for old, new in deletion.moved().items()}


def prefix_of(container: nn.Module | None) -> str | None:
    """Returns what stands before the numbers of a list's entries: they are numbered from zero; None if they aren't."""
    if not isinstance(container, LISTS) or not container._modules:
        return None
    names = list(container._modules)
    prefix = names[0].removesuffix("0")
    return prefix if names == [f"{prefix}{number}" for number in range(len(names))] else None


def holder_of(module: nn.Module, names: tuple[str, ...]) -> dict[str, Any] | None:
    """Returns the attributes of the object that holds the last of some attributes; None if there is none."""
    table: dict[str, Any] | None = vars(module)
    for name in names[:-1]:
        held = None if table is None else table.get(name)
        table = None if held is None or isinstance(held, _CLOSED) else attributes_of(held)
    return table


def place_of(module: nn.Module, attribute: str) -> tuple[dict[str, Any], str]:
    """Returns where an attribute of a module lies: what holds it, and its name there.

    Args:
        module: The module.
        attribute: Its name; of an attribute of an object that the module holds, with that object's before it
            (``"config.num_experts"``).
    """
    names = tuple(attribute.split("."))
    table = holder_of(module, names)
    return ({} if table is None else table), names[-1]


def set_at(module: nn.Module, attribute: str, value: Any) -> None:
    """Sets an attribute of a module, or of an object that it holds, see `place_of`; no ``__setattr__`` has a say."""
    table, name = place_of(module, attribute)
    table[name] = value


def is_in_place(table: Mapping[str, Any] | None, change: Recount | Shortening) -> bool:
    """Tells whether an object holds what a change expects."""
    value = None if table is None else table.get(change.place[1][-1])
    if isinstance(change, Recount):
        return type(value) is int and value == change.old
    return (
        isinstance(value, list | tuple)
        and len(value) == change.size
        and tuple(value[position] for position in change.removed) == change.values
    )


def changed(value: Any, change: Recount | Shortening) -> Any:
    """Returns the value after a change."""
    return change.new if isinstance(change, Recount) else change.of(value)


def objects_in(modules: Mapping[str, nn.Module]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yields the attributes of modules, and of the objects that they hold, each once, with where they are."""
    seen: set[int] = set()
    for path, module in modules.items():
        yield (path, ()), vars(module)
        pending: list[tuple[tuple[str, ...], Any]] = [((name,), held) for name, held in vars(module).items()]
        while pending:
            names, held = pending.pop(0)
            table = None if held is None or isinstance(held, _CLOSED) else attributes_of(held)
            if table is not None and id(held) not in seen:
                seen.add(id(held))
                yield (path, names), table
                if len(names) < _DEEPEST:
                    pending.extend(((*names, name), inner) for name, inner in table.items())


@attrs.frozen
class Detached:
    """Copies of the objects that changes are about, shared as these are: others may hold them as well.

    Attributes:
        held: Attributes of a module, a name in them, and the copy that it is to hold in place of the object.
        tables: Attributes of each copy, by the identity of those of the object.
    """

    held: tuple[tuple[dict[str, Any], str, Any], ...] = ()
    tables: Mapping[int, dict[str, Any]] = attrs.field(factory=dict)


def detached(modules: Mapping[str, nn.Module], changes: tuple[Recount | Shortening, ...]) -> Detached:
    """Copies the objects that changes are about, and those that hold these.

    Args:
        modules: The modules by path.
        changes: What is to change.
    """
    if not any(len(change.place[1]) > 1 for change in changes):
        return Detached()
    tables = [table for (_, names), table in objects_in(modules) if names]
    copied: dict[int, Any] = {}
    for change in changes:
        path, names = change.place
        held: Any = modules[path]
        for name in names[:-1]:
            held = (attributes_of(held) or {})[name]
            copied[id(held)] = held
    while True:  # those that hold them as well
        holders = [t for t in tables if id(t) not in map(id, map(attributes_of, copied.values()))]
        around = [table for table in holders if any(id(value) in copied for value in table.values())]
        if not around:
            break
        found = {id(table) for table in around}
        copied.update((id(o), o) for o in _objects(modules, tables) if id(attributes_of(o)) in found)
    fresh = {key: _unfilled(type(held)) for key, held in copied.items()}
    for key, held in copied.items():
        for name, value in (attributes_of(held) or {}).items():
            object.__setattr__(fresh[key], name, fresh.get(id(value), value))
    return Detached(
        tuple(
            (vars(module), name, fresh[id(held)])
            for module in modules.values()
            for name, held in vars(module).items()
            if id(held) in fresh
        ),
        {id(attributes_of(held)): attributes_of(fresh[key]) or {} for key, held in copied.items()},
    )


def _unfilled(kind: type) -> Any:
    """Makes an object of a class without its constructor."""
    try:
        return object.__new__(kind)
    except TypeError:  # the class is derived from one that is written in C, such as SimpleNamespace
        return kind.__new__(kind)  # type: ignore[call-overload]  # of a class that isn't known


def _objects(modules: Mapping[str, nn.Module], tables: list[dict[str, Any]]) -> Iterator[Any]:
    """Yields what modules and objects hold."""
    for table in (*map(vars, modules.values()), *tables):
        yield from table.values()
