"""Mixtures of transformers lose half of the experts of each layer, in every implementation of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.integrations.configuration import update_config
from prunekit_plugins.measure import count_macs

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
INPUTS = {"input_ids": IDS, "use_cache": False}
SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SHARED = {**SIZES, "num_key_value_heads": 2, "num_experts_per_tok": 2}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3Moe": ("num_experts", {**SHARED, "num_experts": 8, "moe_intermediate_size": 16}),
    "Mixtral": ("num_local_experts", {**SHARED, "num_local_experts": 8}),
    "Olmoe": ("num_experts", {**SHARED, "num_experts": 8, "eos_token_id": 1}),
    "GptOss": ("num_local_experts", {**SHARED, "num_local_experts": 8, "head_dim": 8}),
    "DeepseekV3": (
        "n_routed_experts",
        {
            **SHARED,
            **LATENT,
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "moe_intermediate_size": 16,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 0,
        },
    ),
}
GONE = {"DeepseekV3": (0, 2, 4, 6)}
"""Experts out of every layer; two groups of four lose the same places."""


def tiny(name: str, implementation: str) -> Any:
    _, sizes = TINY[name]
    config = getattr(transformers, f"{name}Config")(**sizes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.config._experts_implementation = implementation
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**INPUTS).logits
    return found


def routers(model: nn.Module) -> list[nn.Module]:
    return [module for path, module in model.named_modules() if path.endswith((".gate", ".router"))]


def barred(model: nn.Module, gone: tuple[int, ...]) -> torch.Tensor:
    """What the original computes when its routers can't choose some experts: their logits are at minus infinity."""

    def linear(function: Callable[..., Any], weights: set[int]) -> Callable[..., Any]:
        def called(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
            y = function(x, weight, bias)
            out = weight.shape[0] == 8 and any(torch.equal(weight, of.weight) for of in routers(model))
            return y.index_fill(-1, torch.tensor(gone), -torch.inf) if out else y

        return called

    kept, biases = nn.functional.linear, [getattr(of, "e_score_correction_bias", None) for of in routers(model)]
    nn.functional.linear = linear(kept, set())  # type: ignore[assignment]
    for bias in biases:
        if bias is not None:  # a sigmoid of minus infinity is a score of zero, which can be chosen
            bias.data[list(gone)] = -torch.inf
    try:
        return logits(model)
    finally:
        nn.functional.linear = kept


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize("name", TINY)
def test_half_of_the_experts_leave(name: str, implementation: str) -> None:
    model, original = tiny(name, implementation), tiny(name, implementation)
    graph = pk.DependencyGraph().build_dependency(model, INPUTS)
    groups = [group for group in graph.groups() if group.kind is pk.Kind.EXPERTS]
    assert len(groups) == SIZES["num_hidden_layers"]
    gone = GONE.get(name, (1, 2, 5, 6))
    plan = graph.remove({group.name: [unit for unit in gone if unit < group.size] for group in groups})
    assert {tuple(router.weight.shape) for router in routers(model)} == {(4, SIZES["hidden_size"])}
    found = logits(model)
    assert torch.allclose(found, barred(tiny(name, implementation), gone), atol=1e-6)
    assert not torch.allclose(found, logits(original), atol=1e-3)
    assert pk.check_exact(original, model, plan, INPUTS)
    for other in ("grouped_mm", "batched_mm", "eager"):  # what one implementation doesn't read is right for the others
        model.config._experts_implementation = other
        assert torch.allclose(logits(model), found, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_a_stock_model_is_built_from_the_configuration(name: str, tmp_path: Any) -> None:
    model = tiny(name, "grouped_mm")
    result = pk.prune(model, INPUTS, ratio=0.0, expert_pruning_ratio=0.5, uniform=True)
    assert sorted(result.report.pruned.values()) == [(4, 2) if name == "DeepseekV3" else (8, 4)] * 2
    update = update_config(model, result.plan, INPUTS)
    assert update.complete, update
    field, _ = TINY[name]
    assert getattr(model.config, field) == 4
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.allclose(logits(again), logits(model), atol=1e-6)
    assert again.generate(IDS[:, :4], max_new_tokens=3, do_sample=False).shape == (2, 7)


def test_more_experts_per_token_than_would_stay_are_told_before_anything_runs() -> None:
    model = tiny("Qwen3Moe", "grouped_mm")
    graph = pk.DependencyGraph().build_dependency(model, INPUTS)
    groups = [group for group in graph.groups() if group.kind is pk.Kind.EXPERTS]
    before = graph.analysis.shadow.replays
    with pytest.raises(pk.RehearsalError, match="2 of them are chosen"):
        graph.draft({group.name: (3,) for group in groups})
    assert graph.analysis.shadow.replays == before


@pytest.mark.parametrize("name", TINY)
def test_every_implementation_does_as_many_multiply_accumulates(name: str) -> None:
    counts = {
        (pk.Graph.of(model, INPUTS).costs_without([])["macs"][0], count_macs(model, INPUTS))
        for model in (tiny(name, implementation) for implementation in ("grouped_mm", "batched_mm", "eager"))
    }
    ((planned, counted),) = counts
    assert planned == counted > 0


ZAYA = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 8, "router_hidden_size": 16}


def zaya() -> Any:
    """A mixture whose routers compare the expert that was chosen with a number of the configuration."""
    config = transformers.ZayaConfig(**{**ZAYA, "moe_intermediate_size": 16, "eos_token_id": 1})
    torch.manual_seed(0)
    model = transformers.ZayaForCausalLM(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def test_a_number_that_all_routers_read_from_the_configuration_follows(tmp_path: Any) -> None:
    model = zaya()
    result = pk.prune(model, INPUTS, 0.0, expert_pruning_ratio=0.5)
    assert list(result.report.pruned.values()) == [(7, 3)] * 2  # the one in the place of none is no unit
    assert model.config.num_experts == 4
    assert pk.check_exact(zaya(), model, result.plan, INPUTS)
    assert update_config(model, result.plan, INPUTS).complete
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path).eval()), logits(model))


def test_a_folder_of_a_model_whose_configuration_was_changed_is_opened_by_its_plan(tmp_path: Any) -> None:
    model = zaya()
    result = pk.prune(model, INPUTS, 0.3, expert_pruning_ratio=0.5)
    pk.save_folder(model, tmp_path / "small", plan=result.plan, example_inputs=INPUTS)
    assert torch.equal(logits(pk.load_folder(tmp_path / "small")), logits(model))
