"""Faults on every line: an exception, a signal, or an operation that finds no memory."""

from __future__ import annotations

import contextlib
import linecache
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import prunekit_core
import prunekit_plugins

CORE = str(Path(prunekit_core.__file__).parent) + os.sep
PARTS = ("classic", "budgets", "calibration", "checkpoints", "compensation", "prune")
WATCHED = (CORE, *(str(Path(prunekit_plugins.__file__).parent / part) + os.sep for part in PARTS))
EVERY = os.environ.get("PRUNEKIT_EVERY_FAULT") == "1"
"""Whether faults are injected on every line; else on a sample of them."""
SAMPLE = 25


class InjectedError(Exception):
    """What is injected."""


class TimeUpError(Exception):
    """What the handler of the alarm raises."""


def raised() -> None:
    raise InjectedError


def _leaves_a_block(frame: FrameType) -> bool:
    """Whether this is the line of a ``with`` statement, which is run once more between the end of the block and its
    exit: nothing but a signal raises there, and signals have scenes of their own."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


class Lines:
    """Counts the lines of the core that are executed, and does something at one of them.

    Args:
        at: Number of the line; None only counts.
        fault: What is done there.
        among: Tells the files (without suffix) whose lines don't count.
    """

    def __init__(self, at: int | None, fault: Callable[[], object], leaving_out: tuple[str, ...] = ()) -> None:
        self.count, self._at, self._fault = 0, at, fault
        self._left_out = {f"{CORE}{name}.py" for name in leaving_out}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(WATCHED) or name in self._left_out:
            return None
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and not (self._fault is raised and _leaves_a_block(frame)):
            self.count += 1
            if self.count == self._at:
                self._fault()
        return self._line

    @contextlib.contextmanager
    def running(self) -> Iterator[Lines]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield self
        finally:
            sys.settrace(before)


class Operations(TorchDispatchMode):
    """Counts operations, and lets one of them find no memory."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.count, self._at = 0, at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count == self._at:
            raise torch.OutOfMemoryError("no memory (injected)")
        return func(*args, **(kwargs or {}))


def places(count: int) -> list[int]:
    """Which of ``count`` places get a fault: all of them, or a sample with the first and the last ones."""
    if EVERY or count <= SAMPLE:
        return list(range(1, count + 1))
    return sorted({1 + (count - 1) * number // (SAMPLE - 1) for number in range(SAMPLE)} | {count - 1, count - 2})


@contextlib.contextmanager
def alarm() -> Iterator[Callable[[], object]]:
    """Yields what sends a signal whose handler raises `TimeUpError`."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise TimeUpError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield lambda: signal.raise_signal(signal.SIGALRM)
        assert signal.getsignal(signal.SIGALRM) is handler, "the handler isn't the user's any more"
    finally:
        signal.signal(signal.SIGALRM, before)


def snapshot(*models: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """All that makes up models: which tensor objects, their bits and gradients, which modules, their attributes."""
    found: dict[str, Any] = {}
    for number, model in enumerate(models):
        for path, module in model.named_modules(remove_duplicate=False):
            found[f"{number} {path}"] = type(module).__name__
            for name, value in vars(module).items():
                if isinstance(value, int | tuple | str | float):
                    found[f"{number} {path} {name}"] = value
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    found[f"{number} {path} {name}"] = (bits(tensor), bits(tensor.grad), tensor.requires_grad)
    if optimizer is not None:
        for number, group in enumerate(optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                for key, value in optimizer.state[parameter].items():
                    found[f"optimizer {number} {place} {key}"] = bits(value)
    return found


def bits(tensor: torch.Tensor | None) -> Any:
    if tensor is None:
        return None
    data = tensor.detach()
    return (data.dtype, tuple(data.shape), tuple(data.stride()), data.flatten().tolist())
