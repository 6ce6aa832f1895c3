"""Makes any configuration of transformers tiny: widths of 64, four heads, two layers, by the names of its fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

VOCABULARY = 96
WIDTH, HEADS, HEAD, FEED_FORWARD, LAYERS, EXPERTS = 64, 4, 16, 96, 2, 4
PICTURE, PATCH = 32, 8

SIZES: tuple[tuple[str, int], ...] = (
    (r"(num_)?(key_value|kv)_heads|num_key_value_(attention_)?heads|.*num_key_value_heads|n_kv_heads?", 2),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads|linear_num_heads|index_n_heads", HEADS),
    (r"mamba_(n|num)_heads", 8),
    (r"mamba_d_head|mamba_head_?dim", HEAD),
    (r"(.*_)?(num_)?(attention_)?n?_?heads?|n_head|.*attention_heads|encoder_num_heads|decoder_num_heads", HEADS),
    (r"qk_rope_head_dim|qk_nope_head_dim", HEAD),
    (r"qk_head_dim", 2 * HEAD),
    (r"rotary_dim", 8),
    (r"(.*_)?head_dim|d_kv|kv_channels|dim_head|attention_key_channels|query_pre_attn_scalar", HEAD),
    (r"(.*_)?lora_rank", HEAD),
    (r"(.*)vocab(ulary)?_size.*", VOCABULARY),
    (r".*(moe|expert)_intermediate_size|expert_dim|expert_ffn_hidden_size", 32),
    ((r"(.*_)?(intermediate_size|ffn_dim|ffn_hidden_size|d_ff|n_inner|mlp_dim|intermediate_dim"
      r"|feedforward_dim)"), FEED_FORWARD),
    (r"(num_|n_)?(routed_|local_|moe_)*(num_)?experts|moe_num_experts|num_local_experts|n_routed_experts", EXPERTS),
    (r"num_experts_per_tok|moe_topk|moe_k|top_k_experts|num_selected_experts|router_top_k|num_experts_per_token", 2),
    (r"n_group|topk_group|num_expert_group", 1),
    ((r"num_(hidden_)?layers|n_layers?|(encoder|decoder)_layers|depth|num_(encoder|decoder)_layers|.*num_hidden_layers"
     r"|num_blocks|.*_num_layers|num_block_layers|encoder_depth|decoder_depth|adapter_layers|resampler_depth"), LAYERS),
    (r"image_size|sample_size|input_resolution", PICTURE),
    (r"patch_size", PATCH),
    ((r"(max_)?(position_embeddings|source_positions|target_positions)|n_positions|max_position_embeddings|n_ctx"
     r"|max_(source|target|speech|text|seq|sequence|length)_(positions|length|len)|max_seq_len|seq_length"), 64),
    (r"num_queries|num_query_tokens|num_object_queries|num_latents|.*num_queries", 6),
    (r"sliding_window|attention_window|local_attention|window_attn_size|attention_chunk_size|.*sliding_window_size", 8),
    (r"num_mel_bins|feature_size|n_mels|num_mel_channels", 16),
    (r"chunk_size|mamba_chunk_size", 8),
    (r"index_topk", 4),
    (r"(mamba_)?(d_state|state_size)|ssm_state_size", 8),
    (r"time_step_rank|mamba_dt_rank", 4),
    ((r"(.*_)?(hidden_size|d_model|n_embd|embed_dim|embedding_size|hidden_dim|projection_dim|emb_dim|model_dim|dim"
     r"|projection_size|embedding_dim|proj_dim|hidden_channels|proj_size|pooler_output_size|fpn_hidden_size"
     r"|output_dim|dim_model|width|embed_size|projector_hidden_size|d_embed|out_dim|channels_last_dim)"), WIDTH),
    (r"(hidden_size_per_layer_input)", 8),
    (r"vocab_size_per_layer_input", VOCABULARY),
)  # fmt: skip
"""What a whole number becomes, by the name of its field; the first pattern that fits all of it counts."""

KEPT = re.compile(
    r"chunk_size_feed_forward|.*_lora_(dim|alpha)|num_channels|kernel_size|num_labels|hc_mult|codebook_dim|.*ratio"
    r"|(.*_)?(query_dim|spatial_dim|temporal_dim|position_dim|conv_kernel_dim|num_codebooks|_ids?)|hidden_dim_multiplier"
    r"|num_attention_heads_per_.*|mlp_only_layers|num_nextn_predict_layers|.*temperature|num_denoising|max_window_layers"
)
"""Fields that only look like sizes."""

STAGES = ("depths", "num_layers", "layers", "stage_depths", "num_blocks", "depth", "layer_depths")
"""Where a list says how many layers each stage has."""

LISTS: tuple[tuple[str, int], ...] = (
    (r"hidden_sizes|embed_dims?|encoder_hidden_sizes|neck_hidden_sizes|dim_embed|dims|widths|conv_dim", 16),
)
"""Lists of widths are scaled so that the smallest is this."""


def number(name: str, value: int) -> int:
    """What a number becomes; never more than it was."""
    if KEPT.fullmatch(name):
        return value
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            return min(value, size) if value > 0 else value
    return value


def scaled(name: str, values: list[int]) -> list[int]:
    """Widths of stages, scaled alike; depths of stages become one each."""
    if name in STAGES:
        return [1] * len(values)
    for pattern, least in LISTS:
        if re.fullmatch(pattern, name) and min(values) >= least:
            factor = min(values) // least
            return [max(8, value // factor // 8 * 8) for value in values]
    return values


def shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as a dict, with everything in it made tiny."""
    found: dict[str, Any] = {}
    layers = next((config[key] for key in ("num_hidden_layers", "num_layers", "n_layer", "num_blocks", "depth")
                   if isinstance(config.get(key), int)), None)  # fmt: skip
    kinds: list[Any] = []
    if isinstance(config.get("layer_types"), list | tuple):
        kinds = list(dict.fromkeys(config["layer_types"]))
    staged = any(isinstance(config.get(key), list | tuple) for key in STAGES)
    for name, value in config.items():
        if isinstance(value, Mapping):
            found[name] = shrunk(value) if name.endswith(("config", "_cfg")) or "model_type" in value else dict(value)
        elif isinstance(value, bool) or not isinstance(value, int | list | tuple):
            found[name] = value
        elif isinstance(value, int):
            found[name] = token(name, value, config) if is_token(name) else number(name, value)
        elif value and all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            found[name] = scaled(name, list(value))
            if is_token(name):
                found[name] = [token(name, item, config) for item in value][:1]
        else:
            found[name] = list(value)
        if isinstance(value, list | tuple) and layers is not None and len(value) == layers > LAYERS and not staged:
            picks = [list(config["layer_types"]).index(kind) for kind in kinds] if len(kinds) > 1 else [0, layers - 1]
            found[name] = [value[pick] for pick in picks]
    _fitted(found, config)
    if len(kinds) > LAYERS:
        for key in ("num_hidden_layers", "num_layers", "n_layer", "num_blocks", "depth"):
            if key in found:
                found[key] = len(kinds)
    for name in ("apply_spec_augment", "mask_time_prob", "mask_feature_prob"):
        if name in found:
            found[name] = type(found[name])(0)  # masks for training want longer sounds
    if "initializer_range" in found:
        found["initializer_range"] = 0.2  # at the usual 0.02 attention is nearly even and hides errors in it
    if "init_std" in found:
        found["init_std"] = 0.2
    return found


