"""A decoder and its tokenizer to a GGUF file, compared in llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit_plugins.export.comparison import ExportError
from prunekit_plugins.export.decoder import decoder_of
from prunekit_plugins.export.engines.process import run_engine
from prunekit_plugins.export.engines.steps import (
    TOLERANCES,
    EngineCheck,
    checked,
    expected_steps,
    installed,
    request_of,
    tolerance_of,
    version_of,
)
from prunekit_plugins.export.gguf.families import KNOWN
from prunekit_plugins.export.gguf.file import write_file
from prunekit_plugins.export.gguf.tokenizer import Vocabulary, read_vocabulary

ENGINE = "xllamacpp"


def export_gguf(model: nn.Module, folder: Path, path: Path, *, tolerance: float | None = None) -> EngineCheck | None:
    """Writes a GGUF file, loads it in llama.cpp where that is installed (``xllamacpp``), and compares.

    Args:
        model: A causal language model of a family that is known.
        folder: Where its tokenizer lies.
        path: The file; its folder is there.
        tolerance: Largest difference of a log-probability that is accepted; None for the usual one.

    Returns:
        The comparison; None where the engine isn't installed.

    Raises:
        ExportError: Something has no place in a GGUF file, or llama.cpp computes something else.
        ArgumentError: The library that writes GGUF files is missing.
    """
    decoder = decoder_of(model, "GGUF", KNOWN)
    vocabulary = read_vocabulary(folder, decoder.vocabulary)
    write_file(decoder, vocabulary, path, folder.name)
    allowed = max(tolerance_of(model, None), _lookup_error(model)) if tolerance is None else tolerance
    return in_llama_cpp(model, path, vocabulary, allowed) if installed(ENGINE) else None


def _lookup_error(model: nn.Module) -> float:
    """Returns what llama.cpp's GELU may add to an error: on CPUs it looks it up in a table of half precision."""
    looked_up = KNOWN[type(model).__name__].activation.startswith("gelu")
    return TOLERANCES[torch.float16] if looked_up else 0.0


def in_llama_cpp(model: nn.Module, path: Path, vocabulary: Vocabulary, tolerance: float) -> EngineCheck:
    """Compares a GGUF file in llama.cpp with the model.

    Raises:
        ExportError: It can't be loaded, a text gives other tokens, or numbers differ.
    """
    expected, name = expected_steps(model), f"llama.cpp ({ENGINE} {version_of(ENGINE)})"
    request = {
        **request_of(expected, path),
        "context": max(64, len(expected.prompt) + len(expected.following) + 8),
        "plain": vocabulary.plain,
        "texts": [text for text, _ in vocabulary.texts],
    }
    answer = run_engine("run_xllamacpp.py", request, name)
    _check_decoding(answer, name)
    for (text, wanted), made in zip(vocabulary.texts, answer["texts"], strict=True):
        if list(wanted) != made:
            raise ExportError(
                "The engine makes other tokens of a text; nothing was written.",
                where=name,
                why=f"{text!r}: {made}, not {list(wanted)}",
                hint="--to hf keeps the tokenizer as it is",
            )
    return checked(model, expected, answer, name, tolerance, texts=len(vocabulary.texts))


def _check_decoding(answer: Any, name: str) -> None:
    """Makes sure that each step after the first computed one token, with the others in the cache."""
    counts = [step["evaluated"] for step in answer["steps"][1:]]
    if set(counts) - {1}:
        why = f"steps of decoding evaluated {counts} tokens"
        raise ExportError("The engine didn't decode token by token.", where=name, why=why)
