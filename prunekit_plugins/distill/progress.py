"""Progress of a run on a terminal: steps done, and the time that is left."""

from __future__ import annotations

import sys
import time

from prunekit_plugins.distill.settings import Progress

OFTEN = 0.2
"""Seconds between two lines."""


def progress_for(wanted: Progress | None) -> Progress:
    """Returns what is called after each step: what was asked for, else a line on a terminal, else nothing."""
    if wanted is not None:
        return wanted
    return TimeLeft() if sys.stderr.isatty() else lambda done, total: None


class TimeLeft:
    """Writes one line to standard error and rewrites it."""

    def __init__(self) -> None:
        self._begun: tuple[float, int] | None = None
        self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Shows how many steps are done, and the time that the others take if they take as long."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = (now, done)
        if done < total and now - self._last < OFTEN:
            return
        self._last = now
        since, first = self._begun
        text = f"distilling: {done} of {total} steps"
        if first < done < total:
            left = round((now - since) / (done - first) * (total - done))
            text += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        print(f"\r{text:<60}", end="\n" if done >= total else "", file=sys.stderr, flush=True)
