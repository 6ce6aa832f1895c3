"""Groups with the attributes that programs for Torch-Pruning read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import attrs
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.compat.torch_pruning import layer_pruners as function, ops
from prunekit_plugins.compat.torch_pruning.dependency.dependency import Dependency
from prunekit_plugins.compat.torch_pruning.dependency.node import Node
from prunekit_plugins.compat.torch_pruning.unavailable import refuse

ROOTS = (ops.TORCH_CONV, ops.TORCH_LINEAR, ops.TORCH_LSTM)


class _Pair(NamedTuple):
    dep: Dependency
    idxs: list[int]


class GroupItem(_Pair):
    """One entry of a group, to be unpacked as ``dep, idxs``.

    Attributes:
        root_idxs: For each index the channel of the root layer that it goes with.
    """

    root_idxs: list[int]


class _Entry(NamedTuple):
    """A layer or parameter of a group: what loses which positions, and which unit each of them holds."""

    layer: Any
    name: str
    role: pk.Role
    handler: Any
    parameter: str
    positions: list[int]
    units: list[int]


class Group(pk.Group):
    """Channels that leave together, and every layer and free parameter that loses something with them.

    Iterating gives ``(dep, idxs)``; operations are no members. A group made by ``DependencyGraph.get_pruning_group`` or
    by a pruner can be given to every criterion.

    Args:
        graph: The graph.
        units: Group name to units.
        root: Where the group starts: (layer, its name, pruning function, channels); None to let the first producer be
            the root.
        shared: Intermediate results, shared between groups that are scored together.
    """

    def __init__(
        self,
        graph: Any = None,
        units: Mapping[str, Sequence[int]] | None = None,
        root: tuple[Any, str, Any, list[int]] | None = None,
        shared: dict[Any, torch.Tensor] | None = None,
    ) -> None:
        if graph is None:
            raise refuse("An empty Group", "a group belongs to a graph", "call DependencyGraph.get_pruning_group")
        super().__init__(graph, units or {}, None, shared)
        free = root is not None and isinstance(root[0], nn.Parameter)
        self._plain = pk.Group(graph, units or {}, None if free else root, shared)
        self._start = root
        self._found: list[GroupItem] | None = None

    @property
    def items(self) -> list[Any]:
        """All entries, the root first."""
        if self._found is None:
            self._found = self._items_from(_entries(self._plain))
        return self._found

    def _items_from(self, entries: list[_Entry]) -> list[GroupItem]:
        entries = sorted(entries, key=self._rank)
        root = entries[0]
        numbers = _occurrences(root)
        source = self._node(root)
        found = []
        for entry in entries:
            target = source if entry is root else self._node(entry)
            dep = Dependency(
                root.handler,
                entry.handler,
                source,
                target,
                role=entry.role,
                name=entry.name,
                parameter=entry.parameter,
            )
            item = GroupItem(dep, entry.positions)
            item.root_idxs = _matched(entry, numbers)
            found.append(item)
        return found

    def _rank(self, entry: _Entry) -> int:
        if self._start is not None and entry.layer is self._start[0]:
            wanted = self._start[2]
            if entry.handler == wanted or isinstance(entry.layer, nn.Parameter) or entry.role is pk.Role.OUT:
                return 0
        if entry.role is not pk.Role.OUT:
            return 4 if entry.role is pk.Role.IN else 3
        return 1 if isinstance(entry.layer, ROOTS) and entry.handler is not None else 2

    def _node(self, entry: _Entry) -> Node:
        known = self.graph.module2node if hasattr(self.graph, "module2node") else {}
        if not isinstance(entry.layer, nn.Parameter) and entry.layer in known:
            node: Node = known[entry.layer]
            return node
        node = Node(entry.layer, None, entry.name)
        if isinstance(entry.layer, nn.Parameter):
            node.pruning_dim = entry.handler.__self__.pruning_dim
        return node

    def root_units(self) -> list[int]:
        """Lists which unit each channel of the root holds, numbered among the selected units."""
        root = min(_entries(self._plain), key=self._rank)
        return root.units

    def views(self) -> list[plugin.MemberView]:
        """Lists the members for scoring; see ``prunekit.Group.views``."""
        if self._start is None or not isinstance(self._start[0], nn.Parameter):
            return self._plain.views()
        root = next(entry for entry in _entries(self._plain) if entry.layer is self._start[0])
        rank = {position: number for number, position in enumerate(self._start[3])}
        first = {unit: min(rank[position] for position in held) for unit, held in _occurrences(root).items()}
        place = torch.empty(len(first), dtype=torch.long)
        place[sorted(first, key=first.__getitem__)] = torch.arange(len(first))
        return [attrs.evolve(view, units=place[view.units]) for view in self._plain.views()]

    def prune(self, idxs: Sequence[int] | None = None, record_history: bool = True) -> pk.Plan:
        """Removes the channels from all layers, after a rehearsal.

        Args:
            idxs: Channels of the root layer to remove instead, out of those in the group.
            record_history: The history is always complete; False warns.

        Returns:
            The plan from the model as it was when the graph was built.

        Raises:
            RehearsalError: The program can't express the cut; the model is untouched.
            UnitsError: The channels are not part of the group, or all of them would go.
        """
        if not record_history:
            warnings.warn("prunekit keeps the history complete: record_history=False has no effect.", stacklevel=2)
        if idxs is None:
            return self._plain.prune()
        root = self.items[0].dep
        wanted = self.graph.group_by(root.layer, root.pruning_fn, idxs).units
        for name, units in wanted.items():
            if not set(units) <= set(self.units.get(name, ())):
                raise pk.UnitsError("The channels are not part of this group.", where=root.name)
        return pk.Group(self.graph, wanted, None).prune()

    def exec(self) -> pk.Plan:
        """Does what `prune` does."""
        return self.prune()

    __call__ = exec

    def has_dep(self, dep: Dependency) -> bool:
        """Tells whether a dependency is part of the group."""
        return any(item.dep == dep for item in self.items)

    def has_pruning_op(self, dep: Dependency, idxs: Sequence[int]) -> bool:
        """Tells whether a layer loses (at least) some channels with the group, by the function of a dependency."""
        return any(
            item.dep.layer is dep.layer
            and item.dep.pruning_fn == dep.pruning_fn
            and set(map(int, idxs)) <= set(item.idxs)
            for item in self.items
        )

    def add_dep(self, dep: Dependency, idxs: Sequence[int]) -> None:
        """Raises `UnavailableError`."""
        raise self._closed("add_dep")

    def add_and_merge(self, dep: Dependency, idxs: Sequence[int]) -> None:
        """Raises `UnavailableError`."""
        raise self._closed("add_and_merge")

    def _closed(self, name: str) -> Exception:
        return refuse(
            f"Group.{name}",
            "what belongs to a group follows from the operations that the model runs",
            "write a rule for the operation (docs/writing-a-plugin.md)",
        )

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def details(self) -> str:
        """Returns all entries with all indices, one per line."""
        return self._text(lambda item: f"idxs ({len(item.idxs)}) = {item.idxs}")

    def __str__(self) -> str:
        return self._text(lambda item: f"len(idxs)={len(item.idxs)}")

    def _text(self, describe: Callable[[GroupItem], str]) -> str:
        lines = [f"Pruning group {self.name}:"]
        lines += [f"[{number}] {item.dep}, {describe(item)}" for number, item in enumerate(self.items)]
        return "\n".join(lines)


def _entries(plain: pk.Group) -> list[_Entry]:
    """Lists layers (one entry per side) and free parameters (one entry per dim) of a group."""
    graph: Any = plain.graph
    found = []
    for dependency, positions, units in graph.dependencies(plain.units):
        if graph.registry.layer_type(dependency.layer) is not None:
            handler = dependency.pruning_fn
            if ops.is_depthwise(dependency.layer):
                handler = function.prune_depthwise_conv_out_channels
            found.append(
                _Entry(
                    dependency.layer,
                    dependency.name,
                    dependency.role,
                    handler,
                    dependency.parameter,
                    positions,
                    units,
                )
            )
    for view in graph_views(plain):
        if graph.registry.layer_type(view.module) is None and isinstance(view.tensor, nn.Parameter):
            last = view.dim == view.tensor.dim() - 1
            box = function.PrunerBox[ops.OPTYPE.PARAMETER] if last else function.ParameterPruner(view.dim)
            name = f"{view.path}.{view.name}" if view.path else view.name
            found.append(
                _Entry(
                    view.tensor,
                    name,
                    view.role,
                    box.prune_out_channels,
                    view.name,
                    view.positions.tolist(),
                    view.units.tolist(),
                )
            )
    return found


def graph_views(group: pk.Group) -> list[plugin.MemberView]:
    """Lists the members of a group, with its units numbered in ascending order."""
    return pk.Group(group.graph, group.units, None).views()


def _occurrences(entry: _Entry) -> dict[int, list[int]]:
    """Unit to the channels of the root that hold it, ascending."""
    found: dict[int, list[int]] = {}
    for position, unit in zip(entry.positions, entry.units, strict=True):
        found.setdefault(unit, []).append(position)
    return found


def _matched(entry: _Entry, numbers: Mapping[int, list[int]]) -> list[int]:
    """Channels of the root for the positions of a member: the n-th for the n-th where both hold a unit as often."""
    own = _occurrences(entry)
    turn = dict.fromkeys(own, 0)
    found = []
    for unit in entry.units:
        channels = numbers.get(unit, [])
        alike = len(channels) == len(own[unit])
        found.append(channels[turn[unit] if alike else 0] if channels else -1)
        turn[unit] += 1
    return found
