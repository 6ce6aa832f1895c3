"""The calibration pass: one stream over batches, gathering what criteria and compensators need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.errors import ArgumentError, many, nearest
from prunekit_core.graph.current import StoredWeights
from prunekit_core.groups.analysis import Analysis, analyse
from prunekit_core.modules.tree import Layer, ModelTree, named_tensors
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.record.recorder import check_recordable
from prunekit_core.torch_private.trees import pytree
from prunekit_plugins.calibration.batches import Batch, Batches
from prunekit_plugins.calibration.curvature import WIDEST, Call, Curvatures, Read
from prunekit_plugins.calibration.demand import Demand
from prunekit_plugins.calibration.experts.runs import ExpertRuns
from prunekit_plugins.calibration.moments import Distinct, Gatherer, Moments, doubts
from prunekit_plugins.calibration.observation import Chunk, Loss, Seen, Watched, scalar_loss
from prunekit_plugins.calibration.statistics import (
    CONTRIBUTIONS,
    COVARIANCES,
    CURVATURES,
    FISHER,
    GRADIENTS,
    MOMENTS,
    NEURONS,
    PARTS,
    PRODUCTS,
    REROUTING,
    ROUTING,
    SiteStatistics,
    Statistics,
)
from prunekit_plugins.checkpoints.stored_values import Cut

Progress = Callable[[int, int | None], None]
"""Called as ``progress(done, total)`` after each batch; the total is None where it isn't known."""


def calibrate(
    model: nn.Module,
    batches: Iterable[Any] | Batches,
    *,
    parts: Sequence[str] = (MOMENTS,),
    layers: Iterable[Layer] | None = None,
    loss_fn: Loss | None = None,
    progress: Progress | None = None,
    weights: str | os.PathLike[str] | None = None,
    registry: Registry | None = None,
) -> Statistics:
    """Streams batches through a model once and gathers statistics of what its layers read.

    The model runs in eval mode on a copy that shares its parameters: it isn't changed. Nothing is registered by hand:
    every operation that multiplies by a parameter, and whose rule says how it reads, is seen.

    Args:
        model: The model.
        batches: Any iterable of model inputs (tensors, tuples, mappings), or `Batches` that say how they are read.
            Positions that the ``"attention_mask"`` of a mapping leaves out don't count.
        parts: What to gather: ``"moments"`` (means and variances), ``"covariances"``, ``"curvatures"`` (how much the
            outputs of the model move with those of a layer), ``"gradients"`` (the mean gradient of every parameter),
            ``"fisher"`` (the mean squared gradient of single examples). Of mixtures, each of whose tokens is sent to
            ``k`` experts: ``"routing"`` (how many tokens each expert is sent), ``"contributions"`` (what each adds; it
            takes ``k + 1`` forward passes more), ``"products"`` (that, and inner products of what each two add),
            ``"rerouting"`` (what changes without each; ``k`` passes more),
            ``"neurons"`` (how much the outputs of the model depend on the neurons of stacks of weights).
        layers: Only what these layers read (modules, names or types; containers mean what they contain): for models
            whose covariances don't fit into memory together.
        loss_fn: Loss for gradients: ``loss_fn(outputs, batch)``.
        progress: Called after each batch with the number of batches done and their total, if it is known.
        weights: A checkpoint on disk with the weights of a model on the meta device: a safetensors file or a folder.
            Every batch reads it once; a tensor is in memory, on torch's default device, while an operation uses it.
        registry: Where op rules are found; None for the default registry.

    Returns:
        The statistics, on the devices of the layers.

    Raises:
        ArgumentError: An argument is wrong, there are no batches, a batch doesn't fit the model, no value that a
            layer read was finite, or there are no gradients for curvatures.
        CheckpointError: The checkpoint can't be read, is for another model, or lacks values that the model runs with.
    """
    for part in parts:
        if part not in PARTS:
            raise ArgumentError(f"There are no statistics called {part!r}.", hint=nearest(str(part), PARTS))
    if (GRADIENTS in parts or FISHER in parts) and loss_fn is None:
        raise ArgumentError("Gradients need a loss.", hint="loss_fn=lambda outputs, batch: ..., a mean over the batch")
    target = check_recordable(model)
    values = None if weights is None else (registry or default_registry()).weights(weights, target)
    return gather(
        target,
        batches,
        Demand(parts),
        layers=layers,
        loss_fn=loss_fn,
        progress=progress,
        values=values,
        registry=registry,
    )


