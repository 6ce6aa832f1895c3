"""Folders of pruned transformers models."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.integrations.huggingface import load_pretrained, save_pretrained

transformers = pytest.importorskip("transformers")

IDS = {"input_ids": torch.tensor([[1, 5, 9, 4, 2], [3, 3, 8, 7, 6]]), "use_cache": False}


def llama(tied: bool = False) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).eval()


def uneven(model: nn.Module) -> pk.PruneResult:
    """Prunes the layers of a Llama by different ratios, which no configuration can express."""
    ratios = {"model.layers.0.mlp.up_proj": 0.25, "model.layers.1.mlp.up_proj": 0.5}
    return pk.prune(model, IDS, 0.0, pruning_ratio_dict=ratios)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_layers_of_different_widths_come_back(dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    model = llama(tied).to(dtype)
    result = uneven(model)
    save_pretrained(model, tmp_path / "small", plan=result.plan, protocol=result.protocol, max_shard_size="8KB")
    assert {"config.json", "generation_config.json", "model.safetensors.index.json"} <= {
        path.name for path in (tmp_path / "small").iterdir()
    }
    loaded = load_pretrained(tmp_path / "small")
    assert type(loaded) is type(model)
    assert [layer.mlp.up_proj.out_features for layer in loaded.model.layers] == [36, 24]
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert loaded.dtype is dtype
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    with torch.no_grad():
        assert torch.equal(loaded(**IDS).logits, model(**IDS).logits)
        ids = IDS["input_ids"][:, :3]
        assert torch.equal(loaded.generate(ids, max_new_tokens=4), model.generate(ids, max_new_tokens=4))
    assert pk.read_protocol(tmp_path / "small") == result.protocol


def test_a_folder_pruned_on_disk_is_read(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(str(tmp_path / "dense"), max_shard_size="20KB")
    plan = pk.BasePruner(model, IDS).plan()
    pk.prune_checkpoint(tmp_path / "dense", tmp_path / "small", plan)
    shutil.copy(tmp_path / "dense" / "config.json", tmp_path / "small")
    loaded = load_pretrained(tmp_path / "small")
    plan.apply(model)
    with torch.no_grad():
        assert torch.equal(loaded(**IDS).logits, model(**IDS).logits)


def test_a_changed_configuration_is_noticed(tmp_path: Path) -> None:
    model = llama()
    dense = copy.deepcopy(model.config)
    result = uneven(model)
    model.config.intermediate_size = 24
    with pytest.raises(pk.ArgumentError, match="The configuration is not that of the unpruned model"):
        save_pretrained(model, tmp_path / "small", plan=result.plan)
    assert list(tmp_path.iterdir()) == []
    save_pretrained(model, tmp_path / "small", plan=result.plan, config=dense)
    assert json.loads((tmp_path / "small" / "config.json").read_text())["intermediate_size"] == 48
    with torch.no_grad():
        assert torch.equal(load_pretrained(tmp_path / "small")(**IDS).logits, model(**IDS).logits)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    model = llama()
    save_pretrained(model, tmp_path / "small", plan=uneven(model).plan)
    path = tmp_path / "small" / "config.json"
    good = json.loads(path.read_text())
    cases = {
        "The class of the model isn't part of transformers.": {**good, "architectures": ["os.system"]},
        "The configuration can't be read.": {**good, "model_type": "nosuchmodel"},
        "The checkpoint is for another model.": {**good, "hidden_size": 64},
    }
    for headline, config in cases.items():
        path.write_text(json.dumps(config))
        with pytest.raises(pk.CheckpointError) as caught:
            load_pretrained(tmp_path / "small")
        assert caught.value.headline == headline
    path.unlink()
    with pytest.raises(pk.CheckpointError, match="The folder holds no configuration"):
        load_pretrained(tmp_path / "small")
    with pytest.raises(pk.ArgumentError, match="The model is not one of transformers'"):
        save_pretrained(nn.Linear(2, 2), tmp_path / "x", plan=pk.Plan())


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    model = llama()
    save_pretrained(model, tmp_path / "small", plan=uneven(model).plan)
    path = tmp_path / "small" / "config.json"
    (tmp_path / "small" / "evil.py").write_text("raise SystemExit('run')")
    remote = {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil", "architectures": ["Evil"]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **remote}))
    with pytest.raises(pk.CheckpointError, match="The configuration can't be read"):
        load_pretrained(tmp_path / "small")
