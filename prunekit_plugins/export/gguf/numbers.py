"""The numbers in a GGUF file: sizes of the tensors and settings of a decoder, by the keys that llama.cpp reads."""

from __future__ import annotations

from typing import Any

from prunekit_plugins.export.decoder import Block, Decoder
from prunekit_plugins.export.gguf.experts import add_experts
from prunekit_plugins.export.gguf.families import Form
from prunekit_plugins.export.gguf.limits import period_of
from prunekit_plugins.export.gguf.positions import add_positions
from prunekit_plugins.export.gguf.tensors import IDLE


def add_numbers(writer: Any, decoder: Decoder, form: Form) -> None:
    """Adds the numbers of a decoder to a file that is written.

    Args:
        writer: gguf's ``GGUFWriter``.
        decoder: The decoder.
        form: llama.cpp's architecture for it.
    """
    blocks = decoder.blocks
    neurons = [_written_neurons(block) for block in blocks]
    writer.add_block_count(len(blocks))
    writer.add_context_length(decoder.context)
    writer.add_embedding_length(decoder.hidden)
    writer.add_feed_forward_length(neurons if form.by_layer else neurons[0])
    writer.add_layer_norm_rms_eps(decoder.epsilon)
    _add_heads(writer, decoder, form)
    writer.add_vocab_size(decoder.vocabulary)
    add_positions(writer, decoder, form)
    add_experts(writer, decoder, form)
    if form.windows:
        _add_windows(writer, decoder, form)


def _add_heads(writer: Any, decoder: Decoder, form: Form) -> None:
    """Adds sizes of heads; those of a latent state are one head of keys, which values are a part of."""
    blocks, latent = decoder.blocks, decoder.blocks[0].latent
    heads, kv_heads = [block.heads for block in blocks], [block.kv_heads for block in blocks]
    writer.add_head_count(heads if form.by_layer else heads[0])
    if latent is None:
        writer.add_head_count_kv(kv_heads if form.by_layer else kv_heads[0])
        writer.add_key_length(decoder.head_dim)
        writer.add_value_length(decoder.head_dim)
        return
    writer.add_head_count_kv(1)
    writer.add_key_length(latent.keys + latent.rotated)
    writer.add_value_length(latent.keys)
    writer.add_key_length_mla(decoder.head_dim)
    writer.add_value_length_mla(latent.values)
    writer.add_q_lora_rank(latent.queries)
    writer.add_kv_lora_rank(latent.keys)


def _add_windows(writer: Any, decoder: Decoder, form: Form) -> None:
    writer.add_sliding_window(max(decoder.windows) or decoder.context)
    writer.add_sliding_window_pattern(period_of(decoder, form))


def _written_neurons(block: Block) -> int:
    """Neurons in the file: a layer of ``deci`` without a feed-forward would lose its attention, too."""
    return block.neurons or (IDLE if block.heads else 0)
