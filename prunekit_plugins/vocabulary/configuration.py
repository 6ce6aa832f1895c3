"""Ids in the attributes of a model's modules and in the configurations that they hold: they follow, by the plan where
it can say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from prunekit_core.graph.graph import Graph
from prunekit_core.modules.edits import AttributeEdit, Table, TableEdit
from prunekit_core.modules.entries import Entries, Place, Recount, objects_in
from prunekit_core.modules.transaction import Transaction
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.examples import Example
from prunekit_plugins.vocabulary.fields import ids_in


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
        """Returns it as a part of a plan; None where it isn't a number."""
        if type(self.old) is not int or type(self.new) is not int:
            return None
        return AttributeEdit(self.place[0], ".".join(self.place[1]), self.old, self.new)

    def table_edit(self) -> TableEdit | None:
        """Returns it as a part of a plan; None where it is no list and no mapping."""
        old, new = Table.of(self.old), Table.of(self.new)
        if old is None or new is None:
            return None
        return TableEdit(self.place[0], ".".join(self.place[1]), old, new)


def named_in(modules: Mapping[str, nn.Module], registry: Registry) -> dict[int, str]:
    """Returns the ids that configurations and attributes of modules name, each with where the first one does.

    Args:
        modules: Path to module.
        registry: Where layer types are found: attributes of layers follow their shapes.
    """
    found: dict[int, str] = {}
    for place, table in _fields(modules, registry):
        for number in ids_in(place[1][-1], table[place[1][-1]]):
            found.setdefault(number, ".".join(filter(None, (place[0], *place[1]))))
    return found


Renumbered = Callable[[str, Any], Any]
"""From the name of a field and its value: the value that it gets."""


def changes_in(modules: Mapping[str, nn.Module], registry: Registry, renumbered: Renumbered) -> list[Change]:
    """Lists the fields of configurations, and the attributes of modules, that follow.

    Args:
        modules: Path to module.
        registry: Where layer types are found.
        renumbered: Tells what a field becomes.
    """
    found = []
    for place, table in _fields(modules, registry):
        old = table[place[1][-1]]
        new = renumbered(place[1][-1], old)
        if type(new) is not type(old) or new != old:
            found.append(Change(place, table, old, new))
    return found


def _fields(modules: Mapping[str, nn.Module], registry: Registry) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yields every attribute of modules that aren't layers, and of the objects that modules hold, with what has it."""
    for (path, names), table in objects_in(modules):
        if names or registry.layer_type(modules[path]) is None:
            for name, value in list(table.items()):
                if isinstance(value, _PLAIN):
                    yield (path, (*names, name)), table


_PLAIN = (int, list, tuple, dict)
"""What fields with ids hold."""


def rehearsed(graph: Graph, changes: Sequence[Change], exchanged: Callable[[Example], Example]) -> Graph:
    """Returns a graph whose cuts are rehearsed with changed configurations, which the program may read, on new ids.

    Args:
        graph: The analysed model.
        changes: What changes.
        exchanged: Returns example inputs with new ids.
    """
    recordings = tuple(attrs.evolve(one, example=exchanged(one.example)) for one in graph.analysis.recordings)
    recounts = tuple(Recount(one.place, one.old, one.new) for one in changes if type(one.old) is type(one.new) is int)
    analysis = attrs.evolve(graph.analysis, entries=Entries(changes=recounts), recordings=recordings)
    return Graph(graph.model, analysis, graph.registry, graph.notes)


def make(changes: Sequence[Change], transaction: Transaction) -> None:
    """Hands those changes to a transaction that plans don't make."""
    for change in changes:
        if change.edit() is None and change.table_edit() is None:
            transaction.entry(change.table, change.name, change.new)
