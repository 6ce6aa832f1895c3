"""Where the weights of experts are: in a parameter with those of all of them, or each in a parameter of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import attrs
import torch

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Layout
from prunekit_core.groups.expert_lists import ExpertList
from prunekit_core.groups.unit_group import UnitGroup

Values = Mapping[str, torch.Tensor]
"""Of parameters and buffers, by canonical name."""


@attrs.frozen(eq=False)
class Stack:
    """A parameter with weights of all experts of a mixture.

    Attributes:
        name: Canonical name.
        dims: Layouts of its dims.
        dim: The dim that the experts lie along.
        positions: Tensor ``[units, experts, n]``, int64, on the CPU: the positions along it of each expert of each
            unit. A unit is one expert, or the experts at the same place of every group of experts.
    """

    name: str
    dims: Sequence[Layout]
    dim: int
    positions: torch.Tensor

    @classmethod
    def of(cls, name: str, dims: Sequence[Layout], group: UnitGroup) -> Stack | None:
        """Finds the experts in a parameter; None where the weights of each don't lie together along one dim."""
        found = [number for number, layout in enumerate(dims) if group.name in layouts.groups_of(layout)]
        outer = _outer(dims[found[0]], group.name) if len(found) == 1 else None
        if outer is None:
            return None
        rows = [layouts.kept_positions(dims[found[0]], {group.name: (unit,)}) for unit in range(group.size)]
        return cls(name, dims, found[0], torch.stack(rows).reshape(group.size, outer, -1))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Canonical names of the tensors that hold the weights."""
        return (self.name,)

    @property
    def experts(self) -> int:
        """Number of experts of a unit."""
        return self.positions.shape[1]

    def weights(self, values: Values, unit: int, number: int) -> torch.Tensor:
        """Returns those of one expert of a unit."""
        whole = values[self.name]
        return whole.index_select(self.dim, self.positions[unit, number].to(whole.device))

    def put(self, values: Values, weights: torch.Tensor, unit: int, number: int) -> None:
        """Gives one expert of a unit other weights, in place."""
        whole = values[self.name]
        whole.index_copy_(self.dim, self.positions[unit, number].to(whole.device), weights.to(whole))

    def neurons(self, dim: int, inner: UnitGroup, group: UnitGroup) -> torch.Tensor:
        """Finds units in the weights of one expert.

        Args:
            dim: The dim that they lie along.
            inner: Their group.
            group: The group of the experts.

        Returns:
            Tensor ``[units, n]``, int64, on the CPU: the positions along the dim of each.
        """
        positions, units = layouts.placements(self.dims[dim], {group.name: (0,)})[inner.name]
        if dim == self.dim:
            first = positions < self.positions.shape[2]
            positions, units = positions[first], units[first]
        return positions[units.argsort(stable=True)].reshape(inner.size, -1)


def _outer(layout: Layout, group: str) -> int | None:
    """Returns how many experts a unit has along a dim; None where the weights of each don't lie together."""
    if isinstance(layout, layouts.Units):
        return 1
    if not isinstance(layout, layouts.Product):
        return None
    places = [number for number, part in enumerate(layout.parts) if group in layouts.groups_of(part)]
    if len(places) > 1 or not isinstance(layout.parts[places[0]], layouts.Units):
        return None
    return math.prod(part.size for part in layout.parts[: places[0]])


@attrs.frozen(eq=False)
class Listed:
    """Tensors at the same place in all entries of a list of modules, each with the weights of one expert.

    Attributes:
        name: The path of that place, with a star for the number of the entry.
        dims: Layouts of the dims of each.
        tensors: Canonical names, by number of the entry.
        entries: Tensor ``[units, experts]``, int64: the numbers of the entries that are the experts of each unit.
    """

    name: str
    dims: Sequence[Layout]
    tensors: tuple[str, ...]
    entries: torch.Tensor

    @classmethod
    def all_of(cls, one: ExpertList, dims: Mapping[str, Sequence[Layout]], group: UnitGroup) -> Iterator[Listed]:
        """Yields the places of a list at which every entry has a tensor of its own.

        Args:
            one: The list.
            dims: Layouts of the dims of all parameters and buffers of real numbers, by canonical name.
            group: The group of the experts.
        """
        rows = [layouts.kept_positions(one.layout, {group.name: (unit,)}) for unit in range(group.size)]
        for rest in dict.fromkeys(entry[1] for name in dims if (entry := one.entry(name)) is not None):
            tensors = tuple(one.path(number, rest) for number in range(one.layout.size))
            if all(name in dims for name in tensors):
                path = f"{one.container}.{one.prefix}*.{rest}".lstrip(".")
                yield cls(path, dims[tensors[0]], tensors, torch.stack(rows))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Canonical names of the tensors that hold the weights."""
        return self.tensors

    @property
    def experts(self) -> int:
        """Number of experts of a unit."""
        return self.entries.shape[1]

    def weights(self, values: Values, unit: int, number: int) -> torch.Tensor:
        """Returns those of one expert of a unit."""
        return values[self.tensors[int(self.entries[unit, number])]]

    def put(self, values: Values, weights: torch.Tensor, unit: int, number: int) -> None:
        """Gives one expert of a unit other weights, in place."""
        values[self.tensors[int(self.entries[unit, number])]].copy_(weights)

    def neurons(self, dim: int, inner: UnitGroup, group: UnitGroup) -> torch.Tensor:
        """Finds units in the weights of one expert; see `Stack.neurons`."""
        positions, units = layouts.placements(self.dims[dim], {})[inner.name]
        return positions[units.argsort(stable=True)].reshape(inner.size, -1)


Holder = Stack | Listed
"""What holds weights of all experts of a mixture."""
