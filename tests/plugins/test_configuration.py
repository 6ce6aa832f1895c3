"""Configurations of pruned transformers models: what they say, and that a model built from them is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.modules.entries import Deletion, Entries
from prunekit_plugins.integrations.config_depth import find_depth
from prunekit_plugins.integrations.configuration import update_config
from prunekit_plugins.integrations.huggingface import load_pretrained, save_pretrained

transformers = pytest.importorskip("transformers")

TEXT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PICTURE: dict[str, Any] = {**TEXT, "image_size": 16, "patch_size": 8}
for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"):
    PICTURE.pop(name)
IDS = torch.tensor([[7, 5, 9, 4, 3], [3, 3, 8, 7, 6]])
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@attrs.frozen
class Case:
    """A model, how it is pruned, and what its configuration says afterwards.

    Attributes:
        kind: Type of the configuration.
        made: Class of the model.
        config: Arguments of the configuration.
        changed: Expected changes.
        inputs: Keyword inputs.
        options: Arguments of `prune`.
    """

    kind: str
    made: str
    config: dict[str, Any]
    changed: dict[str, tuple[int | None, int]]
    inputs: dict[str, Any] = attrs.field(factory=lambda: {"input_ids": IDS})
    options: dict[str, Any] = attrs.field(factory=dict)


HALVES = {"hidden_size": (32, 16), "intermediate_size": (48, 24)}
GQA = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
DIMS_STAY: dict[str, Any] = {"prune_head_dims": False}
CASES = {
    "bert": Case("bert", "BertForMaskedLM", TEXT, HALVES),
    "bert without fused attention": Case("bert", "BertForMaskedLM", {**TEXT, "attn_implementation": "eager"}, HALVES),
    "grouped queries, tied": Case("llama", "LlamaForCausalLM", {**GQA, "tie_word_embeddings": True}, HALVES),
    "query heads on request": Case(
        "llama",
        "LlamaForCausalLM",
        GQA,
        {**HALVES, "num_attention_heads": (4, 2)},
        options={"prune_num_heads": True},
    ),
    "whole key-value heads, with their queries": Case(
        "llama",
        "LlamaForCausalLM",
        GQA,
        {**HALVES, "num_attention_heads": (4, 2), "num_key_value_heads": (2, 1)},
        options={"prune_num_heads": True, "free_outputs": ["cache"], **DIMS_STAY},
    ),
    "whole heads without a number for their width": Case(
        "qwen2",
        "Qwen2ForCausalLM",
        {**TEXT, "num_key_value_heads": 2},
        {**HALVES, "num_attention_heads": (4, 2), "num_key_value_heads": (2, 1)},
        options={"prune_num_heads": True, "free_outputs": ["cache"], **DIMS_STAY},
    ),
    "whole heads that don't show in the weights": Case(
        "bert",
        "BertForMaskedLM",
        TEXT,
        {**HALVES, "num_attention_heads": (4, 2)},
        options={"prune_num_heads": True, **DIMS_STAY},
    ),
    "an open field": Case(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**TEXT, "num_key_value_heads": 2, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2},
        {"hidden_size": (32, 16), "moe_intermediate_size": (24, 12), "head_dim": (None, 8)},
        options=DIMS_STAY,
    ),
    "packed layers": Case("phi3", "Phi3ForCausalLM", GQA, HALVES),
    "experts": Case(
        "mixtral",
        "MixtralForCausalLM",
        {**GQA, "num_local_experts": 3, "num_experts_per_tok": 2},
        HALVES,
    ),
    "pictures": Case("vit", "ViTForImageClassification", PICTURE, HALVES, {"pixel_values": PIXELS}),
    "encoder and decoder": Case(
        "t5",
        "T5ForConditionalGeneration",
        {
            "vocab_size": 40,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        {"d_ff": (48, 24)},
        {"input_ids": IDS, "decoder_input_ids": IDS},
        DIMS_STAY,
    ),
    "configurations inside": Case(
        "clip",
        "CLIPModel",
        {"text_config": {**TEXT, "projection_dim": 16}, "vision_config": {**PICTURE, "projection_dim": 16}},
        {"text_config.intermediate_size": (48, 24), "vision_config.intermediate_size": (48, 24)},
        {"input_ids": IDS, "pixel_values": PIXELS},
        DIMS_STAY,
    ),
}


def build(case: Case) -> Any:
    torch.manual_seed(0)
    arguments = dict(case.config)
    attention = arguments.pop("attn_implementation", "sdpa")
    config = transformers.AutoConfig.for_model(case.kind, **arguments)
    return getattr(transformers, case.made)._from_config(config, attn_implementation=attention).eval()


def logits(model: nn.Module, inputs: dict[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [tensor for tensor in model(**inputs).to_tuple() if isinstance(tensor, torch.Tensor)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_pruned_model_comes_back_from_its_configuration(case: Case, tmp_path: Path) -> None:
    model = build(case)
    plan = pk.prune(model, case.inputs, uniform=True, **case.options).plan
    expected = logits(model, case.inputs)
    update = update_config(model, plan, case.inputs)
    assert update.complete, str(update)
    assert dict(update.changed) == case.changed
    for name, (_, new) in case.changed.items():
        holder = model.config
        for part in name.split("."):
            holder = getattr(holder, part)
        assert holder == new
    after = logits(model, case.inputs)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(expected, after, strict=True))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation=model.config._attn_implementation).eval()
    assert all(torch.equal(a, b) for a, b in zip(after, logits(loaded, case.inputs), strict=True))
    if model.can_generate():
        ids = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
        made = [m.generate(**ids, max_new_tokens=4, do_sample=False) for m in (model, loaded)]
        assert torch.equal(*made)
        assert made[0].shape[1] > 1
    if case.config.get("tie_word_embeddings"):
        assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.slow
def test_what_differs_from_layer_to_layer_is_named() -> None:
    case = CASES["grouped queries, tied"]
    model = build(case)
    ratios: Any = {"model.layers.0.mlp.up_proj": 0.25, "model.layers.1.mlp.up_proj": 0.5}
    plan = pk.prune(model, case.inputs, pruning_ratio_dict=ratios).plan
    expected = logits(model, case.inputs)
    before = model.config.to_dict()
    whole = update_config(model, plan, case.inputs)
    assert not whole.complete
    assert (dict(whole.changed), model.config.to_dict()) == ({}, before)
    assert "the configuration is as it was" in str(whole)
    assert "what to do: prune(..., serve=" in str(whole)
    update = update_config(model, plan, case.inputs, strict=False)
    assert update.changed["hidden_size"] == (32, 16)
    assert model.config.intermediate_size == 48
    (note,) = update.notes
    assert update.notes == whole.notes
    assert note.startswith("intermediate_size = 48 can't say the sizes [24, 36] of model.layers.0.mlp.down_proj")
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(expected, logits(model, case.inputs), strict=True))


def test_ranked_globally_with_one_size_for_all_layers_comes_back() -> None:
    case = CASES["grouped queries, tied"]
    model = build(case)
    for number, layer in enumerate(model.model.layers):
        layer.mlp.up_proj.weight.data *= 3.0**number
    plan = pk.prune(model, case.inputs, target={"params": 0.5}, global_pruning=True, uniform=True).plan
    update = update_config(model, plan, case.inputs)
    assert update.complete, str(update)
    assert update.changed["intermediate_size"][1] == model.model.layers[0].mlp.up_proj.out_features < 48


def test_frequencies_of_positions_that_were_kept_cant_be_said() -> None:
    case = CASES["grouped queries, tied"]
    inputs = {**case.inputs, "use_cache": False}
    model = build(case)
    plan = pk.prune(model, inputs, uniform=True).plan
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert not update_config(model, plan, inputs).complete
    assert model.config.head_dim == 8
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    update = update_config(model, plan, inputs, strict=False)
    assert model.config.head_dim == 4
    assert update.notes[-1].endswith("inv_freq isn't saved, and a new model fills it with other values")


def test_sizes_that_transformers_refuses_are_told_and_the_configuration_stays(tmp_path: Path) -> None:
    """Three query heads to each of two key heads: a width of 32 isn't a multiple of 6 heads, which is checked."""
    case = Case("llama", "LlamaForCausalLM", {**TEXT, "num_attention_heads": 8, "num_key_value_heads": 2}, {})
    model = build(case)
    before = model.config.to_dict()
    graph = pk.DependencyGraph().build_dependency(model, {**case.inputs, "use_cache": False})
    names = [name for name in graph.analysis.groups if name.endswith("#queries_per_head")]
    for name in names:
        pk.Group(graph, {name: (1,)}, None).prune()
    plan = graph.applied
    assert model.model.layers[0].self_attn.q_proj.out_features == 24
    update = update_config(model, plan, case.inputs)
    assert not update.complete
    assert "not a multiple of the number of attention heads" in update.notes[-1]
    assert update.changed == {}
    assert model.config.to_dict() == before
    expected = logits(model, case.inputs)
    save_pretrained(model, tmp_path, plan=plan)
    assert torch.allclose(logits(load_pretrained(tmp_path), case.inputs)[0], expected[0], atol=1e-6)


def test_other_models_are_refused() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(pk.ArgumentError, match="not one of transformers'"):
        update_config(model, pk.Plan(), {})


class Settings:
    """A configuration in which another one leads back to it, and is there under two names."""

    def __init__(self, depth: int = 0) -> None:
        self.depth, self.kinds = 7, ["x"]
        if depth:
            self.inner = Settings()
            self.again, self.inner.depth, self.inner.outer = self.inner, depth, self


def test_configurations_that_lead_back_to_themselves_are_searched_once() -> None:
    model, built = nn.Module(), []
    model.config = Settings(4)

    def build(config: Any) -> nn.Module:
        built.append((config.depth, config.inner.depth))
        return nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(1, 1) for _ in range(4))})

    plan = pk.Plan(entries=Entries((Deletion("layers", 4, (1,)),)))
    assert find_depth(model.config, plan, build, Settings).notes == ("no field says that layers has 3 entries, not 4",)
    assert built == [(7, 3)]