def _fitted(found: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Sizes that have to agree with others of the same configuration."""
    heads = next((found[key] for key in ("num_heads", "num_attention_heads") if isinstance(found.get(key), list)), None)
    if heads and isinstance(found.get("embed_dim"), int):
        found["embed_dim"] = HEAD * heads[0]
    if "kv_lora_rank" in found and "num_key_value_heads" in found:  # the heads share what is compressed
        found["num_key_value_heads"] = found.get("num_attention_heads", HEADS)
    if "head_dim" in found and found["head_dim"] is None and isinstance(found.get("num_attention_heads"), int):
        found["head_dim"] = HEAD
    found.pop("per_layer_config", None)
    rope = found.get("rope_parameters")
    for part in [rope, *(rope or {}).values()] if isinstance(rope, Mapping) else []:
        if isinstance(part, dict) and "mrope_section" in part:
            part["mrope_section"] = [2, 3, 3]
    stages = config.get("depths")
    if isinstance(stages, list | tuple):
        for name in ("num_layers", "num_hidden_layers", "num_encoder_blocks", "num_stages"):
            if isinstance(config.get(name), int) and config[name] == len(stages):
                found[name] = len(stages)
    elif isinstance(config.get("out_indices"), list | tuple) and "stage_names" in config:
        count = len(config["out_indices"])
        found["num_hidden_layers"] = max(LAYERS, count)
        for name in ("stage_names", "_out_features", "_out_indices", "out_indices"):
            found.pop(name, None)
        found["out_features"] = [f"stage{found['num_hidden_layers'] - count + i + 1}" for i in range(count)]


TOKENS = ("pad", "bos", "eos", "sep", "cls", "mask", "unk")


def is_token(name: str) -> bool:
    return name.endswith(("token_id", "token_index", "_token_ids")) or name in ("image_token_id",)


def token(name: str, value: int, config: Mapping[str, Any]) -> int:
    """A token's number below the size of the vocabulary; special ones stay apart from each other."""
    if value < 0:
        return value
    stem = name.split("_", 1)[0]
    if stem in TOKENS:
        return TOKENS.index(stem)
    if name.startswith("decoder_start"):
        return TOKENS.index("bos")
    others = [key for key in config if is_token(key) and key.split("_", 1)[0] not in TOKENS]
    return VOCABULARY - 1 - others.index(name) if name in others else VOCABULARY - 1
