"""Moments that one stage of compensation is fitted to: the pruned model and the original run on the same batches.

A consumer of the original computes ``W x``; its counterpart in the pruned model computes ``W' x'`` with fewer features.
``W'`` is fitted to the target ``W x`` (its kept outputs). In a residual network that isn't all: where the output is
only added to a stream ``r``, which the cut has changed to ``r'``, what counts is the sum. ``W' x' + r'`` should be
``W x + r``, so the target is ``W x + r - r'``.

Where a branch that follows is gone, the target is what the sum was with it: ``s - r'``, with ``s`` the sum of the
original behind the removed branch. A norm with running statistics may stand between ``W x`` and the sum, which makes
``a W x + b`` of it; then ``s - r' - b`` is the target for ``a W x``.

A stage may hold consumers of several levels (one after another in the program). Only those of its first level read what
they will read in the end. What the later ones read changes when the first are refitted, towards what the original
reads: they are fitted on the original's features, those that stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import attrs
import torch

from prunekit_core.errors import PlanError
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.branch_sums import SumPoint
from prunekit_plugins.calibration.moments import Gatherer
from prunekit_plugins.calibration.observation import Enough, Seen, Watched
from prunekit_plugins.calibration.residual_adds import ResidualAdd
from prunekit_plugins.compensation.forwards import Forwards
from prunekit_plugins.compensation.held_out import HeldOut
from prunekit_plugins.compensation.layer_fit import Correspondence
from prunekit_plugins.compensation.streams import Reached, StreamListener
from prunekit_plugins.compensation.takeovers import Takeover
from prunekit_plugins.compensation.uses import Consumer

PLENTY = 16
"""Samples per feature of what a consumer read in the original that count beside what it reads now, at most."""


@attrs.frozen(eq=False)
class Pair:
    """A consumer of the pruned model with its counterpart in the original.

    Attributes:
        before: The consumer of the original.
        after: That of the pruned model.
        correspondence: How one follows from the other.
        takeover: The removed branches that it takes over; None where it takes over none.
    """

    before: Consumer
    after: Consumer
    correspondence: Correspondence
    takeover: Takeover | None = None

    @property
    def orders(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Its numbers among the consumers of the original's forward, and among those of the pruned model's."""
        return self.before.orders, self.after.orders

    @property
    def bytes(self) -> int:
        """Bytes of the moments that it is fitted to: covariances of what it reads, and with its targets, in float64."""
        rows, features = self.correspondence.rows, self.correspondence.features
        width = int(features.sum(1).max())
        held_out_too = 2
        return held_out_too * 8 * int(rows.any(1).sum()) * width * (width + int(rows.sum(1).max()))

    @property
    def summed(self) -> bool:
        """Whether the target is a residual sum: in both models nothing but an addition reads the output, unscaled."""
        return self.before.summed and self.after.summed and bool((self.correspondence.scales == 1).all())


def _pair_of_gatherers() -> Split:
    return Split(Gatherer(covariance=True), Gatherer(covariance=True))


@attrs.frozen(eq=False)
class Split:
    """Moments of the samples to fit on, and of those that are held out."""

    fit: Gatherer
    held: Gatherer

    def add(self, features: torch.Tensor, targets: torch.Tensor, examples: torch.Tensor, held: torch.Tensor) -> None:
        """Adds samples.

        Args:
            features: Tensor ``[groups, samples, features]``.
            targets: Tensor ``[groups, samples, outputs]``.
            examples: Tensor ``[samples]``: which example of the batch each is of.
            held: Bool tensor ``[examples]``: which of these are held out.
        """
        held = held[examples]
        for part, chosen in ((self.fit, ~held), (self.held, held)):
            where = chosen.to(features.device)
            part.add(features[:, where], targets[:, where], examples[chosen])


