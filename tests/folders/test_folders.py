"""Folders in Python and on the command line: what is taken along, what is refused, what is said."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.plugin import ServingProfile
from prunekit_plugins.cli.entry import main
from prunekit_plugins.folders import writing
from prunekit_plugins.folders.example_inputs import example_inputs
from prunekit_plugins.folders.of_transformers import TRANSFORMERS
from tests.models import small_llama
from tests.vocabulary.training import byte_level

transformers = pytest.importorskip("transformers")

IDS = {"input_ids": torch.tensor([[5, 9, 4, 33, 21, 8]])}
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 902}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**IDS).logits
    return found


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A folder as it is downloaded: a Llama, its tokenizer, a chat template, and things that have to be left."""
    folder = tmp_path / "big"
    model = small_llama(**SIZES)
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    model.save_pretrained(str(folder))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(str(folder))
    (folder / "README.md").write_text("# Big\n")
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"a": 1}')
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"old weights")
    (folder / "consolidated.pth").write_bytes(b"old weights")
    (folder / ".cache").mkdir()
    return folder


def pruned(folder: Path, **options: Any) -> tuple[Any, pk.PruneResult]:
    model = pk.load_folder(folder)
    return model, pk.prune(model, IDS, **{"ratio": 0.5, "serve": "transformers", **options})


def test_what_is_no_weights_is_taken_along(big: Path, tmp_path: Path) -> None:
    model, result = pruned(big)
    saved = pk.save_folder(model, tmp_path / "small", plan=result.plan, source=big, protocol=result.protocol)
    small = tmp_path / "small"
    assert saved.stock
    assert (saved.error, saved.outputs) == (0.0, 1)
    assert saved.opened == f'LlamaForCausalLM.from_pretrained("{small}")'
    assert {"1_Pooling", "chat_template.jinja", "preprocessor_config.json", "tokenizer.json"} <= set(saved.copied)
    assert {place.name for place in small.iterdir()} & {"onnx", "consolidated.pth", ".cache"} == set()
    assert (small / "README_before_pruning.md").read_text() == "# Big\n"
    card = (small / "README.md").read_text()
    assert 'model = LlamaForCausalLM.from_pretrained("FOLDER")' in card
    assert "| hidden_size | 32 | 16 |" in card
    assert pk.Plan.load(small / "prunekit_plan.json") == result.plan
    assert json.loads((small / "generation_config.json").read_text())["temperature"] == 0.7

    loaded = transformers.LlamaForCausalLM.from_pretrained(str(small)).eval()
    assert torch.equal(logits(loaded), logits(model))
    first, second = (transformers.AutoTokenizer.from_pretrained(str(place)) for place in (big, small))
    assert first("def main(): pass")["input_ids"] == second("def main(): pass")["input_ids"]
    talk = [{"role": "user", "content": "hello"}]
    assert second.apply_chat_template(talk, tokenize=False) == "<user>hello"
    assert sorted(place.name for place in tmp_path.iterdir()) == ["big", "small"]


