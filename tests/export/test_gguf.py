"""GGUF files of whole and pruned models in llama.cpp: the same log-probabilities, within llama.cpp's own rounding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit_plugins.export import ExportError, export_folder
from prunekit_plugins.export.engines import steps
from prunekit_plugins.export.gguf.families import FORMS
from prunekit_plugins.export.gguf.tensors import in_pairs
from prunekit_plugins.export.gguf.tokenizer import LLAMA3, TEXTS, read_vocabulary
from tests.vocabulary import training

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from tests.export.folders import pruned, whole  # noqa: E402  # needs transformers

needs_engine = pytest.mark.skipif(not steps.installed("xllamacpp"), reason="xllamacpp isn't installed")
ULP = 1e-6
"""The last place of a log-probability in single precision."""
LAYERS = {"uniform": False, "ignored_layers": ["model.layers.1.mlp.gate_proj"]}


def fields(path: Path) -> dict[str, Any]:
    """Reads what a file says, by gguf's own reader."""
    reader = gguf.GGUFReader(str(path))
    return {name: field.contents() for name, field in reader.fields.items()}


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(reversed(tensor.shape.tolist())) for tensor in gguf.GGUFReader(str(path)).tensors}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "llama": ("llama", {}, {}, "llama"),
    "llama, tied": ("llama", {"tie_word_embeddings": True}, {}, "llama"),
    "llama, slower positions": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        {},
        "llama",
    ),
    "whole heads gone": ("llama", {}, {"prune_num_heads": True, "head_pruning_ratio": 0.5}, "llama"),
    "qwen2, as wide as its queries": ("qwen2", {}, {"ignored_layers": ["model.embed_tokens"]}, "qwen2"),
    "qwen2, narrower": ("qwen2", {}, {}, "llama"),
    "qwen3": ("qwen3", {}, {}, "qwen3"),
    "layers that differ": ("llama", {}, LAYERS, "deci"),
    "layers that differ, with norms of queries": ("qwen3", {"tie_word_embeddings": True}, LAYERS, "openelm"),
    "an attention gone": ("llama", {}, {"branches": ["model.layers.1.self_attn"]}, "deci"),
    "widths, heads and a feed-forward of Qwen3": (
        "qwen3",
        {"tie_word_embeddings": True},
        {**LAYERS, "branches": ["model.layers.2.mlp"]},
        "openelm",
    ),
    "a feed-forward gone, its attention stays": ("llama", {}, {"branches": ["model.layers.1.mlp"]}, "deci"),
}
"""Type of configuration, its settings, how it is pruned, and llama.cpp's architecture."""


@pytest.mark.slow
@needs_engine
@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_what_the_pruned_model_does(case: str, tmp_path: Path) -> None:
    kind, sizes, how, architecture = CASES[case]
    big = whole(tmp_path / "big", kind, **sizes)
    small = pruned(big, tmp_path / "small", **how)
    before, after = (export_folder(folder, f"{folder}.gguf", to="gguf").check for folder in (big, small))
    assert before is not None
    assert after is not None
    assert 0 < before.error < 1e-5  # llama.cpp's rounding
    assert after.error <= 2 * max(before.error, ULP)
    assert isinstance(after, steps.EngineCheck)
    assert (after.prompt, after.steps, after.texts) == (24, 10, 3)
    assert fields(tmp_path / "small.gguf")["general.architecture"] == architecture


def test_numbers_are_those_of_the_pruned_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunekit_plugins.export.gguf.export.installed", lambda name: False)
    small = pruned(whole(tmp_path / "big"), tmp_path / "small")
    written = export_folder(small, tmp_path / "small.gguf", to="gguf")
    assert written.check is None
    assert str(written) == "not checked in the engine: xllamacpp isn't installed"
    assert written.bytes == (tmp_path / "small.gguf").stat().st_size
    model: Any = pk.load_folder(small)
    hidden, neurons = model.config.hidden_size, model.config.intermediate_size
    assert hidden < 64
    assert neurons < 256
    found = fields(tmp_path / "small.gguf")
    assert {name.removeprefix("llama."): value for name, value in found.items() if name.startswith("llama.")} == {
        "block_count": 3,
        "context_length": 128,
        "embedding_length": hidden,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "feed_forward_length": neurons,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "attention.key_length": 16,
        "attention.value_length": 16,
        "rope.dimension_count": 16,
        "rope.freq_base": 10000.0,
        "vocab_size": 910,
    }
    tokens = found["tokenizer.ggml.tokens"]
    assert (len(tokens), tokens[900], tokens[902]) == (910, "<|endoftext|>", "[PAD902]")
    assert found["tokenizer.ggml.token_type"][899:903] == [1, 3, 3, 5]
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.ggml.eos_token_id"] == 900
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.chat_template"] == "{{ messages }}"
    assert shapes(tmp_path / "small.gguf")["blk.2.ffn_down.weight"] == (hidden, neurons)


