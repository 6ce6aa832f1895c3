"""The tensors of a checkpoint: in one file, or in the shards of a folder with an index."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from prunekit_core.errors import ArgumentError, CheckpointError, StorageError
from prunekit_core.files import Files, storing
from prunekit_plugins.checkpoints.tensorfile import (
    NO_FILE,
    UNSIGNED,
    Rows,
    Stored,
    TensorFile,
    file_order,
    sign,
    write_tensors,
)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
KEY = "prunekit"
"""Marks what prunekit wrote; its value is the version of the format."""
SAVE = "save"
"""Names the save that a shard and its index belong to."""
_SHARD = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Weights:
    """The tensors of a checkpoint on disk. Opening it reads and checks headers only.

    Attributes:
        path: A safetensors file, a folder that holds `SINGLE` or `INDEX`, or such an index.
        metadata: What stands in the file's header, or in the index; texts by name.
        files: Every file, by name.
        tensors: What they hold, by name.
        sharded: Whether there is an index.

    Raises:
        CheckpointError: Something is missing, truncated, or doesn't belong together.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        place = _checkpoint_in(self.path) if self.path.is_dir() else self.path
        self.sharded = place.name.endswith(".index.json")
        self.files: dict[str, TensorFile] = {}
        self.metadata: dict[str, str] = {}
        self._homes: dict[str, TensorFile] = {}
        if self.sharded:
            self._open_shards(place)
        else:
            file = TensorFile(place)
            self.files, self.metadata = {place.name: file}, file.metadata
            self._homes = dict.fromkeys(file.tensors, file)
        self.tensors = {name: file.tensors[name] for name, file in self._homes.items()}

    @property
    def ours(self) -> bool:
        """Whether prunekit wrote it."""
        return KEY in self.metadata

    def read(self, name: str, rows: tuple[int, int] | None = None, room: torch.Tensor | None = None) -> torch.Tensor:
        """Reads a tensor, or a run of positions along its dim 0; see `TensorFile.read`."""
        return self._homes[name].read(name, rows, room)

    def _open_shards(self, index: Path) -> None:
        places, metadata = _read_index(index)
        self.metadata = metadata
        for name in dict.fromkeys(places.values()):
            if not (index.parent / name).is_file():
                raise CheckpointError("A shard of the checkpoint is missing.", where=str(index.parent / name))
            self.files[name] = file = TensorFile(index.parent / name)
            if file.metadata.get(SAVE) != metadata.get(SAVE):
                raise CheckpointError(
                    "A shard belongs to another save.",
                    where=str(file.path),
                    why=f"the index is of save {str(metadata.get(SAVE))[:12]}, the shard of save "
                    f"{str(file.metadata.get(SAVE))[:12]}",
                    hint="the files of two saves were mixed; save the model again",
                )
        held = {(tensor, name) for name, file in self.files.items() for tensor in file.tensors}
        wrong = sorted(held ^ set(places.items()))
        if wrong:
            tensor, name = wrong[0]
            verb = "holds" if wrong[0] in held else "doesn't hold"
            raise CheckpointError(
                "A shard and the index contradict each other.",
                where=str(index.parent / name),
                why=f"it {verb} {tensor}",
            )
        self._homes = {tensor: self.files[name] for tensor, name in places.items()}


def _checkpoint_in(folder: Path) -> Path:
    found = [folder / name for name in (SINGLE, INDEX) if (folder / name).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            "The folder holds two checkpoints.",
            where=str(folder),
            why=f"{SINGLE} and {INDEX}",
            hint="name one of the two files",
        )
    raise CheckpointError("The folder holds no checkpoint.", where=str(folder), why=f"neither {SINGLE} nor {INDEX}")


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Reads which file holds which tensor, and the texts in the metadata."""
    if not path.is_file():
        raise CheckpointError(NO_FILE, where=str(path), hint="copy the index beside its parts, or name one file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        places, metadata = data["weight_map"], data.get("metadata", {})
        good = isinstance(places, dict) and bool(places) and isinstance(metadata, dict)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError("The index of the checkpoint can't be read.", where=str(path), why=str(error)) from error
    # files are taken from the index's own folder only, whatever a stranger's index says
    if not good or not all(_is_file_name(name) for name in places.values()):
        raise CheckpointError(
            "The index of the checkpoint can't be read.", where=str(path), why="it must name files in its own folder"
        )
    return places, {key: value for key, value in metadata.items() if isinstance(value, str)}


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and bool(name) and name not in (".", "..") and not re.search(r"[/\\\0:]", name)


def parse_size(size: int | str) -> int:
    """Reads a number of bytes: an int, or a text such as ``"5GB"`` or ``"512MiB"``.

    Raises:
        ArgumentError: It is neither.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B?)\s*", size.upper())
        if match and (match[2] in _UNITS or match[2] == "B"):
            size = int(float(match[1]) * _UNITS.get(match[2], 1))
    if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
        raise ArgumentError("max_shard_size must be a number of bytes, or a text such as '5GB'.", why=f"got {size!r}")
    return size


