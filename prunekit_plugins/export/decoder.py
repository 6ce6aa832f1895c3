"""Decoders of the Llama family as data: their sizes layer by layer, and their tensors by what they are for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_plugins.export.comparison import ExportError
from prunekit_plugins.export.refusal import OTHER, not_exported


@attrs.frozen
class DecoderFamily:
    """What an exporter expects of the models of a class.

    Attributes:
        name: Its name: ``"llama"``.
        activation: That of its feed-forwards.
        windows: Whether layers may see a window of the tokens before them only.
        scaled: Whether scores may be multiplied by something else than ``head_dim ** -0.5``.
        yarn: Whether rotary positions may be YaRN's.
        long: Whether they may be LongRoPE's.
    """

    name: str
    activation: str = "silu"
    windows: bool = False
    scaled: bool = False
    yarn: bool = False
    long: bool = False


FAMILIES = {
    "LlamaForCausalLM": DecoderFamily("llama"),
    "Qwen2ForCausalLM": DecoderFamily("qwen2"),
    "Qwen3ForCausalLM": DecoderFamily("qwen3"),
}
"""Class of the model to its family."""


@attrs.frozen
class Latent:
    """Sizes of an attention whose keys and values come of one narrow state (multi-head latent attention).

    Attributes:
        queries: Width of the state that queries come of; 0 where they come of the hidden state itself.
        keys: Width of the state that keys and values come of.
        plain: Dims of a head of queries and keys that aren't rotated.
        rotated: Dims that are, which all heads of keys share.
        values: Dims of a head of values.
    """

    queries: int
    keys: int
    plain: int
    rotated: int
    values: int


@attrs.frozen
class Block:
    """Sizes of a layer.

    Attributes:
        heads: Query heads; 0 where the attention is gone.
        kv_heads: Heads of keys and values.
        neurons: Width of the feed-forward, or of each expert; 0 where it is gone.
        experts: Experts; 0 for a single feed-forward.
        scale: What scores are multiplied by, beside ``head_dim ** -0.5``.
        shared: Width of the feed-forward that all tokens pass beside the experts; 0 for none.
        latent: Sizes of an attention by a latent state; None for another one.
    """

    heads: int
    kv_heads: int
    neurons: int
    experts: int = 0
    scale: float = 1.0
    shared: int = 0
    latent: Latent | None = None


@attrs.frozen
class Yarn:
    """Settings of YaRN, which slows rotary positions down for longer texts.

    Attributes:
        factor: How much longer.
        context: Positions of the model before.
        magnitude: What queries and keys are multiplied by.
        of_scores: The setting ``mscale_all_dim``, by which scores are multiplied; 0 for none.
    """

    factor: float
    context: int
    magnitude: float
    of_scores: float = 0.0


@attrs.frozen(eq=False)
class LongRope:
    """Settings of LongRoPE, which slows rotary positions down in two ways, by how long a text is.

    Attributes:
        short: What frequencies are divided by, ``[dims / 2]``, up to ``context`` positions.
        long: The same beyond them.
        context: Positions of the model before.
        magnitude: What queries and keys are multiplied by.
    """

    short: torch.Tensor
    long: torch.Tensor
    context: int
    magnitude: float


@attrs.frozen(eq=False)
class Rotary:
    """Rotary positions.

    Attributes:
        dims: How many dims of a head are rotated.
        base: Base of the frequencies.
        slowing: What the frequencies of that base are divided by to give the model's, ``[dims / 2]``; None where they
            are the same.
        yarn: YaRN's settings, if it gives that.
        long: LongRoPE's settings, which ``slowing`` then leaves out.
    """

    dims: int
    base: float
    slowing: torch.Tensor | None
    yarn: Yarn | None = None
    long: LongRope | None = None

    @property
    def factor(self) -> float | None:
        """The one number that all frequencies are divided by; None where there are several."""
        if self.slowing is None:
            return 1.0
        first = float(self.slowing[0])
        return first if torch.allclose(self.slowing, torch.full_like(self.slowing, first), rtol=1e-5) else None


@attrs.frozen(eq=False)
class Decoder:
    """A causal language model whose layers are an attention and a feed-forward, each after a norm.

    Attributes:
        family: Name of its family.
        model: The model.
        blocks: Its layers.
        hidden: Width of what goes from layer to layer.
        head_dim: Width of a head.
        vocabulary: Rows of the embedding.
        tied: Whether the head is the embedding.
        epsilon: What the norms add.
        context: Positions that the model was made for.
        rotary: Rotary positions, of layers that see all tokens where others have a window.
        tensors: Name in the state dict to tensor.
        windows: Of each layer, how many tokens it sees; 0 for all.
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
    rotary: Rotary
    tensors: Mapping[str, torch.Tensor]
    windows: tuple[int, ...]

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


