"""Ids in the configurations that a model's modules hold: they follow, as part of the plan where it can say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from prunekit_core.graph.graph import Graph
from prunekit_core.modules.edits import AttributeEdit, is_size, normal_size
from prunekit_core.modules.entries import Entries, Place, Recount, objects_in
from prunekit_core.modules.transaction import Transaction
from prunekit_plugins.vocabulary.fields import ids_in, renumbered
from prunekit_plugins.vocabulary.ids import IdMap


@attrs.frozen(eq=False)
class Change:
    """A field of a configuration that gets another value.

    Attributes:
        place: Path of the module that holds it, and the names of attributes from there.
        table: What holds the field.
        old: Its value before.
        new: Its value after.
    """

    place: Place
    table: dict[str, Any]
    old: Any
    new: Any

    @property
    def name(self) -> str:
        """The name of the field."""
        return self.place[1][-1]

    def edit(self) -> AttributeEdit | None:
        """Returns it as a part of a plan; None where a plan can't say it."""
        if not (is_size(self.old) and is_size(self.new)) or _length(self.old) != _length(self.new):
            return None
        return AttributeEdit(self.place[0], ".".join(self.place[1]), normal_size(self.old), normal_size(self.new))


def _length(value: Any) -> int:
    return 0 if isinstance(value, int) else len(value)


def named_in(modules: Mapping[str, nn.Module]) -> dict[int, str]:
    """Returns the ids that configurations name, each with where the first one does.

    Args:
        modules: Path to module.
    """
    found: dict[int, str] = {}
    for place, table in _fields(modules):
        for number in ids_in(place[1][-1], table[place[1][-1]]):
            found.setdefault(number, ".".join(filter(None, (place[0], *place[1]))))
    return found


def changes_in(modules: Mapping[str, nn.Module], ids: IdMap, size: int) -> list[Change]:
    """Lists the fields of configurations that follow.

    Args:
        modules: Path to module.
        ids: What ids become.
        size: The number of ids before.
    """
    found = []
    for place, table in _fields(modules):
        old = table[place[1][-1]]
        new = renumbered(place[1][-1], old, ids, size)
        if new != old:
            found.append(Change(place, table, old, new))
    return found


def _fields(modules: Mapping[str, nn.Module]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yields every field of the objects that modules hold, and what holds it; attributes of modules are none."""
    for (path, names), table in objects_in(modules):
        if names:
            for name in list(table):
                yield (path, (*names, name)), table


def rehearsed(graph: Graph, changes: Sequence[Change]) -> Graph:
    """Returns a graph whose cuts are rehearsed with changed configurations, which the program may read."""
    recounts = tuple(Recount(one.place, one.old, one.new) for one in changes if type(one.old) is type(one.new) is int)
    analysis = attrs.evolve(graph.analysis, entries=Entries(changes=recounts))
    return Graph(graph.model, analysis, graph.registry, graph.notes)


def make(changes: Sequence[Change], transaction: Transaction) -> None:
    """Hands those changes to a transaction that plans don't make."""
    for change in changes:
        if change.edit() is None:
            transaction.entry(change.table, change.name, change.new)