def write_weights(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Stored],
    metadata: Mapping[str, str],
    rows: Rows,
    max_shard_size: int | str | None = None,
) -> None:
    """Writes a checkpoint; it appears whole or not at all.

    Args:
        path: A file; with ``max_shard_size``, a folder, which is made if it isn't there.
        tensors: Dtypes and shapes.
        metadata: Texts for the header, or for the index.
        rows: Gives the values of a tensor.
        max_shard_size: Bytes of a file; a larger tensor has a file of its own. What fits in one gets no index.

    Raises:
        CheckpointError: The place isn't there, or holds weights that prunekit didn't write.
        StorageError: The system refuses to write there, or there is no room.
    """
    place = Path(path)
    with storing(place):
        if max_shard_size is None:
            _write_file(place, tensors, metadata, rows)
        else:
            _write_folder(place, tensors, metadata, rows, max_shard_size)


def _write_file(place: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str], rows: Rows) -> None:
    if place.is_dir():
        raise CheckpointError(
            "A folder was named where a file is written.", where=str(place), hint="give max_shard_size as well"
        )
    _check_folder(place.parent)
    with Files(place.parent) as files:
        path = files.new(place.name)
        _check_room(path, tensors)
        write_tensors(path, tensors, {"format": "pt", **metadata}, rows, summed=True)
        files.commit()


def _write_folder(
    place: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str], rows: Rows, max_shard_size: int | str
) -> None:
    shards = _divide(tensors, parse_size(max_shard_size))
    _check_folder(place.parent)
    with Files(place, make=True) as files:
        stale = _own_files(place)
        _check_room(place, tensors)
        written = _write_shards(files, shards, tensors, metadata, rows)
        for name in stale - written:
            files.drop(name)
        files.commit()


def _check_room(place: Path, tensors: Mapping[str, Stored]) -> None:
    """Raises `StorageError` where the tensors have no room beside what is there, before any of them is written."""
    needed, free = sum(stored.bytes for stored in tensors.values()), shutil.disk_usage(place).free
    if needed > free:
        raise StorageError(
            "There is no room for the checkpoint.",
            where=str(place.parent if place.is_file() else place),
            why=f"it takes {needed:,} bytes, and {free:,} are free",
            hint="make room, or write to another disk; a file that is replaced stays until the new one is whole",
            cause=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place)),
        )


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError("There is no such folder.", where=str(folder))


def _own_files(folder: Path) -> set[str]:
    """Names the files of a checkpoint that will be replaced.

    Raises:
        CheckpointError: It isn't one of prunekit's.
    """
    names: set[str] = set()
    for name in (SINGLE, INDEX):
        if (folder / name).is_file():
            metadata = _read_index(folder / name)[1] if name == INDEX else TensorFile(folder / name).metadata
            if KEY not in metadata:
                raise CheckpointError(
                    "The folder holds weights that prunekit didn't write.",
                    where=str(folder / name),
                    hint="write to another folder, or move them away",
                )
            shards = _read_index(folder / name)[0].values() if name == INDEX else ()
            # what is replaced goes away: an index from elsewhere may name any file of the folder as a shard
            names |= {name, *(shard for shard in shards if _SHARD.fullmatch(shard))}
    return names


def _divide(tensors: Mapping[str, Stored], size: int) -> list[dict[str, Stored]]:
    """Divides tensors into files, in the order in which files hold them."""
    shards: list[dict[str, Stored]] = [{}]
    room = size
    for name in file_order(tensors):
        if shards[-1] and tensors[name].bytes > room:
            shards.append({})
            room = size
        shards[-1][name] = tensors[name]
        room -= tensors[name].bytes
    return shards


def _write_shards(
    files: Files,
    shards: list[dict[str, Stored]],
    tensors: Mapping[str, Stored],
    metadata: Mapping[str, str],
    rows: Rows,
) -> set[str]:
    if len(shards) == 1:
        write_tensors(files.new(SINGLE), tensors, {"format": "pt", **metadata}, rows, summed=True)
        return {SINGLE}
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    header = {"format": "pt", KEY: metadata.get(KEY, ""), SAVE: UNSIGNED}
    paths, sums = [], []
    for name, shard in zip(names, shards, strict=True):
        paths.append(files.new(name))
        sums.append(write_tensors(paths[-1], shard, header, rows, summed=True))
    digest = _digest(metadata, tensors, sums)
    for file in paths:
        sign(file, SAVE, digest)
    index: dict[str, Any] = {
        "metadata": {"total_size": sum(stored.bytes for stored in tensors.values()), **metadata, SAVE: digest},
        "weight_map": {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
    }
    files.new(INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return {*names, INDEX}


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Stored], sums: Iterable[int]) -> str:
    """Names a save by its contents, so that the same save has the same name."""
    layout = [(name, str(stored.dtype), stored.shape) for name, stored in tensors.items()]
    text = json.dumps([dict(metadata), sorted(layout), list(sums)])
    return hashlib.sha256(text.encode()).hexdigest()
