"""Which further tokens a tokenizer needs so that text of kept tokens is split as before.

Let ``V`` be the vocabulary, ``K`` the tokens that are kept, and take a text that the tokenizer with ``V`` splits into
tokens of ``K`` only. With the tokens that are returned here besides, it is split into the same tokens:

- *BPE* applies, of all merges that are possible in a word, the one of lowest rank. All that it applied made parts of
  the tokens it ended with, by the very merges that make each of these alone. With these merges kept in their order, the
  next merge is possible and of lowest rank among fewer, so that it is the next one again, whatever the rank of those
  that left; and where none of all merges was possible, none of fewer is.
- *WordPiece* takes the longest token that fits: it stays, and nothing longer comes in. (Words that were unknown may
  become known: a longer token that led nowhere has left.)
- *Unigram* takes the split of highest score: it stays possible, and no other comes in, as long as unknown characters
  appear where they did and cost what they did. They appear where a character isn't a token itself: those of kept tokens
  stay. They cost ten less than the lowest score: one token that has it stays. Of equal scores the first wins, in the
  order of the text.
- *WordLevel* looks words up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prunekit_core.errors import ArgumentError

BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""Tokens for single bytes, by which unknown characters are written."""

Needs = Callable[[Mapping[str, Any], Iterable[str]], "set[str]"]
"""From the ``model`` of a ``tokenizer.json`` and the tokens that are kept: the tokens that it needs besides."""


def byte_symbols() -> tuple[str, ...]:
    """Returns the characters that stand for bytes in byte-level tokenizers: GPT-2's table."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = itertools.count(256)
    return tuple(chr(byte) if byte in shown else chr(next(others)) for byte in range(256))


class Merges:
    """The merges of a BPE model.

    Args:
        model: The ``model`` of a ``tokenizer.json``.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        self._prefix: str = model.get("continuing_subword_prefix") or ""
        self._suffix: str = model.get("end_of_word_suffix") or ""
        self._vocabulary: Mapping[str, int] = model["vocab"]
        self._ranks = {pair_of(merge): rank for rank, merge in enumerate(model["merges"])}

    def result(self, pair: tuple[str, str]) -> str:
        """Returns the token that a merge makes."""
        return pair[0] + pair[1][len(self._prefix) :]

    def parts(self, token: str) -> set[str]:
        """Returns the tokens out of which a token is made, step by step; none where merges don't make it."""
        found: set[str] = set()
        for symbols in self._spellings(token):
            made = set(symbols)
            while pair := self._next(symbols):
                symbols = self._merged(symbols, pair)
                made.update(symbols)
            if symbols == [token]:
                found |= made
        return found

    def _spellings(self, token: str) -> list[list[str]]:
        """Lists how a token may be spelt: it may stand first in a word or not, last in it or not."""
        starts, ends = {""}, {""}
        if self._prefix and token.startswith(self._prefix):
            starts.add(self._prefix)
        if self._suffix and token.endswith(self._suffix):
            ends.add(self._suffix)
        spelt = []
        for start, end in itertools.product(sorted(starts), sorted(ends)):
            text = token[len(start) : len(token) - len(end)]
            symbols = [self._prefix + one if place or start else one for place, one in enumerate(text)]
            symbols[-1:] = [last + end for last in symbols[-1:]]
            if symbols and all(symbol in self._vocabulary for symbol in symbols):
                spelt.append(symbols)
        return spelt

    def _next(self, symbols: list[str]) -> tuple[str, str] | None:
        pairs = [pair for pair in itertools.pairwise(symbols) if pair in self._ranks]
        return min(pairs, key=self._ranks.__getitem__, default=None)

    def _merged(self, symbols: list[str], pair: tuple[str, str]) -> list[str]:
        """Makes a merge at the first place where it is possible."""
        place = next(at for at, found in enumerate(itertools.pairwise(symbols)) if found == pair)
        return [*symbols[:place], self.result(pair), *symbols[place + 2 :]]


def pair_of(merge: str | Iterable[str]) -> tuple[str, str]:
    """Returns the two tokens of a merge, which files write as a list or with a space between them."""
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first, second


def _bpe(model: Mapping[str, Any], kept: Iterable[str]) -> set[str]:
    merges = Merges(model)
    return set().union(*(merges.parts(token) for token in kept))


def _unigram(model: Mapping[str, Any], kept: Iterable[str]) -> set[str]:
    scores = dict(model["vocab"])
    lowest = min(scores, key=lambda token: (scores[token], token))
    characters = {character for token in kept for character in token if character in scores}
    return {lowest, *characters}


def _nothing(model: Mapping[str, Any], kept: Iterable[str]) -> set[str]:
    return set()


NEEDS: Mapping[str, Needs] = {"BPE": _bpe, "WordPiece": _nothing, "Unigram": _unigram, "WordLevel": _nothing}
"""By the type of a model."""


def kind_of(model: Mapping[str, Any]) -> str:
    """Returns the type of a tokenizer's model, which old files don't name.

    Raises:
        ArgumentError: It isn't known.
    """
    kind = model.get("type")
    if kind is None:
        by_field = {"merges": "BPE", "unk_id": "Unigram", "max_input_chars_per_word": "WordPiece"}
        kind = next((found for field, found in by_field.items() if field in model), "WordLevel")
    if kind not in NEEDS:
        raise ArgumentError("The model of the tokenizer isn't known.", why=f"its type is {kind!r}")
    return str(kind)
