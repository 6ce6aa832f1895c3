"""GGUF files of further families: llama.cpp computes what the model does, whole and pruned, within its own rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit_plugins.export import ExportError, export_folder
from prunekit_plugins.export.engines import steps

transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

from tests.export.folders import IDS, pruned, whole  # noqa: E402  # needs transformers
from tests.export.test_gguf import ULP, fields, needs_engine, shapes  # noqa: E402  # needs gguf

LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "factor": 2.0,
    "short_factor": [1.0, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0],
}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
GEMMA = {"pad_token_id": None, "num_hidden_layers": 7, "sliding_window": 8, "query_pre_attn_scalar": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
OSS = {"pad_token_id": None, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 64,
    "truncate": True,
}
LATENT = {
    "num_key_value_heads": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 24,
    "v_head_dim": 32,
}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "mistral": ("mistral", {"sliding_window": None}, {}, "llama"),
    "mistral, a window as long as its positions": ("mistral", {"sliding_window": 128}, {}, "llama"),
    "mistral, layers that differ": (
        "mistral",
        {"sliding_window": None},
        {"uniform": False, "ignored_layers": ["model.layers.1.mlp.gate_proj"]},
        "deci",
    ),
    "phi3": ("phi3", {"pad_token_id": None}, {}, "llama"),
    "phi3, as wide as its queries": (
        "phi3",
        {"pad_token_id": None},
        {"ignored_layers": ["model.embed_tokens"]},
        "phi3",
    ),
    "phi3, tied, half of each head rotated": (
        "phi3",
        {"pad_token_id": None, "tie_word_embeddings": True, "rope_parameters": PARTIAL},
        {},
        "phi3",
    ),
    "phi3, LongRoPE": ("phi3", {"pad_token_id": None, "rope_parameters": LONG}, {}, "phi3"),
    "phi3, LongRoPE, a text longer than before": (
        "phi3",
        {"pad_token_id": None, "rope_parameters": {**LONG, "original_max_position_embeddings": 16}},
        {},
        "phi3",
    ),
    "smollm3": (
        "smollm3",
        {"pad_token_id": None, "num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1]},
        {},
        "smollm3",
    ),
    "gemma3": ("gemma3_text", GEMMA, {}, "gemma3"),
    "gemma3, windows but for every third layer, slower positions": (
        "gemma3_text",
        {
            **GEMMA,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
            },
            "query_pre_attn_scalar": 100,
            "tie_word_embeddings": True,
        },
        {},
        "gemma3",
    ),
    "gemma3, windows in all layers": ("gemma3_text", {**GEMMA, "num_hidden_layers": 2}, {}, "gemma3"),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True}, {}, "qwen3moe"),
    "qwen3_moe, an expert gone": (
        "qwen3_moe",
        {**EXPERTS, "norm_topk_prob": True},
        {"expert_pruning_ratio": 0.25},
        "qwen3moe",
    ),
    "gpt_oss": ("gpt_oss", {**OSS, "rope_parameters": YARN}, {}, "gpt-oss"),
    "gpt_oss, windows longer than the text": (
        "gpt_oss",
        {**OSS, "sliding_window": 100, "rope_parameters": YARN},
        {},
        "gpt-oss",
    ),
    "gpt_oss, windows in all layers, plain positions": (
        "gpt_oss",
        {
            **OSS,
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention", "sliding_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        },
        {"expert_pruning_ratio": 0.25},
        "gpt-oss",
    ),
    "qwen3, YaRN": ("qwen3", {"rope_parameters": YARN}, {}, "qwen3"),
    "deepseek_v2": ("deepseek_v2", {**LATENT, "q_lora_rank": None}, {}, "deepseek2"),
    "deepseek_v2, YaRN, groups that it doesn't look at": (
        "deepseek_v2",
        {
            **LATENT,
            "q_lora_rank": 64,
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
            "n_group": 2,
            "routed_scaling_factor": 2.0,
        },
        {},
        "deepseek2",
    ),
    "deepseek_v3": ("deepseek_v3", {**LATENT, "q_lora_rank": 64}, {}, "deepseek2"),
    "deepseek_v3, YaRN that scales scores": (
        "deepseek_v3",
        {**LATENT, "q_lora_rank": 64, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
        {},
        "deepseek2",
    ),
    "deepseek_v3, groups of experts, weights that don't sum to one": (
        "deepseek_v3",
        {
            **LATENT,
            "q_lora_rank": 64,
            "num_local_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "norm_topk_prob": False,
            "n_shared_experts": 2,
        },
        {},
        "deepseek2",
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, {}, "llama"),
}
"""Type of configuration, its settings, how it is pruned, and llama.cpp's architecture."""


