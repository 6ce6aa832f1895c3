"""One safetensors file, read and written a few rows at a time.

The safetensors library checks the files. It reads and writes whole tensors only, and wants all of them in memory at
once to write a file; so the bytes are moved here, and a file may be larger than the memory.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import attrs
import safetensors
import torch

from prunekit_core.errors import CheckpointError
from prunekit_core.files import Files, storing

NO_FILE = "There is no such file."
CHECK_PATH = "check the path; one that is relative starts at the folder that the program runs in"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's names of dtypes."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_PIECE = 8 * 2**20
"""Bytes moved in one go: few enough that the allocator gives the same memory again and again."""
UNSIGNED = "0" * 64
"""Stands in a header for a digest that is known only when all tensors were written."""
SUMS = "crc32"
"""Names the checksums in a file's metadata: eight hexadecimal digits for each tensor, in the order of their values."""
Rows = Callable[[str], Iterable[torch.Tensor]]
"""Gives the values of a named tensor as consecutive runs along its dim 0."""


@attrs.frozen
class Stored:
    """What is known about a tensor before it is read.

    Attributes:
        dtype: Its dtype.
        shape: Its shape.
        start: Where its bytes start in the file; 0 for a tensor that is yet to be written.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one position along dim 0; of everything for a tensor without dims."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> list[tuple[int, int]]:
        """Divides dim 0 into runs ``(start, stop)`` of at most 8 MiB, or of one row where a row is larger."""
        if not self.shape:
            return [(0, 1)]
        rows = max(1, _PIECE // max(1, self.row_bytes))
        return [(start, min(start + rows, self.shape[0])) for start in range(0, self.shape[0], rows)]


class TensorFile:
    """A safetensors file; opening it reads the header only.

    Attributes:
        path: The file.
        metadata: Texts by name.
        tensors: What it holds, by name.

    Raises:
        CheckpointError: There is no such file, it is truncated or no safetensors file, or holds an unknown dtype.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, Stored] = {}
        if sys.byteorder != "little":
            raise CheckpointError("Checkpoints need a little-endian machine.", where=sys.platform)
        if not self.path.is_file():
            raise CheckpointError(NO_FILE, where=str(path), hint=CHECK_PATH)
        try:
            with safetensors.safe_open(str(path), framework="pt"):  # checks the header against the file
                pass
            with open(self.path, "rb") as file:
                header = read_header(file)
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(
                "The file is corrupt or no safetensors file.", where=str(path), why=str(error)
            ) from error
        self._sums: dict[str, int] = {}
        self._read: dict[str, tuple[int, int]] = {}
        begin = 8 + len(header)
        for name, entry in json.loads(header).items():
            if name == "__metadata__":
                self.metadata = dict(entry)
            elif entry["dtype"] not in DTYPES:
                raise CheckpointError(
                    "The file holds a dtype that isn't known.", where=f"{name} in {path}", why=entry["dtype"]
                )
            else:
                start = begin + entry["data_offsets"][0]
                self.tensors[name] = Stored(DTYPES[entry["dtype"]], tuple(entry["shape"]), start)
        sums = self.metadata.get(SUMS, "")
        if len(sums) == 8 * len(self.tensors) and re.fullmatch("[0-9a-f]*", sums):
            names = sorted(self.tensors, key=lambda name: (self.tensors[name].start, self.tensors[name].bytes, name))
            self._sums = {name: int(sums[8 * place : 8 * place + 8], 16) for place, name in enumerate(names)}

    def read(self, name: str, rows: tuple[int, int] | None = None, room: torch.Tensor | None = None) -> torch.Tensor:
        """Reads a tensor, or a run of positions along its dim 0.

        Args:
            name: One of `tensors`.
            rows: The run ``(start, stop)``; None means everything.
            room: Memory to read into, uint8 ``[bytes]``, with room enough; None means memory of its own, which the
                system has to find and to clear.

        Raises:
            CheckpointError: The file was cut short since it was opened.
        """
        stored = self.tensors[name]
        shape, start = stored.shape, stored.start
        if rows is not None and shape:
            shape, start = (rows[1] - rows[0], *shape[1:]), start + rows[0] * stored.row_bytes
        if room is None:
            tensor = torch.empty(shape, dtype=stored.dtype, device="cpu")
        else:
            tensor = room_for(room, stored.dtype, shape)
        with storing(self.path), open(self.path, "rb", buffering=0) as file:
            file.seek(start)
            read_into(file, tensor, self.path)
        self._check(name, rows or (0, self.tensors[name].shape[0] if self.tensors[name].shape else 1), tensor)
        return tensor

    def _check(self, name: str, rows: tuple[int, int], values: torch.Tensor) -> None:
        """Holds what was read, from the first row to the last, against the checksum of the tensor."""
        expected, (start, stop) = self._sums.get(name), rows
        place, so_far = (0, 0) if start == 0 else self._read.pop(name, (-1, 0))
        if expected is None or place != start:
            return
        found = zlib.crc32(_bytes_of(values), so_far) if values.nbytes else so_far
        shape = self.tensors[name].shape
        if stop < (shape[0] if shape else 1):
            self._read[name] = (stop, found)
        elif found != expected:
            raise CheckpointError(
                "The values of a tensor were damaged after they were written.",
                where=f"{name} in {self.path}",
                why=f"their checksum (CRC-32) is {found:08x}, and {expected:08x} was written down",
                hint="copy the file anew from where it came from, or save the model again",
            )


