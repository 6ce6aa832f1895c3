"""Small models of transformers from configurations, one of each family that is pruned from folder to folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch

TEXT: Mapping[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: Mapping[str, Any] = {**TEXT, "num_key_value_heads": 2}
PICTURE: Mapping[str, Any] = {
    **{name: value for name, value in TEXT.items() if not name.endswith("_id") and name != "vocab_size"},
    "image_size": 16,
    "patch_size": 8,
}
SPEECH: Mapping[str, Any] = {
    "vocab_size": 96,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 160,
    "decoder_ffn_dim": 160,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "init_std": 0.2,
}
T5: Mapping[str, Any] = {
    "vocab_size": 96,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 160,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
GPT: Mapping[str, Any] = {
    "vocab_size": 96,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: Mapping[str, Any] = {
    **GROUPED,
    "head_dim": 16,
    "moe_intermediate_size": 48,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
SINKS: Mapping[str, Any] = {
    **GROUPED,
    "head_dim": 16,
    "intermediate_size": 48,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
}
LATENT: Mapping[str, Any] = {
    **TEXT,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
LLAVA: Mapping[str, Any] = {
    "text_config": {**GROUPED, "model_type": "llama"},
    "vision_config": {**PICTURE, "model_type": "clip_vision_model"},
    "image_token_index": 3,
    "vision_feature_layer": -1,
}
SMOLVLM: Mapping[str, Any] = {
    "text_config": {**GROUPED, "model_type": "llama"},
    "vision_config": PICTURE,
    "image_token_id": 3,
    "scale_factor": 2,
}
PATCHES: Mapping[str, Any] = {
    "depth": 2,
    "hidden_size": 64,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PLACES: Mapping[str, Any] = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [2, 3, 3],
}
QWEN2_VL: Mapping[str, Any] = {
    "text_config": {**GROUPED, "intermediate_size": 320, "rope_parameters": PLACES},
    "vision_config": {**PATCHES, "embed_dim": 64, "mlp_ratio": 2},
    "image_token_id": 3,
    "video_token_id": 4,
    "vision_start_token_id": 5,
    "vision_end_token_id": 6,
}
QWEN3_VL: Mapping[str, Any] = {
    **QWEN2_VL,
    "text_config": {
        **QWEN2_VL["text_config"],
        "head_dim": 16,
        "rope_parameters": {**PLACES, "mrope_interleaved": True},
    },
    "vision_config": {
        **PATCHES,
        "intermediate_size": 96,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
}


@attrs.frozen
class Family:
    """A model, by its type of configuration and its class.

    Attributes:
        kind: Type of the configuration.
        made: Class of the model.
        config: Arguments of the configuration.
        main: Name of what ``generate`` starts from; empty for a model that doesn't generate.
    """

    kind: str
    made: str
    config: Mapping[str, Any]
    main: str = "input_ids"

    def build(self) -> Any:
        """Makes the model with random weights."""
        import transformers

        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(self.kind, **self.config)
        return getattr(transformers, self.made)(config).eval()


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", "LlamaForCausalLM", GROUPED),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}),
    "gemma3": Family(
        "gemma3_text", "Gemma3ForCausalLM", {**GROUPED, "head_dim": 16, "sliding_window": 8, "num_hidden_layers": 3}
    ),
    "mistral": Family("mistral", "MistralForCausalLM", GROUPED),
    "phi3": Family("phi3", "Phi3ForCausalLM", GROUPED),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", GROUPED),
    "qwen3_moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", EXPERTS),
    "gpt_oss": Family("gpt_oss", "GptOssForCausalLM", SINKS),
    "deepseek_v3": Family("deepseek_v3", "DeepseekV3ForCausalLM", LATENT),
    "gpt2": Family("gpt2", "GPT2LMHeadModel", GPT),
    "t5": Family("t5", "T5ForConditionalGeneration", T5),
    "bert": Family("bert", "BertForMaskedLM", TEXT, ""),
    "vit": Family("vit", "ViTForImageClassification", PICTURE, ""),
    "clip": Family(
        "clip",
        "CLIPModel",
        {
            "text_config": {**TEXT, "projection_dim": 16},
            "vision_config": {**PICTURE, "projection_dim": 16},
            "projection_dim": 16,
        },
        "",
    ),
    "llava": Family("llava", "LlavaForConditionalGeneration", LLAVA),
    "smolvlm": Family("smolvlm", "SmolVLMForConditionalGeneration", SMOLVLM),
    "qwen2_vl": Family("qwen2_vl", "Qwen2VLForConditionalGeneration", QWEN2_VL),
    "qwen3_vl": Family("qwen3_vl", "Qwen3VLForConditionalGeneration", QWEN3_VL),
    "whisper": Family("whisper", "WhisperForConditionalGeneration", SPEECH, "input_features"),
}
