"""Files that appear whole or not at all: written under a temporary name, and renamed when everything is there."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

from prunekit_core.errors import StorageError
from prunekit_core.interrupts import held_back


class Files:
    """Some files of one folder that appear together, for use in a ``with`` statement.

    Whatever ends the statement before `commit` (an error, Ctrl-C, a request to end the process) leaves the folder as it
    was. Once renaming has begun, signals are held back until all files have their names. A file that is replaced keeps
    its permissions; where a name is a link, what it points to is replaced.

    Args:
        folder: Where the files go; it must exist, or its parent with ``make``.
        make: Whether a folder that isn't there is made; it goes again if nothing comes into it.
    """

    def __init__(self, folder: str | os.PathLike[str], *, make: bool = False) -> None:
        self.folder = Path(folder)
        self._make = make and not self.folder.exists()
        self._pending: dict[Path, tuple[Path, int | None]] = {}
        self._dropped: list[str] = []
        self._ending = _Ending()

    def __enter__(self) -> Files:
        self._ending.__enter__()
        if self._make:
            self.folder.mkdir(exist_ok=True)
        return self

    def new(self, name: str) -> Path:
        """Makes the empty temporary file that will be called ``name``, and returns its path."""
        place = self.folder / name
        if place.is_symlink():
            place = Path(os.path.realpath(place))
        mode = place.stat().st_mode & 0o7777 if place.exists() else None
        path = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        with held_back():
            self._pending[path] = (place, mode)  # before it is there: whatever ends this, it goes again
            # a file of its own gets what the process's umask leaves; one that replaces another, that one's in the end
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else 0o600)
            os.close(handle)
        return path

    def drop(self, name: str) -> None:
        """Notes a file that is removed once the new ones are there."""
        self._dropped.append(name)

    def commit(self) -> None:
        """Gives all files their names, in the order in which they were made, and removes those that are dropped.

        Where that ends half-way, the files that were there have their names again.
        """
        for path, (_, mode) in self._pending.items():
            if mode is not None:
                os.chmod(path, mode)
        several = len(self._pending) + len(self._dropped) > 1  # one is renamed at once
        with held_back(), contextlib.ExitStack() as spares, contextlib.ExitStack() as undo:
            for path, (place, _) in list(self._pending.items()):
                if several:
                    _keep(place, spares, undo)
                os.replace(path, place)
                del self._pending[path]
            for place in (self.folder / name for name in self._dropped):
                if several:
                    _keep(place, spares, undo)
                place.unlink(missing_ok=True)
            undo.pop_all()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with held_back():
                for path in self._pending:
                    path.unlink(missing_ok=True)
                if self._make and not any(self.folder.iterdir()):
                    self.folder.rmdir()
        finally:
            self._ending.__exit__(kind, error, trace)


def _keep(place: Path, spares: contextlib.ExitStack, undo: contextlib.ExitStack) -> None:
    """Gives the file at ``place`` a second name until ``spares`` ends; ``undo`` brings back what is there now."""
    if not place.exists():
        undo.callback(place.unlink, missing_ok=True)
        return
    spare = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    spares.callback(spare.unlink, missing_ok=True)
    try:
        os.link(place, spare)
    except OSError:  # not on this file system
        shutil.copy2(place, spare)
    undo.callback(os.replace, spare, place)


class _EndedError(BaseException):
    """The process was asked to end."""


class _Ending:
    """Lets a request to end the process (``SIGTERM``, ``SIGHUP``) come when a ``with`` statement has cleaned up.

    By default such a signal ends the process on the spot. Where the program has a handler of its own, or isn't in its
    main thread, nothing is changed.
    """

    def __init__(self) -> None:
        self._changed: list[int] = []
        self._number: int | None = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._changed.append(number)
                    signal.signal(number, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        raise _EndedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._changed:
            signal.signal(number, signal.SIG_DFL)
        if self._number is not None:
            signal.raise_signal(self._number)


@contextlib.contextmanager
def storing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what the system says about files into an error of ours.

    Args:
        path: What is written or read.

    Raises:
        StorageError: The system refuses: no room, no permission, no such folder.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            "The system refuses a file.",
            where=os.fspath(path),
            why=error.strerror or str(error),
            hint="check the folder, its permissions, and how much room there is",
            cause=error,
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 text file; it appears whole or not at all.

    Raises:
        StorageError: The system refuses.
    """
    place = Path(path)
    with storing(place), Files(place.parent) as files:
        files.new(place.name).write_text(text, encoding="utf-8")
        files.commit()
