"""Weights of experts: those of one expert, the order of its neurons, averages of several."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import attrs
import torch

from prunekit_core.algebra import layout as layouts
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.unit_group import UnitGroup
from prunekit_plugins.compensation.experts.assignment import assign
from prunekit_plugins.compensation.experts.holders import Holder, Listed, Stack, Values

SWEEPS = 10
"""How often the neurons of each hidden layer of an expert are put in order at most, where it has several layers."""

Weights = Mapping[str, torch.Tensor]
"""Those of one expert, by the name of what holds them; of a stack with the expert's own positions along its dim."""


@attrs.frozen(eq=False)
class Neurons:
    """Where the neurons of a hidden layer are in some weights of one expert.

    Attributes:
        holder: Name of what holds these.
        dim: Their dim.
        positions: Tensor ``[neurons, n]``, int64, on the CPU: the positions along it of each.
    """

    holder: str
    dim: int
    positions: torch.Tensor

    def rows(self, weights: Weights) -> torch.Tensor:
        """Returns the weights of each neuron: tensor ``[neurons, weights]``, float64."""
        chosen = weights[self.holder].index_select(self.dim, self.positions.flatten().to(weights[self.holder].device))
        return chosen.movedim(self.dim, 0).reshape(len(self.positions), -1).double()

    def put(self, weights: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Puts neuron ``order[i]`` in the place of neuron ``i``."""
        places = torch.arange(weights.shape[self.dim], device="cpu")
        places[self.positions.flatten()] = self.positions[order].flatten()
        return weights.index_select(self.dim, places.to(weights.device))


@attrs.frozen(eq=False)
class ExpertWeights:
    """The weights of the experts of one mixture.

    Attributes:
        group: The group of the experts.
        holders: What holds them, by name.
        hidden: Name of each group of their neurons to where these are.
    """

    group: UnitGroup
    holders: Mapping[str, Holder]
    hidden: Mapping[str, tuple[Neurons, ...]]

    @classmethod
    def of(
        cls, group: UnitGroup, stacks: Iterable[str], analysis: Analysis, real: Collection[str]
    ) -> ExpertWeights | str:
        """Finds the neurons of the experts, units that nothing but their weights holds; or says why that can't be.

        Args:
            group: The group of the experts.
            stacks: Names of the parameters that hold their weights.
            analysis: What is known about the model.
            real: Names of the parameters and buffers of real numbers.
        """
        lists = [one for one in analysis.lists if group.name in layouts.groups_of(one.layout)]
        dims = {name: layout.dims for name, layout in analysis.parameters.items() if name in real}
        known: dict[str, Holder] = {holder.name: holder for one in lists for holder in Listed.all_of(one, dims, group)}
        for name in stacks:
            if all(one.entry(name) is None for one in lists):
                stack = Stack.of(name, dims[name], group)
                if stack is None:
                    return f"the weights of an expert don't lie together in {name}"
                known[name] = stack
        own = {name for holder in known.values() for name in holder.parameters}
        hidden: dict[str, list[Neurons]] = {}
        for name, holder in known.items():
            for dim, layout in enumerate(holder.dims):
                for inner in layouts.groups_of(layout):
                    within = analysis.groups[inner]
                    if inner != group.name and {member.parameter for member in within.members} <= own:
                        hidden.setdefault(inner, []).append(Neurons(name, dim, holder.neurons(dim, within, group)))
        for inner, places in hidden.items():
            if len({place.holder for place in places}) < len(places):
                return f"{inner} lies along two dims of a parameter"
        return cls(group, known, {inner: tuple(places) for inner, places in hidden.items()})

    @property
    def parameters(self) -> list[str]:
        """Canonical names of all tensors that hold them."""
        return [name for holder in self.holders.values() for name in holder.parameters]

    @property
    def numbers(self) -> range:
        """The numbers of the experts of a unit."""
        return range(next(iter(self.holders.values())).experts)

    def weights(self, values: Values, unit: int, number: int) -> Weights:
        """Returns those of one expert of a unit, from the values of the tensors by name."""
        return {name: holder.weights(values, unit, number) for name, holder in self.holders.items()}

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
                    weights[place.holder] = place.put(weights[place.holder], order)
        return weights


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
