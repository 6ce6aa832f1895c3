"""What an architecture of llama.cpp computes whatever a file says: a model that computes something else is refused."""

from __future__ import annotations

from typing import Any

from prunekit_plugins.export.decoder import Decoder
from prunekit_plugins.export.gguf.families import Form, refused


def check_limits(decoder: Decoder, form: Form) -> None:
    """Makes sure that an architecture computes what a decoder does.

    Args:
        decoder: The decoder.
        form: llama.cpp's architecture for it.

    Raises:
        ExportError: It computes something else.
    """
    _check_rotated(decoder, form)


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
