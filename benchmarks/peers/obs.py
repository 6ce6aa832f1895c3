"""Optimal Brain Surgeon over neurons and groups of query heads, in one ranking (Hassibi and Stork, NIPS 1992).

With ``H = E[x x^T]`` of what a projection W reads, taking the columns S out costs
``tr(W[:, S] (H^-1[S, S])^-1 W[:, S]^T)`` if all others are refitted. Units leave in rounds, as in Frantar and Alistarh
(OBC, NeurIPS 2022): what one costs is known once those before it are gone. Costs of all layers are in one ranking, per
MAC or parameter: as they are, or relative to the mean squared norm of the stream after the layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .budget import Budget, one_ranking
from .decoder import cut, readers
from .evidence import Evidence
from .least_squares import damped, refit_decoder

ROUNDS = 8


def neuron_damages(weight: Tensor, second: Tensor, rounds: int = ROUNDS) -> Tensor:
    """What each neuron costs at its turn, ``[features]``; later rounds cost at least what earlier ones did."""
    damages, left, highest = torch.zeros(weight.shape[1]), torch.arange(weight.shape[1]), 0.0
    hessian = damped(second)
    wanted = weight @ hessian
    step = -(-len(left) // rounds)
    while len(left):
        factor = torch.linalg.cholesky(hessian[left][:, left])
        inverse = torch.cholesky_inverse(factor)
        fitted = wanted[:, left] @ inverse
        scores = (fitted.square().sum(0) / inverse.diagonal()).clamp_min(highest)
        order = scores.argsort(stable=True)
        going, staying = order[:step], order[step:]
        damages[left[going]] = scores[going]
        highest = float(scores[going].max())
        left = left[staying].sort().values
    return damages


def group_damages(weight: Tensor, second: Tensor, size: int) -> Tensor:
    """What each group of ``size`` columns costs at its turn, ``[groups]``."""
    hessian = damped(second)
    wanted = weight @ hessian
    left = list(range(weight.shape[1] // size))
    damages, highest = torch.zeros(len(left)), 0.0
    while left:
        columns = torch.cat([torch.arange(group * size, (group + 1) * size) for group in left])
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[columns][:, columns]))
        fitted = wanted[:, columns] @ inverse
        parts = [slice(at * size, (at + 1) * size) for at in range(len(left))]
        scores = [
            float((fitted[:, part] @ torch.linalg.inv(inverse[part, part]) * fitted[:, part]).sum()) for part in parts
        ]
        first = min(range(len(left)), key=scores.__getitem__)
        highest = max(highest, scores[first])
        damages[left.pop(first)] = highest
    return damages


def damages(evidence: Evidence, *, relative: bool) -> tuple[Tensor, Tensor]:
    """Damages of neurons ``[layers, hidden]`` and groups ``[layers, groups]``."""
    sizes = evidence.sizes
    power = evidence.influence.power if relative else torch.ones(sizes.layers)
    neurons = torch.zeros(sizes.layers, sizes.hidden)
    groups = torch.zeros(sizes.layers, sizes.groups)
    for kind, number, linear in readers(evidence.model):
        weight, second = linear.weight.detach(), evidence.moments[kind, number].second
        if kind == "neurons":
            neurons[number] = neuron_damages(weight, second) / power[number]
        else:
            groups[number] = group_damages(weight, second, sizes.group) / power[number]
    return neurons, groups


def prune(model: Any, evidence: Evidence, budget: Budget, *, relative: bool = False) -> None:
    """Cuts a copy of the model that the evidence is of."""
    sizes = evidence.sizes
    neurons, groups = damages(evidence, relative=relative)
    kept = one_ranking(sizes, neurons / sizes.neuron_cost(), groups / sizes.group_cost(budget.cost), budget)
    refit_decoder(model, sizes, kept, evidence.moments)
    cut(model, sizes, kept)
