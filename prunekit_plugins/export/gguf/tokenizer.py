"""A tokenizer as GGUF files hold it: tokens in the order of their ids, merges, and which rule splits words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from prunekit_plugins.export.comparison import ExportError
from prunekit_plugins.export.gguf.pieces import BYTES, obstacle, scores_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens in GGUF files."""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: Mapping[tuple[str, bool], str] = {("", False): "gpt-2", (LLAMA3, True): "llama-bpe", (QWEN2, False): "qwen2"}
"""Regular expression that splits words (empty: GPT-2's own), and whether words that are tokens aren't merged, to
llama.cpp's name for both."""
TEXTS = ("Hello, world!", "It's 12345 o'clock;  naïve 漢字\n\n\tdef f(x): return x+1", " leading and trailing ")
"""Texts of which the engine has to make the same tokens."""


@attrs.frozen
class Vocabulary:
    """A byte-level BPE tokenizer, or one of SentencePiece.

    Attributes:
        split: llama.cpp's name of the rule that splits words; empty for one of SentencePiece, which splits none.
        tokens: Tokens by id, unused ones for the rows of the embedding that have none.
        types: Their types.
        merges: Pairs, with a space between.
        special: Name in GGUF files (``"eos"``) to the id of a special token.
        begins: Whether texts begin with the token for their beginning.
        ends: Whether they end with the one for their end.
        template: The chat template; empty for none.
        plain: Id of a token that is a letter.
        texts: Texts with the ids that the tokenizer makes of them.
        scores: By id, of one of SentencePiece: the higher, the earlier a piece is merged. Empty for byte-level BPE.
    """

    split: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    special: Mapping[str, int]
    begins: bool
    ends: bool
    template: str
    plain: int
    texts: tuple[tuple[str, tuple[int, ...]], ...]
    scores: tuple[float, ...] = ()


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """Reads the tokenizer in a folder.

    Args:
        folder: With a ``tokenizer.json``.
        rows: Rows of the model's embedding.

    Raises:
        ExportError: There is none, or it is of a kind that isn't written to GGUF files.
    """
    place = folder / "tokenizer.json"
    if not place.is_file():
        raise _refused(str(place), "there is no such file", "save the tokenizer there: tokenizer.save_pretrained(...)")
    data = json.loads(place.read_text(encoding="utf-8"))
    _check_kind(data, str(place))
    pieces = bool(data["model"].get("byte_fallback"))
    split = "" if pieces else _split(data, str(place))
    ids = {**data["model"]["vocab"], **{token["content"]: token["id"] for token in data.get("added_tokens") or ()}}
    if max(ids.values()) >= rows or len(set(ids.values())) != len(ids):
        why = f"its ids go up to {max(ids.values())}, the model has {rows} rows"
        raise _refused(str(place), why, "prunekit vocabulary makes both smaller together")
    settings = _settings(folder)
    tokens, types = _tokens(data, ids, rows)
    special = {
        name: ids[text]
        for name in ("bos", "eos", "unk", "pad")
        if (text := _text(settings.get(f"{name}_token"))) in ids
    }
    begins, ends = _added(place, special)
    merges = tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in data["model"]["merges"])
    template, letter, texts = _template(folder, settings), _plain(ids), _texts(place)
    scores = scores_of(data, tokens) if pieces else ()
    return Vocabulary(split, tokens, types, merges, special, begins, ends, template, letter, texts, scores)


def _refused(where: str, why: str, hint: str) -> ExportError:
    return ExportError("The tokenizer can't be exported to GGUF; nothing was written.", where=where, why=why, hint=hint)


HF_INSTEAD = "--to hf or --to mlx take any tokenizer along"


def _check_kind(data: Mapping[str, Any], where: str) -> None:
    model = data["model"]
    kind = model.get("type", "BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise _refused(where, f"it is of the kind {kind}; BPE of bytes and of SentencePiece is written", HF_INSTEAD)
    odd = [name for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(name)]
    if odd:
        raise _refused(where, f"its model has {', '.join(odd)}", HF_INSTEAD)
    why = obstacle(data) if model.get("byte_fallback") else ""
    if why:
        raise _refused(where, f"it is BPE with byte fallback, of which llama.cpp makes other pieces: {why}", HF_INSTEAD)


def _split(data: Mapping[str, Any], where: str) -> str:
    """Finds llama.cpp's name of the rule that splits words."""
    rule, normalizer = data.get("pre_tokenizer") or {}, data.get("normalizer") or {}
    parts = rule["pretokenizers"] if rule.get("type") == "Sequence" else [rule]
    expression = parts[0].get("pattern", {}).get("Regex", "?") if parts[0].get("type") == "Split" else ""
    last, known = parts[-1], len(parts) == (2 if expression else 1)
    byte_level = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    plain = byte_level and bool(last.get("use_regex", True)) == (not expression)
    name = SPLITS.get((expression, bool(data["model"].get("ignore_merges"))), "")
    composes = normalizer.get("type") == "NFC" and name == "qwen2"
    if not (known and plain and name and (not normalizer or composes)):
        why = f"llama.cpp knows rules that split words by name, and this is none of {', '.join(SPLITS.values())}"
        raise _refused(where, why, HF_INSTEAD)
    return name


def _tokens(data: Mapping[str, Any], ids: Mapping[str, int], rows: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    tokens, types = [f"[PAD{place}]" for place in range(rows)], [UNUSED] * rows
    for token, place in ids.items():
        tokens[place], types[place] = token, NORMAL
    for token in data.get("added_tokens") or ():
        types[token["id"]] = CONTROL if token.get("special") else USER_DEFINED
    if data["model"].get("byte_fallback"):
        types[:] = [BYTE if token in BYTES else kind for token, kind in zip(tokens, types, strict=True)]
        unknown = data["model"].get("unk_token")
        types[:] = [UNKNOWN if token == unknown else kind for token, kind in zip(tokens, types, strict=True)]
    return tuple(tokens), tuple(types)


def _settings(folder: Path) -> Mapping[str, Any]:
    place = folder / "tokenizer_config.json"
    found: Mapping[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    return found


def _text(token: Any) -> Any:
    """Returns a token that is written by itself or with its settings."""
    return token.get("content") if isinstance(token, Mapping) else token


def _template(folder: Path, settings: Mapping[str, Any]) -> str:
    place = folder / "chat_template.jinja"
    own = settings.get("chat_template")
    return place.read_text(encoding="utf-8") if place.is_file() else own if isinstance(own, str) else ""


def _added(place: Path, special: Mapping[str, int]) -> tuple[bool, bool]:
    """Finds out which tokens are put around texts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(place))
    bare, whole = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    for begins in (False, True):
        for ends in (False, True):
            head, tail = [special.get("bos")] if begins else [], [special.get("eos")] if ends else []
            if whole == [*head, *bare, *tail]:
                return begins, ends
    raise _refused(str(place), "it puts other tokens around texts than those for beginning and end", HF_INSTEAD)


def _plain(ids: Mapping[str, int]) -> int:
    letters = (chr(code) for code in (*range(ord("a"), ord("z") + 1), *range(ord("A"), ord("Z") + 1)))
    return next((ids[letter] for letter in letters if letter in ids), 0)


def _texts(place: Path) -> tuple[tuple[str, tuple[int, ...]], ...]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(place))
    return tuple((text, tuple(tokenizer.encode(text).ids)) for text in TEXTS)
