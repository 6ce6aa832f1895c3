"""A decoder to a folder for mlx-lm, compared in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from prunekit.plugin import write_text
from prunekit_plugins.export.decoder import FAMILIES as SIZED, Decoder, decoder_of
from prunekit_plugins.export.engines.process import run_engine
from prunekit_plugins.export.engines.steps import (
    EngineCheck,
    checked,
    expected_steps,
    installed,
    request_of,
    version_of,
)
from prunekit_plugins.export.mlx.configuration import configuration_of
from prunekit_plugins.export.mlx.configured import written
from prunekit_plugins.export.mlx.families import FAMILIES
from prunekit_plugins.export.mlx.refusal import refused
from prunekit_plugins.folders.companions import copy_companions

ENGINE = "mlx_lm"
CLASSES = tuple(sorted((*SIZED, *FAMILIES)))
"""Classes that are known: those whose sizes are read off the tensors, and those whose configuration says them."""
SQUARE = ("Qwen2ForCausalLM", *(name for name, family in FAMILIES.items() if family.square))
"""Classes of which mlx-lm computes the width of a head from that of the layers."""


def export_mlx(model: nn.Module, folder: Path, path: Path, *, tolerance: float | None = None) -> EngineCheck | None:
    """Writes a folder for mlx-lm, loads it there where that is installed (``mlx[cpu]``, ``mlx-lm``), and compares.

    Args:
        model: A causal language model of a family that is known.
        folder: Where tokenizer and templates are copied from.
        path: An empty folder.
        tolerance: Largest difference of a log-probability that is accepted; None for the usual one.

    Returns:
        The comparison; None where the engine isn't installed.

    Raises:
        ExportError: mlx-lm has no configuration for the model, or computes something else.
    """
    config, tensors = _of_family(model)
    safetensors.torch.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    write_text(path / "config.json", json.dumps(config, indent=2, default=str))
    generation: Any = model.generation_config
    generation.save_pretrained(str(path))
    copy_companions(folder, path)
    return in_mlx(model, path, tolerance) if installed(ENGINE) and installed("mlx") else None


def _of_family(model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the configuration and the tensors: those of the model, or a decoder's by its real sizes."""
    name = type(model).__name__
    if name in FAMILIES:
        return written(model, FAMILIES[name])
    if name not in CLASSES:
        raise refused(f"families that are known: {', '.join(CLASSES)}", where=name)
    decoder = decoder_of(model, "MLX")
    return configuration_of(decoder), _tensors(decoder)


def _tensors(decoder: Decoder) -> dict[str, Any]:
    """Returns the tensors by transformers' names, each in memory of its own."""
    tied = {"lm_head.weight"} if decoder.tied else set()
    return {name: tensor.cpu().contiguous() for name, tensor in decoder.tensors.items() if name not in tied}


def in_mlx(model: nn.Module, path: Path, tolerance: float | None) -> EngineCheck:
    """Compares a folder in mlx-lm with the model.

    Raises:
        ExportError: It can't be loaded, or numbers differ.
    """
    expected, name = expected_steps(model), f"MLX (mlx-lm {version_of('mlx-lm')}, on the CPU)"
    answer = run_engine("run_mlx.py", request_of(expected, path), name)
    return checked(model, expected, answer, name, tolerance)
