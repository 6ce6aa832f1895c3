"""Families with the numbers of their own configuration in mlx-lm: whole and pruned, token by token the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import prunekit as pk
from prunekit_plugins.export import ExportError, export_folder
from prunekit_plugins.export.engines import steps
from prunekit_plugins.export.mlx import CLASSES

transformers = pytest.importorskip("transformers")

from tests.export.agreement import both  # noqa: E402  # needs transformers
from tests.export.folders import pruned, whole  # noqa: E402  # needs transformers

needs_mlx = pytest.mark.skipif(not (steps.installed("mlx_lm") and steps.installed("mlx")), reason="no mlx-lm")
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR: dict[str, Any] = {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
TURNS: dict[str, Any] = {
    "sliding_window": 8,  # less than the prompt has tokens
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
FEW: dict[str, Any] = {"num_experts_per_tok": 2}
SINKS: dict[str, Any] = {**TURNS, **FEW, "num_local_experts": 4, "intermediate_size": 64}
LATENT: dict[str, Any] = {
    **FEW,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "head_dim": 8,
}
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "mistral": ("mistral", {"sliding_window": None, "rope_parameters": YARN}, "mistral"),
    "phi3": ("phi3", {"pad_token_id": None}, "llama"),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "pad_token_id": None}, "smollm3"),
    "gemma3": (
        "gemma3_text",
        {**TURNS, "hidden_size": 128, "rope_parameters": {"sliding_attention": ROPE, "full_attention": LINEAR}},
        "gemma3_text",
    ),
    "gemma3, tied": ("gemma3_text", {**TURNS, "hidden_size": 128, "tie_word_embeddings": True}, "gemma3_text"),
    "qwen3_moe": (
        "qwen3_moe",
        {**FEW, "moe_intermediate_size": 64, "num_experts": 4, "norm_topk_prob": True},
        "qwen3_moe",
    ),
    "mixtral": ("mixtral", {**FEW, "num_local_experts": 4, "intermediate_size": 64}, "mixtral"),
    "gpt_oss": ("gpt_oss", {**SINKS, "rope_parameters": {**YARN, "truncate": True}}, "gpt_oss"),
    "deepseek_v3": (
        "deepseek_v3",
        {**LATENT, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
        "deepseek_v3",
    ),
}
"""Type of configuration, its settings, and mlx-lm's name of the architecture."""


@pytest.mark.slow
@needs_mlx
@pytest.mark.parametrize("case", CASES)
def test_mlx_computes_what_the_pruned_model_does(case: str, tmp_path: Path) -> None:
    kind, sizes, architecture = CASES[case]
    big = whole(tmp_path / "big", kind, **sizes)
    small = pruned(big, tmp_path / "small", serve="mlx")
    before, after = (sum(p.numel() for p in pk.load_folder(folder).parameters()) for folder in (big, small))
    assert after < 0.9 * before
    both(big, small, "mlx")
    config = json.loads((tmp_path / "small-mlx" / "config.json").read_text())
    assert config["model_type"] == architecture
    assert (tmp_path / "small-mlx" / "tokenizer.json").is_file()


SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 910}
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "window": ("mistral", {"sliding_window": 8}, "a window of 8 tokens", "sliding_window to null"),
    "activation": ("mistral", {"sliding_window": None, "hidden_act": "gelu"}, "hidden_act=gelu", "--to hf"),
    "long": (
        "phi3",
        {
            "pad_token_id": None,
            "head_dim": 8,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 64,
            },
        },
        "of the kind 'longrope'",
        "--to hf",
    ),
    "partial": (
        "phi3",
        {"pad_token_id": None, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
        "50% of the dims of a head are rotated",
        "--to hf",
    ),
    "bias": ("smollm3", {"pad_token_id": None, "attention_bias": True}, "attention_bias=True", "--to hf"),
    "turns": (
        "gemma3_text",
        {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
        "don't take turns",
        "--to hf",
    ),
    "capped": ("gemma3_text", {**TURNS, "final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0", "--to hf"),
    "scaled": (
        "qwen3_moe",
        {**FEW, "num_experts": 4, "moe_intermediate_size": 32, "rope_parameters": YARN},
        "of the kind 'yarn'",
        "--to hf",
    ),
    "wide": (
        "mixtral",
        {**FEW, "num_local_experts": 4, "head_dim": 16},
        "computes the width of a head",
        "embed_tokens",
    ),
    "ramp": (
        "gpt_oss",
        {**SINKS, "rope_parameters": {**YARN, "truncate": False}},
        "truncate=False; mlx-lm computes with truncate=True only",
        "--to hf",
    ),
    "alike": (
        "gpt_oss",
        {**SINKS, "rope_parameters": ROPE, "layer_types": ["full_attention"] * 4},
        "no layer has sliding_attention",
        "--to hf",
    ),
    "half": ("deepseek_v3", {**LATENT, "rope_interleave": False}, "rope_interleave=False", "--to hf"),
    "one": (
        "deepseek_v3",
        {**LATENT, "num_experts_per_tok": 1},
        "the weight of one expert for a token is normalised",
        "--to hf",
    ),
    "other": ("gpt2", {}, "families that are known: DeepseekV3ForCausalLM", "--to hf"),
}
"""Type of configuration, its settings, and what is said of it."""


@pytest.mark.parametrize("case", REFUSED)
def test_what_mlx_does_not_compute_is_refused_before_writing(case: str, tmp_path: Path) -> None:
    kind, sizes, why, hint = REFUSED[case]
    folder = whole(tmp_path / "big", kind, **{**SMALL, **sizes})
    with pytest.raises(ExportError, match=r"The model can't be exported to MLX; nothing was written\.") as caught:
        export_folder(folder, tmp_path / "x", to="mlx")
    assert why in str(caught.value)
    assert hint in caught.value.hint
    assert not (tmp_path / "x").exists()


def test_sizes_and_numbers_that_the_configuration_does_not_say_are_refused(tmp_path: Path) -> None:
    folder = whole(tmp_path / "big", "mistral", **SMALL, sliding_window=None)
    model: Any = pk.load_folder(folder)
    model.model.layers[1].self_attn.scaling *= 2
    with pytest.raises(ExportError, match="its configuration can't say its sizes") as caught:
        export_folder(folder, tmp_path / "x", to="mlx", model=model)
    assert 'serve="mlx"' in caught.value.hint
    model = pk.load_folder(folder)
    model.model.layers[1].mlp.down_proj.weight.data = model.model.layers[1].mlp.down_proj.weight.data.double()
    with pytest.raises(ExportError, match=r"weights of torch\.float64"):
        export_folder(folder, tmp_path / "x", to="mlx", model=model)
    model.config.rope_parameters = None
    with pytest.raises(ExportError, match="transformers before version 5"):
        export_folder(folder, tmp_path / "x", to="mlx", model=model)


def tensors(folder: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Exports a folder without an engine; returns what was written."""
    monkeypatch.setattr("prunekit_plugins.export.mlx.export.installed", lambda name: False)
    assert export_folder(folder, path, to="mlx").check is None
    return safetensors.torch.load_file(path / "model.safetensors")


def test_neighbours_of_experts_are_taken_apart_and_turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = whole(tmp_path / "big", "gpt_oss", **{**SMALL, **SINKS, "rope_parameters": ROPE})
    found = tensors(folder, tmp_path / "x", monkeypatch)
    experts: Any = pk.load_folder(folder)
    experts = experts.model.layers[1].mlp.experts
    place = "model.layers.1.mlp.experts"
    x = torch.randn(5, 32)
    expected = x @ experts.gate_up_proj[2] + experts.gate_up_proj_bias[2]
    for name, wanted in (("gate", expected[:, ::2]), ("up", expected[:, 1::2])):
        weight, bias = found[f"{place}.{name}_proj.weight"], found[f"{place}.{name}_proj.bias"]
        torch.testing.assert_close(torch.nn.functional.linear(x, weight[2], bias[2]), wanted)
    torch.testing.assert_close(found[f"{place}.down_proj.weight"][3], experts.down_proj[3].T)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_make_up_for_a_factor_that_mlx_rounds(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {**SMALL, **TURNS, "hidden_size": 72, "tie_word_embeddings": tied}
    folder = whole(tmp_path / "big", "gemma3_text", **sizes)
    found = tensors(folder, tmp_path / "x", monkeypatch)
    model: Any = pk.load_folder(folder)
    rounded = torch.tensor(72**0.5).bfloat16().float()
    assert float(rounded) != pytest.approx(72**0.5, rel=1e-4)
    ids = torch.tensor([3, 5])
    torch.testing.assert_close(
        found["model.embed_tokens.weight"][ids] * rounded, model.model.embed_tokens(ids), rtol=1e-6, atol=0
    )
    x = torch.randn(2, 72)
    head = found["lm_head.weight"] if not tied else found["model.embed_tokens.weight"]
    assert ("lm_head.weight" in found) != tied
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + found["model.norm.weight"])
    torch.testing.assert_close(normed @ head.T, model.lm_head(model.model.norm(x)), rtol=1e-4, atol=1e-5)


def test_every_family_that_mlx_serves_has_a_profile() -> None:
    config = transformers.AutoConfig.for_model(
        "mixtral", **{**SMALL, **FEW, "num_local_experts": 4}, num_attention_heads=4, num_key_value_heads=2
    )
    model = transformers.MixtralForCausalLM(config).eval()
    profile = pk.default_registry().named("prunekit_serving_profiles", "mlx")
    found = profile(model, {"input_ids": torch.tensor([[5, 9, 4]])})
    assert "model.embed_tokens" in found.fixed
    assert any("computes the width of this family's heads" in note for note in found.notes)
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32)).eval()
    with pytest.raises(pk.ArgumentError, match=r'serve="mlx" is for families') as caught:
        profile(gpt, {"input_ids": torch.tensor([[5, 9, 4]])})
    assert all(name in caught.value.why for name in CLASSES)
