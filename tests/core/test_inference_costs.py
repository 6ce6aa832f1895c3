"""Costs of an inference: bytes of real caches, and the parameters that one token of a real mixture is multiplied by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.groups.costs import compiled_cost
from prunekit_plugins.budgets import active_params, kv_cache, kv_memory
from prunekit_plugins.budgets.inference.cache import cache_tensors
from prunekit_plugins.budgets.inference.check import Remembering, check_cache
from tests.core import test_expert_lists, test_experts

transformers = pytest.importorskip("transformers", reason="needs prunekit[hf]")
SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4,
}  # fmt: skip


def llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()


def gemma() -> Any:
    torch.manual_seed(0)
    layers = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(**SIZES, sliding_window=8, layer_types=layers)
    return transformers.Gemma3ForCausalLM(config).eval()


def tokens(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, 32, (batch, length))}


def real_cache(model: Any, inputs: dict[str, torch.Tensor]) -> int:
    """Bytes of the keys and values that the model returns."""
    with torch.no_grad():
        outputs = model(**inputs)
    (cache,) = [value for key, value in outputs.items() if key != "logits"]
    return sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values) if t is not None)


def real_weights(model: nn.Module) -> int:
    return sum(t.nbytes for t in [*dict(model.named_parameters()).values(), *dict(model.named_buffers()).values()])


@pytest.mark.parametrize("make", [llama, gemma])
@pytest.mark.parametrize(("batch", "length"), [(1, 6), (3, 20)])
def test_caches_and_weights_are_counted_by_their_bytes(make: Any, batch: int, length: int) -> None:
    model, inputs = make(), tokens(batch, length)
    analysis = pk.Graph.of(model, inputs, free_outputs=["cache"]).analysis
    assert kv_cache(analysis, {}) == real_cache(model, inputs)
    assert kv_memory(analysis, {}) == real_cache(model, inputs) + real_weights(model)


@pytest.mark.parametrize("make", [llama, gemma])
def test_a_target_on_the_cache_holds_for_the_cache_of_the_smaller_model(make: Any) -> None:
    model, inputs = make(), tokens(2, 20)
    whole, weights = real_cache(model, inputs), real_weights(model)
    released = {"free_outputs": ["cache"], "prune_num_heads": True, "prune_head_dims": False}
    result = pk.prune(model, inputs, target={"kv_cache": 0.5, "kv_memory": 0.8}, **released)
    small = real_cache(model, inputs)
    assert result.preview.costs["kv_cache"] == (whole, small)
    assert small <= whole / 2
    assert result.preview.costs["kv_memory"] == (whole + weights, small + real_weights(model))
    assert "kv_cache" in str(result)


def test_a_cache_of_absent_branches_does_not_count() -> None:
    model, inputs = llama(), tokens(2, 9)
    graph = pk.Graph.of(model, inputs)
    plan = graph.plan_without(["model.layers.1.self_attn", "model.layers.1.mlp"])
    left = compiled_cost(graph.registry, "kv_cache", graph.analysis_after(plan))({})
    graph.apply(plan)
    assert left == real_cache(model, inputs) == 2 * 2 * 9 * 8 * 4


def test_where_outputs_keep_their_size_the_error_says_which() -> None:
    with pytest.raises(pk.ArgumentError, match="target can't be reached") as error:
        pk.prune(llama(), tokens(2, 9), target={"kv_cache": 0.5})
    assert "free_outputs" in str(error.value)


def test_a_model_without_a_cache_has_no_cost_of_one() -> None:
    with pytest.raises(pk.ArgumentError, match="returns no cache") as error:
        pk.prune(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(2, 4), target={"kv_memory": 0.5})
    assert "Sequential" in error.value.where


def test_lists_of_other_tensors_are_no_cache() -> None:
    model = llama()
    inputs = {**tokens(1, 5), "output_hidden_states": True}
    analysis = pk.Graph.of(model, inputs).analysis
    assert kv_cache(analysis, {}) == real_cache(model, tokens(1, 5))
    found = pk.Graph.of(Remembering(), torch.zeros(2, 5, 4)).analysis
    assert [found.recordings[0].trace.shapes[index] for index in cache_tensors(found)] == [(2, 5, 6)]


def test_the_check_of_caches_fails_for_a_wrong_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    check_cache(pk.default_registry())
    monkeypatch.setattr(kv_cache, "_with_weights", True)
    with pytest.raises(AssertionError, match="with 6 units the cache and its model take"):
        check_cache(pk.default_registry())


def test_one_token_uses_as_many_experts_as_are_chosen() -> None:
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(**SIZES, moe_intermediate_size=8, num_experts=8, num_experts_per_tok=3)
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    graph = pk.Graph.of(model, tokens(2, 6))

    def expected() -> int:
        count = 0
        for name, parameter in model.named_parameters():
            per_expert = parameter.numel() // parameter.shape[0]
            count += 3 * per_expert if ".experts." in name else parameter.numel()
        return count

    assert active_params(graph.analysis, {}) == expected() < sum(p.numel() for p in model.parameters())
    experts = [name for name, group in graph.analysis.groups.items() if group.kind is pk.Kind.EXPERTS]
    assert len(experts) == 2
    kept = dict.fromkeys(experts, (0, 2, 5, 6))
    predicted = active_params(graph.analysis, kept)
    graph.remove(dict.fromkeys(experts, (1, 3, 4, 7)))
    assert predicted == expected()  # only the routers lost rows
    assert compiled_cost(graph.registry, "active_params", pk.Graph.of(model, tokens(2, 6)).analysis)({}) == expected()


def test_experts_stay_where_one_token_would_use_as_many_parameters_without_some_and_get_narrower_instead() -> None:
    torch.manual_seed(0)
    experts = {"moe_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 2}
    config = transformers.Qwen3MoeConfig(**{**SIZES, "vocab_size": 512}, **experts)
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    options: dict[str, Any] = {"ignored_layers": ["model.embed_tokens"], "expert_importance": "magnitude"}
    result = pk.prune(model, tokens(2, 6), target={"active_params": 0.9}, **options)
    routers = [name for name, group in result.graph.analysis.groups.items() if group.kind is pk.Kind.EXPERTS]
    why = "all 8 units stay: active_params would be about the same without some of them"
    assert {result.report.left[name] for name in routers} == {why}
    assert any("mlp.experts" in name for name in result.report.pruned)


@pytest.mark.parametrize("kind", [test_experts.LookedUp, test_experts.Sorted, test_experts.Grouped])
def test_routers_count_whole(kind: Any) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    analysis = pk.Graph.of(model, torch.randn(6, 8)).analysis
    assert any(group.kind is pk.Kind.EXPERTS for group in analysis.groups.values())
    found = active_params(analysis, {})
    by_hand = 0.0
    for name, parameter in model.named_parameters():
        share = model.top_k / parameter.shape[0] if name in ("up", "down", "scale") else 1
        by_hand += share * parameter.numel()
    assert found == by_hand


def test_a_model_without_experts_uses_all_of_its_parameters() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval(), torch.randn(3, 4)
    analysis = pk.Graph.of(net, x).analysis
    assert active_params(analysis, {}) == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("kind", [test_expert_lists.Routed, test_expert_lists.InTurn])
def test_experts_in_a_list_count_as_those_in_a_stack(kind: Any) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    analysis = pk.Graph.of(model, torch.randn(6, 8)).analysis
    assert analysis.lists
    expert = sum(p.numel() for p in model.experts[0].parameters())
    others = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("experts."))
    assert active_params(analysis, {}) == others + 2 * expert
