"""Branches of known architectures: how many there are of each kind."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.plugin import default_registry
from prunekit_core.check.verification import verify_cut
from prunekit_core.modules.absent import to_json
from prunekit_core.program.examples import run_with_cache
from prunekit_core.rehearse.removals import draft_without
from prunekit_plugins.integrations.configuration import update_config

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


def transformer(name: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config, kind, given, _ = TRANSFORMERS[name]
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**{**given, **options}))
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1 + (parameter.dim() == 1)
    return model.eval()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "convnext_tiny", "swin_t", "vit_b_16"])
def test_a_random_half_of_the_residual_branches_goes_exactly(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    check_half(getattr(models, name)(**TORCHVISION[name][0]).eval().double(), torch.randn(1, 3, 64, 64).double())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "regnet_y_400mf"])
def test_each_branch_alone_goes_exactly_projections_too(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    model, x = getattr(models, name)().eval().double(), torch.randn(1, 3, 64, 64).double()
    graph = pk.Graph.of(model, x)
    for branch in graph.branches():
        plan = graph.plan_without([branch.name])
        assert pk.check_exact(model, plan.apply(copy.deepcopy(model)), plan, x), branch.name
        assert not any("zeros" in json.dumps(to_json(stub.result)) for stub in plan.stubs)


@pytest.mark.parametrize("name", ["llama", "olmo2", "falcon", "gpt_neox", "bert", "albert", "qwen3_moe", "deepseek_v3"])
def test_a_random_half_goes_exactly_without_a_cache(name: str) -> None:
    experts = name in ("qwen3_moe", "deepseek_v3")  # their grouped products have no double precision
    model = transformer(name) if experts else transformer(name).double()
    check_half(model, {"input_ids": IDS} | ({} if name in ("bert", "albert") else {"use_cache": False}))


def test_a_mixture_whose_cut_is_compared_by_numbers_is_exact() -> None:
    """What the program decides by value is compared as well: in the calls that count, not in one before them."""
    model = transformer("qwen3_moe")
    names = ["model.layers.1.self_attn"]
    result = pk.prune(model, {"input_ids": IDS}, branches=names, keep_names=True, verify="always")
    assert result.verification.check is not None
    assert result.verification.check.error == 0


def check_half(model: nn.Module, inputs: Any) -> None:
    graph = pk.Graph.of(model, inputs)
    residual = [branch for branch in graph.branches() if branch.kind.value == "residual"]
    if graph.branch_analysis.decoding:
        residual = residual[1:]  # the cache's length is read from the first attention
    chosen = random.Random(0).sample(residual, (len(residual) + 1) // 2)
    plan = draft_without(model, graph.drafts, chosen)
    small = plan.apply(copy.deepcopy(model))
    assert pk.check_exact(model, small, plan, inputs)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def steps(model: nn.Module) -> torch.Tensor:
    """Logits, one token at a time, each with the cache of those before."""
    cache, logits = None, []
    with torch.no_grad():
        for token in IDS.split(1, dim=1):
            out = model(input_ids=token, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits)
    return torch.cat(logits, 1)


SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


@pytest.mark.filterwarnings("ignore:.*past_key_values. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("name", "options", "stay"),
    [("llama", {}, {0}), ("gemma3", SLIDING, {0, 1}), ("gpt2", {}, {0})],
    ids=["llama", "gemma3", "gpt2"],
)
def test_recorded_with_a_decoding_step_what_goes_decodes_right(
    name: str, options: dict[str, Any], stay: set[int]
) -> None:
    """The cache's length is read from the first layer of each kind: without that, it would decode something else."""
    model = transformer(name, **options).double()
    graph = pk.Graph.of(model, {"input_ids": IDS[:, :5]}, forward_fn=run_with_cache, modes=(False,))
    offered = [branch for branch in graph.branches() if branch.removable]
    attention = [branch for branch in offered if "attn" in branch.name]
    assert [len(branch.sums) for branch in offered] == [2] * 6
    for layer, branch in enumerate(attention):
        if layer in stay:
            with pytest.raises(pk.RehearsalError, match="aten::arange"):
                draft_without(model, graph.drafts, [branch])
    going = [branch for branch in offered if branch not in [attention[layer] for layer in stay]]
    for chosen in ([going[0]], going[1::2], going):
        plan = draft_without(model, graph.drafts, chosen)
        costs = plan.preview().costs
        assert verify_cut(model, plan, graph.analysis, default_registry(), wish="always", costs=costs).check
        small = plan.apply(copy.deepcopy(model))
        with torch.no_grad():
            whole = small(input_ids=IDS, use_cache=False).logits
        torch.testing.assert_close(steps(small), whole, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*past_key_values. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("name", "options", "layers", "fields"),
    [
        ("llama", {}, {0}, {"num_hidden_layers": (3, 2)}),
        ("llama", {}, {1, 2}, {"num_hidden_layers": (3, 1)}),
        ("gpt2", {}, {1}, {"n_layer": (3, 2)}),
        ("gemma3", SLIDING, {2}, {"num_hidden_layers": (3, 2), "layer_types": (3, 2)}),
        ("qwen3_moe", {}, {0}, {"num_hidden_layers": (3, 2)}),
    ],
    ids=lambda value: str(value) if isinstance(value, str | set) else "",
)
def test_whole_layers_leave_and_stock_classes_load_what_is_left(
    name: str, options: dict[str, Any], layers: set[int], fields: dict[str, Any], tmp_path: Path
) -> None:
    model = transformer(name, **options)
    graph = pk.Graph.of(model, {"input_ids": IDS})
    going = [branch.name for branch in graph.branches() if any(f".{layer}." in branch.name for layer in layers)]
    plan = draft_without(model, graph.drafts, going)
    small: Any = plan.apply(copy.deepcopy(model))
    assert pk.check_exact(model, small, plan, {"input_ids": IDS})
    update = update_config(small, plan, {"input_ids": IDS, "use_cache": False})
    assert (update.changed, update.notes) == (fields, ())
    small.save_pretrained(tmp_path)
    stock = type(small).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(stock(IDS).logits, small(IDS).logits)
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(stock.generate(IDS, **options), small.generate(IDS, **options))


def test_a_configuration_cannot_say_that_an_attention_is_gone() -> None:
    model = transformer("llama")
    graph = pk.Graph.of(model, {"input_ids": IDS})
    plan = graph.plan_without(["model.layers.1.self_attn"])
    small: Any = plan.apply(copy.deepcopy(model))
    update = update_config(small, plan, {"input_ids": IDS, "use_cache": False})
    assert not update.complete
    why = "the configuration can't say that a part of the model is gone"
    assert update.notes == (f"{why}: model.layers.1.input_layernorm, model.layers.1.self_attn",)
    assert small.config.num_hidden_layers == 3
