"""Mixtures whose files hold experts apart: read as the model's stacks, pruned, and loaded by the stock class."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import prunekit as pk
from prunekit_plugins.checkpoints.arranged import STACKS, Arranged
from prunekit_plugins.checkpoints.shards import Weights
from prunekit_plugins.importance import CalibratedImportance

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")
conversion_mapping = pytest.importorskip("transformers.conversion_mapping")  # older versions hold experts apart, too

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 12,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
QWEN: dict[str, Any] = {"moe_intermediate_size": 12, "num_experts": 4, "head_dim": 4}
FAMILIES: dict[str, tuple[str, Mapping[str, Any], str]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}, "block_sparse_moe.experts.3.w1.weight"),
    "qwen3_moe": ("Qwen3Moe", QWEN, "mlp.experts.3.gate_proj.weight"),
    "olmoe": ("Olmoe", {"num_experts": 4}, "mlp.experts.3.up_proj.weight"),
    "phimoe": ("Phimoe", {"num_local_experts": 4}, "block_sparse_moe.experts.3.w3.weight"),
    "deepseek_v3": ("DeepseekV3", DEEPSEEK, "mlp.experts.3.down_proj.weight"),
    "granitemoe": ("GraniteMoe", {"num_local_experts": 4}, "block_sparse_moe.input_linear.weight"),
}
"""Name to the prefix of its classes, its sizes, and a tensor that its files hold for the second layer."""
SLOW = ("qwen3_moe", "olmoe", "phimoe", "deepseek_v3")
MIXES_ON_META = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)
"""Before, PyTorch's grouped products of float32 have no rule for the meta device."""
IDS = {"input_ids": torch.randint(64, (2, 8), generator=torch.Generator().manual_seed(0))}


def runnable(model: Any) -> Any:
    if not MIXES_ON_META:
        model.set_experts_implementation("batched_mm")
    return model.eval()


def built(family: str, *, empty: bool = False, layers: int = 2) -> Any:
    prefix, sizes, _ = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**SIZES, **sizes, "num_hidden_layers": layers})
    architecture = getattr(transformers, f"{prefix}ForCausalLM")
    if empty:
        with accelerate.init_empty_weights(include_buffers=False):
            model = architecture(config)
        model.tie_weights()
        return runnable(model)
    torch.manual_seed(0)
    model = runnable(architecture(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def stored(model: Any, family: str, folder: Path) -> Path:
    model.save_pretrained(folder / "dense", max_shard_size="10KB")
    names = Weights(folder / "dense").tensors
    assert f"model.layers.1.{FAMILIES[family][2]}" in names
    assert not any(name in names for name in model.state_dict() if ".experts." in name)
    return folder / "dense"


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAMILIES]
)
def test_the_stock_class_loads_what_was_pruned_from_files_with_experts_apart(family: str, tmp_path: Path) -> None:
    model = built(family)
    place = stored(model, family, tmp_path)
    serve = None if family == "qwen3_moe" else "transformers"
    options: dict[str, Any] = {"ratio": 0.5, "serve": serve, "round_to": 4}  # what grouped products take, before 2.15
    found = pk.prune(built(family, empty=True), IDS, weights=place, **options)
    expected = pk.prune(model, IDS, **options)
    assert found.plan == expected.plan
    stacks = [cut.parameter for cut in found.plan.parameters if cut.parameter.endswith("experts.gate_up_proj")]
    assert stacks or family == "deepseek_v3"  # its configuration has one size for experts, and one is shared
    pk.prune_checkpoint(place, tmp_path / "small", found.plan)
    with torch.no_grad():
        logits = model(**IDS).logits
        loaded = pk.load(built(family, empty=True), tmp_path / "small", assign=True)
        assert torch.equal(loaded(**IDS).logits, logits)
        if serve is None:
            return
        pk.save_folder(model, tmp_path / "memory", plan=expected.plan)
        shutil.copy(tmp_path / "memory" / "config.json", tmp_path / "small")
        stock, told = type(model).from_pretrained(tmp_path / "small", output_loading_info=True)
        assert not any(told.values())
        assert torch.equal(runnable(stock)(**IDS).logits, logits)


def test_experts_leave_files_that_hold_them_apart(tmp_path: Path) -> None:
    model = built("mixtral")
    place = stored(model, "mixtral", tmp_path)
    options: dict[str, Any] = {"ratio": 0.0, "expert_pruning_ratio": 0.5, "expert_importance": "magnitude"}
    found = pk.prune(built("mixtral", empty=True), IDS, weights=place, **options)
    expected = pk.prune(model, IDS, **options)
    assert found.plan == expected.plan
    pk.prune_checkpoint(place, tmp_path / "small", found.plan)
    loaded = pk.load(built("mixtral", empty=True), tmp_path / "small", assign=True)
    assert loaded.model.layers[1].mlp.experts.gate_up_proj.shape[0] == 2
    with torch.no_grad():
        assert torch.equal(loaded(**IDS).logits, model(**IDS).logits)


