"""A folder and a text: two commands make a smaller folder that serves, and what is refused on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit_plugins.cli.entry import main
from prunekit_plugins.folders.texts import check_text, text_batches
from tests.models import small_llama
from tests.vocabulary.training import TEXTS, byte_level, word_piece

transformers = pytest.importorskip("transformers")


def folder_of(path: Path, tokenizer: Any) -> Any:
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32)
    found.save_pretrained(str(path))
    return found


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A small model with distinct opinions, its tokenizer, and texts beside it."""
    folder = tmp_path / "big"
    folder_of(folder, byte_level())
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS[:6]))
    (tmp_path / "other.txt").write_text(TEXTS[20])
    model = small_llama(hidden_size=32, intermediate_size=96, vocab_size=902, initializer_range=0.2)
    model.save_pretrained(str(folder))
    return folder


def distance(folder: Path, big: Path) -> float:
    """Mean divergence of a folder's next tokens from the unpruned model's, on a text that no command saw."""
    models = [transformers.LlamaForCausalLM.from_pretrained(str(place)).eval() for place in (folder, big)]
    found = []
    for batch in text_batches(big.parent / "other.txt", big):
        with torch.no_grad():
            small, whole = (model(**batch).logits.log_softmax(-1) for model in models)
        found.append(torch.nn.functional.kl_div(small, whole, log_target=True, reduction="batchmean") / small.shape[1])
    return float(torch.stack(found).mean())


