"""Words with places for a picture, for models that put what they see of a picture in place of a token's embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

MARKS = ("image_token_id", "image_token_index")
"""Where a configuration keeps the id of the token in whose places a picture is seen."""
GRID = "image_grid_thw"
SIDE = 4
"""Patches along a side of a picture that a model takes in patches."""


def words_with_pictures(
    model: Any, words: torch.Tensor, picture: torch.Tensor, generator: torch.Generator
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields inputs of words and a picture with as many places for it as the model makes features of it.

    Args:
        model: A ``transformers.PreTrainedModel``.
        words: Token ids ``[1, tokens]``.
        picture: ``[1, channels, height, width]``.
        generator: What random patches are drawn with.

    Returns:
        ``input_ids``, ``pixel_values`` and what the model takes along with them; nothing where it has no such token.
    """
    mark = next((int(value) for name in MARKS if isinstance(value := getattr(model.config, name, None), int)), None)
    if mark is None or not hasattr(model, "get_image_features"):
        return
    takes = inspect.signature(model.forward).parameters
    for seen in _forms(model.config, picture, takes, generator):
        count = _features(model, seen)
        if count:
            plain = words.masked_fill(words == mark, mark - 1 if mark else 1)
            places = torch.full((1, count), mark, dtype=words.dtype, device="cpu")
            ids = torch.cat([plain[:, :3], places, plain[:, 3:]], dim=1)
            kinds = {"mm_token_type_ids": (ids == mark).long()} if "mm_token_type_ids" in takes else {}
            yield {"input_ids": ids, **seen, **kinds}


def _forms(config: Any, picture: torch.Tensor, takes: Any, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Yields a picture as models take it: a grid of patches, pixels, or pixels of one of several pictures."""
    if GRID in takes:
        part = getattr(config, "vision_config", config)
        width = picture.shape[1] * getattr(part, "temporal_patch_size", 1) * getattr(part, "patch_size", 1) ** 2
        patches = torch.randn((SIDE * SIDE, width), generator=generator, device="cpu")
        yield {"pixel_values": patches, GRID: torch.tensor([[1, SIDE, SIDE]], device="cpu")}
    else:
        yield {"pixel_values": picture}
        yield {"pixel_values": picture[:, None]}


def _features(model: Any, seen: dict[str, Any]) -> int:
    """Counts the places that a picture takes; 0 where the model doesn't take it in this form."""
    device, dtype = next(model.parameters()).device, model.dtype
    given = {name: v.to(device, dtype) if v.is_floating_point() else v.to(device) for name, v in seen.items()}
    try:
        with torch.no_grad():
            found = model.get_image_features(**given)
    except Exception:  # whatever a model raises on pictures of another form
        return 0
    features = getattr(found, "pooler_output", found)
    parts = [features] if isinstance(features, torch.Tensor) else features
    return sum(part.numel() // part.shape[-1] for part in parts)
