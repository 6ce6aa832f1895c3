"""Groups as users handle them: some units, and every layer that loses something with them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import attrs
import torch
from torch import nn

from prunekit_core.errors import ArgumentError, UnitsError
from prunekit_core.modules.sharding import whole_tensor
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.layers import PruningFunction
from prunekit_core.program.op_call import Role


@attrs.frozen(eq=False)
class MemberView:
    """A parameter or buffer dim that holds units of a group, ready for scoring.

    Attributes:
        path: Dotted path of the module that owns it.
        module: That module.
        name: Local name of the parameter, ``"weight"``.
        tensor: The parameter or buffer.
        dim: The dim that holds the units.
        role: What the parameter does with them.
        positions: Tensor ``[held]``, int64, on the CPU: the positions along the dim that hold units, ascending.
        units: Tensor ``[held]``, int64, on the CPU: which unit each of them holds.
        shared: Intermediate results, shared by all views of one scoring pass.
        load: Reads the values of a tensor on the meta device from a file; None where `values` has them in memory.
    """

    path: str
    module: nn.Module
    name: str
    tensor: torch.Tensor
    dim: int
    role: Role
    positions: torch.Tensor
    units: torch.Tensor
    shared: dict[Any, torch.Tensor] = attrs.field(factory=dict, repr=False)
    load: Callable[[], torch.Tensor] | None = attrs.field(default=None, repr=False)

    def values(self) -> torch.Tensor:
        """Returns the values of the parameter or buffer in full, detached; see `whole_tensor`.

        Where the model is on the meta device and has its weights in files, they are read anew at every call.

        Raises:
            ArgumentError: The model is on the meta device, and nobody said where its weights are.
        """
        if self.load is not None:
            return self.load()
        if self.tensor.is_meta:
            raise ArgumentError(
                "A model on the meta device has no values to score.",
                where=f"{self.path}.{self.name}",
                hint="name the checkpoint that holds them: weights=..., or take a criterion that needs none",
            )
        return whole_tensor(self.tensor)

    def gradient(self) -> torch.Tensor | None:
        """Returns the gradient of the parameter in full and dense, or None; see `whole_tensor`."""
        gradient = self.tensor.grad
        if gradient is None:
            return None
        return gradient.to_dense() if gradient.is_sparse else whole_tensor(gradient)

    def once(self, key: Hashable, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Computes something of this parameter dim once in a scoring pass, for all groups that lie along it.

        Args:
            key: What is computed; together with the parameter and the dim it names the result.
            compute: Computes it.
        """
        place = (self.path, self.name, self.dim, key)
        if place not in self.shared:
            self.shared[place] = compute()
        return self.shared[place]

    def per_unit(self, values: torch.Tensor, units: int) -> torch.Tensor:
        """Adds up values of positions by the unit that they hold.

        Args:
            values: Tensor ``[tensor.shape[dim]]``.
            units: Number of units.

        Returns:
            Tensor ``[units]``, on the device and of the dtype of the values.
        """
        positions, held = self.positions.to(values.device), self.units.to(values.device)
        return values.new_zeros(units).index_add_(0, held, values[positions])

    def slices(self, values: torch.Tensor) -> torch.Tensor:
        """Returns a tensor shaped like the parameter as ``[positions, everything else]``."""
        return values.movedim(self.dim, 0).reshape(values.shape[self.dim], -1)


@attrs.frozen(eq=False)
class Dependency:
    """A layer that loses something together with the units of a group.

    Attributes:
        layer: The module that owns the parameters.
        name: Its dotted path.
        role: What it does with the units.
        pruning_fn: The function that removes them from this layer alone; None for a module without a layer type.
        parameter: Local name of the parameter that was looked at.
    """

    layer: nn.Module
    name: str
    role: Role
    pruning_fn: PruningFunction | None
    parameter: str


class GroupItem(NamedTuple):
    """One entry of a group, to be unpacked as ``dep, idxs``; also has ``root_idxs``."""

    dep: Dependency
    idxs: list[int]


class _Item(GroupItem):
    root_idxs: list[int]


class Source(Protocol):
    """What a `Group` asks of the graph that it came from."""

    def remaining(self, group: str) -> tuple[int, ...]:
        """Units of a group that are still there."""

    def views(self, group: str, shared: dict[Any, torch.Tensor] | None = None) -> list[MemberView]:
        """Members of a group, ready for scoring."""

    def dependencies(self, removed: Mapping[str, Sequence[int]]) -> list[tuple[Dependency, list[int], list[int]]]:
        """Layers that lose something with some units."""

    def group_by(self, layer: nn.Module, function: PruningFunction, channels: Sequence[int]) -> Group:
        """The group of some channels of a layer."""

    def remove(self, removed: Mapping[str, Sequence[int]]) -> Plan:
        """Removes units from the model."""


