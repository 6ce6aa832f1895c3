"""Ctrl-C between two states that are whole: it is held back while a model is changed, and comes right afterwards."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Holds an interrupt (SIGINT) back until the end of a ``with`` statement.

    Only the main thread gets interrupts, so elsewhere there is nothing to hold back; neither is there where the program
    ignores them or leaves them to something outside of Python.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    waiting: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if waiting:
            usual(signal.SIGINT, waiting[0])
