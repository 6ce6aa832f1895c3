"""ONNX files, run once in onnxruntime."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit_plugins.checkpoints.destination import check_format
from prunekit_plugins.export.comparison import (
    Comparison,
    ExportError,
    appearing,
    arguments_of,
    compare,
    exporting,
    library,
    tensors_of,
)

LIMIT = 2 * 10**9
"""Bytes that one ONNX file holds at most: protocol buffers end there."""


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    tolerance: float | None = None,
    opset: int | None = None,
) -> Comparison:
    """Writes a model as an ONNX file, and compares what onnxruntime computes from it with the model.

    Args:
        model: Any model, on the CPU; it is exported in eval mode.
        example_inputs: A tensor, a tuple or list of positional inputs, or a dict of keyword inputs. Sizes in the file
            are those of the inputs.
        path: File to write; it appears whole or not at all, and only if the outputs agree.
        tolerance: Largest relative error that is accepted; None for 1e-4 in single precision (others: `TOLERANCES`).
        opset: Version of the ONNX operators; None for the exporter's default.

    Returns:
        The comparison.

    Raises:
        ExportError: The exporter refuses the model, it is too large for one file, or the outputs differ.
        ArgumentError: The file can't be made, or a library is missing (extra ``export``).
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        library(name)
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if size > LIMIT:
        why = f"its weights have {size:,} bytes, an ONNX file holds {LIMIT:,}"
        raise ExportError("The model is too large for one ONNX file.", why=why, hint="export it with export_program")
    args, kwargs = arguments_of(example_inputs)
    check_format(Path(path), own="onnx")
    with appearing(path) as temporary:
        with exporting(model, "torch.onnx.export"), contextlib.redirect_stdout(io.StringIO()):
            expected = tensors_of(model(*args, **kwargs))
            options: dict[str, Any] = {} if opset is None else {"opset_version": opset}
            program: Any = torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False, **options)
            program.save(str(temporary), external_data=False)
        with exporting(model, "onnxruntime"):
            found = _run(temporary, args, kwargs)
        error, accepted = compare(found, expected, tolerance, "onnxruntime")
        size = temporary.stat().st_size
    return Comparison(error, accepted, len(found), size)


def _run(path: Path, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Runs an ONNX file: keyword inputs go by their names, the others by their order."""
    runtime: Any = library("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    values = {name: value for name, value in kwargs.items() if name in names and isinstance(value, torch.Tensor)}
    others = tensors_of([args, {name: value for name, value in kwargs.items() if name not in values}])
    free = [name for name in names if name not in values]
    if len(free) != len(others):
        raise ExportError(
            "The exported model takes other inputs.",
            where="onnxruntime",
            why=f"{names} for {len(values) + len(others)} tensors",
        )
    values.update(zip(free, others, strict=True))
    found = session.run(None, {name: _as_array(value) for name, value in values.items()})
    return [torch.from_numpy(value) for value in found]


def _as_array(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().numpy()
