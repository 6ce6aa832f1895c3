"""Neurons of experts in stacks of weights: where they are read, and what the outputs of the model lose without them."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from prunekit_core.algebra import layout as layouts
from prunekit_core.groups.analysis import Analysis
from prunekit_plugins.calibration.experts.mixtures import Mixture


@attrs.frozen(eq=False)
class NeuronReads:
    """A stack of weights that multiply the neurons of experts.

    Attributes:
        group: Name of the group of the neurons.
        size: Number of neurons.
        parameter: Canonical name of the stack.
        experts: The dim of it that the experts lie along.
        dim: The dim that the neurons lie along.
        positions: Tensor ``[positions]``, int64, on the CPU: the positions along it that hold a neuron.
        units: The neuron that each holds.
    """

    group: str
    size: int
    parameter: str
    experts: int
    dim: int
    positions: torch.Tensor
    units: torch.Tensor

    def losses(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Returns what a projection of the outputs loses if each neuron isn't read, squared and summed over experts.

        Args:
            weight: The stack.
            gradient: The gradient of the projection by it.

        Returns:
            Tensor ``[neurons]``, float64, on the CPU.
        """
        loss = weight.detach() * gradient
        kept = {self.experts, self.dim}
        others = [dim for dim in range(loss.dim()) if dim not in kept]
        loss = (loss.sum(others) if others else loss).double()
        loss = loss.movedim(int(self.dim > self.experts), 0) if len(kept) > 1 else loss[:, None]
        squares = loss.square().sum(1).cpu()[self.positions]
        return squares.new_zeros(self.size).index_add_(0, self.units, squares)


def neuron_reads(mixture: Mixture, analysis: Analysis) -> tuple[NeuronReads, ...]:
    """Finds the stacks of a mixture that read neurons which nothing but its stacks holds: those that are read last.

    Args:
        mixture: The mixture.
        analysis: What it was found in.
    """
    found = []
    place = {name: number for number, name in enumerate(mixture.stacks)}
    for group in analysis.groups.values():
        if not {member.parameter for member in group.members} <= set(place):
            continue
        last = max(group.members, key=lambda member: place[member.parameter])
        dims = analysis.parameters[last.parameter].dims
        experts = [dim for dim, layout in enumerate(dims) if mixture.group in layouts.groups_of(layout)]
        if len(group.members) > 1 and len(experts) == 1:
            positions, units = layouts.placements(dims[last.dim], {})[group.name]
            found.append(NeuronReads(group.name, group.size, last.parameter, experts[0], last.dim, positions, units))
    return tuple(found)


def summed_up(losses: Sequence[torch.Tensor]) -> torch.Tensor:
    """Adds up losses of neurons, without the differences that a few random projections make by chance.

    Differences from the mean are reduced by the part of their variance over neurons that the variance of a neuron's
    losses over projections explains: else the neurons that happen to look cheapest would be taken for cheap.

    Args:
        losses: Those that were found with each projection: tensors ``[neurons]``.

    Returns:
        Tensor ``[neurons]``, float64.
    """
    each = torch.stack([*losses])
    total, mean = each.sum(0), each.sum(0).mean()
    if len(each) < 2 or len(total) < 2:
        return mean.expand(len(total)).clone()
    chance, seen = len(each) * each.var(0).mean(), total.var()
    known = float((1 - chance / seen).clamp(min=0)) if seen > 0 else 0.0
    return torch.lerp(mean.expand(len(total)), total, known)
