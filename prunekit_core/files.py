"""Files that appear whole or not at all: written under a temporary name, and renamed when everything is there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType


class Files:
    """Some files of one folder that appear together, for use in a ``with`` statement.

    Whatever ends the statement before `commit` (an error, Ctrl-C) leaves the folder as it was. Once renaming has
    begun, an interrupt is held back until all files have their names.

    Args:
        folder: Where the files go; it must exist.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._pending: dict[str, Path] = {}
        self._dropped: list[str] = []

    def __enter__(self) -> Files:
        return self

    def new(self, name: str) -> Path:
        """Makes the empty temporary file that will be called ``name``, and returns its path."""
        handle, path = tempfile.mkstemp(dir=self.folder, prefix=f".{name}.")
        self._pending[name] = Path(path)
        os.close(handle)
        return self._pending[name]

    def drop(self, name: str) -> None:
        """Notes a file that is removed once the new ones are there."""
        self._dropped.append(name)

    def commit(self) -> None:
        """Gives all files their names, in the order in which they were made, and removes those that are dropped."""
        mode = 0o666 & ~_umask()
        for path in self._pending.values():
            os.chmod(path, mode)
        try:
            self._rename()
        except KeyboardInterrupt:
            self._rename()
            raise

    def _rename(self) -> None:
        for name, path in list(self._pending.items()):
            if path.exists():  # an interrupt may have come between the two lines below
                os.replace(path, self.folder / name)
            del self._pending[name]
        for name in self._dropped:
            (self.folder / name).unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in self._pending.values():
            path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 text file; it appears whole or not at all."""
    place = Path(path)
    with Files(place.parent) as files:
        files.new(place.name).write_text(text, encoding="utf-8")
        files.commit()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
