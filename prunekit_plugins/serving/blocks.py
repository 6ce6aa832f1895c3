"""Layers that differ, as DeciLM's configuration says them: data for vLLM, SGLang and TensorRT-LLM."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.plugin import ArgumentError

_CANT = "DeciLM's configuration can't say these layers."


def block_configs(model: nn.Module) -> dict[str, Any]:
    """Words the sizes of a Llama's layers as fields of a DeciLM configuration, one block for each layer.

    Engines read these fields through a configuration class that comes with such a model (``trust_remote_code``), which
    isn't part of transformers or of prunekit.

    Args:
        model: A ``LlamaForCausalLM`` without biases whose layers may differ in the width of the feed-forward and in
            heads of keys and values, or lack one of the two.

    Returns:
        ``architectures``, ``num_attention_heads``, ``num_hidden_layers`` and ``block_configs``.

    Raises:
        ArgumentError: Query heads differ, the first layer has no attention, or the model is of another kind.
        ExportError: A part of the model is of no kind that the exporter knows.
    """
    from prunekit_plugins.export.decoder import decoder_of

    biased = any(name.endswith(".bias") for name, _ in model.named_parameters())
    if type(model).__name__ != "LlamaForCausalLM" or biased:
        raise ArgumentError(
            _CANT, why=f"got {type(model).__name__}", hint="it is for a LlamaForCausalLM without biases"
        )
    decoder = decoder_of(model, "DeciLM")
    heads = {block.heads for block in decoder.blocks} - {0}
    if len(heads) != 1:
        raise ArgumentError(
            _CANT, why=f"query heads differ: {sorted(heads)}", hint="prune whole heads with uniform=True, or keep them"
        )
    if not decoder.blocks[0].heads:
        raise ArgumentError(_CANT, why="the first layer has no attention", hint="keep_first=1")
    return {
        "architectures": ["DeciLMForCausalLM"],
        "num_attention_heads": heads.pop(),
        "num_hidden_layers": len(decoder.blocks),
        "block_configs": [_block(block) for block in decoder.blocks],
    }


def _block(block: Any) -> dict[str, Any]:
    attention = {"no_op": False, "n_heads_in_group": block.heads // block.kv_heads} if block.heads else {"no_op": True}
    ffn = {"no_op": False, "intermediate_size": block.neurons} if block.neurons else {"no_op": True}
    return {"attention": attention, "ffn": ffn}
