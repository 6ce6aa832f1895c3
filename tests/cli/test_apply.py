"""Checkpoints pruned on disk, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.importance import CalibratedImportance
from tests.cli import toys
from tests.cli.conftest import Cli

BLOCKS = ("prune", "tests.cli.toys:blocks", "--input", "1,4", "--ratio", "0.5")


def seeded(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return toys.blocks().eval()


def dense(folder: Path) -> nn.Module:
    model = seeded()
    safetensors.torch.save_file(model.state_dict(), folder / "dense.safetensors")
    return model


def test_apply_prunes_files_by_a_plan(cli: Cli, tmp_path: Path) -> None:
    model = dense(tmp_path)
    result = pk.prune(model, torch.randn(1, 4))
    result.plan.save(tmp_path / "plan.json")
    pk.save(model, tmp_path / "expected.safetensors", plan=result.plan, protocol=result.protocol)
    called = cli("apply", tmp_path / "expected.safetensors", tmp_path / "dense.safetensors", tmp_path / "a.safetensors")
    assert (called.code, called.err) == (0, "")
    assert called.out.endswith(" bytes in 1 files)\n")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    data = cli(
        "apply", tmp_path / "plan.json", tmp_path / "dense.safetensors", tmp_path / "b.safetensors", "--json"
    ).data
    assert data["bytes"] == (tmp_path / "b.safetensors").stat().st_size
    x = torch.randn(2, 4)
    assert torch.equal(pk.load(seeded(1), tmp_path / "b.safetensors")(x), model(x))


def test_folders_take_their_other_files_along(cli: Cli, tmp_path: Path) -> None:
    model = seeded()
    pk.save(model, tmp_path / "dense", max_shard_size=600)
    for name in ("config.json", "tokenizer.txt", "pytorch_model.bin"):
        (tmp_path / "dense" / name).write_text(name)
    pk.BasePruner(model, torch.randn(1, 4)).plan().save(tmp_path / "plan.json")
    called = cli("apply", tmp_path / "plan.json", tmp_path / "dense", tmp_path / "small")
    assert called.code == 0, called.err
    assert "copied along: config.json, tokenizer.txt" in called.out
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.txt",
    ]


def test_prune_on_disk_writes_what_pruning_in_memory_writes(cli: Cli, tmp_path: Path) -> None:
    dense(tmp_path)
    weights, out = ("--weights", tmp_path / "dense.safetensors"), tmp_path / "a.safetensors"
    called = cli(*BLOCKS, *weights, "--on-disk", "--out", out)
    assert (called.code, called.err) == (0, "")
    assert "no weights in memory" in called.out
    assert f"written: {out}" in called.out
    assert cli(*BLOCKS, *weights, "--out", tmp_path / "b.safetensors").code == 0
    assert pk.read_plan(out) == pk.read_plan(tmp_path / "b.safetensors")
    first = safetensors.torch.load_file(out)
    second = safetensors.torch.load_file(tmp_path / "b.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_of_transformers_is_pruned_on_disk(sharded: bool, cli: Cli, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from prunekit_plugins.integrations.huggingface import load_pretrained

    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    model.save_pretrained(str(tmp_path / "bert"), max_shard_size="9KB" if sharded else "5GB")
    called = cli("prune", f"hf:{tmp_path / 'bert'}", "--input", "1,7:int64", "--on-disk", "--out", tmp_path / "small")
    assert called.code == 0, called.err
    loaded = load_pretrained(tmp_path / "small")
    pk.read_plan(tmp_path / "small").apply(model)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).last_hidden_state, model(ids).last_hidden_state)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_calibration_data_choose_and_repair_on_disk(sharded: bool, cli: Cli, tmp_path: Path) -> None:
    """A Llama, whose rotary frequencies are in no file and whose embedding is tied to its head."""
    from prunekit_plugins.integrations.huggingface import load_pretrained

    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=20, num_hidden_layers=2, tie_word_embeddings=True, **sizes)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "llama", max_shard_size="5KB" if sharded else "5GB")
    ids = torch.randint(20, (40, 9))
    safetensors.torch.save_file({"input_ids": ids}, tmp_path / "data.safetensors")
    called = cli(
        *("prune", f"hf:{tmp_path / 'llama'}", "--calibration", tmp_path / "data.safetensors", "--batch-size", 20),
        *("--on-disk", "--out", tmp_path / "small"),
    )
    assert called.code == 0, called.err
    assert "compensated: " in called.out
    assert "weights are on disk" not in called.out  # they were written
    loaded = load_pretrained(tmp_path / "small")
    batches = [{"input_ids": part} for part in ids.split(20)]
    plain = CalibratedImportance(curvatures=False)  # there are no gradients on disk
    pk.prune(model, {"input_ids": ids[:1]}, 0.5, calibration=batches, importance=plain)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_wrong_arguments_are_told(cli: Cli, tmp_path: Path) -> None:
    dense(tmp_path)
    weights = tmp_path / "dense.safetensors"
    pk.Plan().save(tmp_path / "plan.json")
    cases: dict[tuple[object, ...], tuple[int, str]] = {
        (*BLOCKS, "--on-disk"): (2, "--on-disk needs the weights."),
        (*BLOCKS, "--on-disk", "--weights", weights, "--check"): (2, "--on-disk goes neither with --check nor with"),
        (*BLOCKS, "--on-disk", "--weights", tmp_path / "nosuch"): (1, "There is no such file."),
        (*BLOCKS, "--on-disk", "--weights", weights, "--out", tmp_path / "nosuch" / "x"): (
            2,
            "The folder for --out doesn't exist.",
        ),
        ("apply", tmp_path / "nosuch.json", weights, tmp_path / "x"): (1, "There is no such file."),
        ("apply", tmp_path / "plan.json", weights, weights): (1, "The destination is the source."),
        ("apply", weights, weights, tmp_path / "x"): (1, "The file is not a prunekit checkpoint."),
        ("apply", tmp_path / "plan.json", weights): (2, "Usage: prunekit apply"),
    }
    for arguments, (code, message) in cases.items():
        called = cli(*arguments)
        assert called.code == code, called.err
        assert called.err.startswith(message)
