"""Language models of transformers with fewer positions, in memory and as stock ``from_pretrained`` builds them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import prunekit as pk
from tests.vocabulary.test_transformers import BART, LLAMA, SMALL, model_of, numbers
from tests.vocabulary.training import made

transformers = pytest.importorskip("transformers")

IDS, SIZE, LENGTH = 64, 24, 10
CLIP = {**SMALL, "vocab_size": IDS, "eos_token_id": 58, "bos_token_id": 57, "pad_token_id": 1}
ENDS = {"bos_token_id": 0, "eos_token_id": 1}


def clip() -> Any:
    vision = {**SMALL, "image_size": 16, "patch_size": 8}
    return model_of(
        "CLIPModel", text_config={**CLIP, "max_position_embeddings": SIZE}, vision_config=vision, projection_dim=16
    )


MODELS: Mapping[str, tuple[Callable[[], Any], int]] = {
    "GPT-2": (
        lambda: model_of("GPT2LMHeadModel", n_embd=32, n_layer=2, n_head=4, vocab_size=IDS, n_positions=SIZE, **ENDS),
        0,
    ),
    "OPT": (
        lambda: model_of(
            "OPTForCausalLM",
            **{**ENDS, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
            word_embed_proj_dim=32,
            vocab_size=IDS,
            max_position_embeddings=SIZE,
        ),
        2,
    ),
    "BERT": (lambda: model_of("BertForMaskedLM", **SMALL, vocab_size=IDS, max_position_embeddings=SIZE), 0),
    "RoBERTa": (lambda: model_of("RobertaForMaskedLM", **SMALL, vocab_size=IDS, max_position_embeddings=SIZE + 2), 2),
    "BART": (lambda: model_of("BartForConditionalGeneration", **BART, max_position_embeddings=SIZE), 2),
    "Whisper": (
        lambda: model_of(
            "WhisperForConditionalGeneration",
            **{**BART, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": SIZE},
            pad_token_id=1,
            bos_token_id=2,
            eos_token_id=3,
            decoder_start_token_id=57,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
        0,
    ),
    "CLIP's texts": (lambda: model_of("CLIPTextModel", **CLIP, max_position_embeddings=SIZE), 0),
    "CLIP": (clip, 0),
}


def inputs_of(model: Any, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 56, (2, length))
    if "Whisper" in type(model).__name__:
        return {"input_features": torch.ones(2, 8, 40), "decoder_input_ids": ids}
    if type(model).__name__ == "CLIPModel":
        return {"input_ids": ids, "pixel_values": torch.ones(2, 3, 16, 16)}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def raised(model: Any, inputs: Mapping[str, Any]) -> type[Exception]:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # of whatever class the model raises
        model(**inputs)
    return caught.type


QUICK = ("GPT-2", "RoBERTa")


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in MODELS]
)
def test_models_with_fewer_positions_give_what_they_gave(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, before = MODELS[kind][0](), MODELS[kind][1]
    for tensor in model.parameters():
        tensor.data.normal_(std=0.3)
    dense, fresh = copy.deepcopy(model), copy.deepcopy(model)
    result = pk.prune_positions(model, LENGTH, inputs_of(model, 6))
    assert (result.size, result.length, result.notes) == (SIZE, LENGTH, ())
    tables = dict(model.named_parameters())
    assert {len(tables[name]) for name in result.tables} == {LENGTH + before}
    with torch.no_grad():
        for length in (1, 6, LENGTH):
            inputs = inputs_of(model, length)
            for name, values in numbers(dense(**inputs)).items():
                assert torch.equal(model(**inputs)[name], values), name
        model.save_pretrained(str(tmp_path))
        stock, applied = type(model).from_pretrained(str(tmp_path)).eval(), result.plan.apply(fresh)
        for other in (stock, applied):
            assert all(torch.equal(other(**inputs)[name], values) for name, values in numbers(model(**inputs)).items())
    longer = raised(model, inputs_of(model, LENGTH + 1))
    assert longer is raised(stock, inputs_of(model, LENGTH + 1)) is raised(dense, inputs_of(model, SIZE + 1))


def test_padding_on_the_left_is_no_position() -> None:
    torch.manual_seed(0)
    model = MODELS["OPT"][0]()
    dense = copy.deepcopy(model)
    ids = torch.randint(4, 56, (2, LENGTH))
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    pk.prune_positions(model, LENGTH, {"input_ids": ids, "attention_mask": mask})
    assert model.model.decoder.embed_positions.weight.shape[0] == LENGTH + 2
    whole = torch.ones_like(ids)
    assert torch.equal(model(ids, whole).logits, dense(ids, whole).logits)


def test_generation_ends_where_positions_do() -> None:
    torch.manual_seed(0)
    model = MODELS["GPT-2"][0]()
    dense = copy.deepcopy(model)
    pk.prune_positions(model, LENGTH, inputs_of(model, 4))
    ids = torch.randint(4, 56, (1, 3))
    arguments = {"attention_mask": torch.ones_like(ids), "pad_token_id": 1, "do_sample": False, "eos_token_id": None}
    written = model.generate(ids, max_length=LENGTH, **arguments)
    assert torch.equal(written, dense.generate(ids, max_length=LENGTH, **arguments))
    assert written.shape == (1, LENGTH)


@pytest.mark.slow
def test_the_tokenizer_cuts_texts_to_what_is_left(tmp_path: Path) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made("word_level"), model_max_length=SIZE)
    model = MODELS["BERT"][0]()
    with pytest.raises(pk.ArgumentError, match="they have 12"):
        pk.prune_positions(model, LENGTH, inputs_of(model, 12), tokenizer=tokenizer)
    assert tokenizer.model_max_length == SIZE
    pk.prune_positions(model, LENGTH, inputs_of(model, 6), tokenizer=tokenizer)
    tokenizer.save_pretrained(str(tmp_path))
    stock = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert stock.model_max_length == tokenizer.model_max_length == LENGTH
    assert len(stock("the value of the name " * 9, truncation=True).input_ids) == LENGTH
    short = transformers.PreTrainedTokenizerFast(tokenizer_object=made("word_level"), model_max_length=4)
    pk.prune_positions(model, 8, inputs_of(model, 6), tokenizer=short)
    assert short.model_max_length == 4


def test_rotary_positions_have_nothing_to_remove() -> None:
    model = model_of("LlamaForCausalLM", **LLAMA)
    with pytest.raises(pk.NothingToPruneError, match="max_position_embeddings is a number that you may set"):
        pk.prune_positions(model, LENGTH, inputs_of(model, 6))
    assert model.config.max_position_embeddings == 64


@pytest.mark.slow
def test_a_configuration_that_cant_say_it_is_noted() -> None:
    """DeBERTa's relative positions are as many as its positions: they stay, and the configuration has one number."""
    model = model_of(
        "DebertaV2ForMaskedLM",
        **{**SMALL, "vocab_size": IDS, "max_position_embeddings": SIZE, "relative_attention": True},
        pos_att_type=["c2p", "p2c"],
    )
    dense = copy.deepcopy(model)
    result = pk.prune_positions(model, LENGTH, inputs_of(model, 6))
    (note,) = result.notes
    assert note.startswith("from_pretrained would build deberta.encoder.rel_embeddings.weight otherwise")
    inputs = inputs_of(model, LENGTH)
    assert torch.equal(model(**inputs).logits, dense(**inputs).logits)


@pytest.mark.slow
def test_tokens_and_positions_are_pruned_one_after_the_other(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS["GPT-2"][0]()
    dense = copy.deepcopy(model)
    inputs = inputs_of(model, LENGTH)
    ids = pk.prune_vocabulary(model, [0, 1, *range(4, 56)], inputs).ids
    new = {**inputs, "input_ids": ids.of(inputs["input_ids"])}
    pk.prune_positions(model, LENGTH, new)
    model.save_pretrained(str(tmp_path))
    stock = type(model).from_pretrained(str(tmp_path)).eval()
    expected = dense(**inputs).logits[..., list(ids.kept)]
    assert torch.allclose(stock(**new).logits, expected, atol=1e-6)
    assert (stock.config.vocab_size, stock.config.n_positions) == (len(ids), LENGTH)
