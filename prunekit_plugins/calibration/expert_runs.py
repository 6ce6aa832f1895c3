"""Running a model with experts out of the choice of some tokens, or with the weights of their outputs at zero.

A token is sent to ``k`` experts. In the ``r``-th run each token can't be sent to its own ``r``-th expert, in all
mixtures at once; what a mixture puts out is compared with what it puts out otherwise, and that is what the program goes
on with. So ``k`` runs show what each expert does to each of its tokens, however many experts there are, and whatever
the program does to run them.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.errors import ArgumentError, many
from prunekit_core.groups.analysis import Analysis
from prunekit_core.program.calls import bind_arguments, tensors_of
from prunekit_core.program.outputs import output_tensors
from prunekit_core.record.listener import Listener
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.branch_sums import recorded_position
from prunekit_plugins.calibration.experts.mixtures import Gates, Mixture, MixturesFound, Place, Scores
from prunekit_plugins.calibration.experts.neurons import NeuronReads, neuron_reads, summed_up
from prunekit_plugins.calibration.experts.search import find_mixtures
from prunekit_plugins.calibration.experts.statistics import ExpertStatistics
from prunekit_plugins.calibration.observation import Watched

WIDEST = 4096
"""Features up to which the curvature of what a mixture puts out is a whole matrix."""
FEWEST, MOST, EXAMPLES = 2, 8, 16
"""Random projections of the outputs for one batch, and examples for each, as for `Curvatures`."""


class Turn(enum.Enum):
    """What is done in a run."""

    WHOLE = "whole"
    """Nothing: what mixtures put out is kept."""
    SILENT = "silent"
    """All weights of experts' outputs are zero."""
    ALONE = "alone"
    """All are zero but those of each token's expert number ``slot``."""
    WITHOUT = "without"
    """Each token can't be sent to its expert number ``slot``."""
    GONE = "gone"
    """No token can be sent to the experts of some units."""


@attrs.define(eq=False)
class SeenMixture:
    """A mixture in one batch.

    Attributes:
        chosen: Tensor ``[tokens, top_k]``, int64: the unit that each expert belongs to.
        numbers: The same of the experts.
        output: Tensor ``[tokens, features]``: what it puts out.
        counted: Tensor ``[tokens]``, bool: which tokens count: no mask leaves them out, and all that it puts out
            for them is finite.
        dropped: For how many tokens something isn't finite.
        silent: What it puts out with all weights at zero.
        curvature: Tensor ``[features, features]``, or its diagonal ``[features]``; None where there are no gradients.
    """

    chosen: torch.Tensor
    numbers: torch.Tensor
    output: torch.Tensor
    counted: torch.Tensor
    dropped: int = 0
    silent: torch.Tensor | None = None
    curvature: torch.Tensor | None = None

    def moves(self, change: torch.Tensor) -> torch.Tensor:
        """Returns ``e^T G e`` of changes ``[n, features]`` of what it puts out: tensor ``[n]``; zero without ``G``."""
        if self.curvature is None:
            return change.new_zeros(len(change))
        curvature = self.curvature.to(change.dtype)
        spread = change @ curvature if curvature.dim() > 1 else change * curvature
        return (spread * change).sum(1)

    def fresh(self, slot: int) -> torch.Tensor:
        """Tells which tokens count and have no earlier expert of the same unit: tensor ``[tokens]``, bool."""
        own = self.chosen[:, slot : slot + 1]
        first = ~(self.chosen[:, :slot] == own).any(1)
        return first & self.counted


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
    neurons: dict[str, list[torch.Tensor]] = attrs.field(init=False)
    trouble: str = ""

    def __attrs_post_init__(self) -> None:
        units = self.mixture.units
        self.neurons = {one.group: [] for one in self.reads}
        self.routed = torch.zeros(units, dtype=torch.int64, device="cpu")
        self.weighted, self.error, self.damage = (
            torch.zeros(units, dtype=torch.float64, device="cpu") for _ in range(3)
        )

    def add(self, table: torch.Tensor, units: torch.Tensor, values: torch.Tensor) -> None:
        """Adds values of tokens to those of their units."""
        table.index_add_(0, units.cpu(), values.to("cpu", table.dtype))