def decoder_of(model: Any, engine: str, families: Mapping[str, DecoderFamily] = FAMILIES) -> Decoder:
    """Reads a model's sizes off its tensors.

    Args:
        model: A model of transformers.
        engine: What it is read for, in messages.
        families: Class of a model to its family: those that the engine knows.

    Raises:
        ExportError: It is of no known family, or something about it is another than the family's.
    """
    name = type(model).__name__
    if name not in families:
        raise _refused(
            engine,
            name,
            f"families that are known: {', '.join(sorted(families))}",
            "--to hf writes what transformers loads",
        )
    config, family, layers = model.config, families[name], model.model.layers
    tensors = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    head, embedding = tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]
    windows = tuple(_window(layer, config) for layer in layers)
    _check_kind(config, family, tensors, windows, engine, name)
    blocks = tuple(_block(layer, place, embedding.shape[1], family, engine) for place, layer in enumerate(layers))
    heads = {_width(layer) for layer in layers} - {0}
    if len(heads) != 1:
        raise _refused(engine, name, f"widths of heads: {sorted(heads)}", "prune with prune_head_dims=False")
    if head.shape[0] != embedding.shape[0] or "lm_head.bias" in tensors:
        raise _refused(engine, name, f"the head has {head.shape[0]} rows, the embedding {embedding.shape[0]}")
    return Decoder(
        family.name,
        model,
        blocks,
        embedding.shape[1],
        heads.pop(),
        embedding.shape[0],
        model.lm_head.weight is model.model.embed_tokens.weight,
        config.rms_norm_eps,
        config.max_position_embeddings,
        rotary_of(model, engine, yarn=family.yarn, long=family.long),
        tensors,
        windows,
    )


def _check_kind(
    config: Any,
    family: DecoderFamily,
    tensors: Mapping[str, torch.Tensor],
    windows: tuple[int, ...],
    engine: str,
    name: str,
) -> None:
    """Makes sure that weights are floats, the activation is the family's, and windows aren't shorter than they may be.

    Raises:
        ExportError: See above.
    """
    odd = sorted({str(t.dtype) for t in tensors.values()} - {"torch.float32", "torch.float16", "torch.bfloat16"})
    if odd:
        raise _refused(engine, name, f"weights of {', '.join(odd)}", "prune and export first, quantise then")
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None) or family.activation
    if activation != family.activation:
        raise _refused(engine, name, f"the activation is {activation}, not {family.activation}")
    shown = [str(place) for place, window in enumerate(windows) if 0 < window < config.max_position_embeddings]
    if shown and not family.windows:
        why = f"layers with sliding windows of less than its {config.max_position_embeddings} positions"
        raise _refused(engine, name, f"{why}: {', '.join(shown)}")


def _refused(engine: str, where: str, why: str, hint: str = OTHER) -> ExportError:
    return not_exported(engine, why, hint, where)


def _window(layer: Any, config: Any) -> int:
    """Returns how many tokens a layer sees, the last one included; 0 for all."""
    attention = getattr(layer, "self_attn", None)
    if _width(layer) == 0:
        return 0
    # a field that the class of a configuration doesn't have does nothing
    field = getattr(config, "sliding_window", None) if hasattr(type(config), "sliding_window") else None
    return getattr(attention, "sliding_window", field) or 0


def _width(layer: Any) -> int:
    """Returns the width of a layer's heads of queries; 0 where it has no attention."""
    attention = getattr(layer, "self_attn", None)
    if isinstance(getattr(attention, "kv_b_proj", None), nn.Linear):
        return int(getattr(attention, "qk_head_dim"))  # noqa: B009  # of transformers, which has no types
    return 0 if attention is None or _rows(attention) is None else int(attention.head_dim)


def _rows(attention: Any) -> tuple[int, int, int] | None:
    """Returns how many features queries, keys and values have; None for what is no attention."""
    packed, queries = getattr(attention, "qkv_proj", None), getattr(attention, "q_proj", None)
    if isinstance(packed, nn.Linear):
        wide = int(attention.o_proj.in_features)
        rest = packed.out_features - wide
        return wide, rest - rest // 2, rest // 2
    if isinstance(queries, nn.Linear) and isinstance(getattr(attention, "v_proj", None), nn.Linear):
        return queries.out_features, int(attention.k_proj.out_features), int(attention.v_proj.out_features)
    return None


