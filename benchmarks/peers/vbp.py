"""Variance-Based Pruning (Berisha, Mehnert and Condurache, ICCV 2025), with least squares as well.

Neurons of MLPs go whose activations vary least, in one ranking: ``S_j = Var(x_j)``. Their means go into the bias of
what reads them (``mean shift``); here its weights are refitted, too. Attention stays.
"""

from __future__ import annotations

from typing import Any

import torch

from .budget import Budget, one_ranking
from .decoder import cut
from .evidence import Evidence
from .least_squares import refit_decoder


def prune(model: Any, evidence: Evidence, budget: Budget) -> None:
    """Cuts a copy of the model that the evidence is of."""
    sizes = evidence.sizes
    neurons = torch.stack([evidence.moments["neurons", number].covariance.diagonal() for number in range(sizes.layers)])
    kept = one_ranking(sizes, neurons, torch.full((sizes.layers, sizes.groups), torch.inf), budget.with_biases(sizes))
    refit_decoder(model, sizes, kept, evidence.moments, centred=True)
    cut(model, sizes, kept)