def test_a_layer_without_feed_forward_gets_neurons_that_add_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunekit_plugins.export.gguf.export.installed", lambda name: False)
    branches = ["model.layers.1.self_attn", "model.layers.2.mlp"]
    small = pruned(whole(tmp_path / "big"), tmp_path / "small", branches=branches, uniform=False)
    export_folder(small, tmp_path / "small.gguf", to="gguf")
    found = fields(tmp_path / "small.gguf")
    assert found["deci.attention.head_count"] == [4, 0, 4]
    assert found["deci.attention.head_count_kv"] == [2, 0, 2]
    assert found["deci.feed_forward_length"][2] == 32
    written = {t.name: torch.from_numpy(t.data.copy()) for t in gguf.GGUFReader(str(tmp_path / "small.gguf")).tensors}
    assert "blk.1.attn_q.weight" not in written
    assert written["blk.2.ffn_down.weight"].abs().max() == 0


def test_rows_that_rotate_together_become_neighbours() -> None:
    rows = torch.tensor([0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112])  # two heads of six: first and second half
    assert in_pairs(rows, 6, 6).tolist() == [0, 10, 1, 11, 2, 12, 100, 110, 101, 111, 102, 112]
    assert in_pairs(rows, 6, 4).tolist() == [0, 2, 1, 10, 11, 12, 100, 102, 101, 110, 111, 112]  # two stay


@needs_engine
def test_what_llama_cpp_computes_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = whole(tmp_path / "big")
    monkeypatch.setattr("prunekit_plugins.export.gguf.tensors.PAIRS", ())
    with pytest.raises(ExportError, match="computes something else in the engine; nothing was written") as caught:
        export_folder(big, tmp_path / "big.gguf", to="gguf")
    assert "llama.cpp" in str(caught.value)
    assert not (tmp_path / "big.gguf").exists()


@needs_engine
def test_what_llama_cpp_can_not_load_is_told_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = whole(tmp_path / "big")
    monkeypatch.setitem(FORMS, "llama", FORMS["qwen3"])
    with pytest.raises(ExportError, match="The engine can't run what was exported") as caught:
        export_folder(big, tmp_path / "big.gguf", to="gguf")
    assert "_norm.weight' not found" in caught.value.why
    assert not (tmp_path / "big.gguf").exists()


def other_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    place = folder / "tokenizer.json"
    data = json.loads(place.read_text())
    change(data)
    place.write_text(json.dumps(data))


def test_what_has_no_form_is_refused_before_writing(tmp_path: Path) -> None:
    big = whole(tmp_path / "big")
    differing = pruned(whole(tmp_path / "qwen", "qwen3"), tmp_path / "small", **LAYERS)
    narrow = pruned(big, tmp_path / "narrow", serve=None, prune_head_dims=True, free_outputs=("cache",))
    scaled = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}
    cases = {
        differing: "llama.cpp takes layers that differ of Llama without biases, and of Qwen3",
        narrow: "prune with prune_head_dims=False",
        whole(tmp_path / "dynamic", **scaled): "rotary positions of the kind 'dynamic'",
        whole(tmp_path / "gelu", hidden_act="gelu"): "the activation is gelu, not silu",
        whole(tmp_path / "gpt2", "gpt2"): "LlamaForCausalLM, MistralForCausalLM, ",
    }
    for folder, why in cases.items():
        with pytest.raises(ExportError, match=r"The model can't be exported to GGUF; nothing was written\.") as caught:
            export_folder(folder, tmp_path / "x.gguf", to="gguf")
        assert why in str(caught.value)
        assert caught.value.hint
    assert not (tmp_path / "x.gguf").exists()
    with pytest.raises(pk.ArgumentError, match="There is no export to 'gguff'"):
        export_folder(big, tmp_path / "x.gguf", to="gguff")


