"""The original and the pruned model on the same batches: their forwards, and how far their outputs differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import torch
from torch import nn

from prunekit_core.plugins.registry import Registry
from prunekit_plugins.calibration.batches import Batch, Batches
from prunekit_plugins.calibration.observation import Watched
from prunekit_plugins.calibration.products import Grams, Output, Product, made
from prunekit_plugins.checkpoints.stored_values import Scratch
from prunekit_plugins.compensation.forwards import LEAST_ROOM, Forwards, Room
from prunekit_plugins.compensation.held_out import HeldOut

MOST_MOMENTS = 2 << 30
"""Bytes of moments that are in memory at a time beside weights on disk, at most, unless one consumer has more."""
PART_OF_MODEL = 4
"""Moments beside weights on disk, and values that forwards go on with, take one in so many of the bytes that the model
has."""


class SideBySide:
    """The original and a pruned copy on the same batches.

    Args:
        original: The original, watched.
        module: The copy.
        batches: The calibration batches.
        registry: Where rules and replacements are found.
        scratch: The values of a copy on the meta device; None where it has its own.

    Attributes:
        original: The original, watched.
    """

    def __init__(
        self, original: Watched, module: nn.Module, batches: Batches, registry: Registry, scratch: Scratch | None
    ) -> None:
        self.original, self._batches = original, batches
        self._scratch = scratch
        self._held_out: HeldOut | None = None
        self._grams = Grams()
        room = Room.beside(original) if scratch is None else Room(self._beside_files())
        pruned = Watched(module, registry, scratch, original.consumers)
        self._runs = Forwards(original, room), Forwards(pruned, room)

    @property
    def moments_room(self) -> int | None:
        """How many bytes the moments of a portion of a stage may take; None where the weights are in memory.

        Weights are on disk because memory is short, so that these are gathered in more passes rather than together.
        """
        return None if self._scratch is None else min(MOST_MOMENTS, self._beside_files())

    def _beside_files(self) -> int:
        """Returns as many bytes as a part of the model has, or `LEAST_ROOM`."""
        size = sum(one.numel() * one.element_size() for one in self.original.shadow.tensors().values())
        return max(LEAST_ROOM, size // PART_OF_MODEL)

    def watch(self, original: frozenset[str], pruned: frozenset[str]) -> None:
        """Says whose consumers are shown and numbered from now on, by names of parameters."""
        self.original.consumers = original
        self._runs[1].watched.consumers = pruned

    @property
    def pruned(self) -> Watched:
        """The copy as it is now, watched."""
        return self._runs[1].watched

    def forwards(self) -> tuple[Forwards, Forwards]:
        """Returns the forwards of the original and of the copy as it is now."""
        return self._runs

    def changed(self, name: str, values: torch.Tensor) -> None:
        """Notes that a tensor of the copy has other values; see `Forwards.changed`."""
        self._runs[1].changed(name, values)

    def batches(self, *, held: bool | None = None) -> Iterator[Batch]:
        """Yields the calibration batches.

        Args:
            held: Only the examples that are held out, or only the others; None for all. Whole batches are held out
                where there are two or more.
        """
        for _, batch in self._numbered(held):
            yield batch

    def _numbered(self, held: bool | None) -> Iterator[tuple[int, Batch]]:
        """Yields what `batches` yields, with the numbers of the batches."""
        found = enumerate(self._batches.read(self.original.device))
        if held is None:
            yield from found
            return
        held_out, examples = attrs.evolve(self.held_out, several=2), 0
        for number, batch in found:
            part = held_out.part(batch, held_out.places(number, examples, batch.size), held=held)
            examples += batch.size
            if part is not None:
                yield number, part

    @property
    def held_out(self) -> HeldOut:
        """Which examples are held out."""
        if self._held_out is None:
            sizes = [batch.size for batch in self.batches()]
            self._held_out = HeldOut(len(sizes), sum(sizes))
        return self._held_out

    def output_error(self, *, held: bool | None = None) -> float:
        """Returns the mean squared error of the copy's outputs, relative to the size of the original's.

        Positions that a mask leaves out don't count, where an output has positions; neither does what isn't finite in
        the original, nor a cache that has fewer layers than there.

        Args:
            held: See `batches`.
        """
        original, pruned = self.forwards()
        wrong = size = 0.0
        for number, batch in self._numbered(held):
            expected, found = original.outputs(number, batch), pruned.outputs(number, batch)
            for a, b in _paired(expected, found):
                off, of = self._product_errors(a, b, batch) or _errors(made(a), made(b), batch)
                wrong, size = wrong + off, size + of
        return wrong / size if size else float("nan")

    def _product_errors(self, a: Output, b: Output, batch: Batch) -> tuple[float, float] | None:
        """Returns what `_errors` does for outputs of one weight that aren't made; None where they have to be."""
        if not isinstance(a, Product) or not isinstance(b, Product) or not a.beside(b):
            return None
        if torch.finfo(a.weight.dtype).bits < 32:  # outputs are rounded
            return None
        samples, features = a.features.numel() // a.features.shape[-1], a.features.shape[-1]
        if samples * self.held_out.batches < features:  # they are sooner made
            return None
        mine, theirs = _counted(a.features, b.features, batch)
        gram = self._grams.of(a.weight)
        if not all(bool(part.isfinite().all()) for part in (mine, theirs, gram)):
            return None
        return self._grams.squares(mine - theirs, a.weight), self._grams.squares(mine, a.weight)


def _counted(a: torch.Tensor, b: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Leaves out positions that don't count."""
    counted = batch.counted(tuple(a.shape[:-1])) if a.dim() > 1 else None
    return (a, b) if counted is None else (a[counted], b[counted])


def _errors(a: torch.Tensor, b: torch.Tensor, batch: Batch) -> tuple[float, float]:
    """Returns the sums of squared differences of an output, and of its squares."""
    if not a.is_floating_point() or a.shape != b.shape:
        return 0.0, 0.0
    a, b = _counted(a, b, batch)
    finite = a.isfinite()
    if not bool(finite.all()):
        a, b = a[finite], b[finite]
    wide = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(wide), b.to(wide)
    return _squares(a - b), _squares(a)


def _squares(values: torch.Tensor) -> float:
    """Returns the sum of squares: rows in their own type, as their sum in float64 takes longer than the layer."""
    return float(values.square().sum(-1).sum(dtype=torch.float64))


def _paired(
    expected: Sequence[tuple[str, Output]], found: Sequence[tuple[str, Output]]
) -> Iterator[tuple[Output, Output]]:
    """Yields the outputs of both models that are the same: all that lie in one where these have the same names."""
    heads: dict[str, list[list[str]]] = {}
    for side, outputs in enumerate((expected, found)):
        for name, _ in outputs:
            heads.setdefault(name.partition(".")[0], [[], []])[side].append(name)
    there = dict(found)
    for name, tensor in expected:
        before, after = heads[name.partition(".")[0]]
        if before == after:
            yield tensor, there[name]
