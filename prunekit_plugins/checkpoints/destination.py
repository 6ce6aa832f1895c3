"""Destinations, checked before work starts: what their names say, and whether the system lets files be made there."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from prunekit_core.errors import ArgumentError

FORMATS = {".gguf": "gguf", ".onnx": "onnx", ".pt2": "torch-export"}
"""Ends of names to the formats of other runtimes that ``prunekit export --to`` writes."""
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""Ends of the names of files with weights."""


def check_format(place: Path, *, own: str = "") -> None:
    """Makes sure that a name isn't one of a format that isn't written.

    Args:
        place: A file that is to be written.
        own: The format that is written, a value of `FORMATS`; empty for what `prunekit.load` reads.

    Raises:
        ArgumentError: It ends as a file of another format does.
    """
    named = FORMATS.get(place.suffix.lower())
    if named is not None and named != own:
        raise ArgumentError(
            "The name is one of another format.",
            where=str(place),
            why=f"files in {place.suffix} hold {named}, and this would hold {own or 'safetensors'}",
            hint=_export(named, place),
        )


def check_folder(place: Path, *, overwrite: bool | None = None) -> None:
    """Makes sure that a folder can be written; leaves nothing there.

    Args:
        place: Where it is to be.
        overwrite: Whether it may hold something; None where nothing is ever replaced.

    Raises:
        ArgumentError: It is a file or named like one, holds something, or the system makes no files there.
    """
    if place.exists() and not place.is_dir():
        raise ArgumentError("The destination isn't a folder.", where=str(place))
    check_name_of_folder(place)
    if place.is_dir() and any(place.iterdir()) and not overwrite:
        more = "" if overwrite is None else "; overwrite=True replaces the model in it"
        raise ArgumentError("The destination isn't an empty folder.", where=str(place), hint=f"name another one{more}")
    parent = place.absolute().parent
    if not parent.is_dir():
        raise ArgumentError("The folder of the destination doesn't exist.", where=str(parent))
    why = refusal(place.absolute()) or (refusal(place, inside=True) if place.is_dir() else "")
    if why:
        raise ArgumentError("The destination can't be written to.", where=str(place), why=why)


def check_name_of_folder(place: Path) -> None:
    """Makes sure that a folder that is to be made isn't named like a file of a model.

    Raises:
        ArgumentError: It is.
    """
    suffix = place.suffix.lower()
    if place.is_dir() or suffix not in (*FORMATS, *WEIGHTS):
        return
    named = FORMATS.get(suffix)
    raise ArgumentError(
        "The destination is a folder, and its name is one of a file.",
        where=str(place),
        why=f"what is written there is a folder, and {place.suffix} is how files with a model end",
        hint=f"name a folder, such as {place.with_suffix('')}"
        + (f"; from there {_export(named, place)}" if named is not None else ""),
    )


def _export(named: str, place: Path) -> str:
    return f"prunekit export FOLDER --to {named} --out {place.name} writes such a file"


def refusal(place: Path, *, inside: bool = False) -> str:
    """Tries to make a file, as it is made when there is something to write, and removes it again.

    The permissions alone don't say: a file system may be read-only or none for files, the name too long for it.

    Args:
        place: What is to be written: files are made beside it, under names that are somewhat longer.
        inside: Whether it is a folder that is there, and files are made in it.

    Returns:
        Why the system refuses; empty if it doesn't.
    """
    trial = place / ".prunekit" if inside else place.with_name(f".{place.name}")
    trial = trial.with_name(f"{trial.name}.{secrets.token_hex(4)}")
    try:
        os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        trial.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""