def gather(
    target: nn.Module,
    batches: Iterable[Any] | Batches,
    demand: Demand,
    *,
    layers: Iterable[Layer] | None = None,
    loss_fn: Loss | None = None,
    progress: Progress | None = None,
    values: StoredWeights | None = None,
    registry: Registry | None = None,
    analysis: Analysis | None = None,
) -> Statistics:
    """Does what `calibrate` does, with the values of a model on the meta device from an open checkpoint.

    Args:
        target, batches, layers, loss_fn, progress, registry: As there.
        demand: What is gathered. Where a wish can't be met, a note says why.
        values: The values.
        analysis: What is known about the model's program, to find its experts in; None to find it out.
    """
    parts = demand.parts
    if values is not None and (loss_fn is not None or CURVATURES in parts or NEURONS in parts):
        raise ArgumentError("Gradients need a model in memory.", why="this one has its weights on disk")
    paths = None if layers is None else ModelTree(target).paths_of(layers)
    batches = Batches.of(batches)
    watched = Watched(target, registry or default_registry(), None if values is None else Cut(values, Plan()))
    slopes = _Slopes(watched, loss_fn, parts) if loss_fn is not None else None
    examples, total = 0, batches.count()
    masks: dict[str, int] = {}
    curvatures = Curvatures(watched, demand.widest) if demand.has(CURVATURES) and values is None else None
    gathering = _Gathering(paths, covariance=COVARIANCES in parts, energy=curvatures is not None)
    experts: ExpertRuns | None = None
    for number, batch in enumerate(batches.read(watched.device), 1):
        if demand.has(MOMENTS, COVARIANCES, CURVATURES):
            watched.run(batch, gathering.look)
            gathering.settle()
            if batch.note():
                masks[batch.note()] = masks.get(batch.note(), 0) + 1
        if curvatures is not None:
            curvatures.add(batch, gathering.found)
        if slopes is not None:
            slopes.add(batch)
        if demand.has(ROUTING, CONTRIBUTIONS, PRODUCTS, REROUTING) or (demand.has(NEURONS) and values is None):
            analysis = analysis or _analysed(target, batch, registry)
            experts = experts or _experts(watched, analysis, demand, gradients=values is None)
            experts.add(batch)
        examples += batch.size
        if progress is not None:
            progress(number, total)
    if curvatures is not None:
        curvatures.check(gathering.found)
        if curvatures.trouble and CURVATURES in parts:
            raise ArgumentError("Curvatures need gradients.", why=curvatures.trouble)
    sites, notes = gathering.finish(curvatures)
    if CURVATURES in demand.wishes and (curvatures is None or curvatures.trouble):
        why = "they need a model in memory" if curvatures is None else curvatures.trouble
        notes = (*notes, f"the outputs of all layers count alike, for want of gradients: {why}")
    elif curvatures is not None and curvatures.dropped:
        notes = (
            *notes,
            f"curvatures: {many(curvatures.dropped, 'batch', 'batches')} left out, whose gradients were not finite",
        )
    shapes = {name: tuple(t.shape) for name, t in named_tensors(target).items() if isinstance(t, nn.Parameter)}
    gradients, fisher = ({}, {}) if slopes is None else slopes.finish(examples)
    found = Statistics(sites, gradients, fisher, shapes, examples)
    notes = (*(f"{text} ({many(count, 'batch', 'batches')})" for text, count in masks.items()), *notes)
    earlier = (*demand.notes, *(demand.curvature_notes if CURVATURES in found else ()))
    known, said = ({}, ()) if experts is None else experts.finish()
    return attrs.evolve(found, notes=(*earlier, *notes, *said), experts=known)


def _analysed(target: nn.Module, batch: Batch, registry: Registry | None) -> Analysis:
    """Records the program of a model on a batch, to find its experts in."""
    return analyse(target, [batch.example], registry or default_registry(), modes=(False,))


def _experts(watched: Watched, analysis: Analysis, demand: Demand, *, gradients: bool) -> ExpertRuns:
    return ExpertRuns(
        watched,
        analysis,
        contributions=demand.has(CONTRIBUTIONS),
        products=demand.has(PRODUCTS),
        rerouting=demand.has(REROUTING),
        neurons=demand.has(NEURONS, REROUTING),
        gradients=gradients,
        ranked=demand.has(ROUTING, CONTRIBUTIONS, PRODUCTS, REROUTING),
    )


def bytes_needed(
    target: nn.Module, batches: Batches, values: StoredWeights | None, registry: Registry | None
) -> dict[str, int]:
    """Runs one batch; returns how many bytes the covariances of what all layers read take, and their curvatures."""
    watched = Watched(target, registry or default_registry(), None if values is None else Cut(values, Plan()))
    sizes: dict[str, tuple[int, int]] = {}

    def look(seen: Seen) -> None:
        groups, outputs, features = seen.site.matrix(torch.empty(seen.site.shape, device="meta")).shape
        sizes[seen.site.name] = (groups * features**2 * 8, groups * outputs**2 * 4 if outputs <= WIDEST else 0)

    watched.run(next(iter(batches.read(watched.device))), look)
    return {COVARIANCES: sum(size for size, _ in sizes.values()), CURVATURES: sum(size for _, size in sizes.values())}


@attrs.frozen(eq=False)
class _Last:
    """What was read last.

    Attributes:
        features: Tensor ``[groups, samples, features]``: a copy, since a program may write into what it read.
        examples: See `Chunk`.
        names: The consumers that read it, one after the other.
    """

    features: torch.Tensor
    examples: torch.Tensor
    names: list[str] = attrs.field(factory=list)

    def holds(self, chunk: Chunk) -> bool:
        """Tells whether samples are those that were read last; a model may be spread over devices."""
        alike = (chunk.features.device, chunk.features.dtype) == (self.features.device, self.features.dtype)
        return alike and torch.equal(self.examples, chunk.examples) and torch.equal(self.features, chunk.features)


