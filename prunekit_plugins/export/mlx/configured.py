"""A model whose own configuration says all its numbers: the configuration and the tensors of mlx-lm."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from prunekit_plugins.export.mlx.family import MlxFamily
from prunekit_plugins.export.mlx.limits import positions_by_kind, reasons
from prunekit_plugins.export.mlx.refusal import refused


def written(model: Any, family: MlxFamily) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Returns a ``config.json`` and the tensors of a model, which mlx-lm's own ``sanitize`` may still rearrange.

    Args:
        model: A model of transformers.
        family: Its family.

    Raises:
        ExportError: mlx-lm has no place for something of the model.
    """
    for why, hint in reasons(model, family):
        raise refused(why, hint, type(model).__name__)
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = model.lm_head.weight is model.model.embed_tokens.weight
    found = {**config.to_dict(), **_positions(config), **family.said(config), "model_type": family.kind}
    return found, dict(_tensors(model, config, family))


def _positions(config: Any) -> Mapping[str, Any]:
    """Words the rotary parameters for all layers as every version of mlx-lm reads them."""
    parameters = dict(positions_by_kind(config).get("", {}))
    base = parameters.pop("rope_theta", 10000.0)
    scaled = parameters.get("rope_type", "default") != "default"
    return {"rope_theta": base, "rope_scaling": parameters if scaled else None}


def _tensors(model: Any, config: Any, family: MlxFamily) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields mlx-lm's tensors, each in memory of its own."""
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and family.tied and config.tie_word_embeddings:
            continue
        held = tensor.detach().cpu()
        change = next((one for one in family.changes if name.endswith(one.old)), None)
        if change is None:
            yield name, held.clone(memory_format=torch.contiguous_format)
            continue
        for new, part in zip(change.new, change.cut(held, config), strict=True):
            yield name.removesuffix(change.old) + new, part.clone(memory_format=torch.contiguous_format)
