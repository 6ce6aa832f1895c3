"""Decoders of the Llama family as data: their sizes layer by layer, and their tensors by what they are for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_plugins.export.comparison import ExportError

FAMILIES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
"""Class of the model to its family."""


@attrs.frozen
class Block:
    """Sizes of a layer.

    Attributes:
        heads: Query heads; 0 where the attention is gone.
        kv_heads: Heads of keys and values.
        neurons: Width of the feed-forward; 0 where it is gone.
    """

    heads: int
    kv_heads: int
    neurons: int


@attrs.frozen(eq=False)
class Decoder:
    """A causal language model of the Llama family.

    Attributes:
        family: ``"llama"``, ``"qwen2"`` or ``"qwen3"``.
        model: The model.
        blocks: Its layers.
        hidden: Width of what goes from layer to layer.
        head_dim: Width of a head.
        vocabulary: Rows of the embedding.
        tied: Whether the head is the embedding.
        epsilon: What the norms add.
        context: Positions that the model was made for.
        base: Base of the rotary frequencies.
        slowing: What the frequencies of that base are divided by to give the model's, ``[head_dim / 2]``; None where
            they are the same.
        tensors: Name in the state dict to tensor.
    """

    family: str
    model: nn.Module
    blocks: tuple[Block, ...]
    hidden: int
    head_dim: int
    vocabulary: int
    tied: bool
    epsilon: float
    context: int
    base: float
    slowing: torch.Tensor | None
    tensors: Mapping[str, torch.Tensor]

    @property
    def uniform(self) -> bool:
        """Whether all layers have the same sizes, and none of them lacks a branch."""
        first = self.blocks[0]
        return set(self.blocks) == {first} and bool(first.heads and first.neurons)

    def differing(self) -> str:
        """Says which layers differ from the first one, in a few words."""
        found = []
        for place, block in enumerate(self.blocks):
            if not block.heads or not block.neurons:
                found.append(f"layer {place} has no {'attention' if not block.heads else 'feed-forward'}")
            elif block != self.blocks[0]:
                found.append(f"layer {place} is {block}, layer 0 {self.blocks[0]}")
        return "; ".join(found[:3]) + ("; ..." if found[3:] else "")


def decoder_of(model: Any, engine: str) -> Decoder:
    """Reads a model's sizes off its tensors.

    Args:
        model: A model of transformers.
        engine: What it is read for, in messages.

    Raises:
        ExportError: It is of no known family, or something about it is another than the family's.
    """
    name = type(model).__name__
    if name not in FAMILIES:
        raise _refused(
            engine, name, f"families that are known: {', '.join(sorted(FAMILIES))}", "--to onnx takes every model"
        )
    config = model.config
    tensors = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    odd = sorted({str(t.dtype) for t in tensors.values()} - {"torch.float32", "torch.float16", "torch.bfloat16"})
    if odd:
        raise _refused(engine, name, f"weights of {', '.join(odd)}", "prune and export first, quantise then")
    if getattr(config, "hidden_act", "silu") != "silu":
        raise _refused(engine, name, f"the activation is {config.hidden_act}, not silu")
    if getattr(config, "layer_types", None) and set(config.layer_types) != {"full_attention"}:
        raise _refused(engine, name, "layers with sliding windows")
    blocks = tuple(_block(layer, place, engine) for place, layer in enumerate(model.model.layers))
    heads = {_width(layer) for layer in model.model.layers} - {0}
    if len(heads) != 1:
        raise _refused(engine, name, f"widths of heads: {sorted(heads)}", "prune with prune_head_dims=False")
    head_dim, head = heads.pop(), tensors["lm_head.weight"]
    embedding = tensors["model.embed_tokens.weight"]
    if head.shape[0] != embedding.shape[0] or "lm_head.bias" in tensors:
        raise _refused(engine, name, f"the head has {head.shape[0]} rows, the embedding {embedding.shape[0]}")
    base, slowing = _rotary(model, head_dim, engine)
    return Decoder(
        FAMILIES[name],
        model,
        blocks,
        embedding.shape[1],
        head_dim,
        embedding.shape[0],
        model.lm_head.weight is model.model.embed_tokens.weight,
        config.rms_norm_eps,
        config.max_position_embeddings,
        base,
        slowing,
        tensors,
    )


def _refused(engine: str, where: str, why: str, hint: str = "--to onnx takes every model") -> ExportError:
    return ExportError(
        f"The model can't be exported to {engine}; nothing was written.", where=where, why=why, hint=hint
    )


def _width(layer: Any) -> int:
    """Returns the width of a layer's heads; 0 where it has no attention."""
    attention = getattr(layer, "self_attn", None)
    if attention is None or not isinstance(getattr(attention, "q_proj", None), nn.Linear):
        return 0
    return int(attention.head_dim)


def _block(layer: Any, place: int, engine: str) -> Block:
    where, attention, mlp = f"layer {place}", getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    queries, values = getattr(attention, "q_proj", None), getattr(attention, "v_proj", None)
    heads = kv_heads = 0
    if isinstance(queries, nn.Linear) and isinstance(values, nn.Linear) and attention is not None:
        width = int(attention.head_dim)
        heads, kv_heads = queries.out_features // width, attention.k_proj.out_features // width
        even = heads * width == queries.out_features and kv_heads * width == attention.k_proj.out_features
        if not even or values.out_features != attention.k_proj.out_features:
            why = f"queries {queries.out_features}, values {values.out_features}, heads of {width}"
            raise _refused(engine, where, why, "prune with prune_head_dims=False")
        if heads != kv_heads * attention.num_key_value_groups or attention.scaling != width**-0.5:
            why = f"its heads of {width} are grouped or scaled in another way"
            raise _refused(engine, where, why, "prune with prune_head_dims=False")
    gate = getattr(mlp, "gate_proj", None)
    return Block(heads, kv_heads, gate.out_features if isinstance(gate, nn.Linear) else 0)


def _rotary(model: Any, head_dim: int, engine: str) -> tuple[float, torch.Tensor | None]:
    """Reads the base of the rotary frequencies, and how much slower the model's are than those of the base."""
    rotary = model.model.rotary_emb
    parameters = getattr(model.config, "rope_parameters", None) or {}
    base = float(parameters.get("rope_theta", getattr(model.config, "rope_theta", 10000.0)))
    kind = parameters.get("rope_type", "default")
    plain = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
    own = rotary.inv_freq.detach().cpu().double()
    if kind in ("dynamic", "longrope") or rotary.attention_scaling != 1.0 or own.shape != plain.shape:
        raise _refused(engine, "model.rotary_emb", f"rotary positions of the kind {kind!r}")
    slowing = plain / own
    return base, None if torch.allclose(slowing, torch.ones_like(slowing), atol=1e-5) else slowing.float()
