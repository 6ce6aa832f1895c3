"""What the general way of building doesn't know: fields, classes, inputs, and types left out, with reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from model_types.shrink import VOCABULARY

SERIES = {
    "prediction_length": 4, "feature_size": 7, "context_length": 16, "lags_sequence": [1, 2, 3], "num_time_features": 2,
}  # fmt: skip
AXES = {"text_config.rope_parameters.mrope_section": [2, 3, 3]}
HG_NET = {"backbone_config.hidden_sizes": [128, 512, 1024, 2048], "decoder_in_channels": [64, 64, 64]}
RES_NET = {
    "backbone_config.hidden_sizes": [16, 32, 48, 64], "backbone_config.embedding_size": 16,
    "backbone_config.layer_type": "basic", "encoder_in_channels": [32, 48, 64], "decoder_in_channels": [64, 64, 64],
}  # fmt: skip

CHANGES: Mapping[str, Mapping[str, Any]] = {
    "autoformer": SERIES,
    "informer": SERIES,
    "time_series_transformer": SERIES,
    "esmc": {"num_key_value_heads": 4},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "xlnet": {"d_head": 16},
    "mamba2": {"num_heads": 8},
    "efficientnet": {"hidden_dim": 2560},
    "align": {"vision_config.hidden_dim": 2560, "projection_dim": 640},
    "nemotron": {"num_key_value_heads": 2},
    "wav2vec2-bert": {"vocab_size": VOCABULARY},
    "wav2vec2-conformer": {"vocab_size": VOCABULARY},
    "xmod": {"default_language": "en_XX"},
    "timm_backbone": {"backbone": "resnet18"},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "audio-spectrogram-transformer": {"max_length": 64},
    "bit": {"num_groups": 8},
    "blip-2": {"image_token_index": VOCABULARY - 1},
    "cohere_compass": {"text_config.layer_types": ["sliding_attention"] * 2},
    "cohere_compass_text": {"layer_types": ["sliding_attention"] * 2},
    "mimi": {"upsample_groups": 64},
    "csm": {"codec_config.upsample_groups": 64},
    "cvt": {"depth": [1, 2, 3]},
    **dict.fromkeys(("d_fine", "deimv2", "pp_doclayout_v2", "pp_doclayout_v3", "pp_doclayout_v4"), HG_NET),
    "hgnet_v2": {"hidden_sizes": [128, 512, 1024, 2048]},
    **dict.fromkeys(("rt_detr", "rt_detr_v2"), RES_NET),
    "swin": {"window_size": 2, "patch_size": 2},
    "superpoint": {"keypoint_decoder_dim": 65},
    **{key: {"image_grid_pinpoints": [[32, 32]]} for key in ("llava_next", "llava_next_video", "llava_onevision")},
    "donut-swin": {"window_size": 2, "patch_size": 2},
    "dots1": {"n_routed_experts": 4, "moe_intermediate_size": 32, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_d_head": 16},
    "longcat_flash": {"zero_expert_num": 2},
    "gemma3": {"mm_tokens_per_image": 4},
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "t5gemma2": {"encoder.mm_tokens_per_image": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    **dict.fromkeys(("glm46v", "glm4v", "glm_ocr", "glmga", "qwen2_vl", "qwen2_5_vl"), AXES),
    "qwen2_5_vl": {**AXES, "vision_config.window_size": 32},
    "glm4v_moe": {"text_config.rope_parameters.mrope_section": [1, 1, 2]},
    "layoutlmv3": {"input_size": 32, "coordinate_size": 12, "shape_size": 8},
    "levit": {"image_size": 224, "patch_size": 16},
    "lilt": {"hidden_size": 48},
    "llama4": {"vision_config.intermediate_size": 256, "vision_config.vision_output_dim": 64},
    "mobilebert": {"embedding_size": 64, "true_hidden_size": 64, "intra_bottleneck_size": 64},
    "mobilevitv2": {"image_size": 64},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "zamba2": {"mamba_headdim": 16, "n_mamba_heads": 8},
    "perceiver": {"d_latents": 64, "d_model": 48, "num_self_attends_per_block": 2, "max_position_embeddings": 64},
    "reformer": {"is_decoder": True, "axial_pos_shape": [4, 4], "axial_pos_embds_dim": [16, 48]},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "voxtral": {"audio_config.intermediate_size": 128},
    "sam": {
        "vision_config.image_size": 64,
        "prompt_encoder_config.image_size": 64,
        "prompt_encoder_config.patch_size": 8,
    },
}
"""Fields of a configuration by path, where the general sizes don't fit together."""

CLASSES: Mapping[str, str] = {"flava": "FlavaModel", "emu3": "Emu3ForConditionalGeneration"}
"""Classes other than the first with a head."""


def _words(config: Any) -> torch.Tensor:
    return torch.randint(8, VOCABULARY - 12, (2, 12))