@pytest.mark.slow
@needs_engine
@pytest.mark.parametrize("case", FAMILIES)
def test_llama_cpp_computes_what_the_model_does_whole_and_pruned(case: str, tmp_path: Path) -> None:
    kind, sizes, how, architecture = FAMILIES[case]
    big = whole(tmp_path / "big", kind, **sizes)
    small = pruned(big, tmp_path / "small", **{"serve": "gguf", **how})
    before, after = (export_folder(folder, f"{folder}.gguf", to="gguf").check for folder in (big, small))
    assert isinstance(before, steps.EngineCheck)
    assert isinstance(after, steps.EngineCheck)
    looked_up = kind.startswith("gemma")  # llama.cpp's GELU comes from a table of half precision
    assert 0 < before.error < (5e-3 if looked_up else 1e-5)  # llama.cpp's rounding
    assert before.tolerance == (3e-2 if looked_up else 1e-3)
    assert after.error <= 2 * max(before.error, ULP)
    assert (after.prompt, after.steps, after.texts) == (24, 10, 3)
    found = fields(tmp_path / "small.gguf")
    if "LongRoPE" in case:
        assert shapes(tmp_path / "small.gguf")["rope_factors_long.weight"] == (8,)
    assert found["general.architecture"] == architecture
    if kind in ("qwen3_moe", "mixtral", "gpt_oss"):
        experts, neurons, hidden = shapes(tmp_path / "small.gguf")["blk.1.ffn_up_exps.weight"]
        assert experts == found[f"{architecture}.expert_count"] == 4 - ("expert_pruning_ratio" in how)
        assert neurons == found[f"{architecture}.expert_feed_forward_length"] < 256
        assert hidden == found[f"{architecture}.embedding_length"]
        assert found[f"{architecture}.expert_used_count"] == 2


