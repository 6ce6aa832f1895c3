"""Which consumers see the same rows in a pruned model as in the original, and which see others.

An expert is sent other tokens once something before its router was cut. What it puts out can't be compared row by row
with what it put out before, but for the tokens that it is sent in both models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
import torch

from prunekit_core.modules.renaming import Renaming
from prunekit_core.torch_private.trees import pytree
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.observation import Watched
from prunekit_plugins.calibration.rows.following import Runs


@attrs.frozen
class Steadiness:
    """The consumers of two models by the rows that they see, as names of parameters of the original.

    Attributes:
        steady: Those that see the same rows in both, on any batch.
        picked: Those that may see others, whose rows are known.
        lost: Those that may see others, which can't be told.
    """

    steady: frozenset[str]
    picked: frozenset[str]
    lost: frozenset[str]


def steadiness(
    original: Watched, pruned: Callable[[], Watched], renaming: Renaming, batches: Iterable[Batch]
) -> Steadiness | None:
    """Runs both models and compares which rows their consumers read.

    A consumer is steady if no value has a part in which rows it reads, and it reads the same rows in both models on
    all batches, and in the original on the first batch with its examples in another order.

    Args:
        original: The original.
        pruned: Makes the pruned model, watched.
        renaming: What names become.
        batches: The batches.

    Returns:
        The consumers; None where values decide nothing in the original on the first batch: all are steady.
    """
    found, other = _Compared(), None
    for batch in batches:
        before = Runs.of(original, batch)
        if other is None:
            if not before.decides:
                return None
            other = pruned()
            found.add(before, Runs.of(original, _turned(batch)), str)
        found.add(before, Runs.of(other, batch), renaming.after)
    return found.result()


class _Compared:
    """What was found out so far."""

    def __init__(self) -> None:
        self._seen: dict[str, None] = {}
        self._moving: set[str] = set()
        self._lost: set[str] = set()

    def add(self, before: Runs, after: Runs, renamed: Callable[[str], str | None]) -> None:
        """Compares two forwards."""
        for name, rows in before.rows.items():
            new = renamed(name)
            if new is None:
                continue
            others = after.rows.get(new, [])
            self._seen[name] = None
            if len(rows) == len(others) and all(a.equals(b) for a, b in zip(rows, others, strict=True)):
                continue
            self._moving.add(name)
            if any(one.ids is None for one in (*rows, *others)):
                self._lost.add(name)

    def result(self) -> Steadiness:
        """Returns what was found."""
        steady = frozenset(self._seen) - self._moving
        return Steadiness(steady, frozenset(self._moving - self._lost), frozenset(self._lost))


def _turned(batch: Batch) -> Batch:
    """Returns a batch whose examples are in another order."""

    def turn(value: torch.Tensor) -> torch.Tensor:
        return value.roll(1, 0) if value.dim() and len(value) == batch.size else value

    turned = batch.cut(lambda values: pytree.tree_map_only(torch.Tensor, turn, values))
    return attrs.evolve(turned, size=batch.size)
