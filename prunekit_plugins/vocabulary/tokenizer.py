"""Tokenizers as data: ``tokenizer.json`` with fewer tokens, renumbered everywhere."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from prunekit_core.errors import ArgumentError
from prunekit_plugins.vocabulary.ids import IdMap
from prunekit_plugins.vocabulary.segmentation import BYTES, NEEDS, Merges, byte_symbols, kind_of, pair_of

Tokenizer = Mapping[str, Any]
"""What ``tokenizer.json`` holds."""


def token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the id of every token, added ones included."""
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}
    return {**_vocabulary(tokenizer["model"]), **added}


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    if kind_of(model) == "Unigram":
        return {piece: place for place, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def closed(tokenizer: Tokenizer, keep: Iterable[int]) -> tuple[int, ...]:
    """Returns ids with those that the tokenizer needs besides, so that text of kept tokens is split as before.

    Added tokens (the special ones among them), the unknown token, the one for padding, and tokens for single bytes
    always stay. Why what else stays is enough is said in `prunekit_plugins.vocabulary.segmentation`.

    Args:
        tokenizer: What ``tokenizer.json`` holds.
        keep: Ids to keep; some may be no tokens.

    Returns:
        All ids that stay, ascending.

    Raises:
        ArgumentError: The kind of the tokenizer isn't known.
    """
    model, ids = tokenizer["model"], token_ids(tokenizer)
    own = _vocabulary(model)
    chosen = {*keep, *_always(tokenizer, ids)}
    kept = [token for token, number in own.items() if number in chosen]
    needed = NEEDS[kind_of(model)](model, kept)
    return tuple(sorted(chosen | {own[token] for token in needed}))


def _always(tokenizer: Tokenizer, ids: Mapping[str, int]) -> set[int]:
    """Returns the ids of tokens that stay whatever is kept."""
    model = tokenizer["model"]
    padding = tokenizer.get("padding") or {}
    names = [model.get("unk_token"), padding.get("pad_token")]
    names += [token["content"] for token in tokenizer.get("added_tokens") or ()]
    if model.get("byte_fallback"):
        names += BYTES
    if "ByteLevel" in _types(tokenizer.get("pre_tokenizer")):
        names += byte_symbols()
    found = {ids[name] for name in names if name in ids}
    return found if model.get("unk_id") is None else found | {model["unk_id"]}


def _types(part: Any) -> set[str]:
    """Names the types of a part of a tokenizer, and of the parts in it."""
    if isinstance(part, Mapping):
        own = {part["type"]} if isinstance(part.get("type"), str) else set()
        return own.union(*map(_types, part.values()))
    return set().union(*map(_types, part)) if isinstance(part, list) else set()


def rewritten(tokenizer: Tokenizer, ids: IdMap) -> dict[str, Any]:
    """Returns a tokenizer with the tokens that stay, under their new ids.

    Args:
        tokenizer: What ``tokenizer.json`` holds; it isn't changed.
        ids: What ids become; `closed` returned them.

    Raises:
        ArgumentError: A token leaves that the tokenizer needs, or a part of it isn't known.
    """
    made = copy.deepcopy(dict(tokenizer))
    missing = sorted(set(closed(tokenizer, ids)) - set(ids))
    if missing:
        why = f"it needs {len(missing)} further ids: {missing[:5]}"
        raise ArgumentError("Text would be split otherwise.", where="tokenizer", why=why, hint="keep closed(...)")
    known = token_ids(tokenizer)
    made["model"] = _model(tokenizer["model"], ids)
    for token in made.get("added_tokens") or ():
        token["id"] = ids[token["id"]]
    if made.get("padding"):
        made["padding"]["pad_id"] = _padding(made["padding"], known, ids)
    if made.get("post_processor"):
        _renumber(made["post_processor"], ids)
    return made


def _padding(padding: Mapping[str, Any], known: Mapping[str, int], ids: IdMap) -> int:
    return ids.new(known.get(padding["pad_token"], padding["pad_id"]), "padding.pad_id")


def _model(model: Mapping[str, Any], ids: IdMap) -> dict[str, Any]:
    own = _vocabulary(model)
    made = dict(model)
    if kind_of(model) == "Unigram":
        made["vocab"] = [entry for place, entry in enumerate(model["vocab"]) if place in ids]
        made["unk_id"] = None if model.get("unk_id") is None else ids[model["unk_id"]]
        return made
    made["vocab"] = {token: ids[old] for token, old in sorted(own.items(), key=lambda one: one[1]) if old in ids}
    if "merges" in model:
        made["merges"] = _merges(model, made["vocab"])
    return made


def _merges(model: Mapping[str, Any], left: Mapping[str, int]) -> list[Any]:
    """Lists the merges of which everything stays."""
    table = Merges(model)
    pairs = ((merge, pair_of(merge)) for merge in model["merges"])
    return [merge for merge, pair in pairs if all(token in left for token in (*pair, table.result(pair)))]


def _renumber(processor: dict[str, Any], ids: IdMap) -> None:
    """Renumbers the tokens that are put around a text."""
    kind = processor["type"]
    if kind == "Sequence":
        for part in processor["processors"]:
            _renumber(part, ids)
    elif kind == "TemplateProcessing":
        for name, special in processor["special_tokens"].items():
            special["ids"] = [ids.new(old, f"post_processor {name}") for old in special["ids"]]
    elif kind in ("BertProcessing", "RobertaProcessing"):
        for side in ("sep", "cls"):
            token, old = processor[side]
            processor[side] = [token, ids.new(old, f"post_processor {token}")]
    elif kind != "ByteLevel":
        raise ArgumentError("A part of the tokenizer isn't known.", where="post_processor", why=f"its type is {kind!r}")
