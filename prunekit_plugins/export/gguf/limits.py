"""What an architecture of llama.cpp computes whatever a file says: a model that computes something else is refused."""

from __future__ import annotations

import math
from typing import Any

from prunekit_plugins.export.decoder import Decoder
from prunekit_plugins.export.gguf.families import Form, refused
from prunekit_plugins.export.gguf.positions import check_positions


def check_limits(decoder: Decoder, form: Form) -> None:
    """Makes sure that an architecture computes what a decoder does.

    Args:
        decoder: The decoder.
        form: llama.cpp's architecture for it.

    Raises:
        ExportError: It computes something else.
    """
    check_positions(decoder, form)
    _check_rotated(decoder, form)
    _check_fixed(decoder, form)
    if form.windows:
        period_of(decoder, form)
    if form.embedding:
        _check_embedding(decoder, form)
    layers = len(decoder.blocks)
    latent = decoder.blocks[0].latent
    if layers in form.direct and latent is not None and latent.queries:
        raise refused(
            f"there are {layers}, and queries come of a state (q_lora_rank); with so many layers llama.cpp's "
            f"{form.architecture} computes them from the hidden state",
            "keep another number of layers, or --to onnx",
        )


def period_of(decoder: Decoder, form: Form) -> int:
    """Returns of how many layers the last one has no window: 1 where none has one, 0 where all have.

    Raises:
        ExportError: It is another number here and there, or windows differ.
    """
    layers, window = len(decoder.windows), max(decoder.windows)
    periods: list[int] = [form.windows, *range(layers + 1)]
    for period in periods:
        if decoder.windows == tuple(
            0 if period and place % period == period - 1 else window for place in range(layers)
        ):
            return period
    raise refused(
        f"windows of {', '.join(str(window or 'all') for window in decoder.windows)} tokens; llama.cpp's "
        f"{form.architecture} takes windows of one length for all layers but every so many",
        "keep all layers, or --to onnx",
    )


def _check_fixed(decoder: Decoder, form: Form) -> None:
    config: Any = decoder.model.config
    for field, (expected, *_) in form.fixed.items():
        found = getattr(config, field, expected)
        if (found or None) != (expected or None):
            raise refused(f"it is {found}; llama.cpp's {form.architecture} computes with {expected}", where=field)


def _check_embedding(decoder: Decoder, form: Form) -> None:
    model: Any = decoder.model
    found = float(model.model.embed_tokens.embed_scale)
    if not math.isclose(found, decoder.hidden**0.5, rel_tol=1e-2):  # half precision rounds the model's
        raise refused(
            f"its rows are multiplied by {found:.4g}; llama.cpp's {form.architecture} multiplies them by the root of "
            f"their width, {decoder.hidden**0.5:.4g}",
            'prune(..., serve="gguf") keeps the width',
            where="model.embed_tokens",
        )


def _check_rotated(decoder: Decoder, form: Form) -> None:
    model: Any = decoder.model
    attentions = [getattr(layer, "self_attn", None) for layer in model.model.layers]
    for place, attention in enumerate(attentions):
        rotates = bool(getattr(attention, "use_rope", True))
        expected = not form.unrotated or (place + 1) % form.unrotated != 0
        if attention is not None and rotates != expected:
            told = f"it is {form.unrotated}, {2 * form.unrotated} and so on" if form.unrotated else "it is none"
            raise refused(
                f"queries and keys are {'' if rotates else 'not '}rotated by their position there; of layers that "
                f"aren't, counted from 1, {told} in llama.cpp's {form.architecture}",
                "keep the number of layers and no_rope_layers as they are, or --to onnx",
                where=f"layer {place}",
            )