class _Gathering:
    def __init__(self, paths: set[str] | None, *, covariance: bool, energy: bool) -> None:
        self._paths, self._covariance, self._energy = paths, covariance, energy
        self.found: dict[str, Read] = {}
        self._last: _Last | None = None

    def look(self, seen: Seen) -> None:
        name = seen.site.name
        if self._paths is not None and seen.site.parameter.rpartition(".")[0] not in self._paths:
            return
        if name not in self.found:
            self.found[name] = Read(seen.site, seen.bias, Gatherer(covariance=self._covariance))
        if self._energy:
            self.found[name].calls.append(Call(seen.module, seen.samples))
        for chunk in seen.chunks(seen.output if self._energy else None):
            if self._last is None or name in self._last.names or not self._last.holds(chunk):
                self.settle()
                self._last = _Last(chunk.features.clone(), chunk.examples)
            self._last.names.append(name)
            if chunk.targets is not None:
                self.found[name].weigh(chunk.targets)

    def settle(self) -> None:
        """Adds what was read last: once for all consumers that read it and have read nothing else before."""
        last, self._last = self._last, None
        if last is None or not last.features.shape[1]:
            return
        sharing: dict[int | None, list[Read]] = {}
        for read in (self.found[name] for name in last.names):
            new = not read.gatherer.count and not read.gatherer.dropped
            sharing.setdefault(None if new else id(read.gatherer), []).append(read)
        for reads in sharing.values():
            gatherer = reads[0].gatherer
            if gatherer.users > len(reads):  # the others read something else this time
                gatherer.users -= len(reads)
                gatherer = gatherer.copy()
            gatherer.users = len(reads)
            for read in reads:
                read.gatherer = gatherer
            gatherer.add(last.features, examples=last.examples)

    def finish(self, curvatures: Curvatures | None) -> tuple[dict[str, SiteStatistics], tuple[str, ...]]:
        sites, notes, distinct = {}, [], Distinct()
        known: dict[int, tuple[Moments | None, float]] = {}
        for name, read in self.found.items():
            gatherer = read.gatherer
            if id(gatherer) not in known:
                moments = gatherer.moments()
                independent = 0.0 if moments is None else moments.independent
                kept = None if moments is None else distinct.of(moments.kept(gatherer.kept_in))
                known[id(gatherer)] = (kept, independent)
            moments, independent = known[id(gatherer)]
            if moments is None:
                notes.append(f"{name}: no sample that it read was finite; it has no statistics")
                continue
            width = moments.mean.shape[1] if self._covariance else None
            notes.extend(doubts(name, [gatherer], width, independent))
            curvature = energy = None
            if curvatures is not None and not curvatures.trouble and read.energy is not None:
                curvature, energy = curvatures.finish(read, moments), read.energy / max(1, read.samples)
            sites[name] = SiteStatistics(read.site, moments, curvature, energy)
        if self.found and not sites:
            raise ArgumentError(
                "No value that a layer read was finite.",
                where=", ".join(list(self.found)[:3]),
                hint="run the model on a batch and look at its outputs; half precision may overflow",
            )
        return sites, tuple(notes)


class _Slopes:
    """Gradients of a loss, on the copy; the model's ``.grad`` stays as it is."""

    def __init__(self, watched: Watched, loss: Loss, parts: Sequence[str]) -> None:
        self._watched, self._loss = watched, loss
        self._single, self._mean = FISHER in parts, GRADIENTS in parts
        self._gradients: dict[str, torch.Tensor] = {}
        self._fisher: dict[str, torch.Tensor] = {}

    def add(self, batch: Batch) -> None:
        named = self._watched.parameters()
        with self._watched.differentiable(named.values()):
            if self._mean:
                for name, gradient in self._backward(batch, batch, named).items():
                    _add(self._gradients, name, gradient * batch.size)
            for part in _examples(batch) if self._single else ():
                for name, gradient in self._backward(batch, part, named).items():
                    _add(self._fisher, name, gradient.square())

    def _backward(self, whole: Batch, part: Batch, named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.enable_grad():
            example = part.example
            outputs = example.runner(self._watched.shadow.module, example.args, example.kwargs)
            loss = scalar_loss(self._loss(outputs, part.given), whole.where)
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return {n: g.detach().float() for n, g in zip(named, found, strict=True) if g is not None}

    def finish(self, examples: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        for table in (self._gradients, self._fisher):
            for values in table.values():
                values /= examples
        return self._gradients, self._fisher


def _add(table: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> None:
    table[name] = table[name] + values if name in table else values


def _examples(batch: Batch) -> Iterable[Batch]:
    """Takes a batch apart into examples: every tensor of its length is cut."""
    for number in range(batch.size):

        def one(tensor: torch.Tensor, number: int = number) -> torch.Tensor:
            return tensor[number : number + 1] if tensor.dim() and len(tensor) == batch.size else tensor

        yield batch.cut(lambda value: pytree.tree_map_only(torch.Tensor, one, value))
