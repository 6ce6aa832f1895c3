"""Which units stay within a budget: one ranking over all layers, or the same part of each layer."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from .decoder import Cost, Kept, Sizes


@attrs.frozen
class Budget:
    """What may be left.

    Attributes:
        cost: MACs per token, or parameters.
        whole: That of the uncut model.
        part: What may be left of it.
        added: What the method adds: biases.
    """

    cost: Cost
    whole: int
    part: float
    added: int = 0

    def surplus(self) -> float:
        """What has to go."""
        return self.whole * (1 - self.part) + self.added

    def with_biases(self, sizes: Sizes) -> Budget:
        """The budget of a method that gives every projection into the stream a bias."""
        return attrs.evolve(self, added=2 * sizes.layers * sizes.width if self.cost == "params" else 0)


def one_ranking(sizes: Sizes, neurons: Tensor, groups: Tensor, budget: Budget) -> Kept:
    """Takes out the units with the lowest scores, wherever they are, until the budget holds.

    Args:
        sizes: Of the decoder.
        neurons: Scores ``[layers, hidden]``; infinite: stays.
        groups: Scores ``[layers, groups]``; infinite: stays.
        budget: What may be left.
    """
    scores = torch.cat([neurons.flatten(), groups.flatten()]).double()
    saved = torch.full_like(scores, sizes.neuron_cost())
    saved[neurons.numel() :] = sizes.group_cost(budget.cost)
    order = scores.argsort(stable=True)
    count = int((saved[order].cumsum(0) < budget.surplus()).sum()) + 1
    if count > len(order) or scores[order[count - 1]].isinf():
        raise ValueError("the units that may go cost less than what has to go")
    left = torch.ones_like(scores, dtype=torch.bool)
    left[order[:count]] = False
    return Kept(left[: neurons.numel()].view_as(neurons), left[neurons.numel() :].view_as(groups))


def same_part(sizes: Sizes, neurons: Tensor, groups: Tensor, budget: Budget, layers: range) -> Kept:
    """Leaves the same part of the neurons and of the groups in each of some layers, those with the best scores.

    Groups are few: of their numbers the one counts whose part is nearest to that of the neurons.

    Raises:
        ValueError: These layers cost less than what has to go.
    """
    kept = Kept.everything(sizes)
    need, pairs = budget.surplus() / len(layers), []
    for heads in range(sizes.groups + 1):
        rest = need - (sizes.groups - heads) * sizes.group_cost(budget.cost)
        count = sizes.hidden - max(0, math.ceil(rest / sizes.neuron_cost()))
        if count >= 0:
            pairs.append((abs(count / sizes.hidden - heads / sizes.groups), heads, count))
    if not pairs:
        raise ValueError("these layers cost less than what has to go")
    _, heads, count = min(pairs)
    for scores, mask, most in ((neurons, kept.neurons, count), (groups, kept.groups, heads)):
        for layer in layers:
            mask[layer] = False
            mask[layer, scores[layer].argsort(descending=True, stable=True)[:most]] = True
    return kept


def layers_to_go(sizes: Sizes, budget: Budget) -> int:
    """How many whole layers have to go."""
    return -int(-budget.surplus() // sizes.layer_cost(budget.cost))
