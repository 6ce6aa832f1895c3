"""Language models of transformers with fewer tokens, in memory and in folders."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import prunekit as pk
from tests.cli.conftest import cli  # noqa: F401  # a fixture
from tests.vocabulary.test_models import whole_numbers
from tests.vocabulary.training import made

transformers = pytest.importorskip("transformers")

IDS = 64
KEEP = [0, 1, 2, *range(3, 50, 3), 58]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": IDS}
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": IDS}


def model_of(name: str, **fields: Any) -> Any:
    kind = getattr(transformers, name)
    return kind(kind.config_class(**fields)).eval()


MODELS: Mapping[str, Callable[[], Any]] = {
    "untied": lambda: model_of("LlamaForCausalLM", **LLAMA),
    "tied": lambda: model_of("Qwen3ForCausalLM", **LLAMA, head_dim=8, tie_word_embeddings=True, eos_token_id=[1, 58]),
    "with the last id at the end of texts": lambda: model_of(
        "GPT2LMHeadModel", n_embd=32, n_layer=2, n_head=4, vocab_size=IDS, bos_token_id=58, eos_token_id=58
    ),
    "with a bias": lambda: model_of("BertForMaskedLM", **SMALL, vocab_size=IDS),
    "with positions that padding shifts": lambda: model_of("RobertaForMaskedLM", **SMALL, vocab_size=IDS),
    "with a shift to the right": lambda: model_of("BartForConditionalGeneration", **BART),
    "with two stacks": lambda: model_of(
        "T5ForConditionalGeneration", d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, vocab_size=IDS
    ),
    "pooled at the end of texts": lambda: model_of(
        "CLIPTextModel", **SMALL, vocab_size=IDS, eos_token_id=58, bos_token_id=57, pad_token_id=1
    ),
    "pooled where the largest id is": lambda: model_of(
        "CLIPTextModel", **SMALL, vocab_size=IDS, eos_token_id=2, bos_token_id=57, pad_token_id=1
    ),
    "pooled before padding": lambda: model_of("LlamaForSequenceClassification", **LLAMA, pad_token_id=58),
    "sequences judged at their ends": lambda: model_of("BartForSequenceClassification", **BART, eos_token_id=58),
}


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[0, 3, 6, 9, 12, 58], [0, 48, 45, 3, 58, 1]])
    inputs = {"input_ids": ids}
    if "T5" in type(model).__name__:
        inputs["decoder_input_ids"] = ids[:, :4]
    elif "Sequence" in type(model).__name__:
        inputs["input_ids"] = torch.tensor([[0, 3, 6, 9, 12, 58], [0, 48, 45, 3, 6, 58]])
    return inputs


def numbers(outputs: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("kind", MODELS)
def test_models_with_fewer_tokens_give_what_they_gave(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]()
    inputs, dense = inputs_of(model), copy.deepcopy(model)
    with torch.no_grad():
        before = numbers(model(**inputs))
        result = pk.prune_vocabulary(model, KEEP, inputs)
        new = {name: result.ids.of(ids) for name, ids in inputs.items()}
        after = numbers(model(**new))
        assert before.keys() == after.keys()
        for name, values in before.items():
            expected = values[..., list(result.ids.kept)] if name in result.outputs else values
            assert torch.allclose(after[name], expected, atol=1e-6), name
        assert model.config.vocab_size == len(result) < IDS
        model.save_pretrained(str(tmp_path))
        stock = numbers(type(model).from_pretrained(str(tmp_path)).eval()(**new))
        applied = numbers(result.plan.apply(dense)(**new))
    for other in (stock, applied):
        assert all(torch.equal(other[name], values) for name, values in after.items())


def test_ids_that_leave_are_no_example_for_a_program_that_asks_for_values() -> None:
    model = MODELS["sequences judged at their ends"]()
    inputs = inputs_of(model)
    inputs["input_ids"][0, 1] = 4
    with pytest.raises(pk.ArgumentError, match=r"\[4\] leave, and the program asks for values"):
        pk.prune_vocabulary(model, KEEP, inputs)


def test_ids_in_configurations_follow() -> None:
    model = MODELS["tied"]()
    model.generation_config.suppress_tokens = [4, 6]
    result = pk.prune_vocabulary(model, KEEP, inputs_of(model))
    assert model.config.eos_token_id == [result[1], result[58]] == [1, len(result) - 1]
    assert model.generation_config.suppress_tokens == [result[6]]


def test_example_inputs_are_the_models_own() -> None:
    model = MODELS["untied"]()
    assert len(pk.prune_vocabulary(model, KEEP)) == len(KEEP)


def test_labels_of_classes_follow() -> None:
    model = model_of("BertForSequenceClassification", **SMALL, vocab_size=IDS, id2label={0: "a", 1: "b", 2: "c"})
    model.config.label2id = {"a": 0, "b": 1, "c": 2}
    inputs = inputs_of(model)
    with torch.no_grad():
        before = model(**inputs).logits
        result = pk.prune_classes(model, [2, 0], inputs)
        assert torch.allclose(model(**inputs).logits, before[:, [0, 2]], atol=1e-6)
    assert (model.num_labels, model.config.num_labels) == (2, 2)
    assert (model.config.id2label, model.config.label2id) == ({0: "a", 1: "c"}, {"a": 0, "c": 1})
    assert dict(result) == {0: 0, 2: 1}


def test_names_of_classes_and_suppressed_tokens_follow_elsewhere(tmp_path: Path) -> None:
    def fresh() -> Any:
        model = model_of("BertForSequenceClassification", **SMALL, vocab_size=IDS, id2label={0: "a", 1: "b", 2: "c"})
        model.config.label2id = {"a": 0, "b": 1, "c": 2}
        return model

    model = fresh()
    result = pk.prune_classes(model, [2, 0], inputs_of(model))
    pk.save(model, tmp_path / "small.safetensors", plan=result.plan)
    loaded = pk.load(fresh(), tmp_path / "small.safetensors")
    applied = pk.Plan.from_json(result.plan.to_json()).apply(fresh())
    for other in (loaded, applied):
        assert (other.config.id2label, other.config.label2id) == ({0: "a", 1: "c"}, {"a": 0, "c": 1})
    others = fresh()
    others.config.id2label[1] = "z"
    with pytest.raises(pk.PlanError, match=r"config\.id2label"):
        result.plan.apply(others)
    assert others.classifier.out_features == 3

    tokens, bare = MODELS["tied"](), MODELS["tied"]()
    tokens.generation_config.suppress_tokens = [4, 6]
    copied = copy.deepcopy(tokens)
    result = pk.prune_vocabulary(tokens, KEEP, inputs_of(tokens))
    assert result.plan.apply(copied).generation_config.suppress_tokens == [result[6]]
    assert result.plan.apply(bare).generation_config.suppress_tokens is None


TEXT = "return the value of the name\nif the object is not a class"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = made("byte_level")
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    wrapped.pad_token = "<|pad|>"
    place = tmp_path / "dense"
    wrapped.save_pretrained(str(place))
    end = tokenizer.token_to_id("<|endoftext|>")
    size = tokenizer.get_vocab_size() + 6
    model = model_of("LlamaForCausalLM", **{**LLAMA, "vocab_size": size}, eos_token_id=end, bos_token_id=None)
    whole_numbers(model)
    model.save_pretrained(str(place))
    (place / "vocab.json").write_text("{}")
    (place / "README.md").write_text("a model")
    (place / "added_tokens.json").write_text(json.dumps({"<|endoftext|>": end}))
    return place


def test_a_folder_is_written_that_stock_transformers_loads(
    folder: Path,
    tmp_path: Path,
    cli: Any,  # noqa: F811
) -> None:
    (tmp_path / "corpus.txt").write_text(TEXT)
    out = tmp_path / "small"
    called = cli("vocabulary", folder, "--keep-text", tmp_path / "corpus.txt", "--out", out, "--json")
    assert called.code == 0, called.err
    assert called.data["ids"]["after"] < 330 < called.data["ids"]["before"]
    old, new = (transformers.AutoTokenizer.from_pretrained(str(place)) for place in (folder, out))
    dense, small = (transformers.AutoModelForCausalLM.from_pretrained(str(place)).eval() for place in (folder, out))
    assert small.config.vocab_size == called.data["ids"]["after"]
    assert small.config.eos_token_id == new.eos_token_id == small.generation_config.eos_token_id != old.eos_token_id
    assert json.loads((out / "added_tokens.json").read_text()) == {"<|endoftext|>": new.eos_token_id}
    assert not (out / "vocab.json").exists()
    assert (out / "README.md").read_text() == "a model"
    for line in TEXT.splitlines():
        before, after = old(line, return_tensors="pt"), new(line, return_tensors="pt")
        assert new.convert_ids_to_tokens(after.input_ids[0]) == old.convert_ids_to_tokens(before.input_ids[0])
        same = [old.get_vocab()[token] for token, _ in sorted(new.get_vocab().items(), key=lambda one: one[1])]
        with torch.no_grad():
            expected = dense(**before).logits[..., same]
            assert torch.allclose(small(**after).logits[..., : len(same)], expected, rtol=1e-5, atol=1e-4)


def test_wrong_calls_are_told(folder: Path, tmp_path: Path, cli: Any) -> None:  # noqa: F811
    (tmp_path / "ids.txt").write_text("1 2 three")
    out = ("--out", tmp_path / "small")
    assert "Nothing says which tokens stay" in cli("vocabulary", folder, *out).err
    assert "got 'three'" in cli("vocabulary", folder, *out, "--keep-ids", tmp_path / "ids.txt").err
    assert "The file can't be read" in cli("vocabulary", folder, *out, "--keep-text", tmp_path / "none.txt").err
    (tmp_path / "ids.txt").write_text("1 2 3")
    called = cli("vocabulary", folder, "--out", folder, "--keep-ids", tmp_path / "ids.txt")
    assert (called.code, "isn't an empty folder" in called.err) == (2, True)
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in cli("vocabulary", folder, *out, "--keep-ids", tmp_path / "ids.txt").err
