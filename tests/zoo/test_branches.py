"""Branches of known architectures: how many there are of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk

IMAGE = torch.zeros(1, 3, 64, 64)
TORCHVISION: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "resnet18": ({}, {"residual": 5, "fork": 6}),
    "resnet50": ({}, {"residual": 12, "fork": 8}),
    "regnet_y_400mf": ({}, {"residual": 12, "fork": 8}),
    "mobilenet_v2": ({}, {"residual": 10}),
    "efficientnet_b0": ({}, {"residual": 9}),
    "convnext_tiny": ({}, {"residual": 18}),
    "swin_t": ({}, {"residual": 24}),
    "vit_b_16": ({"image_size": 64}, {"residual": 24}),
    "densenet121": ({}, {}),
}
SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
IDS = torch.randint(3, 90, (1, 9), generator=torch.Generator().manual_seed(0))
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}
FALCON = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "parallel_attn": True}
T5 = {
    "vocab_size": 96,
    "d_model": 64,
    "d_ff": 128,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "d_kv": 16,
}
MOE = {"num_key_value_heads": 2, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSEEK = {
    **SMALL,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], dict[str, int]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {**SMALL, "num_key_value_heads": 2}, {"residual": 6}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**SMALL, "num_key_value_heads": 2, "head_dim": 16},
        {"residual": 6},
    ),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", {**SMALL, "eos_token_id": 2}, {"residual": 6}),
    "falcon": ("FalconConfig", "FalconForCausalLM", FALCON, {"residual": 3, "fork": 6}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", SMALL, {"residual": 3, "fork": 6}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {**GPT2, "bos_token_id": 1, "eos_token_id": 2}, {"residual": 6}),
    "bert": ("BertConfig", "BertForMaskedLM", SMALL, {"residual": 6}),
    "albert": ("AlbertConfig", "AlbertModel", {**SMALL, "embedding_size": 16}, {"residual": 2}),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5, {"residual": 15}),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**SMALL, **MOE}, {"residual": 6}),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", DEEPSEEK, {"residual": 6, "fork": 4}),
}


def offered(make: Callable[[], nn.Module], inputs: Any) -> tuple[dict[str, int], pk.Graph]:
    graph = pk.Graph.of(make(), inputs)
    return dict(Counter(branch.kind.value for branch in graph.branches() if branch.removable)), graph


@pytest.mark.parametrize("name", TORCHVISION)
def test_branches_of_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    options, expected = TORCHVISION[name]
    assert offered(lambda: getattr(models, name)(**options), IMAGE)[0] == expected


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_branches_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config, kind, options, expected = TRANSFORMERS[name]
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS} if name == "t5" else {})
    found, graph = offered(lambda: getattr(transformers, kind)(getattr(transformers, config)(**options)), inputs)
    assert found == expected
    if name == "albert":
        assert [len(branch.sums) for branch in graph.branches() if branch.removable] == [3, 3]
    if name == "llama":
        assert [branch.name for branch in graph.branches()] == [
            f"model.layers.{layer}.{part}" for layer in range(3) for part in ("self_attn", "mlp")
        ]
