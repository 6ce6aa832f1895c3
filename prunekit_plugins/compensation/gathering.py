"""What one stage of compensation is fitted to, gathered from the pruned model beside the original."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import attrs
import torch

from prunekit_core.errors import PlanError
from prunekit_plugins.calibration.additions import Sum
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.moments import Gatherer
from prunekit_plugins.calibration.observation import Enough, Seen, Watched
from prunekit_plugins.compensation.layer_fit import Kinship
from prunekit_plugins.compensation.uses import Consumer

HOLD_OUT = 5
"""One example in this many is held out."""
PLENTY = 16
"""Samples per feature of what a consumer read in the original that count beside what it reads now, at most."""


@attrs.frozen(eq=False)
class Pair:
    """A consumer of the pruned model with its counterpart in the original."""

    before: Consumer
    after: Consumer
    kinship: Kinship

    @property
    def summed(self) -> bool:
        """Whether what it is added to now and was added to then can be told apart from what it puts out itself."""
        return self.before.summed and self.after.summed and bool((self.kinship.scales == 1).all())


def _pair_of_gatherers() -> Split:
    return Split(Gatherer(covariance=True), Gatherer(covariance=True))


@attrs.frozen(eq=False)
class Split:
    """Moments of the samples to fit on, and of those that are held out."""

    fit: Gatherer
    held: Gatherer

    def add(self, features: torch.Tensor, targets: torch.Tensor, examples: torch.Tensor) -> None:
        """Adds samples of some examples: one example in `HOLD_OUT` is held out."""
        held = examples % HOLD_OUT == HOLD_OUT - 1
        for part, chosen in ((self.fit, ~held), (self.held, held)):
            where = chosen.to(features.device)
            part.add(features[:, where], targets[:, where], examples[chosen])


@attrs.frozen(eq=False)
class Gathered:
    """What was gathered for one consumer.

    Attributes:
        now: Of what it reads now.
        earlier: Of what it read in the original, less the removed features; at most `PLENTY` samples per feature.
        lost: Of all features in the original, if they were asked for.
    """

    now: Split = attrs.field(factory=_pair_of_gatherers)
    earlier: Split = attrs.field(factory=_pair_of_gatherers)
    lost: Gatherer = attrs.field(factory=lambda: Gatherer(covariance=False))


def gather(
    part: Sequence[Pair], original: Watched, pruned: Watched, batches: Iterable[Batch], *, lost: bool
) -> dict[str, Gathered]:
    """Runs all batches through both models and gathers what the consumers of one stage need.

    Args:
        part: The consumers of the stage.
        original: The original.
        pruned: The pruned model, with what was repaired before.
        batches: The batches.
        lost: Whether the moments of removed features are gathered as well.

    Returns:
        Name of a consumer's site to what was gathered.
    """
    found = {pair.after.site.name: Gathered() for pair in part}
    examples = 0
    for batch in batches:
        stage = _Stage(part, found, examples, lost=lost)
        original.run(batch, stage.note, stage.summed, stage.note_sum)
        stage.check(stage.summed - stage.rests.keys(), batch)
        stage.turn()
        pruned.run(batch, stage.read, stage.summed, stage.read_sum)
        stage.check(stage.waiting, batch)
        examples += batch.size
    return found


class _Stage:
    """One batch of one stage: first the original runs, then the pruned model."""

    def __init__(self, part: Sequence[Pair], found: dict[str, Gathered], base: int, *, lost: bool) -> None:
        self._pairs = {order: pair for pair in part for order in pair.after.orders}
        self._found, self._base, self._lost = found, base, lost
        first = min(pair.after.level for pair in part)
        self._first = {order for order, pair in self._pairs.items() if pair.after.level == first}
        self.summed = frozenset(order for order in self._first if self._pairs[order].summed)
        self._targets: dict[int, torch.Tensor] = {}
        self._shapes: dict[int, tuple[torch.Size, int]] = {}
        self.rests: dict[int, torch.Tensor] = {}
        self.waiting: dict[int, Seen] = {}
        self._over = False

    def turn(self) -> None:
        """Now the pruned model runs."""
        self._over = False

    def check(self, missing: Collection[int], batch: Batch) -> None:
        """Raises an error if a sum that was there when consumers were found isn't made for this batch."""
        if missing:
            raise PlanError(
                "The pruned model doesn't run the program of the original.",
                where=batch.where,
                why=f"what {self._pairs[min(missing)].after.site.name} puts out isn't added to anything for this batch",
                hint="calibrate with batches for which the model runs the same program",
            )

    # -- the original

    def note(self, seen: Seen) -> None:
        """Notes what a consumer put out, and what it read if that counts."""
        pair = self._pairs.get(seen.order)
        if pair is not None:
            gathered, first = self._found[pair.after.site.name], seen.order in self._first
            if first:
                self._targets[seen.order] = pair.kinship.kept_outputs(seen.output, seen.channel_dim).clone()
                self._shapes[seen.order] = (seen.output.shape, seen.channel_dim)
            split = gathered.earlier if first else gathered.now
            enough = first and split.fit.count >= PLENTY * int(pair.kinship.features.sum(1).max())
            for chunk in seen.chunks(seen.output) if self._lost or not enough else ():
                assert chunk.targets is not None
                if self._lost:
                    gathered.lost.add(chunk.features)
                if not enough:
                    kept = pair.kinship.kept_samples(chunk.features, chunk.targets)
                    split.add(*kept, chunk.examples + self._base)
        self._end(seen.order == max(self._pairs), self.summed <= self.rests.keys())

    def note_sum(self, found: Sum) -> None:
        """Notes what a consumer's output was added to."""
        shape, dim = self._shapes[found.order]
        kinship = self._pairs[found.order].kinship
        self.rests[found.order] = kinship.kept_outputs(found.rest.reshape(shape), dim).clone()
        self._end(False, self.summed <= self.rests.keys())

    # -- the pruned model

    def read(self, seen: Seen) -> None:
        """Adds what a consumer reads, once it is known what it should put out."""
        if seen.order in self.summed:
            source = seen.reading.source
            arguments = {**seen.arguments, source: seen.arguments[source].clone()}  # it may be overwritten meanwhile
            self.waiting[seen.order] = attrs.evolve(seen, arguments=arguments)
        elif seen.order in self._targets:
            self._add(seen, self._targets.pop(seen.order))
        self._end(seen.order == max(self._first), not self.summed & self._targets.keys())

    def read_sum(self, found: Sum) -> None:
        """What a consumer should put out is what the sum was, less what its output is added to now."""
        targets = self._targets.pop(found.order)
        rest = found.rest.reshape(targets.shape)
        self._add(self.waiting.pop(found.order), targets + (self.rests.pop(found.order) - rest))
        self._end(False, not self.summed & self._targets.keys())

    def _add(self, seen: Seen, targets: torch.Tensor) -> None:
        gathered = self._found[self._pairs[seen.order].after.site.name]
        for chunk in seen.chunks(targets):
            assert chunk.targets is not None
            gathered.now.add(chunk.features, chunk.targets, chunk.examples + self._base)

    def _end(self, over: bool, complete: bool) -> None:
        """Ends the forward once its last consumer ran and nothing is waited for."""
        self._over = self._over or over
        if self._over and complete:
            raise Enough
