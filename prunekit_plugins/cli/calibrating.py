"""The --calibration argument: batches from the user's code, or examples from a file."""

from __future__ import annotations

import importlib
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import safetensors
import safetensors.torch
import torch

from prunekit.plugin import ArgumentError, Batches, CheckpointError
from prunekit_plugins.checkpoints.tensorfile import CHECK_PATH, NO_FILE
from prunekit_plugins.cli.models import Subject
from prunekit_plugins.cli.sources import BuildError, look_up
from prunekit_plugins.folders.texts import check_text, text_batches

BATCH_SIZE = 16
TEXT = ".txt"
"""How the name of a text ends."""
Progress = Callable[[int, int | None], None]


@attrs.frozen
class Data:
    """The calibration data that a command is given.

    Attributes:
        text: ``package.module:name`` of an iterable of batches, or of a function without arguments that returns one; or
            a file of inputs; or a text, for a model in a folder with its tokenizer.
        batch_size: Examples of a batch, where it is a file; None for `BATCH_SIZE`.
        limit: Largest number of batches; None for all.
    """

    text: str
    batch_size: int | None = None
    limit: int | None = None

    @property
    def file(self) -> Path | None:
        """The file, if it is one."""
        return Path(self.text) if Path(self.text).suffix in (*READERS, TEXT) else None

    def check(self, model: str) -> None:
        """Checks all that needs no weights, before they are read.

        Args:
            model: The MODEL argument that the data are for.

        Raises:
            ArgumentError: The data can't be looked for, or they are a text and there is no tokenizer for it.
            CheckpointError: There is no such file, or the text can't be read.
        """
        if self.file is not None:
            if not self.file.is_file():
                raise CheckpointError(NO_FILE, where=self.text, hint=CHECK_PATH)
            if self.file.suffix == TEXT:
                _check_text(self.file, model)
        elif not re.fullmatch(r"[^:/\\]+:[^:/\\]+", self.text):
            raise ArgumentError(
                "The calibration data aren't named in a known way.",
                why=f"got {self.text!r}",
                hint=f"use package.module:batches, or a file that ends in {', '.join(READERS)}, or in {TEXT} for "
                "hf:FOLDER",
            )
        elif self.batch_size is not None:
            raise ArgumentError(
                "--batch-size is for data in a file.", where=self.text, why="code makes its own batches"
            )

    def batches(self, subject: Subject) -> Batches:
        """Reads them.

        Args:
            subject: The model that they are for: a single tensor of a file is passed as its ``keyword``, and a text is
                cut into the tokens of its folder's tokenizer.

        Raises:
            ArgumentError: There is no such code, or what was found are no batches, or there is no tokenizer.
            BuildError: The user's code raised.
            CheckpointError: The file can't be read.
        """
        size = self.batch_size or BATCH_SIZE
        if self.file is None:
            source = _call(self.text)
        elif self.file.suffix == TEXT:
            source = _tokens(self.file, subject, size)
        else:
            source = _cut(_read(self.file), size, subject.keyword, self.text)
        found = Batches.of(source)
        return found if self.limit is None else attrs.evolve(found, limit=self.limit)


def read_calibration(
    text: str | None, subject: Subject, batch_size: int | None = None, limit: int | None = None
) -> Batches | None:
    """Reads the calibration data that are typed as ``--calibration``.

    Args:
        text: ``package.module:batches``, a file of inputs or a text; None for no data.
        subject: The model that they are for.
        batch_size: Examples of a batch, where it is a file; None for 16.
        limit: Largest number of batches; None for all.

    Returns:
        The batches; None without data.

    Raises:
        ArgumentError: There is no such code, or what was found are no batches.
        BuildError: The user's code raised.
        CheckpointError: The file can't be read.
    """
    if text is None:
        return None
    data = Data(text, batch_size, limit)
    data.check(subject.name)
    return data.batches(subject)


