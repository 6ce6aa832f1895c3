"""From a folder of a language model to what an engine loads, compared in the engine where that is installed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs
from torch import nn

from prunekit.plugin import ArgumentError, Registry, nearest
from prunekit_plugins.checkpoints.destination import check_folder, check_format
from prunekit_plugins.export.comparison import Comparison, appearing
from prunekit_plugins.export.engines.steps import EngineCheck
from prunekit_plugins.export.gguf import export_gguf
from prunekit_plugins.export.mlx import export_mlx
from prunekit_plugins.export.onnx_decoder import export_in_onnx
from prunekit_plugins.export.stock import export_stock
from prunekit_plugins.folders import load_folder

Check = EngineCheck | Comparison
Writer = Callable[..., Check | None]
"""Writes a model: ``(model, folder, path, tolerance=)`` to the comparison, None where the engine isn't installed."""


@attrs.frozen
class Target:
    """What a folder is exported to.

    Attributes:
        write: Writes and compares.
        engine: The package that runs what was written.
        is_folder: Whether a folder is written, not a file.
    """

    write: Writer
    engine: str
    is_folder: bool


@attrs.frozen
class Exported:
    """What `export_folder` wrote.

    Attributes:
        to: The kind: ``"gguf"``.
        path: The file or folder.
        bytes: Its size.
        check: What the engine computes, beside what PyTorch computes; None where it isn't installed.
        engine: The package that runs it.
    """

    to: str
    path: Path
    bytes: int
    check: Check | None
    engine: str

    def __str__(self) -> str:
        if self.check is None:
            return f"not checked in the engine: {self.engine} isn't installed"
        return f"compared with the model: {self.check}"


TARGETS: Mapping[str, Target] = {
    "gguf": Target(export_gguf, "xllamacpp", is_folder=False),
    "mlx": Target(export_mlx, "mlx-lm", is_folder=True),
    "onnx": Target(export_in_onnx, "onnxruntime", is_folder=False),
    "hf": Target(export_stock, "transformers", is_folder=True),
}
"""Name to what is written."""


def export_folder(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    to: str,
    model: nn.Module | None = None,
    tolerance: float | None = None,
    registry: Registry | None = None,
) -> Exported:
    """Writes a language model of transformers as what another engine loads, and compares it there.

    The engine runs a random prompt of 24 tokens and ten steps of decoding after it, one token each; the
    log-probabilities of the next token are compared with those that PyTorch computes in single precision. Nothing is
    there before the comparison has passed.

    Args:
        folder: The folder of a model, pruned or not, as `load_folder` opens it, with its tokenizer.
        path: The file or folder to write; it appears whole or not at all.
        to: ``"gguf"`` (llama.cpp), ``"mlx"``, ``"onnx"`` or ``"hf"``.
        model: The model in the folder, if it is in memory already.
        tolerance: Largest difference of a log-probability that is accepted; None for 1e-3 (half precision: 3e-2,
            bfloat16: 2e-1).
        registry: Where replacements are found; None for the default registry.

    Returns:
        What was written, and what the engine computed.

    Raises:
        ExportError: The engine has no form for the model, or computes something else; nothing was written.
        ArgumentError: There is no such kind, a library is missing, or the destination can't be made.
        CheckpointError: The folder holds no model.
    """
    if to not in TARGETS:
        raise ArgumentError(f"There is no export to {to!r}.", hint=nearest(to, TARGETS))
    target, place = TARGETS[to], Path(path)
    check_format(place, own=to)
    opened = load_folder(folder, registry=registry) if model is None else model
    with _appearing_folder(place) if target.is_folder else appearing(place) as temporary:
        check = target.write(opened, Path(folder), temporary, tolerance=tolerance)
        size = sum(file.stat().st_size for file in (temporary, *temporary.rglob("*")) if file.is_file())
    return Exported(to, place, size, check, target.engine)


@contextmanager
def _appearing_folder(place: Path) -> Iterator[Path]:
    """Gives a folder that gets its name when everything went well.

    Raises:
        ArgumentError: See `check_folder`.
    """
    check_folder(place)
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        yield temporary
        if place.is_dir():
            place.rmdir()
        os.replace(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