@attrs.define(eq=False)
class Gathered:
    """What was gathered for one consumer.

    Attributes:
        now: Features that it reads in the pruned model, with the targets. Of consumers that aren't on the first level
            of the stage: kept features of the original, as in ``earlier``.
        earlier: Features that stay, as read in the original, with ``W x``: they add evidence where ``now`` has few
            samples; at most `PLENTY` samples per feature.
        lost: All features as read in the original, if they were requested.
        slope: Tensor ``[channels]``: what a norm multiplies the output by before it is compared; None without one.
    """

    now: Split = attrs.field(factory=_pair_of_gatherers)
    earlier: Split = attrs.field(factory=_pair_of_gatherers)
    lost: Gatherer = attrs.field(factory=lambda: Gatherer(covariance=False))
    slope: torch.Tensor | None = None


def portions(part: Sequence[Pair], room: int | None) -> Iterator[Sequence[Pair]]:
    """Shares the consumers of one stage out, so that the moments of few are in memory at a time.

    Those of the first level stay together: what one of them puts out may be in what another one is fitted to. The
    others are fitted to what they read in the original, whichever of them come first.

    Args:
        part: The consumers, in the order in which they run.
        room: Bytes that the moments of a portion may take, if it isn't one consumer; None for any number.
    """
    first, size, chosen = min(pair.after.level for pair in part), 0, list[Pair]()
    for pair in part:
        if room is not None and size + pair.bytes > room and chosen and pair.after.level > first:
            yield chosen
            size, chosen = 0, []
        chosen.append(pair)
        size += pair.bytes
    yield chosen


def gather(
    part: Sequence[Pair],
    later: Sequence[Pair],
    original: Forwards,
    pruned: Forwards,
    batches: Iterable[Batch],
    *,
    held_out: HeldOut,
    lost: bool,
    level: int | None = None,
) -> dict[str, Gathered]:
    """Runs all batches through both models and gathers what the consumers of one stage need.

    Args:
        part: The consumers of the stage, or a portion of them.
        later: Those that come behind them.
        original: The forwards of the original.
        pruned: Those of the pruned model, with what was repaired before.
        batches: The batches.
        held_out: Which examples are held out.
        lost: Whether the moments of removed features are gathered as well.
        level: The first level of the stage; None for that of its first consumers.

    Returns:
        Name of a consumer's site to what was gathered.
    """
    level = min(pair.after.level for pair in part) if level is None else level
    found = {pair.after.site.name: Gathered() for pair in part}
    here, behind = ([pair.before.site.parameter for pair in pairs] for pairs in ([*part, *later], later))
    unsettled = [name for pair in (*part, *later) for name in pair.after.tensors]
    examples = 0
    whole = any(pair.takeover is not None for pair in part)  # sums are known by their number from the start
    for number, batch in enumerate(batches):
        stage = _Stage(part, level, found, held_out.places(number, examples, batch.size), lost=lost)
        listener = stage.original_listener(original.watched, batch)
        original.run_into(number, batch, listener, here, behind, whole=whole)
        stage.check(stage.residual - stage.streams.keys(), batch)
        if stage.reads_pruned:
            stage.start_pruned()
            listener = stage.pruned_listener(pruned.watched, batch)
            pruned.run_into(number, batch, listener, unsettled, unsettled, whole=whole)
            stage.check(stage.waiting, batch)
        examples += batch.size
    return found