@attrs.frozen(eq=False)
class Counted:
    """Batches that tell how far a pass over them is.

    Attributes:
        source: The batches.
        total: How many there are; None where that isn't known.
        progress: Called with the number of batches that were taken in this pass, and their total.
    """

    source: Iterable[Any]
    total: int | None
    progress: Progress

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.source, 1):
            yield batch
            self.progress(number, self.total)


def counted(batches: Batches, progress: Progress) -> Batches:
    """Has a function called after every batch that is read."""
    return attrs.evolve(batches, source=Counted(batches.source, batches.count(), progress))


def _call(text: str) -> Any:
    path, _, attribute = text.partition(":")
    found = look_up(path, attribute, "calibration data")
    if not callable(found) or isinstance(found, Iterable):
        return found
    try:
        return found()
    except Exception as error:  # the user's own code may fail in any way
        why = f"{type(error).__name__}: {error}"
        raise BuildError("The calibration data can't be made.", where=text, why=why) from error


def _safetensors(path: Path) -> Any:
    tensors = safetensors.torch.load_file(str(path))
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors


def _numpy(path: Path) -> Any:
    return torch.from_numpy(importlib.import_module("numpy").load(path, allow_pickle=False))


def _torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)  # runs no code from the file


READERS: Mapping[str, Callable[[Path], Any]] = {".safetensors": _safetensors, ".npy": _numpy, ".pt": _torch}
"""What reads a file, by the end of its name."""


def _read(path: Path) -> Any:
    try:
        return READERS[path.suffix](path)
    except (safetensors.SafetensorError, pickle.UnpicklingError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            "The calibration data can't be read.", where=str(path), why=" ".join(str(error).split())[:400]
        ) from error


def _check_text(path: Path, model: str) -> None:
    """Raises an error where a model isn't one out of a folder, or the folder's tokenizer can't cut a text."""
    prefix, _, folder = model.partition(":")
    if prefix != "hf":
        raise _no_reader(path, model)
    if Path(folder).is_dir():  # else whoever builds the model says what is wrong
        check_text(path, folder)


def _no_reader(path: Path, model: str) -> ArgumentError:
    return ArgumentError(
        "A text is for a model that reads tokens, out of a folder with its tokenizer.",
        where=str(path),
        why=f"the model is {model}",
        hint="hf:FOLDER, or data of another kind: package.module:batches, or a .safetensors, .npy or .pt file",
    )


def _tokens(path: Path, subject: Subject, size: int) -> list[dict[str, torch.Tensor]]:
    """Cuts a text into batches of tokens, by the tokenizer in the folder that the model came from."""
    prefix, _, folder = subject.name.partition(":")
    if prefix != "hf" or not isinstance(subject.inputs, Mapping) or "input_ids" not in subject.inputs:
        raise _no_reader(path, subject.name)
    return text_batches(path, folder, encoder_decoder="decoder_input_ids" in subject.inputs, size=size)


def _cut(data: Any, size: int, keyword: str, where: str) -> list[Any]:
    """Cuts a tensor, or tensors by the argument that they are passed as, into batches along dim 0."""
    tensors = data if isinstance(data, dict) else {"": data}
    if not tensors or not all(isinstance(tensor, torch.Tensor) and tensor.dim() for tensor in tensors.values()):
        raise ArgumentError(
            "A file of calibration data must hold a tensor, or tensors by the argument that they are passed as.",
            where=where,
            hint="the first dim counts the examples",
        )
    lengths = {len(tensor) for tensor in tensors.values()}
    if len(lengths) > 1:
        raise ArgumentError("The tensors differ in their number of examples.", where=where, why=f"{sorted(lengths)}")
    starts = range(0, lengths.pop(), size)
    if isinstance(data, torch.Tensor) and not keyword:
        return [data[start : start + size] for start in starts]
    named = {keyword: data} if isinstance(data, torch.Tensor) else tensors
    return [{name: tensor[start : start + size] for name, tensor in named.items()} for start in starts]
