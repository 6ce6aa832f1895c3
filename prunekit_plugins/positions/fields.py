"""Fields of configurations that say how many positions there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COUNTS = (
    *("max_position_embeddings", "max_encoder_position_embeddings", "max_decoder_position_embeddings"),
    *("max_source_positions", "max_target_positions", "max_positions", "max_position", "num_positions", "n_positions"),
    *("n_ctx", "n_text_ctx", "ctx_len", "context_length", "max_context_length", "block_size"),
    *("max_seq_len", "max_seq_length", "max_sequence_length", "max_len", "max_length", "seq_len", "seq_length"),
    "model_max_length",
)
"""Their names, in configurations of transformers and in those that people write."""


def recounted(name: str, value: Any, sizes: Mapping[int, int]) -> Any:
    """Returns the value of a field with fewer positions; the same value where it says something else.

    Args:
        name: Its name.
        value: Its value.
        sizes: The number of positions, and of rows of tables, to what they become.
    """
    return sizes.get(value, value) if name in COUNTS and type(value) is int else value