def _series(config: Any) -> dict[str, Any]:
    length = config.context_length + max(config.lags_sequence)
    return {
        "past_values": torch.rand(2, length),
        "past_time_features": torch.rand(2, length, 2),
        "past_observed_mask": torch.ones(2, length),
        "future_values": torch.rand(2, config.prediction_length),
        "future_time_features": torch.rand(2, config.prediction_length, 2),
    }


def _only_words(config: Any) -> dict[str, Any]:
    return {"input_ids": _words(config)}


OWN_INPUTS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), _series),
    **dict.fromkeys(("gemma4", "gemma4_unified", "embedding_gemma2", "emu3", "chameleon"), _only_words),
    "bros": lambda config: {"input_ids": _words(config), "bbox": torch.rand(2, 12, 8)},
    "dia": lambda config: {"input_ids": _words(config), "decoder_input_ids": torch.randint(8, 80, (2, 7, 9))},
    "idefics": lambda config: {
        "input_ids": _words(config), "attention_mask": torch.ones(2, 12, dtype=torch.long),
        "pixel_values": torch.randn(2, 1, 3, 32, 32), "image_attention_mask": torch.ones(2, 12, 1, dtype=torch.long),
    },
    "lightglue": lambda config: {"pixel_values": torch.randn(1, 2, 3, 64, 64)},
    "superpoint": lambda config: {"pixel_values": torch.rand(1, 3, 64, 64)},
    "lxmert": lambda config: {
        "input_ids": _words(config), "visual_feats": torch.randn(2, 5, config.visual_feat_dim),
        "visual_pos": torch.rand(2, 5, config.visual_pos_dim),
    },
    "perceiver": lambda config: {"inputs": _words(config)},
    "pix2struct": lambda config: {
        "flattened_patches": torch.rand(2, 6, 2 + config.vision_config.patch_embed_hidden_size),
        "decoder_input_ids": _words(config)[:, :7],
    },
    "decision_transformer": lambda config: {
        "states": torch.randn(2, 5, config.state_dim), "actions": torch.randn(2, 5, config.act_dim),
        "rewards": torch.randn(2, 5, 1), "returns_to_go": torch.randn(2, 5, 1),
        "timesteps": torch.arange(5).repeat(2, 1), "attention_mask": torch.ones(2, 5, dtype=torch.long),
    },
    "timesfm2_5": lambda config: {"past_values": [torch.rand(32), torch.rand(32)]},
    "timesfm": lambda config: {"past_values": [torch.rand(32), torch.rand(32)], "freq": [0, 0]},
    "udop": lambda config: {
        "input_ids": _words(config), "bbox": torch.rand(2, 12, 4), "decoder_input_ids": _words(config)[:, :7],
        "pixel_values": torch.randn(2, 3, 32, 32),
    },
    "splinter": lambda config: {"input_ids": _words(config).index_fill(1, torch.tensor([3]), config.question_token_id)},
    **{
        name: lambda config: {"pixel_values": torch.randn(2, 3, 48, 96)}
        for name in ("pp_ocrv5_mobile_rec", "pp_ocrv5_server_rec", "pp_ocrv6_small_rec", "pp_ocrv6_tiny_rec")
    },
    "seggpt": lambda config: {
        name: torch.randn(2, 3, 32, 32) for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")
    },
    "siglip2": lambda config: {
        "input_ids": _words(config), "pixel_values": torch.randn(2, 16, 192),
        "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long), "spatial_shapes": torch.tensor([[4, 4]] * 2),
    },
}  # fmt: skip

FREE_OUTPUTS = frozenset({"fastspeech2_conformer", "superpoint", "vits"})
"""Types whose outputs are as long as they predict, or as many."""

