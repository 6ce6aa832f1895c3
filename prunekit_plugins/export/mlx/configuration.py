"""The configuration with which mlx-lm builds a decoder: the model's own, or ``nemotron-nas`` where layers differ."""

from __future__ import annotations

from typing import Any

from prunekit_plugins.export.decoder import Block, Decoder
from prunekit_plugins.export.mlx.refusal import UNIFORM, refused
from prunekit_plugins.export.refusal import KEPT

WHOLE = 256
"""Feed-forwards of ``nemotron-nas`` are multiples of this."""


def configuration_of(decoder: Decoder) -> dict[str, Any]:
    """Makes a ``config.json`` of a decoder's real sizes.

    Raises:
        ExportError: mlx-lm has no configuration for it.
    """
    config: Any = decoder.model.config
    found = {**config.to_dict(), **_shared(decoder)}
    if not decoder.uniform:
        return {**found, **_of_blocks(decoder), "architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas"}
    first = decoder.blocks[0]
    if decoder.family == "qwen2" and first.heads * decoder.head_dim != decoder.hidden:
        why = f"{first.heads} query heads of {decoder.head_dim}, in layers of width {decoder.hidden}"
        raise refused(f"{why}: qwen2 computes the width of a head from the others", KEPT)
    return {
        **found,
        "num_attention_heads": first.heads,
        "num_key_value_heads": first.kv_heads,
        "intermediate_size": first.neurons,
        "head_dim": decoder.head_dim,
    }


def _shared(decoder: Decoder) -> dict[str, Any]:
    """What both kinds of configuration say; the positions as every version of mlx-lm reads them."""
    config: Any = decoder.model.config
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    parameters.pop("rope_theta", None)
    scaled = parameters.get("rope_type", "default") != "default"
    return {
        "hidden_size": decoder.hidden,
        "num_hidden_layers": len(decoder.blocks),
        "vocab_size": decoder.vocabulary,
        "rms_norm_eps": decoder.epsilon,
        "max_position_embeddings": decoder.context,
        "tie_word_embeddings": decoder.tied,
        "rope_theta": decoder.rotary.base,
        "rope_scaling": parameters if scaled else None,
    }


def _of_blocks(decoder: Decoder) -> dict[str, Any]:
    heads = {block.heads for block in decoder.blocks} - {0}
    if decoder.family != "llama" or any(name.endswith(".bias") for name in decoder.tensors):
        raise refused(f"{decoder.differing()}; mlx-lm takes layers that differ of Llama without biases only", UNIFORM)
    if len(heads) != 1 or heads != {decoder.hidden / decoder.head_dim}:
        why = f"query heads {sorted(heads)} of {decoder.head_dim}, in layers of width {decoder.hidden}"
        raise refused(f"{why}: nemotron-nas computes the width of a head from the others", KEPT)
    blocks = [_block(block, place, decoder.hidden) for place, block in enumerate(decoder.blocks)]
    return {"num_attention_heads": heads.pop(), "block_configs": blocks, "attention_bias": False, "mlp_bias": False}


def _block(block: Block, place: int, hidden: int) -> dict[str, Any]:
    if block.neurons % WHOLE:
        raise refused(
            f"layer {place} has {block.neurons} neurons", "prune with round_to=256, or keep the feed-forwards alike"
        )
    attention = {"no_op": False, "n_heads_in_group": block.heads // block.kv_heads} if block.heads else {"no_op": True}
    neurons = {"no_op": False, "ffn_mult": block.neurons * 3 / (2 * hidden)} if block.neurons else {"no_op": True}
    return {"attention": attention, "ffn": neurons}
