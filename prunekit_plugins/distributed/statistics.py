"""What looks at data sees a part of it on every process: sums are added up, means and covariances joined."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import nn

from prunekit.plugin import ArgumentError, ExpertStatistics, Statistics, is_sharded
from prunekit_plugins.distributed.agreement import device_of, require_group, same_everywhere


def reduce_statistics(criterion: Any, model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Adds up what a criterion gathered on all processes, so that it scores as if it had seen all data.

    Call it once, on every process, after the last batch and before the first score.

    Args:
        criterion: One with a method ``reduce(model, total)``, where ``total(tensor)`` returns the sum of a tensor over
            all processes: of the built-in ones those that gather squared gradients, activations or curvature. Taylor
            scores need none, as DDP and FSDP average the gradients that they read.
        model: This process's replica (the module inside of DDP).
        group: The processes; None for all.

    Raises:
        ArgumentError: The criterion gathers nothing that could be added up, or there is no process group.
    """
    require_group()
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise ArgumentError(
            "The gradients of a sharded model are averaged already.",
            where=type(model).__name__,
            hint="under fully_shard, run the same samples on all processes; there is nothing to add up then",
        )
    reduce = getattr(criterion, "reduce", None)
    if reduce is None:
        raise ArgumentError(
            "The criterion gathers no statistics that could be added up.",
            where=type(criterion).__name__,
            hint="criteria that read weights or averaged gradients need none; others need a reduce(model, total)",
        )
    reduce(model, _total_over(group))


def reduce_calibration(statistics: Statistics, group: dist.ProcessGroup | None = None) -> Statistics:
    """Joins what `prunekit.calibrate` gathered on all processes, each from batches of its own.

    With ``n_r`` samples, mean ``m_r`` and covariance ``C_r`` on process ``r``: ``N = sum n_r``,
    ``m = sum n_r m_r / N``, ``C = sum n_r (C_r + (m_r - m)(m_r - m)^T) / N`` (Chan et al., 1979), in float64.
    Gradients, squared gradients and curvatures are averaged by examples. What is known of experts are sums over tokens,
    which are added up.

    Args:
        statistics: What this process gathered.
        group: The processes; None for all.

    Returns:
        The statistics of all data, the same on every process.

    Raises:
        ArgumentError: The processes gathered statistics of different layers, or there is no process group.
    """
    require_group()
    about = [sorted(part) for part in (statistics.sites, statistics.gradients, statistics.fisher)]
    parts = [(seen.moments.has_covariance, seen.has_curvature) for seen in statistics.sites.values()]
    mixtures = {
        name: [sorted(seen.tensors()), seen.effect is None, seen.top_k] for name, seen in statistics.experts.items()
    }
    if not same_everywhere(json.dumps([about, parts, mixtures, statistics.shapes], sort_keys=True), group):
        raise ArgumentError(
            "The processes gathered statistics of different layers.",
            hint="run calibrate with the same arguments on every process, on at least one batch each",
        )
    total = _total_over(group)
    examples = int(total(torch.tensor(statistics.examples, device="cpu")))
    sites = {}
    for name, found in statistics.sites.items():
        own = found.moments
        count = int(total(torch.tensor(own.count, device="cpu")))
        mean = total(own.mean * own.count) / count
        off = own.mean - mean
        variance = total((own.variance + off.square()) * own.count) / count
        covariance = own.covariance
        if covariance is not None:
            covariance = total((covariance + off[:, :, None] * off[:, None, :]) * own.count) / count
        doubt = own.uncertainty
        if doubt is not None:  # of other examples on each process: squared errors of a mean of means
            share = (own.count / count) ** 2
            errors = [doubt.whole * share, doubt.diagonal * share, float(doubt.examples)]
            sums = total(torch.tensor(errors, dtype=torch.float64, device="cpu"))
            doubt = attrs.evolve(doubt, whole=float(sums[0]), diagonal=float(sums[1]), examples=int(sums[2]))
        moments = attrs.evolve(own, count=count, mean=mean, variance=variance, covariance=covariance, uncertainty=doubt)
        curvature, energy = found.curvature, found.energy
        if curvature is not None:
            assert energy is not None
            curvature = total(curvature * statistics.examples) / examples
            energy = total(energy * own.count) / count
        sites[name] = attrs.evolve(found, moments=moments, curvature=curvature, energy=energy)

    def averaged(table: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: total(values * statistics.examples) / examples for name, values in table.items()}

    experts = {name: _added(statistics.experts[name], total) for name in sorted(statistics.experts)}
    unreached = {note for name, seen in statistics.experts.items() for note in seen.notes(name)}
    known = [note for note in statistics.notes if note not in unreached]  # others may have reached these experts
    reached = [note for name, seen in experts.items() for note in seen.notes(name)]
    notes = (*known, *reached, f"statistics of {dist.get_world_size(group)} processes, joined")
    return attrs.evolve(
        statistics,
        sites=sites,
        gradients=averaged(statistics.gradients),
        fisher=averaged(statistics.fisher),
        examples=examples,
        notes=notes,
        experts=experts,
    )


def _added(experts: ExpertStatistics, total: Callable[[torch.Tensor], torch.Tensor]) -> ExpertStatistics:
    """Adds up what all processes know of the experts of a mixture."""
    counts = total(torch.tensor([experts.tokens, experts.examples], device="cpu"))
    numbers = total(torch.tensor([experts.energy, experts.effect or 0.0], dtype=torch.float64, device="cpu"))
    rest = {
        **experts.rest(),
        "tokens": int(counts[0]),
        "examples": int(counts[1]),
        "energy": float(numbers[0]),
        "effect": None if experts.effect is None else float(numbers[1]),
    }
    return ExpertStatistics.of({name: total(values) for name, values in experts.tensors().items()}, rest)


def _total_over(group: dist.ProcessGroup | None) -> Callable[[torch.Tensor], torch.Tensor]:
    device = device_of(group)

    def total(values: torch.Tensor) -> torch.Tensor:
        sent = values.detach().to(device, copy=True)
        dist.all_reduce(sent, group=group)
        return sent.to(values.device)

    return total
