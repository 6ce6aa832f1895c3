"""SLEB (Song et al., "Streamlining LLMs through Redundancy Verification and Elimination of Transformer Blocks", 2024).

Layer after layer goes, each time the one without which the loss on the calibration text is lowest. The layers before
the candidate are run once for all candidates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .budget import Budget, layers_to_go
from .decoder import drop_layers, layers_of
from .evidence import Evidence

WINDOWS = 8
"""So many windows are enough to compare layers; each layer that goes costs half a pass for each one that is left."""


@torch.no_grad()
def losses(model: Any, ids: Tensor) -> list[float]:
    """The loss without each of the layers in turn."""
    layers, found = layers_of(model), []
    stream = model.model.embed_tokens(ids)
    for number in range(len(layers)):
        model.model.layers = nn.ModuleList([*layers[number + 1 :]])
        logits = model(inputs_embeds=stream, use_cache=False).logits[:, :-1]
        found.append(float(nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())))
        model.model.layers = nn.ModuleList([layers[number]])
        stream = _after(model, stream)
    model.model.layers = layers
    return found


def _after(model: Any, stream: Tensor) -> Tensor:
    """The stream after the layers, without the last norm."""
    seen: list[Tensor] = []
    hook = layers_of(model)[-1].register_forward_hook(lambda _, args, out: seen.append(out))
    model.model(inputs_embeds=stream, use_cache=False)
    hook.remove()
    return seen[0]


def prune(model: Any, evidence: Evidence, budget: Budget) -> None:
    """Cuts a copy of the model that the evidence is of."""
    ids = torch.cat(evidence.batches)[:WINDOWS]
    for _ in range(layers_to_go(evidence.sizes, budget)):
        found = losses(model, ids)
        drop_layers(model, [min(range(len(found)), key=found.__getitem__)])
