"""Tensors of transformers in the layouts of mlx-lm: packed projections taken apart, those of experts turned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prunekit_plugins.export import packed
from prunekit_plugins.export.mlx.family import Change
from prunekit_plugins.export.packed import halves, whole


def queries_keys_values(tensor: torch.Tensor, config: Any) -> Sequence[torch.Tensor]:
    """Takes a packed projection apart."""
    return packed.by_heads(tensor, config.num_attention_heads, config.num_key_value_heads)


def embedded(tensor: torch.Tensor, config: Any) -> Sequence[torch.Tensor]:
    """Makes up for the root of the width by which mlx-lm multiplies embeddings: it rounds it to bfloat16."""
    return ((tensor.double() * _rounded_off(tensor, config)).to(tensor.dtype),)


def normed(tensor: torch.Tensor, config: Any) -> Sequence[torch.Tensor]:
    """Makes up in the last norm, which multiplies by ``1 + weight``, for `embedded` where the head is the embedding."""
    if not config.tie_word_embeddings:
        return (tensor,)
    return (((1 + tensor.double()) / _rounded_off(tensor, config) - 1).to(tensor.dtype),)


def _rounded_off(tensor: torch.Tensor, config: Any) -> float:
    """Returns the factor of embeddings in transformers, in the dtype of the weights, divided by that in mlx-lm."""
    root = torch.tensor(config.hidden_size**0.5, device="cpu")
    return float(root.to(tensor.dtype)) / float(root.to(torch.bfloat16).to(tensor.dtype))


def experts(old: str, new: str) -> tuple[Change, ...]:
    """Says where the experts of a layer lie, whose gates and up projections transformers packs."""
    gate_up = tuple(f"{new}.{name}_proj.weight" for name in ("gate", "up"))
    return (
        Change(f"{old}.gate_up_proj", gate_up, halves),
        Change(f"{old}.down_proj", (f"{new}.down_proj.weight",), whole),
    )
