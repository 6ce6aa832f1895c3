"""Arguments as they are typed, read before anything is built."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from prunekit.plugin import ArgumentError, nearest
from prunekit_plugins.checkpoints.destination import refusal
from prunekit_plugins.checkpoints.tensorfile import CHECK_PATH, NO_FILE

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}


@attrs.frozen
class TensorSpec:
    """The shape and dtype of an example input.

    Attributes:
        shape: Its sizes.
        dtype: A key of `DTYPES`.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        sizes = ",".join(str(size) for size in self.shape)
        return sizes if self.dtype == "float32" else f"{sizes}:{self.dtype}"

    def tensor(self, generator: torch.Generator) -> torch.Tensor:
        """Makes a random tensor: normal, or zeros and ones for integers, which any vocabulary holds."""
        dtype = DTYPES[self.dtype]
        if dtype.is_floating_point:
            return torch.randn(self.shape, generator=generator, device="cpu").to(dtype)
        return torch.randint(0, 2, self.shape, generator=generator, device="cpu").to(dtype)


def read_inputs(texts: Sequence[str]) -> list[TensorSpec]:
    """Reads ``--input`` arguments: sizes, and a dtype where it isn't float32 (``1,3,224,224``, ``1,16:int64``).

    Raises:
        ArgumentError: One isn't of that form.
    """
    found = []
    for text in texts:
        sizes, colon, dtype = text.partition(":")
        if not re.fullmatch(r"\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*", sizes):
            raise ArgumentError(
                "An --input must be positive sizes with commas between them.",
                why=f"got {text!r}",
                hint="for example --input 1,3,224,224, or --input 1,16:int64 for whole numbers",
            )
        if colon and dtype not in DTYPES:
            raise ArgumentError("An --input has an unknown dtype.", why=f"got {text!r}", hint=nearest(dtype, DTYPES))
        found.append(TensorSpec(tuple(int(size) for size in sizes.split(",")), dtype or "float32"))
    return found


def read_targets(texts: Sequence[str]) -> dict[str, float | str] | None:
    """Reads ``--target`` arguments: ``macs=0.5``, ``latency=20ms``.

    Returns:
        Cost model to fraction (up to 1), absolute value, or text with a unit; None when there are none.

    Raises:
        ArgumentError: One isn't of that form, or names a cost model twice.
    """
    found: dict[str, float | str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        number: float | str
        try:
            number = float(value)
            good = 0 < number < float("inf")
        except ValueError:
            number, good = value.strip(), re.fullmatch(r"\s*[\d.]+\s*[A-Za-z]+\s*", value) is not None
        if not name or not equals or not good:
            raise ArgumentError(
                "A --target must be a cost model, an equals sign and a positive number.",
                why=f"got {text!r}",
                hint="for example --target macs=0.5, which leaves half, or --target latency=20ms",
            )
        if name in found:
            raise ArgumentError("A --target is given twice.", where=name)
        found[name] = number
    return found or None


def read_workload(text: str | None) -> dict[str, int] | None:
    """Reads a ``--workload``: ``batch=8,length=512,decode=128``; None stays None.

    Raises:
        ArgumentError: It isn't of that form, or says something twice.
    """
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    found = {name.strip(): int(value) for name, _, value in pairs if value.strip().isdecimal()}
    if len(found) < len(pairs):
        raise ArgumentError(
            "A --workload is names with whole numbers.", why=f"got {text!r}", hint="batch=8,length=512,decode=128"
        )
    return found


def read_name(text: str) -> str:
    """Reads the name of something registered, or of code: the path of a file in it becomes absolute."""
    place, colon, attribute = text.rpartition(":")
    if colon:
        search_here()
    return f"{Path(place).resolve()}:{attribute}" if attribute and place.endswith(".py") else text


def read_criterion(text: str, option: str = "--importance") -> dict[str, Any]:
    """Reads an argument with a name and values: ``lamp``, ``magnitude,p=1``, ``scores.py:Mine,device=nano``.

    Args:
        text: What was typed.
        option: The option, in messages.

    Returns:
        The ``name``, and the arguments that the criterion is made with: JSON values, and else texts.

    Raises:
        ArgumentError: An argument is given twice, or without a value.
    """
    name, *rest = re.split(r",(?=\w+=)", text)
    if "," in name and ":" not in name:  # the path of a file may have one
        hint = "NAME, or NAME,ARG=VALUE with commas between arguments, such as magnitude,p=1"
        raise ArgumentError(f"An argument of {option} has no value.", why=f"got {text!r}", hint=hint)
    found: dict[str, Any] = {"name": read_name(name)}
    for argument, _, value in (part.partition("=") for part in rest):
        if argument in found:
            raise ArgumentError(f"An argument of {option} is given twice.", where=argument)
        try:
            found[argument] = json.loads(value)
        except ValueError:
            found[argument] = value
    return found


def search_here() -> None:
    """Lets modules in the working directory be found, as a program that is started there finds them."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def check_there(*paths: Path | None) -> None:
    """Makes sure that files or folders are there; None is left out.

    Raises:
        ArgumentError: One isn't.
    """
    for path in paths:
        if path is not None and not path.exists():
            raise ArgumentError(NO_FILE, where=str(path), hint=CHECK_PATH)


def check_writable(path: Path, option: str, *, folder: bool = False) -> None:
    """Makes sure that a file can be written; leaves nothing there.

    Args:
        path: Where.
        option: The option that names it.
        folder: Whether it may as well be a folder, to write files into.

    Raises:
        ArgumentError: It is a folder and must not be, or no file that can be replaced, or its folder isn't there or the
            system makes no files in it.
    """
    inside = folder and path.is_dir()
    if path.exists() and not path.is_file() and not inside:
        raise ArgumentError(
            f"{option} must be a file.", where=str(path), why=f"it is {'a folder' if path.is_dir() else 'a device'}"
        )
    if not inside and not path.parent.is_dir():
        raise ArgumentError(f"The folder for {option} doesn't exist.", where=str(path.parent))
    why = refusal(path, inside=inside)
    if why:
        raise ArgumentError(f"The folder for {option} can't be written to.", where=str(path.parent), why=why)
