"""FLAP (An, Zhao, Yu, Tang and Wang, "Fluctuation-based Adaptive Structured Pruning", AAAI 2024).

The score of an input feature j of a projection is how much it fluctuates, times its weights (WIFV):
``S_j = Var(x_j) * |W[:, j]|^2``. Scores of a head are means over its features. Scores are standardised in each layer
and module, ``(S - mean) / deviation``, then in one ranking. What goes leaves its mean behind, in a bias:
``b = W[:, S] mean(x_S)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .budget import Budget, one_ranking
from .decoder import add_bias, cut, readers
from .evidence import Evidence
from .least_squares import refit_decoder


def fluctuation(weight: Tensor, covariance: Tensor) -> Tensor:
    """Scores of features, ``[features]``."""
    return covariance.diagonal() * weight.square().sum(0)


def standardised(scores: Tensor) -> Tensor:
    """Scores less their mean, by their deviation."""
    return (scores - scores.mean()) / scores.std().clamp_min(1e-12)


def scores(evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Standardised scores of neurons ``[layers, hidden]`` and groups ``[layers, groups]``."""
    sizes = evidence.sizes
    neurons, groups = torch.zeros(sizes.layers, sizes.hidden), torch.zeros(sizes.layers, sizes.groups)
    for kind, number, linear in readers(evidence.model):
        found = fluctuation(linear.weight.detach(), evidence.moments[kind, number].covariance)
        if kind == "neurons":
            neurons[number] = standardised(found)
        else:
            groups[number] = standardised(found.view(sizes.groups, sizes.group).mean(1))
    return neurons, groups


def prune(model: Any, evidence: Evidence, budget: Budget, *, refitted: bool = False) -> None:
    """Cuts a copy of the model that the evidence is of, with means in biases, or refitted by least squares."""
    sizes = evidence.sizes
    kept = one_ranking(sizes, *scores(evidence), budget.with_biases(sizes))
    if refitted:
        refit_decoder(model, sizes, kept, evidence.moments, centred=True)
    else:
        for kind, number, linear in readers(model):
            mask = kept.columns(sizes, number) if kind == "groups" else kept.neurons[number]
            add_bias(linear, linear.weight.detach()[:, ~mask] @ evidence.moments[kind, number].mean[~mask])
    cut(model, sizes, kept)