class ExpertRuns:
    """Gathers what calibration data say about experts.

    Args:
        watched: The model.
        analysis: What is known about its program.
        contributions: Whether norms of experts' outputs are gathered: ``k + 1`` runs more, for the largest ``k``.
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
        rerouting: bool,
        neurons: bool,
        gradients: bool,
        ranked: bool,
    ) -> None:
        self._watched, self._contributions, self._rerouting, self._ranked = watched, contributions, rerouting, ranked
        self._found = find_mixtures(analysis, recorded_position(analysis))
        self._sums = {
            name: _Sums(mixture, neuron_reads(mixture, analysis)) for name, mixture in self._found.mixtures.items()
        }
        self._slopes = gradients and (rerouting or neurons)
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
        if self._contributions:
            weighed = {name: sums for name, sums in going.items() if sums.mixture.gates is not None}
            self._run(batch, weighed, Turn.SILENT, seen)
            for slot in range(most):
                self._run(batch, weighed, Turn.ALONE, seen, slot)
        self._curve(batch, going, seen)
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
            )
            notes.extend(one.notes(name))
        if self._rerouting and not self._slopes and found:
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

    @staticmethod
    def _compare(sums: _Sums, seen: SeenMixture, output: torch.Tensor, turn: Turn, slot: int) -> None:
        """Takes what a mixture put out in one of the later runs."""
        if turn is Turn.SILENT:
            seen.silent = output
            return
        units = seen.chosen[:, slot]
        if turn is Turn.ALONE:
            assert seen.silent is not None
            norms = (output - seen.silent).double().norm(dim=1)
            sums.add(sums.weighted, units[seen.counted], norms[seen.counted])
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
        tensors = [tensor for tensor in output_tensors(outputs) if tensor.requires_grad]
        without = [name for name in seen if name not in edges]
        if not tensors or without:
            self._slopes, self._why = False, f"no gradient reaches {without[0]}" if tensors else "no output has one"
            return
        times = min(MOST, max(FEWEST, batch.size // EXAMPLES))
        reads = [(name, read) for name in seen for read in self._sums[name].reads]
        parameters = self._watched.parameters()
        inputs = [*edges.values(), *(parameters[read.parameter] for _, read in reads)]
        with torch.enable_grad():
            for turn in range(times):
                signs = [self._signs(tensor, batch) for tensor in tensors]
                more = turn < times - 1
                found = torch.autograd.grad(tensors, inputs, signs, retain_graph=more, allow_unused=True)
                for one, slope in zip((seen[name] for name in edges), found, strict=False):
                    _curve(one, slope, times)
                for (name, read), gradient in zip(reads, found[len(edges) :], strict=True):
                    if gradient is not None and bool(gradient.isfinite().all()):
                        losses = read.losses(parameters[read.parameter], gradient) / times
                        self._sums[name].neurons[read.group].append(losses)

    def _signs(self, tensor: torch.Tensor, batch: Batch) -> torch.Tensor:
        signs = torch.randint(0, 2, tensor.shape, generator=self._generator, dtype=torch.int8, device="cpu") * 2 - 1
        signs = signs.to(tensor.device, tensor.dtype)
        counted = batch.counted(tuple(tensor.shape[:-1])) if tensor.dim() > 1 else None
        return signs if counted is None else signs * counted[..., None]


def _curve(seen: SeenMixture, slope: torch.Tensor | None, times: int) -> None:
    """Adds ``E[s s^T]`` of one projection, or its diagonal: ``e^T E[s s^T] e`` is right on average from few samples."""
    rows = torch.zeros_like(seen.output) if slope is None else slope.detach().reshape(seen.output.shape)
    rows = rows[seen.counted].double()
    rows = rows[rows.isfinite().all(1)]
    count = max(1, len(rows)) * times
    part = (rows.square().sum(0) if rows.shape[1] > WIDEST else rows.T @ rows) / count
    seen.curvature = part if seen.curvature is None else seen.curvature + part


class MixtureListener(Listener):
    """The listener that takes experts out of the choice of tokens, and sees what mixtures put out.

    Args:
        watched: The model that runs.
        found: The mixtures of its program.
        mixtures: Those that are looked at.
        batch: The batch that runs.
        turn: What is done.
        known: Group to what the first run on this batch showed; empty in that run.
        slot: Which of each token's experts this is about.
        gradients: Whether the run has gradients.
        gone: Group to the units that no token can be sent to.

    Attributes:
        seen: Group to what the first run shows.
        units: Group to the units that tokens are sent to, where that is looked at: tensor ``[tokens, top_k]``, int64.
        outputs: Group to what its mixture put out in a later run: tensor ``[tokens, features]``.
        edges: Group to where the gradient of what its mixture put out arrives.
    """

    def __init__(
        self,
        watched: Watched,
        found: MixturesFound,
        mixtures: Sequence[Mixture],
        batch: Batch,
        turn: Turn,
        known: Mapping[str, SeenMixture],
        slot: int,
        *,
        gradients: bool = False,
        gone: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.seen: dict[str, SeenMixture] = {}
        self.units: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        self.edges: dict[str, Any] = {}
        self._stack, self._batch, self._turn, self._known, self._slot = watched.shadow.stack, batch, turn, known, slot
        self._gradients, self._expected, self._gone = gradients, found.counts, gone or {}
        self._ran: dict[tuple[str, Any], int] = {}
        self._numbers: dict[str, torch.Tensor] = {}
        self._before: dict[Place, list[Callable[[dict[str, Any]], None]]] = {}
        self._after: dict[Place, list[Callable[[Any], None]]] = {}
        self._keys: dict[tuple[str, Any], list[str]] = {}
        for mixture in mixtures:
            self._prepare(mixture)

    def _prepare(self, mixture: Mixture) -> None:
        if self._turn in (Turn.WITHOUT, Turn.GONE):
            for scores in mixture.scores:
                self._bar(mixture, scores)
        elif self._turn in (Turn.SILENT, Turn.ALONE) and mixture.gates is not None:
            self._weigh(mixture, mixture.gates)
        if self._turn in (Turn.WHOLE, Turn.GONE) and not self._gradients:
            for turn, one in enumerate(mixture.chosen):
                self._note_after(mixture, one.place, functools.partial(self._choose, mixture, turn))
        reader = mixture.gradient_reader if self._gradients else mixture.output_reader
        self._note_before(mixture, reader.place, lambda given: self._read(mixture, given, reader.argument))

    def _note_before(self, mixture: Mixture, place: Place, act: Callable[[dict[str, Any]], None]) -> None:
        self._before.setdefault(place, []).append(act)
        self._keys.setdefault((place.module, place.op), []).append(mixture.group)

    def _note_after(self, mixture: Mixture, place: Place, act: Callable[[Any], None]) -> None:
        self._after.setdefault(place, []).append(act)
        self._keys.setdefault((place.module, place.op), []).append(mixture.group)

    def compute(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Runs an operation, with what is to be changed before and after it."""
        key = (self._stack[-1] if self._stack else "", op)
        if key not in self._keys:
            return op(*args, **kwargs)
        number = self._ran[key] = self._ran.get(key, -1) + 1
        place = Place(*key, number)
        if place in self._before:
            given = bind_arguments(op, args, kwargs)
            for act in self._before[place]:
                act(given)
            args, kwargs = (), given
        result = op(*args, **kwargs)
        for change in self._after.get(place, ()):
            change(result)
        return result

    def finish(self) -> None:
        """Forgets mixtures whose operations ran another number of times than they were recorded."""
        for key, groups in self._keys.items():
            if key in self._expected and self._ran.get(key, -1) + 1 != self._expected[key]:
                for group in groups:
                    self.seen.pop(group, None)
                    self.outputs.pop(group, None)

    # -- what is changed

    def _bar(self, mixture: Mixture, scores: Scores) -> None:
        """Puts the scores of each token's unit, or those of units that are gone, at minus infinity."""
        units = self._known[mixture.group].chosen[:, self._slot]
        gone = scores.units[[*self._gone.get(mixture.group, ())]].any(0)

        def barred(tensor: torch.Tensor) -> torch.Tensor:
            if self._turn is Turn.GONE:
                rows = gone.to(tensor.device).expand(len(units), -1)
            else:
                rows = scores.units.to(tensor.device)[units.to(tensor.device)]  # [tokens, positions]
            moved = tensor.movedim(scores.dim, -1)
            each = math.prod(moved.shape[:-1]) // max(1, len(rows))
            mask = rows.repeat_interleave(each, 0).reshape(moved.shape).movedim(-1, scores.dim)
            return tensor.masked_fill(mask, -torch.inf)

        def before(arguments: dict[str, Any]) -> None:
            arguments[scores.argument] = barred(arguments[scores.argument])

        def after(result: Any) -> None:
            tensor = tensors_of(result)[scores.output]
            tensor.copy_(barred(tensor))

        if scores.argument:
            self._note_before(mixture, scores.place, before)
        else:
            self._note_after(mixture, scores.place, after)

    def _weigh(self, mixture: Mixture, gates: Gates) -> None:
        """Makes the weights of all experts zero, but for one of each token."""
        numbers = self._known[mixture.group].numbers

        def after(result: Any) -> None:
            tensor = tensors_of(result)[gates.output]
            stays = torch.zeros_like(tensor, dtype=torch.bool)
            if self._turn is Turn.ALONE and gates.dense:
                stays.reshape(-1, tensor.shape[-1]).scatter_(1, numbers[:, self._slot, None], True)
            elif self._turn is Turn.ALONE:
                stays.reshape(numbers.shape)[:, self._slot] = True
            tensor.mul_(stays)

        self._note_after(mixture, gates.place, after)

    # -- what is seen

    def _choose(self, mixture: Mixture, turn: int, result: Any) -> None:
        found = mixture.chosen[turn].numbers(result)
        earlier = self._numbers[mixture.group] if turn else found[:, :0]
        numbers = self._numbers[mixture.group] = torch.cat([earlier, found], 1)
        self.units[mixture.group] = mixture.unit_of.to(numbers.device)[numbers]

    def _read(self, mixture: Mixture, arguments: dict[str, Any], argument: str) -> None:
        """Takes what a mixture puts out; the program goes on with what it put out in the first run."""
        tensor = arguments[argument]
        if self._gradients:
            if tensor.requires_grad:
                self.edges[mixture.group] = torch.autograd.graph.get_gradient_edge(tensor)
            return
        rows = tensor.detach().reshape(-1, tensor.shape[-1]).clone()
        if mixture.group not in self._known:
            numbers = self._numbers.get(mixture.group)
            if numbers is not None and len(numbers) == len(rows):
                counted = self._batch.counted(tuple(tensor.shape[:-1]))
                finite = rows.isfinite().all(1)
                counted = finite if counted is None else finite & counted.flatten().to(rows.device)
                seen = SeenMixture(self.units[mixture.group], numbers, rows, counted, int((~finite).sum()))
                self.seen[mixture.group] = seen
            return
        self.outputs[mixture.group] = rows
        tensor.copy_(self._known[mixture.group].output.reshape(tensor.shape))