@pytest.mark.slow
def test_two_commands_make_a_smaller_folder_that_serves(big: Path, tmp_path: Path) -> None:
    text, cut, healed = tmp_path / "corpus.txt", tmp_path / "cut", tmp_path / "healed"
    target = ("--target", "params=0.7", "--batches", "4")
    assert main(["prune", f"hf:{big}", *target, "--calibration", str(text), "--out", str(cut)]) == 0
    trained = ("--lr", "1e-2", "--epochs", "4")
    assert main(["distill", str(cut), f"hf:{big}", "--data", str(text), *trained, "--out", str(healed)]) == 0
    sizes = [sum(p.numel() for p in pk.load_folder(place).parameters()) for place in (big, cut, healed)]
    assert sizes[1] == sizes[2] <= 0.7 * sizes[0]
    assert distance(healed, big) < 0.92 * distance(cut, big)
    assert pk.Plan.load(healed / "prunekit_plan.json") == pk.Plan.load(cut / "prunekit_plan.json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(healed))
    served = transformers.AutoModelForCausalLM.from_pretrained(str(healed)).eval()
    ids = tokenizer("The class", return_tensors="pt")["input_ids"]
    written = served.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(written, pk.load_folder(healed).generate(ids, max_new_tokens=5, do_sample=False))


@pytest.mark.parametrize(("make", "around"), [(byte_level, 0), (word_piece, 2)])
def test_a_text_is_cut_into_examples_with_special_tokens_around(tmp_path: Path, make: Any, around: int) -> None:
    tokenizer = folder_of(tmp_path, make())
    (tmp_path / "text.txt").write_text(TEXTS[0])
    tokens = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    first, last = (
        tokenizer("x", add_special_tokens=True)["input_ids"][:: 1 if around == 0 else 2][:2] if around else (0, 0)
    )
    found = text_batches(tmp_path / "text.txt", tmp_path, size=3)
    assert all(set(batch) == {"input_ids"} and batch["input_ids"].shape == (3, 32) for batch in found[:-1])
    rows = torch.cat([batch["input_ids"] for batch in found]).tolist()
    room = 32 - around
    assert len(rows) == len(tokens) // room
    for number, row in enumerate(rows):
        inside = tokens[number * room : (number + 1) * room]
        assert row == ([first, *inside, last] if around else inside)


def test_halves_for_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    folder_of(tmp_path, byte_level())
    (tmp_path / "text.txt").write_text(TEXTS[0])
    whole = text_batches(tmp_path / "text.txt", tmp_path)[0]["input_ids"]
    halves = text_batches(tmp_path / "text.txt", tmp_path, encoder_decoder=True)[0]
    assert torch.equal(torch.cat([halves["input_ids"], halves["decoder_input_ids"]], 1), whole)
    assert halves["input_ids"].shape == halves["decoder_input_ids"].shape


def test_a_short_text_is_one_example(tmp_path: Path) -> None:
    folder_of(tmp_path, byte_level())
    (tmp_path / "text.txt").write_text("a few words")
    (batch,) = text_batches(tmp_path / "text.txt", tmp_path)
    assert batch["input_ids"].shape[0] == 1
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(pk.ArgumentError, match=r"(?s)The text is too short.*tokens in it: 0.*give a text of the kind"):
        text_batches(tmp_path / "text.txt", tmp_path)


def test_what_is_refused(big: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = str(tmp_path / "corpus.txt"), str(tmp_path / "out")

    def refused(*arguments: str) -> str:
        assert main(list(arguments)) in (1, 2)
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "A text is for a model that reads tokens" in refused(
        "prune", "torchvision:squeezenet1_1", "--input", "1,3,64,64", "--calibration", text
    )
    cut = tmp_path / "cut"
    assert main(["prune", f"hf:{big}", "--ratio", "0.5", "--out", str(cut)]) == 0
    capsys.readouterr()
    distilled = ("distill", str(cut), f"hf:{big}", "--data", text)
    assert "is the folder of the teacher" in refused(*distilled, "--out", str(big), "--overwrite")
    assert "is the folder of the student" in refused(*distilled, "--out", str(cut), "--overwrite")
    assert "isn't an empty folder" in refused(*distilled, "--out", str(cut))
    assert "The teacher of a folder is a folder" in refused(
        "distill", str(cut), "torchvision:resnet18", "--data", text, "--out", out
    )
    (cut / "prunekit_plan.json").unlink()
    assert "doesn't say what was removed" in refused(*distilled, "--out", out)
    (big / "tokenizer.json").unlink()
    (big / "tokenizer_config.json").unlink()
    told = refused("prune", f"hf:{big}", "--calibration", text, "--out", out)
    assert "has no tokenizer that can be read" in told
    assert "it holds none of tokenizer.json, tokenizer_config.json" in told
    assert "tokenizer.save_pretrained(" in told
    (big / "tokenizer.json").write_text("{}")
    assert "why: KeyError: " in refused("prune", f"hf:{big}", "--calibration", text, "--out", out)
    (tmp_path / "corpus.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(pk.CheckpointError, match="The text can't be read"):
        text_batches(tmp_path / "corpus.txt", cut)


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ({"n_positions": 12}, 12),
        ({"max_position_embeddings": 20, "n_ctx": 99}, 20),
        ({"text_config": {"max_position_embeddings": 24}}, 24),
        ({"max_position_embeddings": -1}, 32),
        ({"max_position_embeddings": 500}, 32),
    ],
)
def test_examples_are_as_long_as_the_model_takes(tmp_path: Path, fields: Any, length: int) -> None:
    folder_of(tmp_path, byte_level())  # its own greatest length is 32
    (tmp_path / "text.txt").write_text(TEXTS[0])
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert text_batches(tmp_path / "text.txt", tmp_path)[0]["input_ids"].shape[1] == length
    assert text_batches(tmp_path / "text.txt", tmp_path, length=8)[0]["input_ids"].shape[1] == 8


def test_a_model_of_few_positions_is_calibrated_with_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Learned positions, and a tokenizer that doesn't say how many there are."""
    folder = tmp_path / "gpt"
    transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level()).save_pretrained(str(folder))
    config = transformers.GPT2Config(n_positions=24, n_embd=16, n_layer=1, n_head=2, vocab_size=902)
    transformers.GPT2LMHeadModel(config).save_pretrained(str(folder))
    (tmp_path / "text.txt").write_text(TEXTS[0])
    arguments = ("--calibration", str(tmp_path / "text.txt"), "--batches", "2", "--ratio", "0.5", "--serve", "none")
    assert main(["prune", f"hf:{folder}", *arguments, "--out", str(tmp_path / "small")]) == 0
    assert "compensated: 3 layers" in capsys.readouterr().out


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    tokenizer = folder_of(tmp_path, byte_level())
    text = tmp_path / "text.txt"
    text.write_text(TEXTS[0])
    largest = max(tokenizer(TEXTS[0])["input_ids"])
    said = f"(?s)ids that the model has no embedding for.*the id {largest}, and the model's vocab_size is {largest}"
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": largest}))
    for reader in (text_batches, check_text):
        with pytest.raises(pk.ArgumentError, match=said):
            reader(text, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": largest + 1}))  # fewer than the tokenizer has
    assert largest + 1 < len(tokenizer)
    check_text(text, tmp_path)
    assert torch.cat([batch["input_ids"] for batch in text_batches(text, tmp_path)]).max() == largest


@pytest.mark.slow
def test_an_encoder_without_logits_is_trained_as_the_hint_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, vocab_size=902, max_position_embeddings=32)
    big, small, text = tmp_path / "big", tmp_path / "small", tmp_path / "text.txt"
    folder_of(big, byte_level())
    transformers.BertModel(config).save_pretrained(str(big))
    text.write_text(TEXTS[0])
    assert main(["prune", f"hf:{big}", "--ratio", "0.5", "--out", str(small)]) == 0
    distilled = ["distill", str(small), f"hf:{big}", "--data", str(text), "--out", str(tmp_path / "healed")]
    assert main(distilled) == 2
    assert "what to do: --loss hidden=1 compares hidden states instead" in capsys.readouterr().err
    assert main([*distilled, "--loss", "hidden=1"]) == 0


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building a model is an error."""

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was built")

    for command in ("prune", "distill", "shrink"):
        monkeypatch.setattr(f"prunekit_plugins.cli.commands.{command}.build", never)


@pytest.mark.usefixtures("unread")
def test_what_needs_no_weights_is_checked_before_they_are_read(
    big: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, text, out = tmp_path / "empty.txt", tmp_path / "corpus.txt", tmp_path / "out"
    empty.write_text(" \n")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'format = 1\nmodel = "hf:{big}"\ncalibration = "{empty}"\ntrain = "{empty}"\n'
        "[settings]\ntarget = {params = 0.7}\n"
    )
    cut, whole = tmp_path / "cut", f"hf:{big}"
    cut.mkdir()
    (cut / "prunekit_plan.json").write_text("{}")

    def refused(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) in (1, 2)
        return capsys.readouterr().err

    for told in (
        refused("prune", whole, "--calibration", empty, "--out", out),
        refused("distill", cut, whole, "--data", empty, "--out", out),
        refused("shrink", recipe),
    ):
        assert told.startswith("The text is too short.")
    missing = refused("prune", whole, "--calibration", tmp_path / "nosuch.txt", "--out", out)
    assert missing.startswith("There is no such file.")
    assert "check the path" in missing
    assert "A text is for a model" in refused("prune", "timm:resnet18", "--calibration", text, "--out", out)
    unknown = refused("prune", whole, "--serve", "guff", "--out", out)
    assert "No serving profile is registered as 'guff'." in unknown
    known = "gguf, mlx, onnx, sglang, tensorrt-llm, transformers, vllm, none"
    assert f"did you mean 'gguf'? known: {known}" in " ".join(unknown.split())
    (big / "tokenizer.json").unlink()
    (big / "tokenizer_config.json").unlink()
    assert "has no tokenizer" in refused("prune", whole, "--calibration", text, "--out", out)