def room_for(room: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Makes a tensor in memory that is there, uint8 ``[bytes]``."""
    return room[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


def read_header(file: BinaryIO) -> bytes:
    """Reads the JSON text at the start of a file that the library has checked."""
    return file.read(int.from_bytes(file.read(8), "little"))


def read_into(file: BinaryIO, tensor: torch.Tensor, path: Path) -> None:
    """Fills a contiguous tensor with bytes of a file."""
    size = tensor.nbytes
    if not size:
        return
    done = 0
    while done < size:
        count = file.readinto(_bytes_of(tensor, done))  # type: ignore[attr-defined]
        if not count:
            raise CheckpointError("The file is corrupt or no safetensors file.", where=str(path), why="it is too short")
        done += count


def _bytes_of(tensor: torch.Tensor, start: int = 0) -> ctypes.Array[ctypes.c_char]:
    """The memory of a contiguous tensor on the CPU."""
    return (ctypes.c_char * (tensor.nbytes - start)).from_address(tensor.data_ptr() + start)


def file_order(tensors: Mapping[str, Stored]) -> list[str]:
    """Sorts names as the library does: wide dtypes first, so that everything is aligned; then by name."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def write_tensors(
    path: Path,
    tensors: Mapping[str, Stored],
    metadata: Mapping[str, str],
    rows: Rows,
    summed: bool = False,
) -> int:
    """Writes a safetensors file.

    Args:
        path: The file; written in place.
        tensors: Dtypes and shapes.
        metadata: Texts for the header.
        rows: Gives the values of a tensor: consecutive runs along its dim 0.
        summed: Whether checksums (CRC-32) of the tensors are written into the metadata.

    Returns:
        The checksum of all values, which tells two saves apart; 0 unless they are wanted.

    Raises:
        CheckpointError: A dtype can't be stored.
    """
    names = file_order(tensors)
    empty = {SUMS: "0" * 8 * len(names)} if summed else {}
    header: dict[str, object] = {"__metadata__": {**metadata, **empty}} if metadata or summed else {}
    offset = 0
    for name in names:
        stored = tensors[name]
        if stored.dtype not in _CODES:
            raise CheckpointError("A dtype can't be stored in a safetensors file.", where=name, why=str(stored.dtype))
        header[name] = {
            "dtype": _CODES[stored.dtype],
            "shape": list(stored.shape),
            "data_offsets": [offset, offset + stored.bytes],
        }
        offset += stored.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    checksum, sums = 0, []
    with open(path, "wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            begin, own = file.tell(), 0
            for piece in rows(name):
                values = piece.detach().cpu().resolve_conj().resolve_neg().contiguous()
                _write(file, values)
                own = zlib.crc32(_bytes_of(values), own) if summed and values.nbytes else own
            assert file.tell() - begin == tensors[name].bytes, name
            sums.append(f"{own:08x}")
    if summed:
        checksum = zlib.crc32("".join(sums).encode())
        sign(path, SUMS, "".join(sums), empty[SUMS])
    return checksum


def write_named(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file of some tensors with their checksums; it appears whole or not at all.

    Raises:
        StorageError: The system refuses.
    """
    stored = {name: Stored(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}

    def rows(name: str) -> Iterator[torch.Tensor]:
        for start, stop in stored[name].pieces():
            yield tensors[name][start:stop] if stored[name].shape else tensors[name]

    with storing(path), Files(path.parent) as files:
        write_tensors(files.new(path.name), stored, metadata, rows, summed=True)
        files.commit()


def values_as_bytes(tensor: torch.Tensor) -> bytes:
    """Returns the values of a tensor on the CPU as bytes, in the order of their positions."""
    values = tensor.contiguous()
    return bytes(_bytes_of(values)) if values.nbytes else b""


def _write(file: BinaryIO, values: torch.Tensor) -> None:
    size, done = values.nbytes, 0
    while done < size:
        done += file.write(_bytes_of(values, done))


def sign(path: Path, key: str, digest: str, empty: str = UNSIGNED) -> None:
    """Writes a digest into the metadata of a file that was written with a text as long in its place."""
    with open(path, "r+b") as file:
        header = read_header(file)
        # quotes within names and texts are escaped, so that these bytes are nowhere else
        place = header.index(f'"{key}":"{empty}"'.encode())
        file.seek(8 + place + len(key) + 4)
        file.write(digest.encode())
