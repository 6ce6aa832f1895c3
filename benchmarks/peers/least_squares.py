"""Refits what reads the units that are left, so that it writes what it wrote before.

``W' = argmin E |W x - W' x_K|^2 + ridge |W'|^2``: with ``H = E[x x^T]``, ``W' = W H[:, K] (H[K, K] + ridge I)^-1``.
The same as the update of Optimal Brain Surgeon, ``W - W[:, S] (H^-1[S, S])^-1 H^-1[S, :]`` for the units S that go.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .decoder import Kept, Sizes, add_bias, readers
from .evidence import Moments, Site

RIDGE = 0.01
"""Part of the mean of the diagonal that is added to it."""


def damped(second: Tensor, ridge: float = RIDGE) -> Tensor:
    """Adds a part of the mean of the diagonal to the diagonal, ``[features, features]``."""
    return second + ridge * second.diagonal().mean() * torch.eye(len(second))


def refit(weight: Tensor, second: Tensor, kept: Tensor, ridge: float = RIDGE) -> Tensor:
    """Returns the weight ``[out, features]`` with the columns that are left refitted, zero elsewhere."""
    factor = torch.linalg.cholesky(damped(second, ridge)[kept][:, kept])
    result = torch.zeros_like(weight)
    result[:, kept] = torch.cholesky_solve((weight @ second[:, kept]).T, factor).T
    return result


def refit_decoder(model: Any, sizes: Sizes, kept: Kept, moments: dict[Site, Moments], *, centred: bool = False) -> None:
    """Refits the readers of what is left, before it is cut.

    Args:
        model: The decoder, changed.
        sizes: Its sizes.
        kept: What will be left.
        moments: What was read.
        centred: Covariances are fitted, and the difference of the means goes into a bias.
    """
    for kind, number, linear in readers(model):
        mask = kept.columns(sizes, number) if kind == "groups" else kept.neurons[number]
        if mask.all() or not mask.any():
            continue
        seen, before = moments[kind, number], linear.weight.detach().clone()
        after = refit(before, seen.covariance if centred else seen.second, mask)
        linear.weight.data.copy_(after)
        if centred:
            add_bias(linear, (before - after) @ seen.mean)