class _Stage:
    """One batch of one stage: first the original runs, then the pruned model.

    Consumers are known by their order among all consumers of the pruned model's forward. A sum is seen
    after the consumer whose output goes into it, so what the pruned model's consumer read waits for its sum.

    Args:
        part: The consumers of the stage, or a portion of them.
        level: The first level of the stage.
        found: What is gathered, by the name of a consumer's site.
        held: Bool tensor ``[examples]``: which of the batch are held out.
        lost: Whether moments of removed features are gathered as well.

    Attributes:
        residual: Orders of the consumers whose target is a residual sum.
        streams: Of those: the stream ``r`` of the original, by order; the sum ``s`` where a branch is taken over.
        waiting: Of those: what the pruned model's consumer read, until its sum is seen.
    """

    def __init__(
        self, part: Sequence[Pair], level: int, found: dict[str, Gathered], held: torch.Tensor, *, lost: bool
    ) -> None:
        self._pairs = {order: pair for pair in part for order in pair.after.orders}
        self._found, self._held, self._lost = found, held, lost
        self._first = {order for order, pair in self._pairs.items() if pair.after.level == level}
        self._numbers = {old: new for pair in part for old, new in zip(*pair.orders, strict=True)}
        self._takeovers = {order: one.takeover for order, one in self._pairs.items() if one.takeover is not None}
        added = frozenset(order for order in self._first if self._pairs[order].summed)
        self._added = added - self._takeovers.keys()
        self.residual = self._added | self._takeovers.keys()
        self._rectified: dict[int, torch.Tensor] = {}  # sums of the original that a relu follows
        self._targets: dict[int, torch.Tensor] = {}  # kept outputs ``W x`` of the original, until they are used
        self._outputs: dict[int, tuple[torch.Size, int]] = {}  # shape and channel dim of what the original put out
        self.streams: dict[int, torch.Tensor] = {}
        self.waiting: dict[int, Seen] = {}
        self._last_ran = False

    def check(self, missing: Collection[int], batch: Batch) -> None:
        """Raises an error if a sum that was there when consumers were found isn't made for this batch."""
        if missing:
            name = self._pairs[min(missing)].after.site.name
            raise _other_program(batch, f"what {name} puts out isn't added to anything for this batch")

    def _end(self, last_ran: bool, complete: bool) -> None:
        """Ends the forward, whose rest isn't needed, once its last consumer ran and no sum is missing."""
        self._last_ran = self._last_ran or last_ran
        if self._last_ran and complete:
            raise Enough

    # -- the original

    def original_listener(self, original: Watched, batch: Batch) -> StreamListener:
        """Returns what shows the original's forward to this stage."""
        summed = {old for old, new in self._numbers.items() if new in self._added}
        points = {one.goal for one in self._takeovers.values()}
        points |= {one.rectified for one in self._takeovers.values() if one.rectified is not None}
        return StreamListener(
            original,
            batch,
            self.note_original,
            summed,
            self.note_original_sum,
            points=points,
            result=self.note_original_result,
        )

    def note_original(self, seen: Seen) -> None:
        """Notes what a consumer of the original put out, and the moments of what it read."""
        order = self._numbers.get(seen.order)
        if order is not None:
            pair = self._pairs[order]
            if seen.site.name != pair.before.site.name:
                raise _other_program(
                    seen.batch, f"{seen.site.name} runs where {pair.before.site.name} ran for the first batch"
                )
            if order in self._first:
                self._targets[order] = pair.correspondence.kept_outputs(seen.output, seen.channel_dim).clone()
                self._outputs[order] = (seen.output.shape, seen.channel_dim)
            self._note_moments(pair, seen, first=order in self._first)
        self._end(seen.order == max(self._numbers), self.residual <= self.streams.keys())

    def _note_moments(self, pair: Pair, seen: Seen, *, first: bool) -> None:
        gathered = self._found[pair.after.site.name]
        split = gathered.earlier if first else gathered.now
        enough = pair.takeover is not None  # what it put out there isn't what it should put out now
        enough = enough or (first and split.fit.count >= PLENTY * int(pair.correspondence.features.sum(1).max()))
        if enough and not self._lost:
            return
        for chunk in seen.chunks(seen.output):
            assert chunk.targets is not None
            if self._lost:
                gathered.lost.add(chunk.features)
            if not enough:
                kept = pair.correspondence.kept_samples(chunk.features, chunk.targets)
                split.add(*kept, chunk.examples, self._held)

    def note_original_sum(self, found: ResidualAdd) -> None:
        """Notes the stream ``r`` that a consumer's output was added to, of the outputs that stay."""
        self._note_stream(self._numbers[found.order], found.rest)

    def _note_stream(self, order: int, stream: torch.Tensor) -> None:
        shape, dim = self._outputs[order]
        correspondence = self._pairs[order].correspondence
        self.streams[order] = correspondence.kept_outputs(stream.reshape(shape), dim).clone()
        self._end(False, self.residual <= self.streams.keys())

    def note_original_result(self, point: SumPoint, result: torch.Tensor) -> None:
        """Notes the sum ``s`` behind removed branches, or what it was before them, if a relu is between."""
        for order, takeover in self._takeovers.items():
            if point == takeover.rectified:
                self._rectified[order] = result.clone()
            if point == takeover.goal:
                self._note_stream(order, _goal(result, self._rectified.pop(order, None)))

    # -- the pruned model

    def pruned_listener(self, pruned: Watched, batch: Batch) -> StreamListener:
        """Returns what shows the pruned model's forward to this stage."""
        return StreamListener(
            pruned,
            batch,
            self.read_pruned,
            self._added,
            self.read_pruned_sum,
            follow=self._takeovers,
            arrive=self.read_pruned_arrival,
        )

    @property
    def reads_pruned(self) -> bool:
        """Whether some are fitted to what they read in the pruned model."""
        return bool(self._first)

    def start_pruned(self) -> None:
        """The pruned model's forward is next."""
        self._last_ran = False

    def read_pruned(self, seen: Seen) -> None:
        """Adds what a consumer reads with its target; with a residual sum, once that is seen."""
        if seen.order in self.residual:
            source = seen.reading.source
            arguments = {**seen.arguments, source: seen.arguments[source].clone()}  # it may be overwritten meanwhile
            self.waiting[seen.order] = attrs.evolve(seen, arguments=arguments)
        elif seen.order in self._targets:
            self._add(seen, self._targets.pop(seen.order))
        self._end(seen.order == max(self._first), not self.residual & self._targets.keys())

    def read_pruned_sum(self, found: ResidualAdd) -> None:
        """Adds what a consumer read, with the target ``W x + r - r'``."""
        targets = self._targets.pop(found.order)
        stream = found.rest.reshape(targets.shape)
        self._add(self.waiting.pop(found.order), targets + (self.streams.pop(found.order) - stream))
        self._end(False, not self.residual & self._targets.keys())

    def read_pruned_arrival(self, found: Reached) -> None:
        """Adds what a consumer that takes over branches read, with the target ``s - r'``."""
        shape = self._targets.pop(found.order).shape
        self._found[self._pairs[found.order].after.site.name].slope = found.slope
        self._add(self.waiting.pop(found.order), self.streams.pop(found.order) - found.rest.reshape(shape))
        self._end(False, not self.residual & self._targets.keys())

    def _add(self, seen: Seen, targets: torch.Tensor) -> None:
        name = self._pairs[seen.order].after.site.name
        if seen.site.name != name:
            raise _other_program(seen.batch, f"{seen.site.name} runs where {name} ran for the first batch")
        made, wanted = seen.output.shape, targets.shape
        if made.numel() != wanted.numel():  # an expert is sent other tokens than before the cut
            why = f"{name} puts out {tuple(made)} in the pruned model, and {tuple(wanted)} of that in the original"
            raise _other_program(seen.batch, why)
        gathered = self._found[name]
        for chunk in seen.chunks(targets):
            assert chunk.targets is not None
            gathered.now.add(chunk.features, chunk.targets, chunk.examples, self._held)


def _other_program(batch: Batch, why: str) -> PlanError:
    return PlanError(
        "The pruned model doesn't run the program of the original.",
        where=batch.where,
        why=why,
        hint="calibrate with batches for which both run the same program; where values decide what runs (experts in a "
        "list), cut without compensation: compensation=None, reestimate_batchnorm=False",
    )


def _goal(result: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
    """Returns what a sum should be that stands for a later one.

    Args:
        result: The later one.
        before: The sum itself in the original, where a relu follows it: what is below zero in both may stay.
    """
    if before is None:
        return result
    before = before.reshape(result.shape)
    return torch.where((result > 0) | (before > 0), result.clamp(min=0), before)
