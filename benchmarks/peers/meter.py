"""What a piece of work takes: processor time of this process, and memory on top of what it had."""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path


class Meter:
    """Measures what is between ``with`` and its end; Linux only.

    Attributes:
        seconds: Processor time.
        peak: By how many bytes the resident size grew, at most.
        held: By how many bytes it has grown at the end.
    """

    def __enter__(self) -> Meter:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier work left free would be used again, and not counted
        Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
        self._before, self._start = self._status("VmRSS"), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self._start
        self.peak = max(0, self._status("VmHWM") - self._before)
        self.held = max(0, self._status("VmRSS") - self._before)

    @staticmethod
    def _status(name: str) -> int:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status[name].split()[0]) * 1024
