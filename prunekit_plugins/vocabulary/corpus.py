"""What is kept: ids, or the ids that texts are split into."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from prunekit_core.arguments import shown
from prunekit_core.errors import ArgumentError

FILE = "tokenizer.json"


def read_tokenizer(given: Any) -> dict[str, Any]:
    """Returns what the ``tokenizer.json`` of a tokenizer holds.

    Args:
        given: That itself, the file, a folder with it, a ``tokenizers.Tokenizer``, or a fast tokenizer of transformers.

    Raises:
        ArgumentError: It is none of them, or can't be read.
    """
    if isinstance(given, Mapping) and "model" in given:
        return dict(given)
    if isinstance(given, str | os.PathLike):
        place = Path(given)
        place = place / FILE if place.is_dir() else place
        try:
            return dict(json.loads(place.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ArgumentError("The tokenizer can't be read.", where=str(place), why=str(error)) from error
    write = getattr(getattr(given, "backend_tokenizer", given), "to_str", None)
    if not callable(write):
        raise ArgumentError(
            "tokenizer is a tokenizer of the tokenizers library.",
            why=f"got {shown(given)}",
            hint=f"pass a tokenizers.Tokenizer, a fast tokenizer of transformers, or the path of its {FILE}",
        )
    return dict(json.loads(write()))


def encoder(tokenizer: Mapping[str, Any]) -> Any:
    """Builds a tokenizer.

    Raises:
        ArgumentError: The tokenizers library isn't installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        hint = 'pip install "prunekit[hf]"'
        raise ArgumentError("tokenizers can't be imported.", why=str(error), hint=hint) from error
    built = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
    built.no_padding()
    built.no_truncation()
    return built


def wanted_ids(keep: Any, tokenizer: Mapping[str, Any] | None) -> tuple[set[int], list[str]]:
    """Returns the ids that are to be kept, and the texts that they are from.

    Args:
        keep: Ids (any iterable, a tensor), texts, or both.
        tokenizer: What splits texts.

    Raises:
        ArgumentError: It is something else, or there are texts and no tokenizer.
    """
    if isinstance(keep, torch.Tensor):
        keep = keep.flatten().tolist()
    if isinstance(keep, str) or not isinstance(keep, Iterable):
        keep = [keep]
    items = list(keep)
    texts = [item for item in items if isinstance(item, str)]
    numbers = [item for item in items if not isinstance(item, str)]
    strange = [item for item in numbers if isinstance(item, bool) or not hasattr(item, "__index__") or item < 0]
    if strange or not items:
        what = f"got {shown(strange[0])}" if items else "it is empty"
        raise ArgumentError("keep is a list of ids, or of texts.", why=what, hint='[0, 1, 2], or ["some text"]')
    if texts and tokenizer is None:
        raise ArgumentError("Texts are kept by the tokens that they are split into.", hint="pass tokenizer=")
    found = {number.__index__() for number in numbers}
    if texts and tokenizer is not None:
        found.update(number for one in encoder(tokenizer).encode_batch(texts) for number in one.ids)
    return found, texts


def wanted_classes(keep: Any) -> set[int]:
    """Returns the classes that are to be kept.

    Args:
        keep: Their numbers (any iterable, a tensor).

    Raises:
        ArgumentError: It is something else.
    """
    items = keep.flatten().tolist() if isinstance(keep, torch.Tensor) else keep
    items = list(items) if isinstance(items, Iterable) and not isinstance(items, str) else [items]
    strange = [item for item in items if isinstance(item, bool) or not hasattr(item, "__index__") or item < 0]
    if strange or not items:
        what = f"got {shown(strange[0])}" if items else "it is empty"
        raise ArgumentError("keep is a list of classes.", why=what, hint="their numbers: [0, 1, 2]")
    return {item.__index__() for item in items}


def split_otherwise(
    texts: Iterable[str], old: Mapping[str, Any], new: Mapping[str, Any], ids: Mapping[int, int]
) -> int:
    """Counts the texts that two tokenizers split into other tokens.

    Args:
        texts: The texts.
        old: The tokenizer before.
        new: The one with fewer tokens.
        ids: Old id to new id.
    """
    given = list(texts)
    pairs = zip(encoder(old).encode_batch(given), encoder(new).encode_batch(given), strict=True)
    return sum([ids.get(number) for number in before.ids] != after.ids for before, after in pairs)