class Group:
    """A pruning group: some units that leave together, with every layer that loses something, in one model.

    A `UnitGroup` is what the analysis found, by name and without tensors; this is a selection from one or more of them.

    Iterating yields ``(dep, idxs)``: ``dep.layer``, ``dep.pruning_fn`` and the channels it loses, as numbered in that
    layer now. ``group[0]`` is the layer that the group starts at.

    Attributes:
        units: Group name to the units in question, as numbered at analysis.
    """

    def __init__(
        self,
        graph: Source,
        units: Mapping[str, Sequence[int]],
        root: tuple[nn.Module, str, PruningFunction, list[int]] | None,
        shared: dict[Any, torch.Tensor] | None = None,
    ) -> None:
        self.graph = graph
        self.units = {name: tuple(chosen) for name, chosen in units.items()}
        self._given_root = root
        self._items: list[_Item] | None = None
        self._shared = shared

    @property
    def items(self) -> list[_Item]:
        """All entries; made when first asked for."""
        if self._items is None:
            items = []
            for dependency, positions, roots in self.graph.dependencies(self.units):
                item = _Item(dependency, positions)
                item.root_idxs = roots
                items.append(item)
            items.sort(key=self._order)
            self._items = items
        return self._items

    def _order(self, item: _Item) -> int:
        if self._given_root is not None:
            layer, _, function, _ = self._given_root
            if item.dep.layer is layer and (item.dep.pruning_fn is function or item.dep.role is Role.OUT):
                return 0
        return 1 if item.dep.role is Role.OUT else 2

    @property
    def root(self) -> Dependency:
        """The layer that the group starts at."""
        return self.items[0].dep

    @property
    def name(self) -> str:
        """Names of the unit groups concerned."""
        return " + ".join(self.units)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[_Item]:
        return iter(self.items)

    def __getitem__(self, position: int) -> _Item:
        return self.items[position]

    def size(self) -> int:
        """Returns the number of selected units."""
        return sum(len(chosen) for chosen in self.units.values())

    def chosen(self) -> list[tuple[str, int]]:
        """Lists the selected units in the order in which they are scored: group, and number at analysis."""
        units = [(name, unit) for name, chosen in self.units.items() for unit in chosen]
        placed = sorted(zip(self._unit_order(), units, strict=True))
        return [unit for _, unit in placed]

    def views(self) -> list[MemberView]:
        """Lists the members for scoring; units are numbered among the selected ones, in the order asked for.

        Intermediate results are shared among the views of one call, or of one scoring pass of a pruner.

        A group made from channels of a layer numbers its units in the order of the indices given.
        """
        shared = {} if self._shared is None else self._shared
        if self._given_root is None and len(self.units) == 1:
            ((name, chosen),) = self.units.items()
            if chosen == tuple(self.graph.remaining(name)):
                return self.graph.views(name, shared)
        found = []
        offset = 0
        total = self.size()
        order = self._unit_order()
        for name, chosen in self.units.items():
            remaining = self.graph.remaining(name)
            wanted = {unit: order[offset + number] for number, unit in enumerate(chosen)}
            place = torch.tensor([wanted.get(unit, -1) for unit in remaining], device="cpu")
            offset += len(chosen)
            partial = len(chosen) < len(remaining)
            for view in self.graph.views(name, shared):
                units, positions = place[view.units], view.positions
                if partial:
                    positions, units = positions[units >= 0], units[units >= 0]
                found.append(attrs.evolve(view, positions=positions, units=units))
        assert offset == total
        return found

    def _unit_order(self) -> list[int]:
        """Position of each selected unit in the order in which the user named them."""
        total = self.size()
        if self._given_root is None:
            return list(range(total))
        item = self.items[0]
        first: dict[int, int] = {}
        rank = {flat: number for number, flat in enumerate(self._given_root[3])}
        for flat, unit in zip(item.idxs, item.root_idxs, strict=True):
            first[unit] = min(first.get(unit, len(rank)), rank.get(flat, len(rank)))
        ordered = sorted(range(total), key=lambda unit: (first.get(unit, len(rank)), unit))
        result = [0] * total
        for number, unit in enumerate(ordered):
            result[unit] = number
        return result

    def prune(self, idxs: Sequence[int] | None = None) -> Plan:
        """Removes the units from the model, rehearsed first.

        Args:
            idxs: Channels of the root layer to remove instead, out of those in the group; None for all.

        Returns:
            The plan from the model as it was at analysis.

        Raises:
            RehearsalError: The program can't express the cut; the model is untouched.
            UnitsError: The indices are not channels of this group.
        """
        if idxs is None:
            chosen: Mapping[str, Sequence[int]] = self.units
        else:
            chosen = self._subset(idxs)
        for name, units in chosen.items():
            present = self.graph.remaining(name)
            if not set(units) <= set(present):
                raise UnitsError("The units are no longer there.", where=name, hint="get the group anew")
            if len(units) >= len(present):
                raise UnitsError("All units of a group can't be removed.", where=name)
        return self.graph.remove(chosen)

    def _subset(self, idxs: Sequence[int]) -> dict[str, tuple[int, ...]]:
        item = self.items[0]
        function = item.dep.pruning_fn
        if function is None:
            raise UnitsError("The root of this group has no numbered channels.", where=item.dep.name)
        wanted = self.graph.group_by(item.dep.layer, function, idxs).units
        for name, units in wanted.items():
            if not set(units) <= set(self.units.get(name, ())):
                raise UnitsError("The channels are not part of this group.", where=item.dep.name)
        return dict(wanted)

    def __str__(self) -> str:
        lines = [f"Group {self.name}: {self.size()} units"]
        for number, item in enumerate(self.items):
            function = getattr(item.dep.pruning_fn, "__name__", f"along {item.dep.parameter}")
            shown = ", ".join(str(i) for i in item.idxs[:8]) + (", ..." if len(item.idxs) > 8 else "")
            lines.append(f"  [{number}] {function} on {item.dep.name or 'the model'}: {len(item.idxs)} of [{shown}]")
        return "\n".join(lines)