def test_tokenizers_that_llama_cpp_would_read_otherwise_are_refused(tmp_path: Path) -> None:
    big = whole(tmp_path / "big")
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "is none of gpt-2, llama-bpe, qwen2": lambda data: data["model"].update(ignore_merges=True),
        "tokens for bytes are missing: <0x00> and 255 more": as_pieces,
        "spaces aren't turned into": lambda data: data["model"].update(byte_fallback=True),
        "of the kind WordLevel": lambda data: data["model"].update(type="WordLevel"),
        "its model has end_of_word_suffix": lambda data: data["model"].update(end_of_word_suffix="</w>"),
        "its ids go up to 950": lambda data: data["added_tokens"][1].update(id=950),
    }
    original = (big / "tokenizer.json").read_text()
    for why, change in changes.items():
        other_tokenizer(big, change)
        with pytest.raises(ExportError, match="The tokenizer can't be exported to GGUF; nothing was written") as caught:
            export_folder(big, tmp_path / "x.gguf", to="gguf")
        assert why in str(caught.value)
        (big / "tokenizer.json").write_text(original)
    (big / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match="there is no such file"):
        export_folder(big, tmp_path / "x.gguf", to="gguf")


def as_pieces(data: dict[str, Any]) -> None:
    """Half of what a tokenizer of SentencePiece has."""
    data["model"]["byte_fallback"], data["pre_tokenizer"] = True, None
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    data["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}


def as_metaspace(data: dict[str, Any]) -> None:
    data["normalizer"] = None
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


HARD = (
    "The class of an object", "  two  spaces\tand a tab\n\nlines", "naïve Ωμέγα 漢字 \U0001f600", "", "x", "a" * 40,
    *(text[:400] for text in training.TEXTS[20:28]),
)  # fmt: skip
"""Texts that the tokenizer wasn't trained on, besides the three that the export compares."""


@needs_engine
def test_pieces_of_sentencepiece_are_cut_alike_and_compute_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = whole(tmp_path / "big", bos_token_id=1, eos_token_id=2)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=training.sentence_pieces(), **names).save_pretrained(str(big))
    small = pruned(big, tmp_path / "small", target={"params": 0.7}, ratio=None)
    monkeypatch.setattr("prunekit_plugins.export.gguf.tokenizer.TEXTS", (*HARD, *TEXTS))
    check = export_folder(small, tmp_path / "small.gguf", to="gguf").check  # an error where the engine makes others
    assert check is not None
    assert check.error < 1e-5
    assert check.texts == len(HARD) + len(TEXTS)
    found = fields(tmp_path / "small.gguf")
    data = json.loads((small / "tokenizer.json").read_text())
    assert found["tokenizer.ggml.model"] == "llama"
    kinds = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"], strict=True))
    assert (kinds["<unk>"], kinds["<s>"], kinds["<0x0A>"], kinds["▁the"], kinds["[PAD905]"]) == (2, 3, 6, 1, 5)
    scores = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.scores"], strict=True))
    first, last = ("".join(data["model"]["merges"][place]) for place in (0, -1))
    assert scores[first] == 0 > scores[last]


def test_pieces_that_scores_cant_say_are_refused(tmp_path: Path) -> None:
    big = whole(tmp_path / "big")
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=training.sentence_pieces(), **names).save_pretrained(str(big))
    original = (big / "tokenizer.json").read_text()
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "the merges lack": lambda data: data["model"]["merges"].pop(),
        "merges of one piece don't follow each other": lambda data: data["model"]["merges"].append(
            data["model"]["merges"][0]
        ),
        "spaces aren't turned into ▁, one": as_metaspace,
    }
    for why, change in changes.items():
        other_tokenizer(big, change)
        with pytest.raises(ExportError, match=rf"(?s)can't be exported to GGUF.*byte fallback.*{why}"):
            export_folder(big, tmp_path / "x.gguf", to="gguf")
        (big / "tokenizer.json").write_text(original)


def test_rules_that_split_words_are_known_by_their_expressions(tmp_path: Path) -> None:
    big = whole(tmp_path / "big")
    split = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

    def as_llama3(data: dict[str, Any]) -> None:
        data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, bytes_only]}
        data["model"]["ignore_merges"] = True

    other_tokenizer(big, as_llama3)
    assert read_vocabulary(big, 910).split == "llama-bpe"
    if steps.installed("xllamacpp"):
        check = export_folder(big, tmp_path / "x.gguf", to="gguf").check
        assert check is not None
        assert check.error < 1e-5
