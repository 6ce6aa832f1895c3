"""Diffusers' U-Nets, diffusion transformers, autoencoders, and the U-Nets of denoising-diffusion-pytorch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

Built = tuple[Any, ...]
BLOCKS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
DOWN = {
    **BLOCKS,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 8,
}
KL = {
    **BLOCKS,
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "latent_channels": 4,
}
TOKENS = 6


def of(name: str, options: Mapping[str, Any], inputs: Callable[[], dict[str, Any]]) -> Callable[[], Built]:
    """A model of diffusers by its class; it returns tuples, as the pipelines ask it to."""

    def build() -> Built:
        torch.manual_seed(0)
        model = getattr(importlib.import_module("diffusers"), name)(**options)
        takes = inspect.signature(model.forward).parameters
        given = {**inputs(), **({"return_dict": False} if "return_dict" in takes else {})}
        with torch.no_grad():
            model(**given)  # weights that are computed anew in each forward have no gradients after this one: they copy
        return model, given

    return build


def noised(*shape: int, name: str = "sample", **more: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    """Noise of a shape with a time step, and further inputs."""
    return lambda: {
        name: torch.randn(shape),
        "timestep": torch.tensor([7] * shape[0]),
        **{key: make() for key, make in more.items()},
    }


def text(width: int, length: int = TOKENS, batch: int = 2) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(batch, length, width)


def positions(count: int, axes: int = 3) -> Callable[[], torch.Tensor]:
    return lambda: torch.randint(0, 4, (count, axes)).float()


TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}

UNETS: dict[str, Callable[[], Built]] = {
    "UNet2DModel": of(
        "UNet2DModel",
        {**BLOCKS, "sample_size": 16, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
         "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8},
        noised(2, 3, 16, 16),
    ),
    "UNet2DModel-resnet-sampling": of(
        "UNet2DModel",
        {**BLOCKS, "sample_size": 16, "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
         "up_block_types": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
         "resnet_time_scale_shift": "scale_shift"},
        noised(2, 3, 16, 16),
    ),
    "UNet2DConditionModel": of(
        "UNet2DConditionModel", DOWN, noised(2, 4, 8, 8, encoder_hidden_states=text(24))
    ),
    "UNet2DConditionModel-uneven-groups": of(
        "UNet2DConditionModel",
        {**DOWN, "block_out_channels": (32, 64), "norm_num_groups": 16, "use_linear_projection": True},
        noised(2, 4, 8, 8, encoder_hidden_states=text(24)),
    ),
    "UNet2DConditionModel-xl": of(
        "UNet2DConditionModel",
        {**DOWN, "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "use_linear_projection": True,
         "projection_class_embeddings_input_dim": 40, "transformer_layers_per_block": (1, 1)},
        noised(2, 4, 8, 8, encoder_hidden_states=text(24), added_cond_kwargs=lambda: {
            "text_embeds": torch.randn(2, 16), "time_ids": torch.randint(0, 9, (2, 3))}),
    ),
    "UNet1DModel": of(
        "UNet1DModel",
        {"block_out_channels": (16, 32, 32), "layers_per_block": 1, "sample_size": 32, "in_channels": 14,
         "out_channels": 14, "time_embedding_type": "positional", "act_fn": "mish",
         "mid_block_type": "MidResTemporalBlock1D",
         "down_block_types": ("DownResnetBlock1D", "DownResnetBlock1D", "DownResnetBlock1D"),
         "up_block_types": ("UpResnetBlock1D", "UpResnetBlock1D"), "out_block_type": "OutConv1DBlock",
         "use_timestep_embedding": True, "freq_shift": 1.0, "flip_sin_to_cos": False},
        noised(2, 14, 32),
    ),
    "UNet3DConditionModel": of(
        "UNet3DConditionModel",
        {**DOWN, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
         "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
        noised(1, 4, 3, 8, 8, encoder_hidden_states=text(24, batch=1)),
    ),
    "UNetSpatioTemporalConditionModel": of(
        "UNetSpatioTemporalConditionModel",
        {"block_out_channels": (32, 64), "layers_per_block": 1, "in_channels": 8, "out_channels": 4, "sample_size": 8,
         "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
         "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), "cross_attention_dim": 24,
         "num_attention_heads": 4, "projection_class_embeddings_input_dim": 24, "addition_time_embed_dim": 8},
        lambda: {"sample": torch.randn(1, 2, 8, 8, 8), "timestep": torch.tensor([7]),
                 "encoder_hidden_states": torch.randn(1, 1, 24), "added_time_ids": torch.rand(1, 3)},
    ),
    "StableCascadeUNet": of(
        "StableCascadeUNet",
        {"in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 16, "conditioning_dim": 32,
         "block_out_channels": (32, 64), "num_attention_heads": (2, 4), "down_num_layers_per_block": (1, 1),
         "up_num_layers_per_block": (1, 1), "down_blocks_repeat_mappers": (1, 1), "up_blocks_repeat_mappers": (1, 1),
         "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
         "clip_text_in_channels": 24, "clip_text_pooled_in_channels": 24, "clip_image_in_channels": 24, "clip_seq": 2,
         "patch_size": 1, "kernel_size": 3, "self_attn": True, "switch_level": (False,), "dropout": (0.1, 0.1)},
        lambda: {"sample": torch.randn(2, 4, 8, 8), "timestep_ratio": torch.rand(2),
                 "clip_text_pooled": torch.randn(2, 1, 24), "clip_text": torch.randn(2, 5, 24),
                 "clip_img": torch.randn(2, 1, 24)},
    ),
    "UVit2DModel": of(
        "UVit2DModel",
        {"hidden_size": 32, "cond_embed_dim": 16, "micro_cond_encode_dim": 8, "micro_cond_embed_dim": 24,
         "encoder_hidden_size": 24, "vocab_size": 40, "codebook_size": 36, "in_channels": 16, "block_out_channels": 16,
         "num_res_blocks": 1, "block_num_heads": 2, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 48, "sample_size": 8},
        lambda: {"input_ids": torch.randint(0, 36, (2, 8, 8)), "encoder_hidden_states": torch.randn(2, 5, 24),
                 "pooled_text_emb": torch.randn(2, 16), "micro_conds": torch.rand(2, 3)},
    ),
    "ControlNetModel": of(
        "ControlNetModel",
        {**{key: DOWN[key] for key in DOWN if key not in ("up_block_types", "out_channels", "sample_size")},
         "conditioning_embedding_out_channels": (8, 16)},
        noised(2, 4, 8, 8, encoder_hidden_states=text(24), controlnet_cond=lambda: torch.randn(2, 3, 16, 16)),
    ),
    "T2IAdapter": of(
        "T2IAdapter",
        {"channels": (32, 64), "num_res_blocks": 1, "downscale_factor": 2, "in_channels": 3},
        lambda: {"x": torch.randn(2, 3, 16, 16)},
    ),
}  # fmt: skip

TRANSFORMERS: dict[str, Callable[[], Built]] = {
    "DiTTransformer2DModel": of(
        "DiTTransformer2DModel",
        {**TRANSFORMER, "in_channels": 4, "out_channels": 8, "norm_num_groups": 4, "sample_size": 8, "patch_size": 2,
         "num_embeds_ada_norm": 10},
        lambda: {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([1, 3]),
                 "class_labels": torch.tensor([1, 2])},
    ),
    "Transformer2DModel": of(
        "Transformer2DModel",
        {**TRANSFORMER, "in_channels": 32, "norm_num_groups": 8, "cross_attention_dim": 24},
        lambda: {"hidden_states": torch.randn(2, 32, 8, 8), "encoder_hidden_states": torch.randn(2, TOKENS, 24)},
    ),
    "PixArtTransformer2DModel": of(
        "PixArtTransformer2DModel",
        {**TRANSFORMER, "in_channels": 4, "out_channels": 8, "sample_size": 8, "cross_attention_dim": 32,
         "caption_channels": 24, "norm_num_groups": 4, "use_additional_conditions": False},
        noised(2, 4, 8, 8, name="hidden_states", encoder_hidden_states=text(24), added_cond_kwargs=lambda: {
            "resolution": None, "aspect_ratio": None}),
    ),
    "SD3Transformer2DModel": of(
        "SD3Transformer2DModel",
        {**TRANSFORMER, "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4,
         "joint_attention_dim": 24, "caption_projection_dim": 32, "pooled_projection_dim": 20,
         "pos_embed_max_size": 12, "qk_norm": "rms_norm"},
        noised(2, 4, 8, 8, name="hidden_states", encoder_hidden_states=text(24),
               pooled_projections=lambda: torch.randn(2, 20)),
    ),
    "FluxTransformer2DModel": of(
        "FluxTransformer2DModel",
        {"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 20, "axes_dims_rope": (4, 4, 8)},
        noised(2, 16, 4, name="hidden_states", encoder_hidden_states=text(24),
               pooled_projections=lambda: torch.randn(2, 20), txt_ids=positions(TOKENS), img_ids=positions(16)),
    ),
    "ChromaTransformer2DModel": of(
        "ChromaTransformer2DModel",
        {"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 8),
         "approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
        noised(2, 16, 4, name="hidden_states", encoder_hidden_states=text(24), txt_ids=positions(TOKENS),
               img_ids=positions(16)),
    ),
    "SanaTransformer2DModel": of(
        "SanaTransformer2DModel",
        {**TRANSFORMER, "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2,
         "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 24, "sample_size": 8},
        noised(2, 4, 8, 8, name="hidden_states", encoder_hidden_states=text(24)),
    ),
    "HunyuanDiT2DModel": of(
        "HunyuanDiT2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8,
         "num_attention_heads": 4, "hidden_size": 32, "cross_attention_dim": 24, "cross_attention_dim_t5": 24,
         "pooled_projection_dim": 16, "text_len": 4, "text_len_t5": 5, "activation_fn": "gelu-approximate",
         "use_style_cond_and_image_meta_size": False},
        noised(2, 4, 8, 8, name="hidden_states", timestep=lambda: torch.tensor([7.0, 7.0]),
               encoder_hidden_states=text(24, 4),
               text_embedding_mask=lambda: torch.ones(2, 4), encoder_hidden_states_t5=text(24, 5),
               text_embedding_mask_t5=lambda: torch.ones(2, 5),
               image_rotary_emb=lambda: (torch.randn(16, 8), torch.randn(16, 8))),
    ),
    "AuraFlowTransformer2DModel": of(
        "AuraFlowTransformer2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1,
         "attention_head_dim": 16, "num_attention_heads": 2, "caption_projection_dim": 32, "joint_attention_dim": 24,
         "out_channels": 4, "pos_embed_max_size": 64},
        noised(2, 4, 8, 8, name="hidden_states", encoder_hidden_states=text(24)),
    ),
    "CogView4Transformer2DModel": of(
        "CogView4Transformer2DModel",
        {**TRANSFORMER, "patch_size": 2, "in_channels": 4, "out_channels": 4, "text_embed_dim": 24,
         "time_embed_dim": 16, "condition_dim": 8, "rope_axes_dim": (16, 16)},
        noised(2, 4, 8, 8, name="hidden_states", encoder_hidden_states=text(24),
               original_size=lambda: torch.tensor([[16, 16]] * 2), target_size=lambda: torch.tensor([[16, 16]] * 2),
               crop_coords=lambda: torch.tensor([[0, 0]] * 2)),
    ),
    "CogVideoXTransformer3DModel": of(
        "CogVideoXTransformer3DModel",
        {**TRANSFORMER, "in_channels": 4, "out_channels": 4, "time_embed_dim": 16, "text_embed_dim": 24,
         "sample_width": 8, "sample_height": 8, "sample_frames": 5, "patch_size": 2, "temporal_compression_ratio": 4,
         "max_text_seq_length": TOKENS},
        noised(1, 2, 4, 8, 8, name="hidden_states", encoder_hidden_states=text(24, batch=1)),
    ),
    "LTXVideoTransformer3DModel": of(
        "LTXVideoTransformer3DModel",
        {**TRANSFORMER, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 32, "caption_channels": 24},
        noised(2, 16, 4, name="hidden_states", encoder_hidden_states=text(24),
               encoder_attention_mask=lambda: torch.ones(2, TOKENS), num_frames=lambda: 1, height=lambda: 4,
               width=lambda: 4),
    ),
    "WanTransformer3DModel": of(
        "WanTransformer3DModel",
        {**TRANSFORMER, "patch_size": (1, 2, 2), "in_channels": 4, "out_channels": 4, "text_dim": 24, "freq_dim": 16,
         "ffn_dim": 64, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32},
        noised(1, 4, 2, 8, 8, name="hidden_states", encoder_hidden_states=text(24, batch=1)),
    ),
    "MochiTransformer3DModel": of(
        "MochiTransformer3DModel",
        {**TRANSFORMER, "patch_size": 2, "pooled_projection_dim": 16, "in_channels": 4, "time_embed_dim": 8,
         "text_embed_dim": 24, "max_sequence_length": TOKENS, "activation_fn": "swiglu"},
        noised(1, 4, 2, 8, 8, name="hidden_states", encoder_hidden_states=text(24, batch=1),
               encoder_attention_mask=lambda: torch.ones(1, TOKENS, dtype=torch.bool)),
    ),
    "QwenImageTransformer2DModel": of(
        "QwenImageTransformer2DModel",
        {**TRANSFORMER, "patch_size": 2, "in_channels": 16, "out_channels": 4, "joint_attention_dim": 24,
         "axes_dims_rope": (4, 4, 8)},
        noised(2, 16, 16, name="hidden_states", encoder_hidden_states=text(24),
               encoder_hidden_states_mask=lambda: torch.ones(2, TOKENS, dtype=torch.bool),
               img_shapes=lambda: [[(1, 4, 4)]] * 2),
    ),
    "Lumina2Transformer2DModel": of(
        "Lumina2Transformer2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 32, "num_layers": 1,
         "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 4, "cap_feat_dim": 24,
         "axes_dim_rope": (4, 4, 8), "axes_lens": (64, 32, 32)},
        noised(2, 4, 8, 8, name="hidden_states", encoder_hidden_states=text(24),
               encoder_attention_mask=lambda: torch.ones(2, TOKENS, dtype=torch.bool)),
    ),
    "StableAudioDiTModel": of(
        "StableAudioDiTModel",
        {"sample_size": 16, "in_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
         "num_key_value_attention_heads": 1, "out_channels": 4, "cross_attention_dim": 16, "time_proj_dim": 8,
         "global_states_input_dim": 24, "cross_attention_input_dim": 24},
        noised(2, 4, 16, name="hidden_states", encoder_hidden_states=text(24), global_hidden_states=text(24, 1),
               rotary_embedding=lambda: (torch.randn(17, 8), torch.randn(17, 8))),
    ),
    "PriorTransformer": of(
        "PriorTransformer",
        {**TRANSFORMER, "embedding_dim": 16, "num_embeddings": 5, "additional_embeddings": 4},
        noised(2, 16, name="hidden_states", proj_embedding=lambda: torch.randn(2, 16),
               encoder_hidden_states=text(16, 5)),
    ),
}  # fmt: skip

AUTOENCODERS: dict[str, Callable[[], Built]] = {
    "AutoencoderKL": of("AutoencoderKL", KL, lambda: {"sample": torch.randn(2, 3, 16, 16)}),
    "AutoencoderTiny": of(
        "AutoencoderTiny",
        {"encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16), "num_encoder_blocks": (1, 2),
         "num_decoder_blocks": (2, 1)},
        lambda: {"sample": torch.rand(2, 3, 16, 16)},
    ),
    "AsymmetricAutoencoderKL": of(
        "AsymmetricAutoencoderKL",
        {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
         "down_block_out_channels": (32, 64), "up_block_out_channels": (32, 64), "layers_per_down_block": 1,
         "layers_per_up_block": 1, "norm_num_groups": 8, "latent_channels": 4},
        lambda: {"sample": torch.randn(2, 3, 16, 16)},
    ),
    "VQModel": of(
        "VQModel", {**{k: v for k, v in KL.items() if k != "latent_channels"}, "latent_channels": 3,
                    "num_vq_embeddings": 20},
        lambda: {"sample": torch.randn(2, 3, 16, 16)},
    ),
    "AutoencoderDC": of(
        "AutoencoderDC",
        {"in_channels": 3, "latent_channels": 4, "attention_head_dim": 8,
         "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
         "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
         "encoder_block_out_channels": (16, 32), "decoder_block_out_channels": (16, 32),
         "encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1), "encoder_qkv_multiscales": ((), (5,)),
         "decoder_qkv_multiscales": ((), (5,)), "upsample_block_type": "interpolate",
         "downsample_block_type": "Conv", "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"},
        lambda: {"sample": torch.randn(2, 3, 16, 16)},
    ),
    "AutoencoderKLTemporalDecoder": of(
        "AutoencoderKLTemporalDecoder",
        {"block_out_channels": (32, 64), "latent_channels": 4, "layers_per_block": 1,
         "down_block_types": ("DownEncoderBlock2D",) * 2},
        lambda: {"sample": torch.randn(2, 3, 16, 16), "num_frames": 2},
    ),
    "AutoencoderKLWan": of(
        "AutoencoderKLWan",
        {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [True]},
        lambda: {"sample": torch.randn(1, 3, 5, 16, 16)},
    ),
    "AutoencoderOobleck": of(
        "AutoencoderOobleck",
        {"encoder_hidden_size": 8, "decoder_channels": 8, "decoder_input_channels": 4, "audio_channels": 2,
         "downsampling_ratios": [2, 4], "channel_multiples": [1, 2]},
        lambda: {"sample": torch.randn(2, 2, 64)},
    ),
}  # fmt: skip


def denoising(name: str, make: Callable[[Any], Any], inputs: Callable[[], tuple[Any, ...]]) -> Callable[[], Built]:
    return lambda: (make(getattr(importlib.import_module("denoising_diffusion_pytorch"), name)), inputs())


LUCIDRAINS: dict[str, Callable[[], Built]] = {
    "Unet": denoising(
        "Unet",
        lambda kind: kind(dim=16, dim_mults=(1, 2), attn_dim_head=8, attn_heads=2),
        lambda: (torch.randn(2, 3, 16, 16), torch.tensor([3, 5])),
    ),
    "Unet-self-condition": denoising(
        "Unet",
        lambda kind: kind(dim=16, dim_mults=(1, 2), attn_dim_head=8, attn_heads=2, self_condition=True),
        lambda: (torch.randn(2, 3, 16, 16), torch.tensor([3, 5])),
    ),
    "Unet1D": denoising(
        "Unet1D",
        lambda kind: kind(dim=16, dim_mults=(1, 2), channels=4, attn_dim_head=8, attn_heads=2),
        lambda: (torch.randn(2, 4, 16), torch.tensor([3, 5])),
    ),
    "KarrasUnet": denoising(
        "KarrasUnet",
        lambda kind: kind(image_size=16, dim=16, dim_max=32, num_downsamples=1, num_blocks_per_stage=1,
                          attn_dim_head=8, attn_res=(8,), fourier_dim=8),
        lambda: (torch.randn(2, 4, 16, 16), torch.rand(2)),
    ),
}  # fmt: skip

MODELS: Mapping[str, Mapping[str, Callable[[], Built]]] = {
    "diffusers": {**UNETS, **TRANSFORMERS, **AUTOENCODERS},
    "denoising_diffusion_pytorch": LUCIDRAINS,
}
