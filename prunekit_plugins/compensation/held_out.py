"""Which calibration data are held out: what is fitted to the rest is kept as far as it helps there."""

from __future__ import annotations

import attrs
import torch

from prunekit_core.torch_private.trees import pytree
from prunekit_plugins.calibration.batches import Batch

EVERY = 5
"""One example, or one batch, in this many is held out."""


@attrs.frozen
class HeldOut:
    """Which examples are held out: those of whole batches where there are several, else single ones.

    Samples of one example (positions of an image, tokens of a text) stay together; so do those of a batch, which may
    come from one source. With fewer than `EVERY` examples the last one is held out, and none where there is only one.

    Attributes:
        batches: Number of batches.
        examples: Number of examples in all of them.
        several: So many batches are held out whole.
    """

    batches: int
    examples: int
    several: int = EVERY

    def places(self, number: int, first: int, size: int) -> torch.Tensor:
        """Tells which examples of a batch are held out.

        Args:
            number: Of the batch.
            first: Number of examples before it.
            size: Number of its examples.

        Returns:
            Bool tensor ``[size]``.
        """
        if self.batches >= self.several:
            every = min(EVERY, self.batches)
            return torch.full((size,), number % every == every - 1, device="cpu")
        every = min(EVERY, self.examples)
        places = torch.arange(first, first + size, device="cpu")
        return (places % every == every - 1) & (self.examples > 1)

    def part(self, batch: Batch, places: torch.Tensor, *, held: bool) -> Batch | None:
        """Returns the examples of a batch that are held out, or the others; None where there are none.

        Args:
            batch: The batch.
            places: What `places` says of it.
            held: Which ones.
        """
        chosen = places == held
        if bool(chosen.all()):
            return batch
        if not bool(chosen.any()):
            return None

        def some(value: torch.Tensor) -> torch.Tensor:
            return value[chosen.to(value.device)] if value.dim() and len(value) == batch.size else value

        found = batch.cut(lambda values: pytree.tree_map_only(torch.Tensor, some, values))
        mask = None if batch.mask is None else some(batch.mask)
        return attrs.evolve(found, mask=mask, size=int(chosen.sum()))
