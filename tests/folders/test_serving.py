"""Serving profiles: what each engine asks of a model, and plugins that bring one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.plugin import ServingEngine, ServingProfile, hookimpl
from prunekit_plugins.cli.entry import main
from prunekit_plugins.folders.example_inputs import example_inputs
from prunekit_plugins.integrations.configuration import update_config
from prunekit_plugins.serving.blocks import block_configs
from tests.folders.families import FAMILIES, GPT, Family
from tests.models import small_llama

transformers = pytest.importorskip("transformers")

IDS = {"input_ids": torch.tensor([[5, 9, 4, 33, 21, 8]])}
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 32}


def profile(name: str, model: nn.Module, inputs: Any) -> ServingProfile:
    found: ServingProfile = pk.default_registry().named("prunekit_serving_profiles", name)(model, inputs)
    return found


def test_engines_ask_for_what_they_load() -> None:
    llama = small_llama(**SIZES)
    found = {name: profile(name, llama, IDS) for name in ("transformers", "gguf", "mlx", "onnx")}
    assert {name: one.uniform for name, one in found.items()} == {
        "transformers": True,
        "gguf": True,
        "mlx": True,
        "onnx": False,
    }
    assert {name: one.round_to for name, one in found.items()} == {"transformers": 8, "gguf": 32, "mlx": 32, "onnx": 1}
    assert found["onnx"].head_dims
    assert not found["gguf"].head_dims
    assert len({one.free_outputs for one in found.values()}) == 1
    assert profile("onnx", nn.Linear(2, 2), torch.ones(1, 2)) == ServingProfile()


NEO = {name: value for name, value in GPT.items() if not name.startswith("n_")}
OPEN = {
    "n_inner": Family("gpt2", "GPT2LMHeadModel", GPT),
    "intermediate_size": Family(
        "gpt_neo",
        "GPTNeoForCausalLM",
        {**NEO, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
}


@pytest.mark.parametrize("field", OPEN)
def test_a_width_that_a_configuration_leaves_open_is_said_once_it_is_pruned(field: str, tmp_path: Path) -> None:
    model = OPEN[field].build()
    assert getattr(model.config, field) is None  # the model takes four times the width of its layers
    result = pk.prune(model, IDS, 0.25, serve="transformers")
    assert {len(cut.kept) for cut in result.plan.cuts} == {192}
    update = update_config(model, result.plan, IDS)
    assert (dict(update.changed), update.notes) == ({field: (None, 192)}, ())
    model.save_pretrained(str(tmp_path))
    loaded = getattr(transformers, OPEN[field].made).from_pretrained(str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**IDS).logits, model(**IDS).logits)


HEADS = {name: value for name, value in GPT.items() if name != "n_head"}
EIGHT: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 16}
COUNTED: dict[str, tuple[Family, tuple[int, ...]]] = {
    "heads that have to divide the width": (
        attrs.evolve(FAMILIES["llama"], config={**FAMILIES["llama"].config, **EIGHT, "head_dim": 8}),
        (1, 2, 4, 8),  # 64 and all narrower widths, by 8, are multiples of one, two, four and eight
    ),
    "pairs that share keys, where not all divide their number": (
        attrs.evolve(
            FAMILIES["llama"],
            config={
                **FAMILIES["llama"].config,
                "hidden_size": 96,
                "num_attention_heads": 12,
                "num_key_value_heads": 6,
                "head_dim": 8,
            },
        ),
        (1, 2, 3, 4, 6),  # twice as many query heads: all but ten divide the steps of 24 of a width of twelve heads
    ),
    "any number": (
        attrs.evolve(FAMILIES["qwen3"], config={**FAMILIES["qwen3"].config, **EIGHT}),
        (1, 2, 3, 4, 5, 6, 7, 8),
    ),
    "a width of heads that follows their number": (Family("gpt2", "GPT2LMHeadModel", {**HEADS, "n_head": 8}), (8,)),
}


@pytest.mark.parametrize("case", COUNTED)
def test_numbers_of_heads_are_those_that_a_configuration_can_say(case: str) -> None:
    family, expected = COUNTED[case]
    found = profile("transformers", family.build(), IDS).counts
    assert found is not None
    assert set(found().values()) == {expected}


@pytest.mark.parametrize(("ratio", "heads"), [(0.3, 4), (0.2, 8)])
def test_whole_heads_leave_a_number_that_the_stock_class_takes(ratio: float, heads: int, tmp_path: Path) -> None:
    family, _ = COUNTED["heads that have to divide the width"]
    model = family.build()
    result = pk.prune(model, IDS, ratio, prune_num_heads=True, serve="transformers")
    # by themselves five heads, and six, would be left
    assert update_config(model, result.plan, IDS).complete
    model.save_pretrained(str(tmp_path))
    loaded = transformers.LlamaForCausalLM.from_pretrained(str(tmp_path)).eval()
    assert loaded.config.num_attention_heads == heads
    with torch.no_grad():
        assert torch.equal(loaded(**IDS).logits, model(**IDS).logits)
    kept = "all 8 units stay at this ratio (possible: 1, 2, 4, 8)"
    left = result.report.left.get("model.layers.0.self_attn.q_proj#heads", "")
    assert left.startswith(kept) == (heads == 8)


def test_heads_that_no_configuration_can_count_stay_for_that_reason() -> None:
    model = COUNTED["a width of heads that follows their number"][0].build()
    result = pk.prune(model, IDS, 0.3, prune_num_heads=True, serve="transformers")
    kept = 'kept by serve="transformers": its configuration can\'t say another size'
    assert result.report.left["transformer.h.0.attn.c_attn#heads"] == kept


def test_a_profile_that_fails_to_count_heads_is_told_with_its_plugin() -> None:
    def counts() -> dict[str, tuple[int, ...]]:
        raise KeyError("no such head")

    registry = registry_with(lambda *given: ServingProfile(counts=counts))
    pk.prune(small_llama(), IDS, serve="mine", registry=registry)  # not asked for where heads stay
    with pytest.raises(pk.PluginError, match="A serving profile failed") as caught:
        pk.prune(small_llama(), IDS, serve="mine", registry=registry, prune_num_heads=True)
    assert "serving profile 'mine', from own" in caught.value.where


def test_what_a_profile_keeps_is_told_as_such_where_nothing_goes() -> None:
    def chip(*given: object) -> ServingProfile:
        feed_forwards = tuple(f"model.layers.{place}.mlp.gate_proj" for place in range(3))
        return ServingProfile(head_dims=False, fixed=feed_forwards)

    with pytest.raises(pk.NothingToPruneError) as caught:
        pk.prune(small_llama(**SIZES), IDS, ignored_layers=["model.embed_tokens"], serve=chip)
    why = caught.value.why
    assert "model.embed_tokens#stream: ignored layer model.embed_tokens" in why
    assert "model.layers.0.mlp.gate_proj: kept by serve=chip: its configuration can't say another size" in why
    assert "serve=None asks for nothing" in caught.value.hint

    def large(*given: object) -> ServingProfile:
        return ServingProfile(head_dims=False, round_to=512)

    with pytest.raises(pk.NothingToPruneError, match=r"all 128 units stay .*\(round_to=512\), as serve=large asks"):
        pk.prune(small_llama(**SIZES), IDS, serve=large)


def test_a_target_that_a_profile_puts_out_of_reach_is_told_with_the_profile() -> None:
    served = {"name": "vllm", "group": 64}
    with pytest.raises(pk.ArgumentError, match=r"The target can't be reached\.") as caught:
        pk.prune(small_llama(**WIDE), IDS, target={"params": 0.1}, serve=served)
    asked = "asks for uniform=True, prune_head_dims=False, round_to=64"
    assert f"; serve={served} {asked}: without it the smallest model would have params=" in caught.value.why
    assert "serve=None asks for nothing" in caught.value.hint
    with pytest.raises(pk.ArgumentError, match=r"The target can't be reached\.") as own:  # by what is typed
        pk.prune(small_llama(**WIDE), IDS, target={"params": 0.1}, round_to=64, uniform=True, serve="transformers")
    assert "serve" not in own.value.why
    with pytest.raises(pk.ArgumentError, match="by depth") as by_depth:
        pk.prune(small_llama(**WIDE), IDS, target={"params": 0.05}, by="depth", serve=served)
    assert f"; uniform=True, as serve={served} asks" in by_depth.value.why
    batches = [IDS, IDS]
    with pytest.raises(pk.ArgumentError, match="by depth and width") as both:
        pk.prune(small_llama(**WIDE), IDS, target={"params": 0.01}, by="both", calibration=batches, serve=served)
    assert f"without round_to=64, as serve={served} asks it would have" in both.value.why
    assert f"; serve={served} {asked}: without it" in both.value.why


def test_engines_with_families_refuse_the_others() -> None:
    for name in ("gguf", "mlx"):
        with pytest.raises(pk.ArgumentError, match=f'serve="{name}" is for families') as caught:
            pk.prune(nn.Linear(4, 4), torch.randn(1, 4), serve=name)
        assert "LlamaForCausalLM" in str(caught.value)


def test_all_engines_have_a_version_and_a_load_test() -> None:
    entries = pk.default_registry().entries("prunekit_serving_profiles")
    assert sorted(entries) == ["gguf", "mlx", "onnx", "sglang", "tensorrt-llm", "transformers", "vllm"]
    for entry in entries.values():
        assert isinstance(entry.value, ServingEngine)
        assert entry.value.version
        assert entry.value.load_test is not None
    with pytest.raises(pk.ArgumentError, match="known: gguf, mlx, onnx, sglang, tensorrt-llm, transformers, vllm"):
        pk.prune(small_llama(), IDS, serve="onxx")


def registry_with(engine: object) -> pk.Registry:
    entries = {"mine": engine}
    own = SimpleNamespace(one=hookimpl(lambda: entries, specname="prunekit_serving_profiles"))
    return pk.Registry(extra={"own": own})


def test_profiles_that_fail_or_return_something_else_are_told_with_their_plugin() -> None:
    def broken(*given: object) -> ServingProfile:
        raise KeyError("no such chip")

    with pytest.raises(pk.PluginError, match="A serving profile failed") as caught:
        pk.prune(small_llama(), IDS, serve="mine", registry=registry_with(broken))
    assert "serving profile 'mine', from own" in caught.value.where
    with pytest.raises(pk.PluginError, match="A serving profile returned something else"):
        pk.prune(small_llama(), IDS, serve="mine", registry=registry_with(lambda *given: {"uniform": True}))


@pytest.mark.slow
def test_a_load_test_of_a_plugin_is_called_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_llama(**SIZES).save_pretrained(str(tmp_path / "big"))
    (tmp_path / "chip.py").write_text(
        "from prunekit.plugin import ServingEngine, ServingProfile, hookimpl\n"
        "profile = lambda *given: ServingProfile(uniform=True, head_dims=False)\n"
        "@hookimpl\n"
        "def prunekit_serving_profiles():\n"
        "    return {'chip': ServingEngine(profile, '1', lambda folder: f'loaded {folder.name}')}\n"
    )
    arguments = ["prune", f"hf:{tmp_path / 'big'}", "--ratio", "0.3", "--serve", "chip", "--plugin"]
    assert main([*arguments, str(tmp_path / "chip.py"), "--out", str(tmp_path / "small")]) == 0
    assert capsys.readouterr().out.endswith("served as chip: loaded small\n")


WIDE: dict[str, Any] = {**SIZES, "intermediate_size": 512, "num_key_value_heads": 2}


@pytest.mark.parametrize("name", ["vllm", "sglang", "tensorrt-llm"])
def test_engines_on_gpus_ask_for_sizes_that_can_be_split_and_quantised(name: str) -> None:
    llama = small_llama(**WIDE)  # four heads, two of keys and values
    plain = profile(name, llama, IDS)
    assert (plain.uniform, plain.head_dims, plain.round_to, plain.notes) == (True, False, 8, ())
    engine = pk.default_registry().named("prunekit_serving_profiles", name)
    for parallel, group, step in ((2, 1, 8), (2, 32, 64), (4, 32, 128), (3, 1, None), (8, 1, None)):
        if step is None:
            with pytest.raises(pk.ArgumentError, match=r"(?s)can't be dealt out.*4 query heads and 2 heads of keys"):
                engine(llama, IDS, tensor_parallel=parallel, group=group)
        else:
            assert engine(llama, IDS, tensor_parallel=parallel, group=group).round_to % step == 0
    served = {"name": name, "tensor_parallel": 2, "group": 32}
    result = pk.prune(llama, IDS, target={"params": 0.7}, serve=served)
    gate, hidden = llama.model.layers[0].mlp.gate_proj.weight.shape
    assert (gate, hidden) != (512, 128)
    assert (gate % 64, hidden % 64) == (0, 0)
    assert result.protocol.arguments["serve"] == served
    asks = f"prune_head_dims is off, as serve={served} asks"
    assert result.report.left["model.layers.0.self_attn.v_proj#head_dim"] == asks


@pytest.mark.parametrize(("queries", "pairs"), [(8, 4), (4, 4)])
def test_heads_that_are_let_go_have_to_leave_what_can_be_dealt_out(queries: int, pairs: int) -> None:
    sizes = {**WIDE, "num_attention_heads": queries, "num_key_value_heads": pairs}  # any number, as Qwen3 takes them
    qwen3 = attrs.evolve(FAMILIES["qwen3"], config={**FAMILIES["qwen3"].config, **sizes})
    options: dict[str, Any] = {"ratio": 0.3, "prune_num_heads": True, "serve": {"name": "vllm", "tensor_parallel": 2}}
    llama = qwen3.build()
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    with pytest.raises(pk.ArgumentError, match="can't be dealt out to so many GPUs") as caught:
        pk.prune(llama, IDS, head_pruning_ratio=0.25, **options)  # three of four pairs stay
    told = f"model.layers.0.self_attn.q_proj keeps {queries * 3 // 4} query heads and 3 heads of keys and values"
    assert caught.value.why.startswith(told)
    assert "layers.1" in caught.value.why
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())
    pk.prune(llama, IDS, head_pruning_ratio=0.5, **options)
    assert llama.model.layers[0].self_attn.k_proj.weight.shape[0] == 2 * llama.config.head_dim
    whole = qwen3.build()
    options["serve"] = {"name": "vllm"}  # one GPU takes any number
    pk.prune(whole, IDS, head_pruning_ratio=0.25, **options)


def test_sizes_that_an_engine_could_not_split_are_told() -> None:
    llama = small_llama(**{**WIDE, "intermediate_size": 500})
    engine = pk.default_registry().named("prunekit_serving_profiles", "vllm")
    (note,) = engine(llama, IDS, tensor_parallel=2, group=32).notes
    assert note == "intermediate_size=500 is no multiple of 64, which the engine asks for: it has to get smaller"


@pytest.mark.parametrize(
    ("serve", "text"),
    [
        ({"name": "vllm", "tensor_paralel": 2}, "no option 'tensor_paralel'(?s:.*)did you mean 'tensor_parallel'"),
        ({"name": "onnx", "group": 2}, "no option 'group'(?s:.*)known: none"),
        ({"name": "vllm", "group": 0}, "group must be a positive whole number"),
        ({"name": "vlm"}, "did you mean 'vllm'"),
        ({"tensor_parallel": 2}, "serve is the name of a profile"),
        (3, "serve is the name of a profile"),
    ],
)
def test_wrong_profiles_and_options_are_told(serve: Any, text: str) -> None:
    with pytest.raises(pk.ArgumentError, match=text):
        pk.prune(small_llama(**WIDE), IDS, serve=serve)


@pytest.mark.slow
def test_a_folder_for_vllm_is_loaded_by_the_stock_class_and_says_that_it_wasnt_run_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_llama(**WIDE).save_pretrained(str(tmp_path / "big"))
    out, recipe = tmp_path / "small", tmp_path / "recipe.toml"
    served = ("--serve", "vllm,tensor_parallel=2,group=32", "--save-recipe", str(recipe))
    assert main(["prune", f"hf:{tmp_path / 'big'}", "--target", "params=0.7", *served, "--out", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "served as vllm: not run in vLLM; the stock class of transformers loads it: " in printed
    model: Any = pk.load_folder(out)
    assert model.config.intermediate_size % 64 == 0
    again = tmp_path / "again"
    assert main(["prune", "--recipe", str(recipe), "--out", str(again)]) == 0
    for name, tensor in pk.load_folder(again).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_layers_that_differ_are_worded_as_blocks() -> None:
    llama: Any = small_llama(**{**WIDE, "num_hidden_layers": 4})
    pk.prune(llama, IDS, branches=["model.layers.1.self_attn", "model.layers.2.mlp"], free_outputs=["cache"])
    pk.prune(llama, IDS, pruning_ratio_dict={"model.layers.3.mlp.gate_proj": 0.25}, ratio=0.0, free_outputs=["cache"])
    attention = {"no_op": False, "n_heads_in_group": 2}
    assert block_configs(llama) == {
        "architectures": ["DeciLMForCausalLM"],
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "block_configs": [
            {"attention": attention, "ffn": {"no_op": False, "intermediate_size": 512}},
            {"attention": {"no_op": True}, "ffn": {"no_op": False, "intermediate_size": 512}},
            {"attention": attention, "ffn": {"no_op": True}},
            {"attention": attention, "ffn": {"no_op": False, "intermediate_size": 384}},
        ],
    }
    with pytest.raises(pk.ArgumentError, match=r"can't say these layers(?s:.*)got Linear"):
        block_configs(nn.Linear(2, 2))
    llama.model.layers[0].self_attn = nn.Identity()
    with pytest.raises(pk.ArgumentError, match=r"first layer has no attention"):
        block_configs(llama)


@pytest.mark.parametrize("uniform", [True, False])
def test_groups_that_a_profile_ties_keep_the_same_number_of_units_where_sizes_are_uniform(uniform: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        model[0].weight[:12] *= 1e-3  # by itself, it would lose these
    ties = (frozenset({"0", "2", "a group that isn't there"}),)

    def chip(*given: object) -> ServingProfile:
        return ServingProfile(uniform=uniform, ties=ties)

    pk.prune(model, torch.ones(1, 4), 0.5, serve=chip, global_pruning=True)
    assert (model[0].out_features == model[2].out_features) == uniform
    assert model[0].out_features + model[2].out_features == 16


def test_a_factor_that_says_few_sizes_only_says_none() -> None:
    model = FAMILIES["qwen2_vl"].build()
    found = profile("transformers", model, example_inputs(model))
    assert {"model.visual.blocks.0.mlp.fc1", "model.visual.blocks.1.mlp.fc1"} < set(found.fixed)  # 32 times mlp_ratio
    assert found.round_to == 8