@pytest.mark.slow
@needs_engine
@pytest.mark.parametrize("case", [case for case in FAMILIES if case.startswith("gemma3")])
def test_without_what_gelu_adds_llama_cpp_computes_gemma_in_single_precision(case: str, tmp_path: Path) -> None:
    kind, sizes, _, _ = FAMILIES[case]
    big = whole(tmp_path / "big", kind, **sizes)
    model: Any = pk.load_folder(big)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    check = export_folder(big, tmp_path / "big.gguf", to="gguf", model=model).check
    assert check is not None
    assert 0 < check.error < 1e-5


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mistral, a window": (
        "mistral",
        {"sliding_window": 8},
        "layers with sliding windows of less than its 128 positions: 0, 1, 2",
    ),
    "phi3, a window": (
        "phi3",
        {"pad_token_id": None, "sliding_window": 16},
        "layers with sliding windows of less than its 128 positions: 0, 1, 2",
    ),
    "phi3, half of each head rotated, other queries than layers": (
        "phi3",
        {"pad_token_id": None, "rope_parameters": PARTIAL, "hidden_size": 32},
        "8 dims of each head of 16 are rotated, which llama.cpp takes of layers only that are as wide",
    ),
    "deepseek_v3, as many layers as a lite one": (
        "deepseek_v3",
        {**LATENT, "q_lora_rank": 64, "num_hidden_layers": 27},
        "queries come of a state (q_lora_rank); with so many layers llama.cpp's deepseek2 computes them from the",
    ),
    "smollm3, other layers that aren't rotated": (
        "smollm3",
        {"pad_token_id": None, "no_rope_layers": [1, 0, 1]},
        "queries and keys are not rotated by their position there; of layers that aren't, counted from 1, it is 4, 8",
    ),
    "qwen3_moe, weights of experts that don't sum to one": (
        "qwen3_moe",
        {**EXPERTS, "norm_topk_prob": False},
        "it is False; llama.cpp's qwen3moe computes with True",
    ),
    "qwen3_moe, a layer without experts": (
        "qwen3_moe",
        {**EXPERTS, "norm_topk_prob": True, "mlp_only_layers": [1]},
        "layer 1 is Block(",
    ),
    "gpt_oss, a ramp of YaRN that ends between dims": (
        "gpt_oss",
        {**OSS, "rope_parameters": {**YARN, "truncate": False}},
        "% from those that llama.cpp computes, with YaRN's ramp",
    ),
    "qwen3, another ramp of YaRN": (
        "qwen3",
        {"rope_parameters": {**YARN, "beta_slow": 0.1}},
        "% from those that llama.cpp computes, with YaRN's ramp",
    ),
    "qwen3, YaRN with a factor of its own": (
        "qwen3",
        {"rope_parameters": {**YARN, "attention_factor": 1.0}},
        "queries and keys are multiplied by 1; llama.cpp multiplies them by 1.069",
    ),
    "deepseek_v3, YaRN that doesn't scale scores": (
        "deepseek_v3",
        {**LATENT, "rope_parameters": {**YARN, "attention_factor": 1.0}},
        "scores aren't multiplied by mscale_all_dim's factor; llama.cpp multiplies them by 1.143",
    ),
    "deepseek_v3, rows that don't rotate in pairs": (
        "deepseek_v3",
        {**LATENT, "rope_interleave": False},
        "it is False; llama.cpp's deepseek2 computes with True",
    ),
    "gpt_oss, another limit of the activation": (
        "gpt_oss",
        {**OSS, "rope_parameters": YARN, "swiglu_limit": 5.0},
        "it is 5.0; llama.cpp's gpt-oss computes with 7.0",
    ),
    "gemma3, a cap of the logits": (
        "gemma3_text",
        {**GEMMA, "final_logit_softcapping": 30.0},
        "it is 30.0; llama.cpp's gemma3 computes with None",
    ),
    "gemma3, windows here and there": (
        "gemma3_text",
        {
            **GEMMA,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        },
        "windows of 8, all, all, 8 tokens; llama.cpp's gemma3 takes windows of one length for all layers but every",
    ),
    "gemma3, scaled positions of windows": (
        "gemma3_text",
        {
            **GEMMA,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
                "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        "positions of layers with windows are scaled",
    ),
}
"""Type of configuration, its settings, and why it has no place in a GGUF file."""


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_architecture_computes_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    kind, sizes, why = REFUSED[case]
    big = whole(tmp_path / "big", kind, **sizes)
    with pytest.raises(ExportError, match=r"The model can't be exported to GGUF; nothing was written\.") as caught:
        export_folder(big, tmp_path / "x.gguf", to="gguf")
    assert why in caught.value.why
    assert caught.value.where
    assert caught.value.hint
    assert not (tmp_path / "x.gguf").exists()


def test_two_scales_of_positions_are_for_layers_as_wide_as_their_queries(tmp_path: Path) -> None:
    big = whole(tmp_path / "big", "phi3", pad_token_id=None, rope_parameters=LONG)
    model = pk.load_folder(big)
    pk.prune(model, IDS, ratio=0.5, prune_head_dims=False, free_outputs=("cache",), round_to=8)
    with pytest.raises(
        ExportError, match=r"LongRoPE's, which llama\.cpp takes of layers only that are as wide"
    ) as caught:
        export_folder(big, tmp_path / "x.gguf", to="gguf", model=model)
    assert "ignored_layers=['model.embed_tokens']" in caught.value.hint


def test_a_factor_of_the_embedding_that_follows_its_width_no_more_is_refused(tmp_path: Path) -> None:
    big = whole(tmp_path / "big", "gemma3_text", **GEMMA)
    model = pk.load_folder(big)
    pk.prune(model, IDS, ratio=0.5, prune_head_dims=False, free_outputs=("cache",), round_to=8)
    with pytest.raises(ExportError, match=r"its rows are multiplied by 8; llama\.cpp's gemma3") as caught:
        export_folder(big, tmp_path / "x.gguf", to="gguf", model=model)
    assert caught.value.where == "model.embed_tokens"
