"""Weights of experts in stacks: those of one expert, the order of its neurons, averages of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs
import torch

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Layout
from prunekit_core.groups.unit_group import UnitGroup
from prunekit_plugins.compensation.experts.assignment import assign

SWEEPS = 10
"""How often the neurons of each hidden layer of an expert are put in order at most, where it has several layers."""

Weights = Mapping[str, torch.Tensor]
"""Those of one expert, by the name of the stack: as the stack, with the expert's own positions along its dim."""


@attrs.frozen(eq=False)
class Stack:
    """A parameter with weights of all experts of a mixture.

    Attributes:
        name: Canonical name.
        dim: The dim that the experts lie along.
        positions: Tensor ``[units, experts, n]``, int64, on the CPU: the positions along it of each expert of each
            unit. A unit is one expert, or the experts at the same place of every group of experts.
    """

    name: str
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
        return cls(name, found[0], torch.stack(rows).reshape(group.size, outer, -1))

    def weights(self, values: torch.Tensor, unit: int, number: int) -> torch.Tensor:
        """Returns those of one expert of a unit."""
        return values.index_select(self.dim, self.positions[unit, number].to(values.device))

    def put(self, values: torch.Tensor, weights: torch.Tensor, unit: int, number: int) -> None:
        """Gives one expert of a unit other weights, in place."""
        values.index_copy_(self.dim, self.positions[unit, number].to(values.device), weights.to(values))


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
class Neurons:
    """Where the neurons of a hidden layer are in a stack's weights of one expert.

    Attributes:
        stack: Name of the stack.
        dim: The dim of its weights.
        positions: Tensor ``[neurons, n]``, int64, on the CPU: the positions along it of each.
    """

    stack: str
    dim: int
    positions: torch.Tensor

    def rows(self, weights: Weights) -> torch.Tensor:
        """Returns the weights of each neuron: tensor ``[neurons, weights]``, float64."""
        chosen = weights[self.stack].index_select(self.dim, self.positions.flatten().to(weights[self.stack].device))
        return chosen.movedim(self.dim, 0).reshape(len(self.positions), -1).double()

    def put(self, weights: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Puts neuron ``order[i]`` in the place of neuron ``i``."""
        places = torch.arange(weights.shape[self.dim], device="cpu")
        places[self.positions.flatten()] = self.positions[order].flatten()
        return weights.index_select(self.dim, places.to(weights.device))


@attrs.frozen(eq=False)
class ExpertStacks:
    """The weights of the experts of one mixture.

    Attributes:
        group: The group of the experts.
        stacks: The parameters that hold their weights, by name.
        hidden: Name of each group of their neurons to where these are.
    """

    group: UnitGroup
    stacks: Mapping[str, Stack]
    hidden: Mapping[str, tuple[Neurons, ...]]

    @classmethod
    def of(
        cls, group: UnitGroup, stacks: Mapping[str, Sequence[Layout]], groups: Mapping[str, UnitGroup]
    ) -> ExpertStacks | str:
        """Finds the neurons of the experts, units that nothing but their weights holds; or says why that can't be.

        Args:
            group: The group of the experts.
            stacks: Names of the parameters that hold their weights to the layouts of their dims.
            groups: All groups of the model, by name.
        """
        found = {name: Stack.of(name, dims, group) for name, dims in stacks.items()}
        known = {name: stack for name, stack in found.items() if stack is not None}
        apart = [name for name in found if name not in known]
        if apart:
            return f"the weights of an expert don't lie together in {apart[0]}"
        hidden: dict[str, list[Neurons]] = {}
        for name, stack in known.items():
            for dim, layout in enumerate(stacks[name]):
                for inner in layouts.groups_of(layout):
                    if inner != group.name and {member.parameter for member in groups[inner].members} <= set(known):
                        hidden.setdefault(inner, []).append(_neurons(stack, dim, layout, groups[inner], group))
        for inner, places in hidden.items():
            if len({place.stack for place in places}) < len(places):
                return f"{inner} lies along two dims of a parameter"
        return cls(group, known, {inner: tuple(places) for inner, places in hidden.items()})

    @property
    def numbers(self) -> range:
        """The numbers of the experts of a unit."""
        return range(next(iter(self.stacks.values())).positions.shape[1])

    def weights(self, values: Mapping[str, torch.Tensor], unit: int, number: int) -> Weights:
        """Returns those of one expert of a unit, from the values of the stacks by name."""
        return {name: stack.weights(values[name], unit, number) for name, stack in self.stacks.items()}

    def aligned(self, weights: Weights, to: Weights) -> Weights:
        """Puts the neurons of an expert in the order in which they are most like another one's.

        The order makes the sum of the products of their weights greatest, which makes the squared distance of all
        weights least (Ainsworth et al., *Git Re-Basin*, ICLR 2023, weight matching). With several hidden layers it is
        done for one after the other until nothing changes.

        Args:
            weights: Those of the expert.
            to: Those of the other one.
        """
        weights, changed = dict(weights), bool(self.hidden)
        for _ in range(SWEEPS if len(self.hidden) > 1 else 1):
            if not changed:
                break
            changed = False
            for places in self.hidden.values():
                alike = torch.stack([place.rows(to) @ place.rows(weights).T for place in places]).sum(0)
                order = assign(-alike)
                changed = changed or not torch.equal(order, torch.arange(len(order), device="cpu"))
                for place in places:
                    weights[place.stack] = place.put(weights[place.stack], order)
        return weights


def _neurons(stack: Stack, dim: int, layout: Layout, inner: UnitGroup, group: UnitGroup) -> Neurons:
    """Finds the neurons of a hidden layer in the weights of the first expert of the first unit."""
    positions, units = layouts.placements(layout, {group.name: (0,)})[inner.name]
    if dim == stack.dim:
        first = positions < stack.positions.shape[2]
        positions, units = positions[first], units[first]
    return Neurons(stack.name, dim, positions[units.argsort(stable=True)].reshape(inner.size, -1))


def average(experts: Sequence[Weights], shares: Sequence[float]) -> Weights:
    """Returns the weighted mean of the weights of experts, in float64.

    Args:
        experts: Their weights.
        shares: What each counts.
    """
    parts = [share / sum(shares) for share in shares]
    return {
        name: torch.stack([part * one[name].double() for one, part in zip(experts, parts, strict=True)]).sum(0)
        for name in experts[0]
    }
