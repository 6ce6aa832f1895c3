"""Gathering what calibration data say about experts: how often they are chosen, what they add, what is lost without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch

from prunekit_core.errors import ArgumentError, many
from prunekit_core.groups.analysis import Analysis
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.branch_sums import recorded_position
from prunekit_plugins.calibration.experts.mixtures import Mixture
from prunekit_plugins.calibration.experts.neurons import NeuronReads, neuron_reads, summed_up
from prunekit_plugins.calibration.experts.search import find_mixtures
from prunekit_plugins.calibration.experts.statistics import ExpertStatistics
from prunekit_plugins.calibration.experts.turns import MixtureListener, SeenMixture, Turn
from prunekit_plugins.calibration.observation import Watched
from prunekit_plugins.calibration.projections import Projections, usual_count

WIDEST = 4096
"""Features up to which the curvature of what a mixture puts out is a whole matrix."""


@attrs.define(eq=False)
class _Sums:
    """What was gathered of one mixture."""

    mixture: Mixture
    reads: tuple[NeuronReads, ...] = ()
    tokens: int = 0
    dropped: int = 0
    top_k: int = 0
    energy: float = 0.0
    effect: float = 0.0
    routed: torch.Tensor = attrs.field(init=False)
    weighted: torch.Tensor = attrs.field(init=False)
    error: torch.Tensor = attrs.field(init=False)
    damage: torch.Tensor = attrs.field(init=False)
    products: torch.Tensor = attrs.field(init=False)
    weighed_products: torch.Tensor = attrs.field(init=False)
    neurons: dict[str, list[torch.Tensor]] = attrs.field(init=False)
    trouble: str = ""

    def __attrs_post_init__(self) -> None:
        units = self.mixture.units
        self.neurons = {one.group: [] for one in self.reads}
        self.routed = torch.zeros(units, dtype=torch.int64, device="cpu")
        self.weighted, self.error, self.damage = (
            torch.zeros(units, dtype=torch.float64, device="cpu") for _ in range(3)
        )
        self.products, self.weighed_products = (
            torch.zeros(units, units, dtype=torch.float64, device="cpu") for _ in range(2)
        )

    def add(self, table: torch.Tensor, units: torch.Tensor, values: torch.Tensor) -> None:
        """Adds values of tokens to those of their units."""
        table.index_add_(0, units.cpu(), values.to("cpu", table.dtype))

    def multiply(self, seen: SeenMixture) -> None:
        """Adds inner products of what the experts of each token add, by their units."""
        units = seen.chosen[seen.counted]
        alone = [one[seen.counted].double() for one in seen.alone]
        seen.alone.clear()
        for one, left in enumerate(alone):
            spread = seen.spread(left)
            for other, right in enumerate(alone):
                pairs = units[:, one] * self.mixture.units + units[:, other]
                self.add(self.products.view(-1), pairs, (left * right).sum(1))
                self.add(self.weighed_products.view(-1), pairs, (spread * right).sum(1))


class ExpertRuns:
    """Gathers what calibration data say about experts.

    Args:
        watched: The model.
        analysis: What is known about its program.
        contributions: Whether norms of experts' outputs are gathered: ``k + 1`` runs more, for the largest ``k``.
        products: Whether inner products of what each two experts add are gathered: the runs of ``contributions``, and
            a backward pass or several.
        rerouting: Whether errors without each expert are gathered: ``k`` runs more, and a backward pass or several.
        neurons: Whether it is gathered what depends on their neurons: a backward pass or several.
        gradients: Whether there can be gradients: not with weights on disk.
        ranked: Whether experts are to be ranked, so that notes say which of them nothing is known about.
    """

    def __init__(
        self,
        watched: Watched,
        analysis: Analysis,
        *,
        contributions: bool,
        products: bool,
        rerouting: bool,
        neurons: bool,
        gradients: bool,
        ranked: bool,
    ) -> None:
        self._watched, self._rerouting, self._ranked = watched, rerouting, ranked
        self._products, self._contributions = products, contributions or products
        self._found = find_mixtures(analysis, recorded_position(analysis))
        self._sums = {
            name: _Sums(mixture, neuron_reads(mixture, analysis)) for name, mixture in self._found.mixtures.items()
        }
        self._slopes = gradients and (products or rerouting or neurons)
        self._generator = torch.Generator("cpu").manual_seed(0)
        self._examples = 0
        self._why = "" if gradients else "they need a model in memory"

    def add(self, batch: Batch) -> None:
        """Runs one batch.

        Raises:
            ArgumentError: The forward raised on it.
        """
        going = {name: sums for name, sums in self._sums.items() if not sums.trouble}
        if not going:
            return
        seen = self._run(batch, going, Turn.WHOLE).seen
        going = self._kept(going, seen)
        most = max((len(one.chosen[0]) for one in seen.values()), default=0)
        for name, sums in going.items():
            self._count(sums, seen[name])
        self._examples += batch.size
        self._curve(batch, going, seen)
        if self._contributions:
            weighed = {name: sums for name, sums in going.items() if sums.mixture.gates is not None}
            self._run(batch, weighed, Turn.SILENT, seen)
            for slot in range(most):
                self._run(batch, weighed, Turn.ALONE, seen, slot)
        for name, one in seen.items():
            if one.alone:
                self._sums[name].multiply(one)
        if self._rerouting:
            for slot in range(most):
                self._run(batch, going, Turn.WITHOUT, seen, slot)

    def finish(self) -> tuple[dict[str, ExpertStatistics], tuple[str, ...]]:
        """Returns the statistics by group, and what the report should say about them.

        Raises:
            ArgumentError: Nothing that a mixture put out was finite.
        """
        found, notes = {}, [f"{name}: nothing is known about its experts: {why}" for name, why in self._missed()]
        for name, sums in self._sums.items():
            if sums.dropped and not sums.tokens and not sums.trouble:
                raise ArgumentError(
                    "No value that a layer read was finite.",
                    where=f"the experts of {name}",
                    hint="run the model on a batch and look at its outputs; half precision may overflow",
                )
            if sums.trouble or not sums.tokens:
                continue
            if sums.dropped:
                notes.append(f"{name}: {sums.dropped} of {many(sums.dropped + sums.tokens, 'token')} not finite")
            weighed = self._contributions and sums.mixture.gates is not None
            found[name] = one = ExpertStatistics(
                sums.top_k,
                sums.tokens,
                self._examples,
                sums.routed,
                sums.energy,
                sums.weighted if weighed else None,
                sums.error if self._rerouting else None,
                sums.damage if self._slopes and self._rerouting else None,
                sums.effect if self._slopes else None,
                sums.mixture.stacks,
                {group: summed_up(one) for group, one in sums.neurons.items() if one} if self._slopes else {},
                sums.products if weighed and self._products else None,
                sums.weighed_products if weighed and self._products and self._slopes else None,
            )
            notes.extend(one.notes(name))
        if (self._products or self._rerouting) and not self._slopes and found:
            notes.append(f"errors of mixtures count alike in all layers, for want of gradients: {self._why}")
        return found, tuple(notes) if self._ranked else ()

    def _missed(self) -> Iterable[tuple[str, str]]:
        yield from self._found.missed.items()
        yield from ((name, sums.trouble) for name, sums in self._sums.items() if sums.trouble)

    @staticmethod
    def _kept(going: Mapping[str, _Sums], seen: Mapping[str, SeenMixture]) -> dict[str, _Sums]:
        """Leaves those out that the run didn't show."""
        for name, sums in going.items():
            if name not in seen:
                sums.trouble = sums.trouble or "a calibration batch runs another program than the example inputs"
        return {name: sums for name, sums in going.items() if name in seen}

    @staticmethod
    def _count(sums: _Sums, seen: SeenMixture) -> None:
        chosen, output = seen.chosen[seen.counted], seen.output[seen.counted]
        sums.tokens += len(chosen)
        sums.dropped += seen.dropped
        sums.top_k = chosen.shape[1]
        sums.routed += torch.bincount(chosen.flatten().cpu(), minlength=len(sums.routed))
        sums.energy += float(output.double().square().sum())

    def _run(
        self,
        batch: Batch,
        going: Mapping[str, _Sums],
        turn: Turn,
        seen: Mapping[str, SeenMixture] | None = None,
        slot: int = 0,
    ) -> MixtureListener:
        known = {name: one for name, one in (seen or {}).items() if slot < one.chosen.shape[1]}
        mixtures = [sums.mixture for name, sums in going.items() if seen is None or name in known]
        listener = MixtureListener(self._watched, self._found, mixtures, batch, turn, known, slot)
        if mixtures:
            self._watched.run_into(batch, listener)
            listener.finish()
            for name, output in listener.outputs.items():
                self._compare(self._sums[name], known[name], output, turn, slot)
        return listener

    def _compare(self, sums: _Sums, seen: SeenMixture, output: torch.Tensor, turn: Turn, slot: int) -> None:
        """Takes what a mixture put out in one of the later runs."""
        if turn is Turn.SILENT:
            seen.silent = output
            return
        units = seen.chosen[:, slot]
        if turn is Turn.ALONE:
            assert seen.silent is not None
            alone = output - seen.silent
            sums.add(sums.weighted, units[seen.counted], alone.double().norm(dim=1)[seen.counted])
            if self._products:
                seen.alone.append(alone)
            return
        fresh = seen.fresh(slot)
        units, change = units[fresh], (output - seen.output).double()[fresh]
        if not bool(change.isfinite().all()):
            sums.trouble = "without one of its experts what it puts out isn't finite"
            return
        sums.add(sums.error, units, change.square().sum(1))
        if seen.curvature is not None:
            sums.add(sums.damage, units, seen.moves(change))

    def _curve(self, batch: Batch, going: Mapping[str, _Sums], seen: Mapping[str, SeenMixture]) -> None:
        """Finds how much the outputs of the model move with what mixtures put out."""
        if not self._slopes:
            return
        shadow = self._watched.shadow
        mixtures = [sums.mixture for sums in going.values()]
        listener = MixtureListener(self._watched, self._found, mixtures, batch, Turn.WHOLE, {}, 0, gradients=True)
        earlier, shadow.gradients = shadow.gradients, True
        try:
            with self._watched.differentiable(self._watched.parameters().values()):
                outputs = self._watched.run_into(batch, listener)
                self._project(outputs, batch, listener.edges, seen)
            for name, one in seen.items():
                going[name].effect += float(one.moves(one.output[one.counted].double()).sum())
        except RuntimeError as error:
            self._slopes, self._why = False, f"{type(error).__name__}: {str(error)[:200]}"
        finally:
            shadow.gradients = earlier

    def _project(self, outputs: Any, batch: Batch, edges: Mapping[str, Any], seen: Mapping[str, SeenMixture]) -> None:
        projections = Projections.of(outputs)
        tensors, without = projections.tensors, [name for name in seen if name not in edges]
        if not tensors or without:
            self._slopes, self._why = False, f"no gradient reaches {without[0]}" if tensors else "no output has one"
            return
        times = usual_count(batch)
        reads = [(name, read) for name in seen for read in self._sums[name].reads]
        parameters = self._watched.parameters()
        inputs = [*edges.values(), *(parameters[read.parameter] for _, read in reads)]
        with torch.enable_grad():
            for turn in range(times):
                drawn = projections.draw(batch, self._generator)
                more = turn < times - 1
                found = torch.autograd.grad(tensors, inputs, drawn, retain_graph=more, allow_unused=True)
                for one, slope in zip((seen[name] for name in edges), found, strict=False):
                    _curve(one, slope, times)
                for (name, read), gradient in zip(reads, found[len(edges) :], strict=True):
                    if gradient is not None and bool(gradient.isfinite().all()):
                        losses = read.losses(parameters[read.parameter], gradient) / times
                        self._sums[name].neurons[read.group].append(losses)


def _curve(seen: SeenMixture, slope: torch.Tensor | None, times: int) -> None:
    """Adds ``E[s s^T]`` of one projection, or its diagonal: ``e^T E[s s^T] e`` is right on average from few samples."""
    rows = torch.zeros_like(seen.output) if slope is None else slope.detach().reshape(seen.output.shape)
    rows = rows[seen.counted].double()
    rows = rows[rows.isfinite().all(1)]
    count = max(1, len(rows)) * times
    part = (rows.square().sum(0) if rows.shape[1] > WIDEST else rows.T @ rows) / count
    seen.curvature = part if seen.curvature is None else seen.curvature + part