def _block(layer: Any, place: int, hidden: int, family: DecoderFamily, engine: str) -> Block:
    """Reads the sizes of a layer."""
    attention, mlp, where = getattr(layer, "self_attn", None), getattr(layer, "mlp", None), f"layer {place}"
    block = Block(0, 0, 0)
    if isinstance(getattr(attention, "kv_b_proj", None), nn.Linear):
        block = _of_latent(attention, where, engine)
    elif (rows := _rows(attention)) is not None:
        block = _of_heads(attention, rows, where, engine)
    if block.scale != 1.0 and not family.scaled:
        raise _odd_heads(where, f"its heads of {_width(layer)} are grouped or scaled in another way", engine)
    down, experts = getattr(mlp, "down_proj", None), getattr(mlp, "experts", None)
    if isinstance(down, nn.Linear):
        return attrs.evolve(block, neurons=down.in_features)
    stacked, shared = getattr(experts, "down_proj", None), getattr(mlp, "shared_experts", None)
    if isinstance(stacked, torch.Tensor):  # [experts, hidden, neurons], or the last two turned
        width = int(shared.down_proj.in_features) if shared is not None else 0
        return attrs.evolve(block, neurons=stacked[0].numel() // hidden, experts=len(stacked), shared=width)
    return block


def _of_heads(attention: Any, rows: tuple[int, int, int], where: str, engine: str) -> Block:
    (queries, keys, values), width = rows, int(attention.head_dim)
    heads, kv_heads = queries // width, keys // width
    if heads * width != queries or kv_heads * width != keys or values != keys:
        raise _odd_heads(where, f"queries {queries}, values {values}, heads of {width}", engine)
    if heads != kv_heads * attention.num_key_value_groups:
        raise _odd_heads(where, f"its heads of {width} are grouped or scaled in another way", engine)
    return Block(heads, kv_heads, 0, scale=_scale(attention, width))


def _of_latent(attention: Any, where: str, engine: str) -> Block:
    width, values = int(attention.qk_head_dim), int(attention.v_head_dim)
    rotated, narrow = int(attention.qk_rope_head_dim), isinstance(attention.q_b_proj, nn.Linear)
    queries = attention.q_b_proj if narrow else attention.q_proj
    heads, keys = queries.out_features // width, int(attention.kv_b_proj.in_features)
    rows = (queries.out_features, attention.kv_b_proj.out_features, attention.o_proj.in_features)
    if rows != (heads * width, heads * (width - rotated + values), heads * values):
        raise _odd_heads(where, f"{heads} heads of {width} and {values}, in matrices of {rows} rows", engine)
    latent = Latent(int(queries.in_features) if narrow else 0, keys, width - rotated, rotated, values)
    return Block(heads, heads, 0, scale=_scale(attention, width), latent=latent)


def _scale(attention: Any, width: int) -> float:
    """Returns what scores are multiplied by, beside the usual."""
    scale = float(attention.scaling) * width**0.5
    return 1.0 if math.isclose(scale, 1.0) else scale


def _odd_heads(where: str, why: str, engine: str) -> ExportError:
    return _refused(engine, where, why, "prune with prune_head_dims=False")


def rotary_of(model: Any, engine: str, layers: str = "", *, yarn: bool = False, long: bool = False) -> Rotary:
    """Reads the base of the rotary frequencies, and how much slower the model's are than those of the base.

    Args:
        model: A model of transformers.
        engine: What it is read for, in messages.
        layers: Kind of layers, where kinds have positions of their own: ``"sliding_attention"``; empty for those that
            see all tokens, if there are any.
        yarn: Whether they may be YaRN's.
        long: Whether they may be LongRoPE's.

    Raises:
        ExportError: They are neither the frequencies of a base nor these divided by constants.
    """
    rotary, parameters = model.model.rotary_emb, getattr(model.config, "rope_parameters", None) or {}
    kinds, prefix = getattr(model.config, "layer_types", None) or (), ""
    layers = layers or ("full_attention" if "full_attention" in kinds else "sliding_attention")
    if layers in parameters:
        prefix, parameters = f"{layers}_", parameters[layers]
    base = float(parameters.get("rope_theta", getattr(model.config, "rope_theta", 10000.0)))
    kind = parameters.get("rope_type", "default")
    own = getattr(rotary, f"{prefix}inv_freq").detach().cpu().double()
    dims = 2 * len(own)
    plain = 1.0 / base ** (torch.arange(0, dims, 2, dtype=torch.float64, device="cpu") / dims)
    magnitude, slowing = getattr(rotary, f"{prefix}attention_scaling"), plain / own
    if kind == "yarn" and yarn:
        return Rotary(dims, base, slowing.float(), _yarn(parameters, model.config, magnitude))
    if kind == "longrope" and long:
        return Rotary(dims, base, None, long=_long_rope(parameters, magnitude))
    if kind in ("dynamic", "longrope") or magnitude != 1.0:
        raise _refused(engine, "model.rotary_emb", f"rotary positions of the kind {kind!r}")
    return Rotary(dims, base, None if torch.allclose(slowing, torch.ones_like(slowing), atol=1e-5) else slowing.float())


def _long_rope(parameters: Mapping[str, Any], magnitude: float) -> LongRope:
    short, long = (
        torch.tensor(parameters[f"{name}_factor"], dtype=torch.float32, device="cpu") for name in ("short", "long")
    )
    return LongRope(short, long, int(parameters["original_max_position_embeddings"]), float(magnitude))


def _yarn(parameters: Mapping[str, Any], config: Any, magnitude: float) -> Yarn:
    context = int(parameters["original_max_position_embeddings"])
    factor = parameters.get("factor") or config.max_position_embeddings / context
    return Yarn(float(factor), context, float(magnitude), float(parameters.get("mscale_all_dim") or 0.0))
