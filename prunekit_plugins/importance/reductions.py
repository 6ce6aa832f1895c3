"""Joining the members' scores, and normalising the result."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch

from prunekit.plugin import ArgumentError, nearest

Normalizer = Callable[[torch.Tensor], torch.Tensor]
REDUCTIONS = ("mean", "sum", "max", "prod", "first", "gate")
_EPSILON = 1e-8


def check_reduction(name: str | None) -> str | None:
    """Returns the name of a known reduction.

    Raises:
        ArgumentError: It is unknown; the message gives the accepted names.
    """
    if name is not None and name not in REDUCTIONS:
        raise ArgumentError(f"Unknown group reduction {name!r}.", hint=nearest(str(name), REDUCTIONS) + ", None")
    return name


def reduce_members(
    scores: Sequence[torch.Tensor], covered: Sequence[torch.Tensor] | None, reduction: str | None
) -> torch.Tensor:
    """Joins the scores of a group's members.

    Args:
        scores: Per member, tensor ``[units]``; zero where the member doesn't hold a unit.
        covered: Per member, bool tensor ``[units]``: which units it holds; None when all hold all.
        reduction: One of `REDUCTIONS`, or None for the stack.

    Returns:
        Tensor ``[units]``, or ``[members, units]`` for None. ``mean`` divides by the number of members that hold the
        unit; ``prod`` and ``max`` are over those members.
    """
    if reduction is None:
        return torch.stack(list(scores))
    if reduction in ("mean", "sum"):
        total = functools.reduce(torch.add, scores)
        if reduction == "sum":
            return total
        if covered is None:
            return total / len(scores)
        return total / torch.stack(list(covered)).sum(0).clamp(min=1).to(total.device)
    if reduction == "max":
        highest = _without(scores, covered, -math.inf).amax(0)
        return highest if covered is None else highest.masked_fill(highest == -math.inf, 0)
    if reduction == "prod":
        return _without(scores, covered, 1).prod(0)
    return scores[0] if reduction == "first" else scores[-1]


def _without(scores: Sequence[torch.Tensor], covered: Sequence[torch.Tensor] | None, neutral: float) -> torch.Tensor:
    stack = torch.stack(list(scores))
    if covered is None:
        return stack
    return stack.masked_fill(~torch.stack(list(covered)).to(stack.device), neutral)


def _by_mean(scores: torch.Tensor) -> torch.Tensor:
    return _divide(scores, float(scores.mean()))


def _by_sum(scores: torch.Tensor) -> torch.Tensor:
    return _divide(scores, float(scores.sum()))


def _by_max(scores: torch.Tensor) -> torch.Tensor:
    return _divide(scores, float(scores.max()))


def _divide(scores: torch.Tensor, by: float) -> torch.Tensor:
    return scores / by if by else scores


def _standardize(scores: torch.Tensor) -> torch.Tensor:
    low = scores.min()
    return (scores - low) / (scores.max() - low + _EPSILON)


def _gaussian(scores: torch.Tensor) -> torch.Tensor:
    deviation = scores.std() if scores.numel() > 1 else scores.new_zeros(())
    return (scores - scores.mean()) / (deviation + _EPSILON)


def _lamp(scores: torch.Tensor) -> torch.Tensor:
    """Lee et al. 2021, eq. 3: ``s_i / sum_{j >= i} s_j`` over the scores in ascending order."""
    ordered, order = torch.sort(scores, stable=True)
    tails = ordered.flip(0).cumsum(0).flip(0)
    values = torch.where(tails != 0, ordered / torch.where(tails != 0, tails, 1), torch.zeros_like(ordered))
    return torch.empty_like(values).index_copy_(0, order, values)


def _sentinel(quantile: float) -> Normalizer:
    def normalize(scores: torch.Tensor) -> torch.Tensor:
        position = min(scores.numel() - 1, int(scores.numel() * quantile))
        return scores / (torch.sort(scores).values[position] + _EPSILON)

    return normalize


NORMALIZERS: dict[str, Normalizer] = {
    "mean": _by_mean,
    "sum": _by_sum,
    "max": _by_max,
    "standarization": _standardize,
    "standardization": _standardize,
    "gaussian": _gaussian,
    "lamp": _lamp,
}


def find_normalizer(normalizer: str | Normalizer | None) -> Normalizer:
    """Returns the function for a normalizer: a name, ``"sentinel_0.5"`` with any quantile, a callable, or None.

    Raises:
        ArgumentError: The name is unknown; the message gives the accepted ones.
    """
    if normalizer is None:
        return lambda scores: scores
    if callable(normalizer):
        return normalizer
    if normalizer.startswith("sentinel"):
        text = normalizer.removeprefix("sentinel").lstrip("_")
        try:
            quantile = float(text)
        except ValueError:
            quantile = math.nan
        if 0 <= quantile <= 1:
            return _sentinel(quantile)
    if normalizer not in NORMALIZERS:
        known = [*NORMALIZERS, "sentinel_0.5"]
        raise ArgumentError(
            f"Unknown normalizer {normalizer!r}.", hint=nearest(normalizer, known) + ", None, a callable"
        )
    return NORMALIZERS[normalizer]