def test_shards_are_read_and_written(big: Path, tmp_path: Path) -> None:
    small_llama(**SIZES).save_pretrained(str(tmp_path / "shards"), max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    model, result = pruned(tmp_path / "shards")
    pk.save_folder(model, tmp_path / "small", plan=result.plan, source=big, max_shard_size="40KB")
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 1
    loaded = transformers.LlamaForCausalLM.from_pretrained(str(tmp_path / "small")).eval()
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(logits(pk.load_folder(tmp_path / "small")), logits(model))


def uneven(folder: Path) -> tuple[Any, pk.PruneResult]:
    layers = {f"model.layers.{number}.mlp.up_proj": 0.25 * (number + 1) for number in range(3)}
    model = pk.load_folder(folder)
    return model, pk.prune(model, IDS, 0.0, pruning_ratio_dict=layers)


def test_a_folder_that_no_configuration_describes_says_so(big: Path, tmp_path: Path) -> None:
    model, result = uneven(big)
    before = model.config.to_dict()
    saved = pk.save_folder(model, tmp_path / "small", plan=result.plan, source=big)
    assert not saved.stock
    assert saved.opened == f'prunekit.load_folder("{tmp_path / "small"}")'
    assert "intermediate_size = 64 can't say the sizes [16, 32, 48]" in saved.notes[0]
    assert "from_pretrained can't load it" in str(saved)
    assert model.config.to_dict() == {**before, "architectures": ["LlamaForCausalLM"]}
    card = (tmp_path / "small" / "README.md").read_text()
    assert 'model = prunekit.load_folder("FOLDER")' in card
    assert "no configuration can say its sizes" in card
    assert torch.equal(logits(pk.load_folder(tmp_path / "small")), logits(model))
    with pytest.raises(RuntimeError, match="mismatched"):
        transformers.LlamaForCausalLM.from_pretrained(str(tmp_path / "small"))


def test_a_pruned_folder_is_pruned_again(big: Path, tmp_path: Path) -> None:
    model, result = uneven(big)
    pk.save_folder(model, tmp_path / "small", plan=result.plan, source=big)
    again = pk.load_folder(tmp_path / "small")
    later = pk.prune(again, IDS, 0.5)
    pk.save_folder(again, tmp_path / "smaller", plan=later.plan, source=tmp_path / "small")
    assert torch.equal(logits(pk.load_folder(tmp_path / "smaller")), logits(again))
    stock, result = pruned(big)
    pk.save_folder(stock, tmp_path / "half", plan=result.plan, source=big)
    half = transformers.LlamaForCausalLM.from_pretrained(str(tmp_path / "half")).eval()
    later = pk.prune(half, IDS, 0.5, serve="transformers")
    assert pk.save_folder(half, tmp_path / "quarter", plan=later.plan, source=tmp_path / "half").stock


def test_a_configuration_that_says_it_all_already_is_left(big: Path, tmp_path: Path) -> None:
    from prunekit_plugins.integrations.configuration import update_config

    model, result = pruned(big)
    assert update_config(model, result.plan, IDS).complete
    saved = pk.save_folder(model, tmp_path / "small", plan=result.plan)
    assert (saved.stock, dict(saved.changed), saved.copied) == (True, {}, ())


def read_only(*args: object) -> int:
    """What a file system does that is mounted for reading; the superuser's permissions change nothing there."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_destinations_are_refused_before_anything_is_done(
    big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def built(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was built")

    monkeypatch.setattr("prunekit_plugins.cli.sources.load_folder", built)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    cases = {
        tmp_path / "file": "The destination isn't a folder.",
        tmp_path / "full": "The destination isn't an empty folder.",
        tmp_path / "no" / "where": "The folder of the destination doesn't exist.",
        tmp_path / "file" / "small": "The folder of the destination doesn't exist.",
        tmp_path / ("x" * 250): "The destination can't be written to.",  # too long for the name while it is written
        tmp_path / "small.gguf": "The destination is a folder, and its name is one of a file.",
        tmp_path / "small.ONNX": "The destination is a folder, and its name is one of a file.",
        tmp_path / "small.bin": "The destination is a folder, and its name is one of a file.",
    }
    for out, message in cases.items():
        assert main(["prune", f"hf:{big}", "--out", str(out)]) == 2
        told = capsys.readouterr().err
        assert told.startswith(message)
        assert (f"prunekit export FOLDER --to gguf --out {out.name}" in told) == (out.suffix == ".gguf")
    assert main(["prune", f"hf:{big}", "--out", str(big), "--overwrite"]) == 2
    assert "is the folder of the unpruned model" in capsys.readouterr().err
    assert main(["prune", f"hf:{big}", "--out", str(tmp_path / "x.safetensors"), "--overwrite"]) == 2
    assert "are for folders" in capsys.readouterr().err
    assert main(["prune", f"hf:{big}", "--out", str(tmp_path / "x"), "--max-shard-size", "much"]) == 2
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        assert main(["prune", f"hf:{big}", "--out", str(tmp_path / "x")]) == 2
    told = capsys.readouterr().err
    assert "can't be written to" in told
    assert "why: Read-only file system" in told
    assert {path.name for path in tmp_path.iterdir()} == {"big", "file", "full"}
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_overwriting_replaces_the_model_and_nothing_else(big: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    shutil.copytree(big, small)
    (small / "mine.txt").write_text("mine")
    model, result = pruned(big)
    with pytest.raises(pk.ArgumentError, match="isn't an empty folder"):
        pk.save_folder(model, small, plan=result.plan, source=big)
    pk.save_folder(model, small, plan=result.plan, source=big, overwrite=True, max_shard_size="40KB")
    assert (small / "mine.txt").read_text() == "mine"
    assert not (small / "model.safetensors").exists()  # shards took its place
    loaded = transformers.LlamaForCausalLM.from_pretrained(str(small)).eval()
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_folder_that_computes_something_else_is_not_left_there(
    value: float, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(folder: Path) -> nn.Module:
        found: Any = TRANSFORMERS.load(folder)
        with torch.no_grad():
            found.lm_head.weight += value
        return found  # type: ignore[no-any-return]

    monkeypatch.setattr(writing, "library_of", lambda model: attrs.evolve(TRANSFORMERS, load=spoilt))
    model, result = pruned(big)
    with pytest.raises(pk.CheckpointError, match="computes something else"):
        pk.save_folder(model, tmp_path / "small", plan=result.plan, source=big)
    assert [place.name for place in tmp_path.iterdir()] == ["big"]


def test_a_full_disk_is_told_before_writing(big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, result = pruned(big)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type(usage)(10, 9, 1))
    with pytest.raises(pk.StorageError, match="no room"):
        pk.save_folder(model, tmp_path / "small", plan=result.plan, source=big)
    assert not (tmp_path / "small").exists()


def test_folders_without_a_model_are_told(tmp_path: Path) -> None:
    with pytest.raises(pk.CheckpointError, match="holds no configuration"):
        pk.load_folder(tmp_path)
    small_llama().config.save_pretrained(str(tmp_path))
    with pytest.raises(pk.CheckpointError, match="holds no weights"):
        pk.load_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(pk.CheckpointError, match="can't be read"):
        pk.load_folder(tmp_path)
    with pytest.raises(pk.ArgumentError, match="not one of transformers'"):
        pk.save_folder(nn.Linear(2, 2), tmp_path / "small", plan=pk.Plan())


def test_the_command_tells_programs_what_it_wrote(
    big: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--ratio", "0.5", "--no-uniform", "--out", str(tmp_path / "small"), "--json")
    assert main(["prune", f"hf:{big}", *options]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["folder"]["stock"] is True
    assert data["folder"]["compared"] == {"outputs": 1, "error": 0.0}
    assert data["folder"]["changed"] == {"hidden_size": [32, 16], "intermediate_size": [64, 32]}
    assert data["protocol"]["arguments"]["serve"] == "transformers"
    assert data["protocol"]["arguments"]["uniform"] is False  # what is typed wins
    assert main(["prune", f"hf:{big}", "--out", str(tmp_path / "x.safetensors"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert "folder" not in data
    assert "serve" not in data["protocol"]["arguments"]


def test_profiles_are_named_or_given_and_hold_where_nothing_else_is_said() -> None:
    model = small_llama(**SIZES)
    with pytest.raises(pk.ArgumentError, match="No serving profile is registered as 'transformer'"):
        pk.prune(model, IDS, serve="transformer")
    with pytest.raises(pk.ArgumentError, match="is for models of transformers"):
        pk.prune(nn.Linear(4, 4), torch.randn(1, 4), serve="transformers")

    def chip(*given: object) -> ServingProfile:
        return ServingProfile(fixed=("model.embed_tokens",), round_to=4)

    result = pk.prune(model, IDS, 0.3, round_to=6, serve=chip)
    assert {dim.size for dim in result.plan.cuts} == {64}
    assert {len(cut.kept) % 12 for cut in result.plan.cuts} == {0}
    kept = "kept by serve=chip: its configuration can't say another size"
    assert result.report.left["model.embed_tokens#stream"] == kept
    assert result.protocol.arguments["ignored_layers"] == ["model.embed_tokens"]


def test_inputs_are_those_on_which_a_model_runs() -> None:
    model = small_llama(vocab_size=40)
    model.train()
    first, second = example_inputs(model), example_inputs(model, seed=1)
    assert list(first) == ["input_ids"]
    assert first["input_ids"].shape == (1, 16)
    assert 3 <= int(first["input_ids"].min()) <= int(first["input_ids"].max()) < 40
    assert not torch.equal(first["input_ids"], second["input_ids"])
    assert model.training
    model.forward = lambda input_ids: 1 / 0
    with pytest.raises(pk.ArgumentError, match="inputs of this model aren't known") as unknown:
        example_inputs(model)
    assert unknown.value.why == "ZeroDivisionError: division by zero"


def test_the_plan_of_a_folder_is_read_by_naming_the_folder(big: Path, tmp_path: Path) -> None:
    model, result = pruned(big)
    pk.save_folder(model, tmp_path / "stock", plan=result.plan, source=big, protocol=result.protocol)
    assert pk.read_plan(tmp_path / "stock") == result.plan
    assert pk.read_protocol(tmp_path / "stock") == result.protocol
    (tmp_path / "stock" / "prunekit_protocol.json").unlink()
    assert pk.read_protocol(tmp_path / "stock") is None
    pipeline = tmp_path / "pipeline"
    shutil.copytree(tmp_path / "stock", pipeline / "unet")
    assert pk.read_plan(pipeline) == result.plan
    shutil.copytree(tmp_path / "stock", pipeline / "vae")
    with pytest.raises(pk.CheckpointError, match=r"The folder holds several plans\.") as caught:
        pk.read_plan(pipeline)
    assert caught.value.why == "unet/prunekit_plan.json, vae/prunekit_plan.json"
    with pytest.raises(pk.CheckpointError, match="is not a prunekit checkpoint"):
        pk.read_plan(big)
