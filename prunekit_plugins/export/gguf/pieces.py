"""SentencePiece BPE, as Llama 2's: merges of a ``tokenizer.json`` as the scores by which llama.cpp merges pieces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SPACE = "▁"
"""What stands for a space in pieces."""
BYTES = tuple(f"<0x{number:02X}>" for number in range(256))
"""Tokens of single bytes, for characters that are no pieces."""


def obstacle(data: Mapping[str, Any]) -> str:
    """Says why llama.cpp would cut texts into other pieces; empty if it cuts them alike.

    It merges the two neighbours whose piece has the highest score, whatever pieces they are. So merges must be all
    splits of a piece in two pieces, those of one piece after the other.

    Args:
        data: The content of a ``tokenizer.json``.
    """
    model = data["model"]
    if not _spaces_are_pieces(data.get("normalizer"), data.get("pre_tokenizer")):
        return f"spaces aren't turned into {SPACE}, one before the text, with nothing else done to it"
    missing = [token for token in BYTES if token not in model["vocab"]]
    if missing:
        return f"tokens for bytes are missing: {missing[0]} and {len(missing) - 1} more"
    if _mixed([first + second for first, second in pairs(model["merges"])]):
        return "merges of one piece don't follow each other, so that no scores say their order"
    lost = _unmerged(model["vocab"], set(pairs(model["merges"])), {token["content"] for token in _added(data)})
    return f"the merges lack {lost[0]} + {lost[1]}, which is a piece, too" if lost else ""


def _mixed(merged: Sequence[str]) -> bool:
    """Whether merges of one piece are apart from each other."""
    seen: set[str] = set()
    for place, piece in enumerate(merged):
        if piece in seen and merged[place - 1] != piece:
            return True
        seen.add(piece)
    return False


def pairs(merges: Iterable[Any]) -> list[tuple[str, str]]:
    """Returns what merges join, which files write in two ways."""
    parts = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return [(part[0], part[1]) for part in parts]


def scores_of(data: Mapping[str, Any], tokens: Sequence[str]) -> tuple[float, ...]:
    """Returns a score for each token: the higher, the earlier its pieces are merged.

    Args:
        data: The content of a ``tokenizer.json``.
        tokens: The tokens by id.
    """
    order: dict[str, int] = {}
    for first, second in pairs(data["model"]["merges"]):
        order.setdefault(first + second, len(order))
    return tuple(-float(order.get(token, len(order))) for token in tokens)


def _added(data: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return data.get("added_tokens") or ()


def _spaces_are_pieces(normalizer: Mapping[str, Any] | None, rule: Mapping[str, Any] | None) -> bool:
    # Metaspace adds none to a text that begins with one, and llama.cpp does
    parts = (normalizer or {}).get("normalizers") or ()
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return rule is None and list(parts) == [{"type": "Prepend", "prepend": SPACE}, replace]


def _unmerged(vocabulary: Iterable[str], known: set[tuple[str, str]], added: set[str]) -> tuple[str, str] | None:
    """Finds two pieces that are a piece together, and aren't merged."""
    pieces = set(vocabulary) - added - set(BYTES)
    for piece in sorted(pieces):
        for place in range(1, len(piece)):
            pair = piece[:place], piece[place:]
            if pair[0] in pieces and pair[1] in pieces and pair not in known:
                return pair
    return None
