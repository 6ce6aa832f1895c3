"""Moments on rows that a consumer sees in both models, where it sees other ones in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs
import torch

from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.observation import Seen, Watched
from prunekit_plugins.calibration.rows.following import RowsListener
from prunekit_plugins.calibration.rows.origins import Rows
from prunekit_plugins.compensation.gathering import Gathered, Pair
from prunekit_plugins.compensation.held_out import HeldOut


@attrs.frozen(eq=False)
class Sample:
    """What a consumer read and put out in one batch.

    Attributes:
        features: Tensor ``[groups, samples, features]``.
        outputs: Tensor ``[groups, samples, outputs]``.
        ids: Tensor ``[samples]``, int64: the numbers of the rows that these come from.
        count: How many of these there are in the batch.
    """

    features: torch.Tensor
    outputs: torch.Tensor
    ids: torch.Tensor
    count: int

    @classmethod
    def of(cls, seen: Seen, rows: Rows) -> Sample:
        """Takes copies of one run of a consumer."""
        reading, output = seen.reading, seen.output
        source, weight = seen.arguments[reading.source], seen.arguments[reading.weight]
        if source.dim() == (1 if reading.channels_last else weight.dim() - 1):
            source, output = source[None], output[None]
        features, outputs = reading.features(source, seen.arguments), reading.outputs(output, seen.arguments)
        each = features.shape[1] // max(1, rows.known.numel())
        finer = rows.divided((len(rows.known), each), 2)
        return cls(features.clone(), outputs.clone(), finer.known.flatten(), finer.count)

    @classmethod
    def together(cls, samples: Sequence[Sample]) -> Sample:
        """Puts several behind each other."""
        features, outputs = (torch.cat([getattr(one, name) for one in samples], 1) for name in ("features", "outputs"))
        return cls(features, outputs, torch.cat([one.ids for one in samples]), samples[0].count)

    def some(self, places: torch.Tensor) -> Sample:
        """Returns some of the samples."""
        return Sample(self.features[:, places], self.outputs[:, places], self.ids[places], self.count)

    def counted(self, batch: Batch) -> Sample:
        """Returns those that count: that come from somewhere, where no mask leaves them out."""
        counts = self.ids >= 0
        mask = batch.counted((self.count,))
        if mask is not None:
            counts = counts & mask.to(counts.device)[self.ids.clamp(min=0)]
        return self.some(counts)

    def examples(self, batch: Batch) -> torch.Tensor:
        """Tells which example each is of, as far as that can be told: tensor ``[samples]``, on the CPU."""
        return self.ids.cpu() * batch.size // self.count


def gather_common(
    part: Sequence[Pair], original: Watched, pruned: Watched, batches: Iterable[Batch], held_out: HeldOut, *, lost: bool
) -> dict[str, Gathered]:
    """Runs all batches through both models and gathers what consumers that see other rows are fitted to.

    Args:
        part: The consumers.
        original: The original.
        pruned: The pruned model.
        batches: The batches.
        held_out: Which examples are held out.
        lost: Whether the moments of removed features are gathered as well.

    Returns:
        Name of a consumer's site to what was gathered: what it reads now of the rows that it saw in the original, too,
        and what it read there of all rows.
    """
    found = {pair.after.site.name: Gathered() for pair in part}
    examples = 0
    for number, batch in enumerate(batches):
        held = held_out.places(number, examples, batch.size)
        before = _samples(original, batch, {pair.before.site.name: pair.after.site.name for pair in part})
        after = _samples(pruned, batch, {name: name for name in found})
        for pair in part:
            name = pair.after.site.name
            if name in before:
                _add(found[name], pair, before[name], after.get(name), batch, held, lost=lost)
        examples += batch.size
    return found


def _samples(watched: Watched, batch: Batch, names: Mapping[str, str]) -> dict[str, Sample]:
    """Runs a batch and returns what some consumers read and put out, by name in the pruned model."""
    found: dict[str, list[Sample]] = {}

    def look(seen: Seen, rows: Rows) -> None:
        if seen.site.name in names and rows.ids is not None and rows.ids.numel():
            found.setdefault(names[seen.site.name], []).append(Sample.of(seen, rows))

    watched.run_into(batch, RowsListener(watched, batch, look))
    return {name: Sample.together(samples).counted(batch) for name, samples in found.items()}


def _add(
    gathered: Gathered,
    pair: Pair,
    before: Sample,
    after: Sample | None,
    batch: Batch,
    held: torch.Tensor,
    *,
    lost: bool,
) -> None:
    if lost:
        gathered.lost.add(before.features)
    kept = pair.correspondence.kept_samples(before.features, before.outputs)
    gathered.earlier.add(*kept, before.examples(batch), held)
    if after is not None and after.count == before.count:
        here, there = matched(after.ids, before.ids)
        gathered.now.add(after.features[:, here], kept[1][:, there], after.some(here).examples(batch), held)


def matched(ids: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds numbers that two lists have in common; one that is there several times goes with as many.

    Args:
        ids, others: Tensors ``[n]`` and ``[m]``, int64.

    Returns:
        Their places in both: two tensors of one length.
    """
    times = max(len(ids), len(others), 1)
    keys, wanted = (one * times + _times_before(one) for one in (ids, others))
    order = wanted.argsort()
    places = torch.searchsorted(wanted[order], keys).clamp(max=max(0, len(others) - 1))
    if not len(others):
        return places[:0], places[:0]
    there = order[places]
    same = wanted[there] == keys
    return same.nonzero().flatten(), there[same]


def _times_before(ids: torch.Tensor) -> torch.Tensor:
    """Returns for each number how often it is there before: tensor ``[n]``."""
    order = ids.argsort(stable=True)
    places = torch.arange(len(ids), device=ids.device)
    times = torch.empty_like(ids)
    times[order] = places - torch.searchsorted(ids[order], ids[order])
    return times
