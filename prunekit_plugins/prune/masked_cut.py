"""A cut that is only tried: what reads removed units makes up for them as well as it can, and reads them no more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from prunekit_core.graph.graph import Graph
from prunekit_core.graph.group import MemberView
from prunekit_core.modules.sharding import whole_tensor
from prunekit_core.modules.surgery import replace_values
from prunekit_core.modules.tree import named_tensors
from prunekit_core.program.op_call import Role
from prunekit_plugins.calibration.moments import Moments
from prunekit_plugins.calibration.statistics import SiteStatistics, Statistics
from prunekit_plugins.compensation.run import copy_of_model
from prunekit_plugins.importance.members import name_of

RIDGE = 1e-2
"""What is added to the squares of features, as a multiple of their mean."""


def masked_copy(graph: Graph, statistics: Statistics, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """Returns a copy of a model that computes about what a cut and compensated one would, in the original's shapes.

    Consumers of removed units get the weights that follow from what they read in the original, as the scores of
    `ReconstructionImportance` suppose: with ``H`` the second moments of the features (their covariance shrunk by
    `Moments.caution`) and ``R`` those of removed units, ``W_K' = W_K + W_R H_RK H_KK^-1`` and ``W_R' = 0``. Where no
    consumer of a group was seen, and where one shares its weight with what puts the units out (a tied embedding), what
    puts them out is zero. The copy shares all other weights with the model.

    Args:
        graph: The analysed model, in memory.
        statistics: What was gathered of it, with covariances.
        kept: Group to the units that stay, as numbered at analysis; other groups stay whole.
    """
    copied = copy_of_model(graph.model)
    tensors = named_tensors(copied)
    changed: dict[str, torch.Tensor] = {}
    silent: list[tuple[MemberView, torch.Tensor]] = []
    readers: dict[tuple[str, int], tuple[MemberView, torch.Tensor]] = {}
    for group, stays in kept.items():
        views = [(view, _gone(view, graph.remaining(group), stays)) for view in graph.views(group)]
        reading = [(view, gone) for view, gone in views if view.role is Role.IN and _reads(statistics, view)]
        for view, gone in reading:
            place = (name_of(view), view.dim)
            readers[place] = (view, readers[place][1] | gone if place in readers else gone)
        silent += [one for one in views if one[0].role is Role.OUT and (not reading or _reads(statistics, one[0]))]
    for view, gone in readers.values():
        values = changed.get(name_of(view), whole_tensor(view.tensor))
        for seen in _reads(statistics, view):
            values = _refitted(values, seen, gone[seen.site.positions(view.dim)])
        changed[name_of(view)] = values
    for view, gone in silent:
        values = changed.get(name_of(view), whole_tensor(view.tensor))
        changed[name_of(view)] = values.index_fill(view.dim, gone.nonzero().flatten().to(values.device), 0)
    for name, values in changed.items():
        replace_values(tensors[name], values)
    return copied


def _gone(view: MemberView, present: Sequence[int], stays: Sequence[int]) -> torch.Tensor:
    """Which positions along a view's dim hold units that don't stay: bool tensor ``[positions]``."""
    staying = set(stays)
    removed = torch.tensor([unit not in staying for unit in present], dtype=torch.bool, device="cpu")
    found = torch.zeros(view.tensor.shape[view.dim], dtype=torch.bool, device="cpu")
    found[view.positions] = removed[view.units]
    return found


def _reads(statistics: Statistics, view: MemberView) -> list[SiteStatistics]:
    """What was seen of the consumers that read the units along a view's dim."""
    return [seen for seen in statistics.of(name_of(view)) if view.dim == (0 if seen.site.inputs_first else 1)]


def _refitted(values: torch.Tensor, seen: SiteStatistics, gone: torch.Tensor) -> torch.Tensor:
    """Returns a parameter in which a consumer does without some features.

    Args:
        values: The parameter.
        seen: The consumer, with covariances.
        gone: Bool tensor ``[groups, features]``, on the CPU.
    """
    matrix = seen.site.matrix(values).to(torch.float64, copy=True)
    for weight, second, lost in zip(matrix, _second(seen.moments), gone.to(matrix.device), strict=True):
        stay, go = (~lost).nonzero().flatten(), lost.nonzero().flatten()
        if len(go) and len(stay):
            factor = torch.linalg.cholesky(second[stay[:, None], stay])
            taken_over = torch.cholesky_solve(second[stay[:, None], go], factor)
            weight[:, stay] += weight[:, go] @ taken_over.T
        weight[:, go] = 0
    return seen.site.placed(matrix, values)


def _second(moments: Moments) -> Iterator[torch.Tensor]:
    """The second moments of the features of each group, with a ridge: tensors ``[features, features]``, float64."""
    for covariance, mean in zip(moments.shrunk(moments.caution), moments.mean, strict=True):
        second = torch.addr(covariance, mean, mean)
        second.diagonal().add_(RIDGE * second.diagonal().mean().clamp(min=torch.finfo(second.dtype).tiny))
        yield second