def test_layers_leave_files_that_hold_experts_apart(tmp_path: Path) -> None:
    """Those of the layers that stay aren't changed, and are copied as they are."""
    model = built("mixtral", layers=3)
    place = stored(model, "mixtral", tmp_path)
    options: dict[str, Any] = {"branches": ["model.layers.1", "model.layers.2.mlp"]}
    found = pk.prune(built("mixtral", empty=True, layers=3), IDS, weights=place, **options)
    expected = pk.prune(model, IDS, **options)
    assert found.plan == expected.plan
    pk.prune_checkpoint(place, tmp_path / "small", found.plan)
    names = Weights(tmp_path / "small").tensors
    assert sorted(name for name in names if ".w3." in name) == [
        f"model.layers.0.block_sparse_moe.experts.{expert}.w3.weight" for expert in range(4)
    ]
    loaded = pk.load(built("mixtral", empty=True, layers=3), tmp_path / "small", assign=True)
    with torch.no_grad():
        assert torch.equal(loaded(**IDS).logits, model(**IDS).logits)


def test_mixtures_are_calibrated_from_files_that_hold_experts_apart(tmp_path: Path) -> None:
    model = built("mixtral")
    place = stored(model, "mixtral", tmp_path)
    generator = torch.Generator().manual_seed(1)
    batches = [{"input_ids": torch.randint(64, (8, 8), generator=generator)} for _ in range(2)]
    options: dict[str, Any] = {"ratio": 0.5, "calibration": batches}
    found = pk.prune(built("mixtral", empty=True), IDS, weights=place, **options)
    expected = pk.prune(model, IDS, importance=CalibratedImportance(curvatures=False), **options)
    assert found.plan == expected.plan
    assert found.compensation == expected.compensation
    pk.prune_checkpoint(place, tmp_path / "small", found.plan, repaired=found.repaired)
    loaded = pk.load(built("mixtral", empty=True), tmp_path / "small", assign=True)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**IDS).logits, model(**IDS).logits)


def test_a_stack_is_read_a_run_of_experts_at_a_time(tmp_path: Path) -> None:
    parts = {
        f"moe.experts.{expert}.{leaf}.weight": torch.randn(size, 4)
        for expert in range(12)
        for leaf, size in (("w1", 3), ("w3", 3))
    }
    safetensors.torch.save_file({**parts, "other": torch.zeros(1)}, tmp_path / "file.safetensors")
    arranged = Arranged(Weights(tmp_path / "file.safetensors"), ["moe.experts.gate_up_proj", "other", "nobody"])
    assert list(arranged.tensors) == ["moe.experts.gate_up_proj", "other"]
    gate, up = (torch.stack([parts[f"moe.experts.{n}.{leaf}.weight"] for n in range(12)]) for leaf in ("w1", "w3"))
    whole = torch.cat([gate, up], dim=1)
    assert arranged.tensors["moe.experts.gate_up_proj"].shape == whole.shape
    assert torch.equal(arranged.read("moe.experts.gate_up_proj"), whole)
    room = torch.empty(5 * 6 * 4 * 4, dtype=torch.uint8)
    assert torch.equal(arranged.read("moe.experts.gate_up_proj", (7, 11), room), whole[7:11])


@pytest.mark.parametrize("wrong", ["shape", "dtype", "lost"])
def test_experts_that_dont_fit_together_are_missing(wrong: str, tmp_path: Path) -> None:
    model = built("olmoe")
    place = stored(model, "olmoe", tmp_path)
    tensors = {name: Weights(place).read(name) for name in Weights(place).tensors}
    name = "model.layers.1.mlp.experts.2.down_proj.weight"
    if wrong == "lost":
        del tensors[name]
    else:
        tensors[name] = tensors[name].double() if wrong == "dtype" else torch.zeros(16, 23)
    safetensors.torch.save_file(tensors, tmp_path / "wrong.safetensors")
    found = r"down_proj has shape \(2, " if wrong == "lost" else "down_proj is missing"
    with pytest.raises(pk.CheckpointError, match=rf"model\.layers\.1\.mlp\.experts\.{found}"):
        pk.prune(built("olmoe", empty=True), IDS, weights=tmp_path / "wrong.safetensors")
    pruned = pk.prune(copy.deepcopy(model), IDS)
    with pytest.raises(pk.CheckpointError, match=r"model\.layers\.1\.mlp\.experts\.down_proj"):
        pk.prune_checkpoint(tmp_path / "wrong.safetensors", tmp_path / "small", pruned.plan)


def test_the_table_holds_what_transformers_stacks() -> None:
    """All families of which it merges a list of experts along dim 0, gate and up joined along dim 1."""
    families = 0
    for family in conversion_mapping._MODEL_TO_CONVERSION_PATTERN.keys() | {"mixtral", "qwen2_moe", "jamba"}:
        for one in conversion_mapping.get_checkpoint_conversion_mapping(family) or ():
            steps = [str(step) for step in getattr(one, "operations", ())]
            if steps not in (["MergeModulelist(dim=0)"], ["MergeModulelist(dim=0)", "Concatenate(dim=1)"]):
                continue
            leaves = tuple(re.sub(r".*experts\.\*\.(\w+)\.weight", r"\1", source) for source in one.source_patterns)
            assert leaves in STACKS[one.target_patterns[0].rpartition(".")[2]], family
            families += 1
    assert families > 20
