"""Signals between two states that are whole: they are held back while a model is changed, and come right afterwards."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]
_SIGNALS = tuple(signal.valid_signals())


def held_back() -> HeldBack:
    """Returns what holds signals back until the end of a ``with`` statement."""
    return HeldBack()


class HeldBack:
    """Holds signals back until the end of a ``with`` statement: Ctrl-C, alarms (``SIGALRM``), requests to end.

    A handler written in Python may raise between any two operations of the main thread. So while the statement lasts,
    the handlers are exchanged for one that only takes notes; a mask (``pthread_sigmask``) would not do, because the
    threads of PyTorch take what the main thread doesn't. Each signal comes once, in the order of arrival.

    Only the main thread runs handlers, so elsewhere there is nothing to hold back. Signals that the program ignores or
    leaves to the system or to something outside of Python aren't touched.
    """

    def __init__(self) -> None:
        self._usual: dict[int, Handler] = {}
        self._waiting: dict[int, FrameType | None] = {}
        self._handler: Handler = self._note

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._waiting.setdefault(number, frame)

    def __enter__(self) -> HeldBack:
        if threading.current_thread() is threading.main_thread():
            try:
                for number in _SIGNALS:
                    usual = signal.getsignal(number)
                    if callable(usual) and not isinstance(getattr(usual, "__self__", None), HeldBack):
                        self._usual[number] = usual
                        signal.signal(number, self._handler)
            except BaseException:  # of a handler that was not exchanged yet
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._restore()
        finally:
            self._deliver()

    def _restore(self) -> None:
        """Puts all handlers back, whatever those raise that are back already."""
        for number, usual in self._usual.items():
            try:
                signal.signal(number, usual)
            except BaseException:
                self._restore()
                raise

    def _deliver(self) -> None:
        """Calls the handlers of the signals that came meanwhile, all of them, whatever they raise."""
        while self._waiting:
            number = next(iter(self._waiting))
            try:
                self._usual[number](number, self._waiting.pop(number))
            finally:
                self._deliver()


@contextlib.contextmanager
def put_back() -> Iterator[contextlib.ExitStack]:
    """Puts settings back at the end, all of them: a signal whose handler raises comes before that or after it."""
    back = contextlib.ExitStack()
    try:
        try:
            yield back
        finally:
            with held_back():
                back.close()
    finally:  # where one came just before it was held back
        back.close()
