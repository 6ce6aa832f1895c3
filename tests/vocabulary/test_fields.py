"""Ids of tokens in configurations follow the vocabulary."""

from __future__ import annotations

from typing import Any

from prunekit_plugins.vocabulary.fields import named_ids, renumber
from prunekit_plugins.vocabulary.ids import IdMap

IDS = IdMap([0, 3, 5, 9])


def after(**fields: Any) -> dict[str, Any]:
    renumber(fields, IDS, 10)
    return fields


def test_single_ids_and_lists_of_them_are_renumbered() -> None:
    assert after(pad_token_id=3, eos_token_id=[5, 9], image_token_index=9, bos_token_id=None) == {
        "pad_token_id": 1,
        "eos_token_id": [2, 3],
        "image_token_index": 3,
        "bos_token_id": None,
    }


def test_ids_that_only_matter_while_they_are_there_leave() -> None:
    assert after(suppress_tokens=[1, 3, 7, 9]) == {"suppress_tokens": [1, 3]}
    assert after(bad_words_ids=[[3, 4], [5, 9]]) == {"bad_words_ids": [[2, 3]]}


def test_pairs_names_and_numbers_as_text_are_renumbered() -> None:
    assert after(forced_decoder_ids=[[1, 5], [2, None]]) == {"forced_decoder_ids": [[1, 2], [2, None]]}
    assert after(lang_to_id={"<|de|>": 9}) == {"lang_to_id": {"<|de|>": 3}}
    assert after(added_tokens_decoder={"5": {"content": "<s>"}, "6": {}}) == {
        "added_tokens_decoder": {"2": {"content": "<s>"}}
    }


def test_the_number_of_ids_follows_where_it_is_that_number() -> None:
    assert after(vocab_size=10, text_config={"vocab_size": 10}, vision_config={"vocab_size": 11}) == {
        "vocab_size": 4,
        "text_config": {"vocab_size": 4},
        "vision_config": {"vocab_size": 11},
    }


def test_other_fields_and_negative_ids_stay() -> None:
    same = {"hidden_size": 9, "pad_token_id": -1, "tokens": [3], "num_beams": 5, "eos_token": "</s>"}
    assert after(**same) == same


def test_ids_that_are_named_have_to_stay() -> None:
    fields = {"pad_token_id": 3, "text_config": {"eos_token_id": [5, 9]}, "suppress_tokens": [1], "bos_token_id": None}
    assert named_ids(fields) == {"pad_token_id": (3,), "text_config.eos_token_id": (5, 9)}
