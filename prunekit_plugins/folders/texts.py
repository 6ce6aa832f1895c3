"""Batches of tokens from a text file, by the tokenizer that lies in a model's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from prunekit.plugin import ArgumentError, CheckpointError
from prunekit_plugins.integrations.huggingface import CONFIG, library

LENGTH = 256
"""Tokens of an example, where the model takes so many."""
LEAST = 2
"""Tokens of an example at least: one that is read, and one that it predicts."""
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""Files of which a tokenizer has one."""
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""Fields of configurations that say how many tokens a model takes."""
_GLANCE = 10_000
"""Characters of a text that are looked at before a model is built."""


def text_batches(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    encoder_decoder: bool = False,
    size: int = 16,
    length: int | None = None,
) -> list[dict[str, torch.Tensor]]:
    """Cuts a text into examples of one length and these into batches.

    Each example has the special tokens that the tokenizer puts around a text. What is left over at the end is dropped,
    unless it is all there is.

    Args:
        path: The text, in UTF-8.
        folder: Where the tokenizer lies; nothing is downloaded, and no code in it is run.
        encoder_decoder: Whether the second half of an example is the decoder's input, as models of sequences to
            sequences take it.
        size: Examples of a batch; the last one may have fewer.
        length: Tokens of an example; None for 256, or fewer where the model's configuration
            (``max_position_embeddings``, ``n_positions``) or the tokenizer (``model_max_length``) says so.

    Returns:
        Batches of ``input_ids`` of shape ``[size, length]``; with ``encoder_decoder`` of ``input_ids`` and
        ``decoder_input_ids``, half as long each.

    Raises:
        ArgumentError: The folder has no tokenizer, the text is too short, or the model has no embedding for an id.
        CheckpointError: The text can't be read.
    """
    tokenizer, fields = _tokenizer(Path(folder)), _fields(Path(folder))
    wanted = min([LENGTH, tokenizer.model_max_length, *_sizes(fields, POSITIONS)]) if length is None else length
    examples = _examples(tokenizer, _read(Path(path)), wanted)
    if len(examples[0]) < LEAST * (1 + encoder_decoder):
        raise _too_short(path, len(examples[0]))
    _check_ids((number for example in examples for number in example), fields, folder)
    return list(_batches(torch.tensor(examples, device="cpu"), size, encoder_decoder))


def check_text(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Makes sure that a text can be cut into examples, before a model is built; raises what `text_batches` would.

    Args:
        path: The text, in UTF-8.
        folder: Where the tokenizer lies.
    """
    tokenizer, text = _tokenizer(Path(folder)), _read(Path(path))
    tokens = tokenizer(text[:_GLANCE], add_special_tokens=False)["input_ids"] if text.strip() else []
    if len(tokens) < LEAST:
        raise _too_short(path, len(tokens))
    _check_ids(tokens, _fields(Path(folder)), folder)


def _fields(folder: Path) -> Mapping[str, Any]:
    """Reads what the configuration says of the part of the model that reads text; nothing where there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):  # whoever builds the model says what is wrong
        return {}
    inner = found.get("text_config")
    return {**found, **inner} if isinstance(inner, dict) else found


def _sizes(fields: Mapping[str, Any], names: Iterable[str]) -> list[int]:
    """Returns the values of fields that are there and say a size; -1 stands for none in some configurations."""
    return [fields[name] for name in names if type(fields.get(name)) is int and fields[name] > 0]


def _check_ids(ids: Iterable[int], fields: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Raises an error where a text has an id that the model has no embedding for; other ids of a tokenizer may exceed
    the vocabulary, as placeholders of images do."""
    largest = max(ids)
    for size in _sizes(fields, ("vocab_size",)):
        if largest >= size:
            raise ArgumentError(
                "The tokenizer makes ids that the model has no embedding for.",
                where=str(folder),
                why=f"the text has the id {largest}, and the model's vocab_size is {size}",
                hint="use the tokenizer that the model was trained with; model.resize_token_embeddings(len(tokenizer)) "
                "makes room for tokens that were added to it",
            )


def _too_short(path: str | os.PathLike[str], tokens: int) -> ArgumentError:
    return ArgumentError(
        "The text is too short.",
        where=str(path),
        why=f"tokens in it: {tokens}",
        hint="give a text of the kind that the model is for: some thousands of words say which units matter",
    )


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError("The text can't be read.", where=str(path), why=str(error)) from error


def _tokenizer(folder: Path) -> Any:
    try:
        return library().AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ArgumentError(
            "The folder has no tokenizer that can be read.",
            where=str(folder),
            why=_why(folder, error),
            hint=f"tokenizer.save_pretrained({str(folder)!r}) puts it there; or give data of another kind: "
            "package.module:batches, or a .safetensors, .npy or .pt file of inputs",
        ) from error


def _why(folder: Path, error: Exception) -> str:
    """Says which files are missing, or else what transformers raised."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return f"it holds none of {', '.join(TOKENIZERS)}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _examples(tokenizer: Any, text: str, length: int) -> list[list[int]]:
    """Tokens of the examples, all as long as the first one."""
    if tokenizer.is_fast:
        found = tokenizer(text, truncation=True, max_length=length, return_overflowing_tokens=True)["input_ids"]
    else:  # written in Python: it can't go on with what is too long, nor put special tokens around a part of it
        tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        found = [tokens[start : start + length] for start in range(0, len(tokens), length)] or [[]]
    return [list(example) for example in found if len(example) == len(found[0])]


def _batches(examples: torch.Tensor, size: int, encoder_decoder: bool) -> Iterator[dict[str, torch.Tensor]]:
    half = examples.shape[1] // 2
    for part in examples.split(size):
        if encoder_decoder:
            yield {"input_ids": part[:, :half], "decoder_input_ids": part[:, half : 2 * half]}
        else:
            yield {"input_ids": part}
