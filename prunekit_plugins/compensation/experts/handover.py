"""Whom tokens are sent to once some experts can't be chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs
import torch

from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.experts.mixtures import MixturesFound
from prunekit_plugins.calibration.experts.turns import MixtureListener, SeenMixture, Turn
from prunekit_plugins.calibration.observation import Watched


@attrs.frozen(eq=False)
class Handover:
    """What becomes of the tokens of the experts of one mixture.

    Attributes:
        routed: Tensor ``[units]``, float64: how many tokens were sent to an expert of each unit.
        taken: Tensor ``[units, units]``, float64: how many tokens of the experts of a unit that leaves (rows) are sent
            to a unit (columns) that they weren't sent to before. A token that is sent to several others counts for
            each in part.
    """

    routed: torch.Tensor
    taken: torch.Tensor


def handovers(
    original: Watched, found: MixturesFound, leave: Mapping[str, Sequence[int]], batches: Iterable[Batch]
) -> dict[str, Handover]:
    """Runs the original twice on each batch: as it is, and with the experts that leave at minus infinity in the router.

    What mixtures put out in the first run is what the program goes on with in the second one, so that each sees the
    tokens that it sees in the original.

    Args:
        original: The model before the cut.
        found: Its mixtures.
        leave: Group to the units that leave; only these mixtures are looked at.
        batches: The batches.

    Returns:
        Group to what becomes of its tokens; without those that a batch didn't show.
    """
    mixtures = [found.mixtures[group] for group in leave]
    sums = {one.group: Handover(_zeros(one.units), _zeros(one.units, one.units)) for one in mixtures}
    for batch in batches:
        whole = MixtureListener(original, found, mixtures, batch, Turn.WHOLE, {}, 0)
        original.run_into(batch, whole)
        whole.finish()
        shown = [one for one in mixtures if one.group in whole.seen]
        without = MixtureListener(original, found, shown, batch, Turn.GONE, whole.seen, 0, gone=leave)
        original.run_into(batch, without)
        without.finish()
        for group in leave:
            if group not in without.outputs:
                sums.pop(group, None)
            elif group in sums:
                _add(sums[group], whole.seen[group], without.units[group], leave[group])
    return sums


def _zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float64, device="cpu")


def _add(sums: Handover, seen: SeenMixture, after: torch.Tensor, leave: Sequence[int]) -> None:
    counted = seen.counted.cpu()
    before, after = seen.chosen.cpu()[counted], after.cpu()[counted]
    sums.routed.add_(torch.bincount(before.flatten(), minlength=len(sums.routed)))
    old, new = (_zeros(len(before), len(sums.routed)).scatter_(1, units, 1.0) for units in (before, after))
    lost, gained = torch.zeros_like(old), new * (1 - old)
    lost[:, [*leave]] = old[:, [*leave]]
    sums.taken.add_(lost.T @ (gained / gained.sum(1, keepdim=True).clamp(min=1)))
