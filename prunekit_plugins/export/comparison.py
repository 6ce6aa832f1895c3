"""What an exported model computes, beside what the model computes."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils import _pytree as pytree

from prunekit.plugin import ArgumentError, PrunekitError

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest relative error that is accepted when none is given, by the dtype of an output."""


class ExportError(PrunekitError, RuntimeError):
    """A model can't be exported, or what was exported computes something else; nothing was written."""


@attrs.frozen
class Comparison:
    """An exported model beside the original.

    Attributes:
        error: The largest relative error of an output: largest absolute difference, by the largest absolute value.
        tolerance: What was accepted.
        outputs: Number of tensors compared.
        bytes: Size of what was written.
    """

    error: float
    tolerance: float
    outputs: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.outputs} outputs, largest relative error {self.error:.1e} (accepted: {self.tolerance:.0e})"


def arguments_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Reads example inputs as ``prune`` does: a tensor, a tuple or list of inputs, or a dict of keyword inputs."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def tensors_of(outputs: Any) -> list[torch.Tensor]:
    """Lists the tensors in the outputs of a model."""
    plain = dict(outputs) if isinstance(outputs, Mapping) else outputs
    return [leaf for leaf in pytree.tree_leaves(plain) if isinstance(leaf, torch.Tensor)]


def compare(
    found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float | None, where: str
) -> tuple[float, float]:
    """Compares outputs.

    Returns:
        The largest relative error, and the tolerance.

    Raises:
        ExportError: They differ by more, or there are others.
    """
    if [tuple(t.shape) for t in found] != [tuple(t.shape) for t in expected]:
        shapes = f"{[tuple(t.shape) for t in found]}, not {[tuple(t.shape) for t in expected]}"
        raise ExportError("The exported model has other outputs.", where=where, why=shapes)
    if tolerance is None:
        tolerance = max((TOLERANCES.get(t.dtype, 0.0) for t in expected), default=0.0)
    worst = 0.0
    for mine, theirs in zip(found, expected, strict=True):
        if not theirs.numel():
            continue
        a, b = mine.detach().cpu().double(), theirs.detach().cpu().double()
        largest, difference = float(b.abs().max()), float((a - b).abs().max())
        error = difference / largest if largest else difference
        worst = error if error > worst or error != error else worst
    if not worst <= tolerance:  # also when it is no number
        raise ExportError(
            "The exported model computes something else; nothing was written.",
            where=where,
            why=f"largest relative error {worst:.1e}, accepted: {tolerance:.0e}",
            hint="a larger tolerance accepts it; large errors are a bug of an exporter or a runtime",
        )
    return worst, tolerance


@contextlib.contextmanager
def exporting(model: nn.Module, where: str) -> Iterator[None]:
    """Runs an exporter: in eval mode, without gradients, its warnings silenced, and its errors explained."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters, about their own inner works
            yield
    except PrunekitError:
        raise
    except Exception as error:  # exporters raise anything; it is their reason that counts
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without the colours of a terminal
        why = f"{type(error).__name__}: {' '.join(plain.split())[:400]}"
        raise ExportError(
            "The model can't be exported.",
            where=where,
            why=why,
            hint="try the unpruned model: what its exporter refuses, pruning doesn't change",
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def appearing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a place for a file that gets its name when everything went well; so do files beside it.

    Raises:
        ArgumentError: The folder isn't there, or the path is a folder.
    """
    place = Path(path)
    if place.is_dir() or not place.parent.is_dir():
        raise ArgumentError("The file to write can't be made.", where=str(place), why="it is a folder, or has none")
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as folder:
        temporary = Path(folder) / place.name
        yield temporary
        for file in (*(file for file in Path(folder).iterdir() if file != temporary), temporary):
            os.replace(file, place.with_name(file.name))


def library(name: str, extra: str = "export") -> ModuleType:
    """Imports a library that an extra brings.

    Raises:
        ArgumentError: It isn't there.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ArgumentError(
            f"{name} can't be imported.", why=str(error), hint=f'pip install "prunekit[{extra}]"'
        ) from error
