"""Tokenizers with fewer tokens split text of the tokens that stay as before."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("tokenizers")

from hypothesis import given, settings, strategies as st

import prunekit as pk
from prunekit_plugins.vocabulary import IdMap, closed, rewritten
from prunekit_plugins.vocabulary.segmentation import byte_symbols
from prunekit_plugins.vocabulary.tokenizer import token_ids
from tests.vocabulary.training import MAKERS, OTHER, TEXTS, as_data, from_data, made

KINDS = sorted(MAKERS)
UNKNOWN = {"word_piece": "unknown words may become known"}


def smaller(kind: str, keep: set[int]) -> tuple[Any, Any, IdMap]:
    old = made(kind)
    ids = IdMap(closed(as_data(old), keep))
    return old, from_data(rewritten(as_data(old), ids)), ids


def snippets(rng: random.Random, count: int, text: str) -> list[str]:
    """Slices of a text, and its words in another order."""
    words = text.split()
    found = []
    for _ in range(count):
        start = rng.randrange(len(text))
        found.append(text[start : start + rng.randrange(1, 60)])
        found.append(" ".join(rng.choices(words, k=4)) + rng.choice(["", " " + OTHER, ".", "\n\n"]))
    return found


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 2**16))
def test_text_of_kept_tokens_gives_the_new_ids(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    text = rng.choice(TEXTS)[:3000]
    seen = {number for one in [text, OTHER] for number in made(kind).encode(one).ids}
    old, new, ids = smaller(kind, seen)
    unknown = old.token_to_id("<unk>")
    compared = 0
    for snippet in snippets(rng, 60, text):
        before = old.encode(snippet).ids
        if set(before) <= set(ids) and not (kind in UNKNOWN and unknown in before):
            assert new.encode(snippet).ids == [ids[number] for number in before]
            compared += 1
    assert compared >= 20


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 2**16), share=st.sampled_from([0.02, 0.3, 0.9]))
def test_tokens_drawn_at_random_are_enough(kind: str, seed: int, share: float) -> None:
    rng = random.Random(seed)
    numbers = sorted(token_ids(as_data(made(kind))).values())
    old, new, ids = smaller(kind, {number for number in numbers if rng.random() < share})
    unknown = old.token_to_id("<unk>")
    letters = writings(old, ids)
    for _ in range(100):
        snippet = "".join(rng.choices(letters, k=rng.randrange(1, 12)))
        before = old.encode(snippet).ids
        if set(before) <= set(ids) and not (kind in UNKNOWN and unknown in before):
            assert new.encode(snippet).ids == [ids[number] for number in before]


def writings(tokenizer: Any, ids: IdMap) -> list[str]:
    """What kept tokens write, to be put together."""
    written = [tokenizer.decode([number], skip_special_tokens=False) for number in ids]
    return [text for text in written if text] + [" "]


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_all_changes_nothing(kind: str) -> None:
    data = as_data(made(kind))
    every = IdMap(token_ids(data).values())
    assert rewritten(data, every) == data


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_shrinks_and_ids_are_consecutive(kind: str) -> None:
    old, new, ids = smaller(kind, set(made(kind).encode("return the value of the name").ids))
    assert new.get_vocab_size() == len(ids) < old.get_vocab_size()
    assert sorted(new.get_vocab().values()) == list(range(len(ids)))
    assert all(new.id_to_token(ids[number]) == old.id_to_token(number) for number in ids)


def test_special_tokens_are_renumbered_wherever_they_are_named() -> None:
    old, new, ids = smaller("byte_level", set(made("byte_level").encode("if the").ids))
    end = ids[old.token_to_id("<|endoftext|>")]
    assert end == len(ids) - 2 < old.token_to_id("<|endoftext|>")
    assert new.encode("if the<|endoftext|>").ids[-1] == end
    assert new.padding["pad_id"] == ids[old.token_to_id("<|pad|>")]
    padded, _ = new.encode_batch(["if", "if the the the"])
    assert padded.ids[-1] == new.token_to_id("<|pad|>")


@pytest.mark.parametrize("kind", ["byte_fallback", "suffixed", "word_piece"])
def test_what_is_put_around_a_text_is_renumbered(kind: str) -> None:
    data = as_data(made(kind))
    numbers = token_ids(data)
    order = sorted(numbers, key=lambda token: (token in ("<s>", "</s>"), numbers[token]))  # these come last
    moved = {token: place for place, token in enumerate(order)}
    data["model"]["vocab"] = {token: moved[token] for token in data["model"]["vocab"]}
    for token in data["added_tokens"]:
        token["id"] = moved[token["content"]]
    for token, start in (("<s>", 1), ("</s>", 2)):
        replace_ids(data["post_processor"], token, start, moved[token])
    old = from_data(data)
    ids = IdMap(closed(data, old.encode("return the value").ids))
    new = from_data(rewritten(data, ids))
    before = old.encode("return the value").ids
    assert {moved["<s>"], moved["</s>"]} <= set(before)
    assert new.encode("return the value").ids == [ids[number] for number in before] != before


def replace_ids(part: Any, token: str, old: int, new: int) -> None:
    if isinstance(part, dict):
        if part.get("ids") == [old]:
            part["ids"] = [new]
        for key, value in part.items():
            if value == [token, old]:
                part[key] = [token, new]
            replace_ids(value, token, old, new)
    elif isinstance(part, list):
        for value in part:
            replace_ids(value, token, old, new)


def test_merges_whose_result_left_leave_and_those_of_what_stays_stay() -> None:
    data = {
        "added_tokens": [],
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5, "ca": 6},
            "merges": [["a", "b"], ["b", "c"], ["ab", "c"], ["c", "a"]],
        },
    }
    assert closed(data, [5]) == (0, 1, 2, 3, 5)
    model = rewritten(data, IdMap(closed(data, [5])))["model"]
    assert model["vocab"] == {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}
    assert model["merges"] == [["a", "b"], ["ab", "c"]]


def test_merges_written_with_a_space_stay_so() -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "ba": 3}, "merges": ["a b", "b a"]}
    data = {"model": model}
    assert rewritten(data, IdMap(closed(data, [2])))["model"]["merges"] == ["a b"]


def test_a_token_that_merges_never_make_needs_no_others() -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "xyz": 3}, "merges": [["a", "b"]]}
    assert closed({"model": model}, [3]) == (3,)


def test_unigram_keeps_what_unknown_characters_cost() -> None:
    pieces = [["<unk>", 0.0], ["abc", -9.0], ["d", -9.0], ["e", -9.0], ["c", -50.0], ["ab", -1.0], ["f", -60.0]]
    data = {"added_tokens": [], "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces}}
    assert closed(data, [1]) == (0, 1, 4, 6)


def test_unigram_without_what_it_needs_would_split_otherwise() -> None:
    """The case against leaving out what `closed` adds: an unknown character that costs less than the token it was."""
    pieces = [["<unk>", 0.0], ["cx", -9.0], ["y", -9.0], ["z", -9.0], ["xyz", -1.0], ["c", -50.0]]
    data = {**as_data(made("unigram")), "added_tokens": [], "pre_tokenizer": None, "post_processor": None}
    data["model"] = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}
    old = from_data(data)
    assert old.encode("cxyz").ids == [1, 2, 3]
    assert closed(data, [1, 2, 3, 4]) == (0, 1, 2, 3, 4, 5)
    bare = from_data({**data, "model": {**data["model"], "vocab": pieces[:5]}})
    assert bare.encode("cxyz").ids == [0, 4]


def test_bytes_stay() -> None:
    _, new, _ = smaller("byte_level", set())
    assert new.decode(new.encode(OTHER).ids) == OTHER
    _, new, _ = smaller("byte_fallback", set())
    assert new.encode("漢").tokens[1:-1] == ["<0xE2>", "<0x96>", "<0x81>", "<0xE6>", "<0xBC>", "<0xA2>"]


def test_symbols_of_bytes_are_those_of_the_library() -> None:
    from tokenizers import pre_tokenizers

    assert sorted(byte_symbols()) == sorted(pre_tokenizers.ByteLevel.alphabet())


def test_ids_that_text_would_need_are_missed() -> None:
    data = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}
    with pytest.raises(pk.ArgumentError, match=r"it needs 2 further ids: \[0, 1\]"):
        rewritten(data, IdMap([2]))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(pk.ArgumentError, match="its type is 'Neural'"):
        closed({"model": {"type": "Neural", "vocab": {}}}, [])
    known = {"model": {"vocab": {"a": 0}, "type": "WordLevel"}, "post_processor": {"type": "Magic"}}
    with pytest.raises(pk.ArgumentError, match="its type is 'Magic'"):
        rewritten(known, IdMap([0]))


def test_files_that_name_no_type_are_read() -> None:
    data = {"model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}
    assert closed(data, [2]) == (0, 1, 2)
    assert closed({"model": {"vocab": {"a": 0, "b": 1}, "unk_token": "b"}}, [0]) == (0, 1)
