"""How long single operations take on this machine, measured once and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prunekit_plugins.measure import wait_for

_LEAST_SECONDS = 4e-3
_RUNS = (3, 20)
BURST = 10
"""Runs that are queued at a time on an accelerator, where waiting takes longer than a small operation."""


def cache_folder() -> Path:
    """Returns the folder for measurements: ``PRUNEKIT_CACHE``, or ``prunekit`` in the user's cache folder."""
    folder = os.environ.get("PRUNEKIT_CACHE")
    if folder:
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "prunekit"


def machine(device: torch.device) -> dict[str, str | int]:
    """Describes what a measurement depends on besides the operation: machine, device, threads, version of PyTorch."""
    if device.type == "cuda":
        unit = torch.cuda.get_device_name(device)
    elif device.type != "cpu":
        unit = device.type
    else:
        unit = f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    runs = {} if device.type == "cpu" else {"burst": BURST}
    return {
        **runs,
        "node": platform.node(),
        "system": platform.system(),
        "device": f"{device.type} {unit}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


class Timetable:
    """Seconds by operation, shapes and dtypes, for one device and number of threads.

    What is measured stays until `save` writes it; the file appears whole or not at all, and entries that another
    process wrote in between are kept.

    Args:
        device: Where operations run.
        folder: Where the file lies; None for `cache_folder`.
    """

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self.device, self.machine = device, machine(device)
        name = hashlib.sha256(json.dumps(self.machine, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (folder or cache_folder()) / f"latency-{name}.json"
        self.seconds = self._stored()
        self._fresh: dict[str, float] = {}

    def _stored(self) -> dict[str, float]:
        """Reads the file; one that can't be read is measured anew, like one that isn't there."""
        try:
            data = json.loads(self.path.read_text())
            return {str(key): float(value) for key, value in data["seconds"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def measure(self, key: str, run: Callable[[], Any]) -> float:
        """Returns the time of a run that is known by a key, measuring it the first time."""
        if key not in self.seconds:
            self.seconds[key] = self._fresh[key] = self._time(run)
        return self.seconds[key]

    def _time(self, run: Callable[[], Any]) -> float:
        taken: list[float] = []
        burst = 1 if self.device.type == "cpu" else BURST
        run()
        while len(taken) < _RUNS[0] or (sum(taken) < _LEAST_SECONDS and len(taken) < _RUNS[1]):
            self._wait()
            start = time.perf_counter()
            for _ in range(burst):
                run()
            self._wait()
            taken.append((time.perf_counter() - start) / burst)
        return min(taken)  # what else the machine does only adds

    def _wait(self) -> None:
        wait_for(None if self.device.type == "cpu" else self.device)

    def save(self) -> None:
        """Writes what was measured since the last time."""
        if not self._fresh:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = {"machine": self.machine, "seconds": {**self._stored(), **self._fresh}}
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(data, indent=0, sort_keys=True))
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self._fresh = {}
