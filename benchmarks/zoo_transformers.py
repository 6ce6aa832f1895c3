"""Architectures of transformers, built from tiny configurations: two layers, width 64, random weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

VOCABULARY = 96
WIDTH = 64
SPREAD = {"initializer_range": 0.2}  # at the usual 0.02 attention is nearly even and hides errors in it
HEADS = 4
LENGTH = 12

ENCODER = {
    **SPREAD,
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LLAMA = {**ENCODER, "num_key_value_heads": 2, "head_dim": WIDTH // HEADS, "bos_token_id": 1, "eos_token_id": 2}
PICTURE = {
    **SPREAD,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}
SEQUENCE_PAIR = {
    "init_std": 0.2,
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def words() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(3, VOCABULARY, (2, LENGTH))}


def pair() -> dict[str, torch.Tensor]:
    return {**words(), "decoder_input_ids": torch.randint(3, VOCABULARY, (2, 7))}


def picture() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def captioned() -> dict[str, torch.Tensor]:
    return {**words(), **picture()}


def sound() -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": torch.randint(3, VOCABULARY, (2, 7))}


def wave() -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(2, 2000)}


def masked() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, 64, 64)}


TEXT_PART = {**ENCODER, "projection_dim": 32, "bos_token_id": 1, "eos_token_id": 2}
PICTURE_PART = {**PICTURE, "projection_dim": 32}
Entry = tuple[str, str, Mapping[str, Any], Callable[[], dict[str, torch.Tensor]]]
"""Type of the configuration, name of the automatic class, arguments of the configuration, inputs."""

LM, MLM, PLAIN = "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModel"
SEQ2SEQ, PICTURES = "AutoModelForSeq2SeqLM", "AutoModelForImageClassification"

MODELS: Mapping[str, Entry] = {
    "bert": ("bert", MLM, ENCODER, words),
    "roberta": ("roberta", MLM, ENCODER, words),
    "distilbert": (
        "distilbert",
        MLM,
        {**SPREAD, "vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": 2, "n_heads": HEADS, "hidden_dim": 128},
        words,
    ),
    "electra": ("electra", MLM, {**ENCODER, "embedding_size": 32}, words),
    "albert": ("albert", MLM, {**ENCODER, "embedding_size": 32}, words),
    "deberta": ("deberta-v2", MLM, {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, words),
    "longformer": ("longformer", MLM, {**ENCODER, "attention_window": [4, 4]}, words),
    "modernbert": ("modernbert", MLM, {**ENCODER, "cls_token_id": 1, "sep_token_id": 2}, words),
    "gpt2": (
        "gpt2",
        LM,
        {**SPREAD, "vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_positions": 64},
        words,
    ),
    "opt": (
        "opt",
        LM,
        {**ENCODER, "ffn_dim": 128, "word_embed_proj_dim": WIDTH},
        words,
    ),
    "gpt_neox": ("gpt_neox", LM, ENCODER, words),
    "gptj": (
        "gptj",
        LM,
        {
            "vocab_size": VOCABULARY,
            "n_embd": WIDTH,
            "n_layer": 2,
            "n_head": HEADS,
            "rotary_dim": 8,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        words,
    ),
    "falcon": ("falcon", LM, {**ENCODER, "bos_token_id": 1, "eos_token_id": 2}, words),
    "bloom": (
        "bloom",
        LM,
        {**SPREAD, "vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 2, "n_head": HEADS},
        words,
    ),
    "llama": ("llama", LM, LLAMA, words),
    "llama_tied": ("llama", LM, {**LLAMA, "tie_word_embeddings": True}, words),
    "mistral": ("mistral", LM, {**LLAMA, "sliding_window": 8}, words),
    "qwen2": ("qwen2", LM, LLAMA, words),
    "qwen3": ("qwen3", LM, LLAMA, words),
    "gemma": ("gemma", LM, LLAMA, words),
    "gemma2": ("gemma2", LM, {**LLAMA, "sliding_window": 8, "query_pre_attn_scalar": 16}, words),
    "gemma3": ("gemma3_text", LM, {**LLAMA, "sliding_window": 8, "query_pre_attn_scalar": 16}, words),
    "phi": ("phi", LM, {**LLAMA, "partial_rotary_factor": 0.5}, words),
    "phi3": ("phi3", LM, LLAMA, words),
    "olmo2": ("olmo2", LM, LLAMA, words),
    "cohere": ("cohere", LM, LLAMA, words),
    "stablelm": ("stablelm", LM, LLAMA, words),
    "starcoder2": ("starcoder2", LM, LLAMA, words),
    "deepseek_v3": (
        "deepseek_v3",
        LM,
        {
            **{key: value for key, value in LLAMA.items() if key != "head_dim"},
            "num_key_value_heads": HEADS,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
        },
        words,
    ),
    "mixtral": ("mixtral", LM, {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}, words),
    "mamba": (
        "mamba",
        LM,
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 8, "pad_token_id": 0},
        words,
    ),
    "t5": (
        "t5",
        SEQ2SEQ,
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": HEADS,
            "decoder_start_token_id": 0,
        },
        pair,
    ),
    "bart": ("bart", SEQ2SEQ, SEQUENCE_PAIR, pair),
    "marian": ("marian", SEQ2SEQ, SEQUENCE_PAIR, pair),
    "whisper": (
        "whisper",
        "AutoModelForSpeechSeq2Seq",
        {**SEQUENCE_PAIR, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 64},
        sound,
    ),
    "wav2vec2": (
        "wav2vec2",
        PLAIN,
        {
            **ENCODER,
            "conv_dim": [32, 32],
            "conv_stride": [5, 2],
            "conv_kernel": [10, 3],
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "apply_spec_augment": False,
        },
        wave,
    ),
    "vit": ("vit", PICTURES, PICTURE, picture),
    "deit": ("deit", PICTURES, {**PICTURE, "architectures": ["DeiTForImageClassification"]}, picture),
    "dinov2": ("dinov2", PICTURES, {**PICTURE, "mlp_ratio": 2}, picture),
    "swin": (
        "swin",
        PICTURES,
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        picture,
    ),
    "segformer": (
        "segformer",
        "AutoModelForSemanticSegmentation",
        {
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 8],
            "decoder_hidden_size": 32,
        },
        masked,
    ),
    "convnext": ("convnext", PICTURES, {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}, masked),
    "clip": (
        "clip",
        PLAIN,
        {"text_config": TEXT_PART, "vision_config": PICTURE_PART, "projection_dim": 32},
        captioned,
    ),
    "siglip": ("siglip", PLAIN, {"text_config": TEXT_PART, "vision_config": PICTURE}, captioned),
    "blip": (
        "blip",
        PLAIN,
        {
            "text_config": {**TEXT_PART, "encoder_hidden_size": WIDTH, "sep_token_id": 2},
            "vision_config": PICTURE,
            "projection_dim": 32,
        },
        captioned,
    ),
    "detr": (
        "detr",
        "AutoModelForObjectDetection",
        {
            **SEQUENCE_PAIR,
            "num_queries": 5,
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "backbone_config": {
                "model_type": "resnet",
                "embedding_size": 16,
                "hidden_sizes": [16, 32],
                "depths": [1, 1],
                "layer_type": "basic",
                "out_features": ["stage2"],
            },
        },
        masked,
    ),
}


NO_CACHE = (
    *(
        "gpt2",
        "opt",
        "gpt_neox",
        "gptj",
        "falcon",
        "bloom",
        "llama",
        "llama_tied",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
    ),
    *("gemma2", "gemma3", "phi", "phi3", "olmo2", "cohere", "stablelm", "starcoder2", "deepseek_v3", "mixtral"),
    *("mamba", "t5", "bart", "marian", "whisper"),
)
"""Models that return caches unless they are told not to."""

EAGER_ONLY = frozenset(["deberta", "longformer", "bloom", "gemma2", "mamba", "convnext", "blip"])
"""Models that have one kind of attention, or none."""


def names() -> list[str]:
    """Lists every model as it comes, without caches, and with attention written out where it is fused by default."""
    found = []
    for name in MODELS:
        found.append(name)
        if name in NO_CACHE:
            found.append(f"{name}+no_cache")
        if name not in EAGER_ONLY:
            found.append(f"{name}+eager")
    return found


def build(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Builds a model by its name, or by its name and variants: ``llama+no_cache``, ``vit+eager``."""
    transformers = importlib.import_module("transformers")
    base, *variants = name.split("+")
    kind, automatic, given, inputs = MODELS[base]
    config = transformers.AutoConfig.for_model(kind, **given)
    options = {"attn_implementation": "eager"} if "eager" in variants else {}
    model = getattr(transformers, automatic).from_config(config, **options)
    if "no_cache" in variants:
        model.config.use_cache = False
    return model, inputs()
