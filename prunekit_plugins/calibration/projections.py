"""Random projections of what a model returns, whose squared gradients say by how much it moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch

from prunekit_core.program.outputs import is_logits, named_outputs
from prunekit_plugins.calibration.batches import Batch

EXAMPLES = 16
"""Examples of a batch for which there is one projection."""
FEWEST, MOST = 2, 8
"""Projections of one batch."""
INSIDE = (
    *("past_key_values", "cache", "hidden_states", "attentions", "last_hidden_state"),
    *("encoder_last_hidden_state", "encoder_hidden_states", "encoder_attentions"),
    *("decoder_hidden_states", "decoder_attentions", "cross_attentions", "router_logits"),
)
"""Outputs that repeat what is inside a model; where there are logits, these don't count."""


def usual_count(batch: Batch) -> int:
    """Returns how many projections a batch has."""
    return min(MOST, max(FEWEST, batch.size // EXAMPLES))


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
        tensors: The outputs that have gradients; without those named in `INSIDE` where there are logits.
        roots: Square roots of the probabilities of each, float32; None where it holds no logits.
    """

    tensors: Sequence[torch.Tensor]
    roots: Sequence[torch.Tensor | None]

    @classmethod
    def of(cls, outputs: Any) -> Projections:
        """Makes them for what a model returned."""
        named = [(name, tensor) for name, tensor in named_outputs(outputs) if tensor.requires_grad]
        if any(map(_holds_logits, *zip(*named, strict=True)) if named else ()):
            named = [(name, tensor) for name, tensor in named if name.partition(".")[0] not in INSIDE]
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


def _drawn(tensor: torch.Tensor, roots: torch.Tensor | None, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8, device="cpu") * 2 - 1
    signs = signs.to(tensor.device, tensor.dtype)
    counted = batch.counted(tuple(tensor.shape[:-1])) if tensor.dim() > 1 else None
    signs = signs if counted is None else signs * counted[..., None]
    if roots is None:
        return signs
    moved = roots * signs
    return moved.addcmul_(roots.square(), moved.sum(-1, keepdim=True), value=-1).to(tensor.dtype)
