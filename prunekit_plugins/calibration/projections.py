"""Random projections of what a model returns, whose squared gradients say by how much it moves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.program.outputs import is_logits, named_outputs
from prunekit_plugins.calibration.batches import Batch

EXAMPLES = 16
"""Examples of a batch for which there is one projection."""
FEWEST, MOST = 2, 8
"""Projections of one batch."""
_CACHE, _VALUES, _ROUTES = "the cache", "values inside the model", "how experts were chosen"
INSIDE = {
    **dict.fromkeys(("past_key_values", "cache", "cache_params", "mems", "state", "past_buckets_states"), _CACHE),
    **dict.fromkeys(("hidden_states", "last_hidden_state", "attentions", "image_hidden_states"), _VALUES),
    **dict.fromkeys(("encoder_last_hidden_state", "encoder_hidden_states", "encoder_attentions"), _VALUES),
    **dict.fromkeys(("decoder_hidden_states", "decoder_attentions", "cross_attentions"), _VALUES),
    **dict.fromkeys(("router_logits", "encoder_router_logits", "decoder_router_logits"), _ROUTES),
}
"""Names of outputs that repeat what is inside a model, and what that is; beside logits these don't count."""


def usual_count(batch: Batch, fewest: int = FEWEST) -> int:
    """Returns how many projections a batch has."""
    return min(MOST, max(fewest, batch.size // EXAMPLES))


@attrs.frozen(eq=False)
class Projections:
    """The outputs whose changes count, and the metric in which they do.

    A projection is ``<v, outputs>`` with a random ``v``: the square of its change is, on average, the squared change
    of the outputs in the metric ``E[v v^T]``.

    Of an output called ``logits``, ``[batch, classes]`` or ``[batch, positions, classes]``, what counts is the
    distribution that it stands for: ``v = (diag(r) - p r^T) s``, with its softmax ``p``, ``r`` the square roots of
    ``p`` and random signs ``s``, so that ``E[v v^T] = diag(p) - p p^T``, the Fisher information. The squared change is
    twice the Kullback-Leibler divergence, to second order (Martens, *New Insights and Perspectives on the Natural
    Gradient Method*, JMLR 2020, sections 5 and 9). Of other outputs ``v`` is ``s``: squared changes are added up.

    Attributes:
        tensors: The outputs that have gradients; without those named in `INSIDE` that stand beside logits.
        roots: Square roots of the probabilities of each, float32; None where it holds no logits.
    """

    tensors: Sequence[torch.Tensor]
    roots: Sequence[torch.Tensor | None]

    @classmethod
    def of(cls, outputs: Any) -> Projections:
        """Makes them for what a model returned."""
        named = [(name, tensor) for name, tensor in named_outputs(outputs) if tensor.requires_grad]
        beside = {name.rpartition("logits")[0] for name, tensor in named if _holds_logits(name, tensor)}
        named = [(name, tensor) for name, tensor in named if not _repeats(name, beside)]
        roots = [
            tensor.detach().float().softmax(-1).sqrt() if _holds_logits(name, tensor) else None
            for name, tensor in named
        ]
        return cls([tensor for _, tensor in named], roots)

    def draw(self, batch: Batch, generator: torch.Generator) -> list[torch.Tensor]:
        """Returns the ``v`` of one projection for each output, zero where a mask leaves positions out.

        Args:
            batch: What the outputs are of.
            generator: On the CPU, for the signs.
        """
        return [_drawn(*one, batch, generator) for one in zip(self.tensors, self.roots, strict=True)]


def _holds_logits(name: str, tensor: torch.Tensor) -> bool:
    """Whether an output stands for distributions over its last dim; a single number doesn't."""
    return is_logits(name) and tensor.dim() in (2, 3) and tensor.shape[-1] > 1


def _repeats(name: str, beside: Collection[str]) -> bool:
    """Whether an output repeats what is inside the model, by its name beside logits with some prefixes."""
    return any(
        name.startswith(prefix) and name[len(prefix) :].partition(".")[0] in INSIDE and not is_logits(name)
        for prefix in beside
    )


def _drawn(tensor: torch.Tensor, roots: torch.Tensor | None, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8, device="cpu") * 2 - 1
    signs = signs.to(tensor.device, tensor.dtype)
    counted = batch.counted(tuple(tensor.shape[:-1])) if tensor.dim() > 1 else None
    signs = signs if counted is None else signs * counted[..., None]
    if roots is None:
        return signs
    moved = roots * signs
    moved.addcmul_(roots.square(), moved.sum(-1, keepdim=True), value=-1)
    # a position that doesn't count may have no distribution at all
    return (moved if counted is None else torch.where(counted[..., None], moved, 0)).to(tensor.dtype)