REASONS: Mapping[str, str] = {
    "it takes the session of a video, which isn't made of tensors": """
        edgetam_video sam2_video sam3_tracker_video sam3_video
    """,
    "its inputs are those of a processor of its own, which isn't imitated here": """
        aria blt bros clap clvp colmodernvbert colpali colqwen2 deepseek_vl_hybrid encodec fun_asr_nano_encoder fuyu
        glm_image glmasr granite_docling granite_speech granite_speech5_ctc granite_speech_plus hunyuan_vl inkling2
        inkling2_loop inkling_mm_model instructblip instructblipvideo jev kosmos-2 lfm2_vl lightglue llama4 mllama
        moonshine_streaming muse_glimmer muse_glimmer_assistant muse_spark nemotron_h_omni neomme neucodec
        omdet-turbo oneformer paddleocr_vl pe_audio_video pi0 pop2piano qwen2_5_omni_thinker qwen2_audio qwen3_asr
        qwen3_asr_encoder seggpt speech-encoder-decoder superglue tvp vibevoice_acoustic_tokenizer
        vibevoice_acoustic_tokenizer_decoder vibevoice_acoustic_tokenizer_encoder video_llama_3 voxtral
        voxtral_realtime xcodec xcodec2
    """,
    "transformers has no automatic class for it": """
        EvollaModel apertus1p5_vision_tokenizer blt_global_transformer blt_local_decoder blt_local_encoder
        blt_patcher chameleon_vqgan clap_audio_model clap_text_model clvp_decoder clvp_encoder deepseek_ocr2_encoder
        deepseek_ocr2_sam_vision_model deepseek_ocr2_text deepseek_ocr2_vision diffusion_gemma_text
        dots3_note_vision_encoder edgetam_mask_decoder edgetam_prompt_encoder edgetam_video_mask_decoder
        edgetam_video_prompt_encoder emu3_text_model emu3_vqgan ernie4_5_vl_moe_text ernie4_5_vl_moe_vision
        fastspeech2_conformer_hifigan granite4_vision_text granite_speech_encoder granite_speech_plus_encoder
        inkling_audio inkling_vision instructblip_qformer instructblip_vision_model instructblipvideo_qformer
        instructblipvideo_vision_model kosmos_2_text_model kosmos_2_vision_model layoutxlm llama4_vision_model
        molmo2_adapter molmo2_vision moonshine_streaming_encoder musicgen_decoder musicgen_melody_decoder
        paddleocr_vl_text paddleocr_vl_vision qwen2_5_omni_audio_encoder qwen2_5_omni_bigvgan qwen2_5_omni_dit
        qwen2_5_omni_talker qwen2_5_omni_text qwen2_5_omni_token2wav qwen2_5_omni_vision_encoder
        qwen3_omni_moe_talker_code_predictor qwen3_omni_moe_talker_text rag sam2_mask_decoder sam2_prompt_encoder
        sam2_video_mask_decoder sam2_video_prompt_encoder sam3_tracker_mask_decoder sam3_tracker_prompt_encoder
        sam3_tracker_video_mask_decoder sam3_tracker_video_prompt_encoder sam_hq_mask_decoder sam_hq_prompt_encoder
        sam_mask_decoder sam_prompt_encoder sapiens2_head speecht5_hifigan step3p5 step3p5_vision
        unlimited_ocr_sam_vision_model unlimited_ocr_text unlimited_ocr_vision unlimited_ocr_vision_encoder
        vibevoice_diffusion voxtral_realtime_text
    """,
    "it needs a package that isn't on PyPI or not installed here (detectron2, natten, torchaudio)": """
        dinat higgs_audio_v2_tokenizer layoutlmv2
    """,
    "its class has no forward; its parts are built by themselves": """
        bark qwen2_5_omni
    """,
    "its sizes depend on each other in a way that the general rule doesn't keep": """
        apertus1p5 depth_pro dory dots3_note edgetam edgetam_vision_model efficientloftr esmfold2
        fastspeech2_conformer_with_hifigan fun_asr_nano gemma3n gemma4_unified_assistant glm5_next
        kyutai_speech_to_text lw_detr lw_detr_vit mask2former mimi_decoder mistral4 mistral_large4 molmo2
        pocket_tts_audio_tokenizer pocket_tts_audio_tokenizer_decoder pp_doclayout_v3 pp_ocrv5_mobile_rec
        pp_ocrv6_small_det sam sam2 sam2_hiera_det_model sam2_vision_model sam3_tracker sam_hq textnet unlimited_ocr
        uvdoc vitmatte wavtokenizer wavtokenizer_encoder zoedepth
    """,
    "its configuration has no defaults to build from; the values come with a checkpoint": """
        chameleon cohere_compass cohere_compass_text dbrx deepseek_ocr2 diffusion_gemma emu3 ernie4_5_vl_moe
        fast_vlm gemma4_assistant granite4_vision lfm2_moe musicgen musicgen_melody nougat pe_video perception_lm
        pp_doclayout_v2 pp_ocrv5_server_det pp_ocrv6_medium_det qwen3_omni_moe qwen4_exp qwen4_exp_text sapiens2
        step3p7
    """,
    "its tokenizer can't be made small: hundreds of millions of parameters": """
        vibevoice vibevoice_asr
    """,
    "it is a part of a type that isn't built, and doesn't run by itself in the general way": """
        cohere_compass_vision dots3_note_audio_encoder gemma3n_audio glm5_next_text glm5_next_vision glm_image_text
        glm_image_vision glm_image_vqmodel granite_speech5_encoder hunyuan_vl_text hunyuan_vl_vision inkling2_vision
        mistral_large4_text muse_glimmer_vision muse_spark_audio muse_spark_vision pe_audio_video_encoder
        pe_video_encoder qwen4_exp_vision video_llama_3_vision
    """,
}
"""Why types are left out, and which."""

LEFT_OUT: Mapping[str, str] = {name: reason for reason, names in REASONS.items() for name in names.split()}
"""Types that aren't built here, and why."""

VERSION = "5.24.0"
"""The release of transformers that all of this is said of."""
