"""Folders of transformers with fewer tokens: weights, tokenizer and configurations, for stock ``from_pretrained``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prunekit import prune_vocabulary
from prunekit.plugin import CheckpointError, Registry, write_text
from prunekit_plugins.checkpoints.destination import check_folder
from prunekit_plugins.integrations.huggingface import CONFIG, library, named_architecture
from prunekit_plugins.vocabulary import VocabularyResult
from prunekit_plugins.vocabulary.fields import renumber

TOKENIZER = "tokenizer.json"
NAMED = "added_tokens.json"
"""A file that maps added tokens to their ids."""
OTHER_TOKENIZERS = ("vocab.json", "merges.txt", "vocab.txt", "*.model", "*.spm", "*.tiktoken", "tekken.json")
"""Files with the same tokens in other forms: they would say what isn't so any more, and aren't written."""
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.index.json", "*.onnx")
"""Files with the weights as they were, which aren't copied along."""


def prune_folder_vocabulary(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    keep: Iterable[int | str],
    *,
    registry: Registry | None = None,
    **arguments: Any,
) -> VocabularyResult:
    """Reads a model and its tokenizer from a folder, removes tokens, and writes a folder for ``from_pretrained``.

    Nothing is downloaded, and no code in the folder is run.

    Args:
        source: A folder with ``config.json``, weights and ``tokenizer.json``.
        destination: A folder to write, which isn't there or is empty.
        keep: Ids to keep, or texts whose tokens are kept, or both.
        registry: Where plugins are found; None for the default registry.
        arguments: Further arguments of `prunekit.prune_vocabulary`, such as ``example_inputs``.

    Raises:
        ArgumentError: The destination isn't empty or can't be written, or transformers isn't installed.
        CheckpointError: The source can't be read.
        PrunekitError: See `prunekit.prune_vocabulary`; nothing was written.
    """
    transformers = library()
    place, target = Path(source), Path(destination)
    check_folder(target)
    if not (place / TOKENIZER).is_file():
        raise CheckpointError("The folder holds no tokenizer.json.", where=str(place))
    model: Any = _read(transformers, place)
    result = prune_vocabulary(model, keep, tokenizer=place / TOKENIZER, registry=registry, **arguments)
    model.save_pretrained(str(target))
    write_text(target / TOKENIZER, json.dumps(result.tokenizer, ensure_ascii=False, indent=2))
    for file in sorted(place.iterdir()):
        if file.is_file() and not (target / file.name).exists() and not _left_out(file):
            _take_along(file, target / file.name, result)
    return result


def _read(transformers: Any, place: Path) -> Any:
    if not (place / CONFIG).is_file():
        raise CheckpointError("The folder holds no configuration.", where=str(place / CONFIG))
    try:
        config = transformers.AutoConfig.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
        architecture: Any = named_architecture(transformers, config, str(place))
        return architecture.from_pretrained(str(place), local_files_only=True, dtype="auto").eval()
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError("The model can't be read.", where=str(place), why=str(error)[:300]) from error


def _left_out(file: Path) -> bool:
    return any(file.match(pattern) for pattern in (*WEIGHTS, *OTHER_TOKENIZERS))


def _take_along(file: Path, target: Path, result: VocabularyResult) -> None:
    """Copies a file; ids in it follow if it is JSON with fields for them."""
    data = _json(file)
    if isinstance(data, dict):
        before = json.dumps(data)
        if file.name == NAMED:
            data = {token: result.ids[old] for token, old in data.items() if old in result.ids}
        else:
            renumber(data, result.ids, result.size)
        if json.dumps(data) != before:
            write_text(target, json.dumps(data, ensure_ascii=False, indent=2))
            return
    shutil.copyfile(file, target)


def _json(file: Path) -> Any:
    if file.suffix != ".json":
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
