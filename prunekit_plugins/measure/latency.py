"""How long models take: in inference mode, after a warm-up, several in turns so that noise hits all of them."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit.plugin import ArgumentError

ROUNDS = 20
WARM_UP = 3


@attrs.frozen
class Timing:
    """Durations of the same work.

    Attributes:
        seconds: One per timed run, in the order in which they ran.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile, in seconds: half of the runs lie between them."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[int]:
    """Sets the number of threads of operations on the CPU, and puts it back.

    Args:
        number: How many; None leaves it.

    Yields:
        The number in use.
    """
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    """Switches models to eval mode in inference mode, and every module back to the mode that it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def runner(model: nn.Module, inputs: Any) -> Callable[[], Any]:
    """Returns a function that runs a model on its inputs: a tensor, a tuple or list of positional ones, or a dict."""
    if isinstance(inputs, Mapping):
        return lambda: model(**inputs)
    if isinstance(inputs, tuple | list):
        return lambda: model(*inputs)
    return lambda: model(inputs)


def timed(
    runs: Sequence[Callable[[], Any]],
    *,
    rounds: int = ROUNDS,
    warm_up: int = WARM_UP,
    device: torch.device | None = None,
    after_round: Callable[[], None] | None = None,
) -> list[Timing]:
    """Times several functions in turns; every other round goes backwards.

    Args:
        runs: The functions.
        rounds: How often each is timed.
        warm_up: Rounds before, which don't count.
        device: The accelerator to wait for before and after each run; None for the CPU.
        after_round: Called after every round, warm-up included.

    Raises:
        ArgumentError: There are no rounds.
    """
    if rounds < 1 or warm_up < 0:
        raise ArgumentError("A measurement needs at least one round.", why=f"got {rounds} after {warm_up} to warm up")
    taken: list[list[float]] = [[] for _ in runs]
    for number in range(warm_up + rounds):
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for place in order:
            wait_for(device)
            start = time.perf_counter()
            runs[place]()
            wait_for(device)
            if number >= warm_up:
                taken[place].append(time.perf_counter() - start)
        if after_round is not None:
            after_round()
    return [Timing(tuple(seconds)) for seconds in taken]


def accelerator_of(models: Sequence[nn.Module]) -> torch.device | None:
    """Returns the accelerator that parameters lie on, the first that is found; None where all lie on the CPU."""
    devices = (parameter.device for model in models for parameter in model.parameters())
    return next((device for device in devices if device.type not in ("cpu", "meta")), None)


def wait_for(device: torch.device | None) -> None:
    """Waits until an accelerator has done what was queued; at once for the CPU (None)."""
    if device is not None:
        torch.accelerator.synchronize(device)


def side_by_side(
    models: Sequence[nn.Module],
    inputs: Any,
    *,
    rounds: int = ROUNDS,
    warm_up: int = WARM_UP,
    after_round: Callable[[], None] | None = None,
) -> list[Timing]:
    """Times one forward of several models in turns, so that whatever else the machine does hits all of them.

    Args:
        models: The models; they run in eval mode, and their modes are restored.
        inputs: What all are run on: a tensor, a tuple or list of positional inputs, or a dict of keyword inputs.
        rounds: How often each is timed.
        warm_up: Rounds before, which don't count.
        after_round: Called after every round.

    Returns:
        One timing per model.
    """
    with evaluating(models):
        runs = [runner(model, inputs) for model in models]
        device = accelerator_of(models)
        return timed(runs, rounds=rounds, warm_up=warm_up, device=device, after_round=after_round)


def time_layers(
    models: Sequence[nn.Module],
    inputs: Any,
    *,
    rounds: int = ROUNDS,
    warm_up: int = WARM_UP,
    after_round: Callable[[], None] | None = None,
) -> list[dict[str, Timing]]:
    """Times the modules of several models, in turns: each without what the modules inside it take.

    A module that is called several times has the sum. The path ``""`` has what the model does outside its layers, so
    that all together are the whole forward.

    Args:
        models: The models; their modes are restored, and no hooks are left.
        inputs: As for `side_by_side`.
        rounds: How often each is timed.
        warm_up: Rounds before, which don't count.
        after_round: Called after every round.

    Returns:
        Per model, path to timing.
    """
    clocks = [_Clock(model, accelerator_of([model])) for model in models]
    try:
        with evaluating(models):
            runs = [clock.around(runner(model, inputs)) for clock, model in zip(clocks, models, strict=True)]
            timed(runs, rounds=rounds, warm_up=warm_up, after_round=after_round)
        return [clock.timings(warm_up) for clock in clocks]
    finally:
        for clock in clocks:
            clock.remove()


class _Clock:
    """Hooks that add up the time of every module of one model, without that of the modules inside it."""

    def __init__(self, model: nn.Module, device: torch.device | None) -> None:
        self._device = device
        self._now: dict[str, float] = {}
        self._rounds: list[dict[str, float]] = []
        self._open: list[list[float]] = []
        self._handles: list[Any] = []
        for path, module in model.named_modules():
            if path:
                self._handles.append(module.register_forward_pre_hook(self._start))
                self._handles.append(module.register_forward_hook(self._stopper(path)))

    def _moment(self) -> float:
        wait_for(self._device)
        return time.perf_counter()

    def _start(self, *_: Any) -> None:
        self._open.append([self._moment(), 0.0])

    def _stop(self, path: str) -> None:
        start, inside = self._open.pop()
        taken = self._moment() - start
        self._now[path] = self._now.get(path, 0.0) + taken - inside
        if self._open:
            self._open[-1][1] += taken

    def _stopper(self, path: str) -> Callable[..., None]:
        def stop(*_: Any) -> None:
            self._stop(path)

        return stop

    def around(self, run: Callable[[], Any]) -> Callable[[], None]:
        """Makes a run that keeps what its modules took."""

        def whole() -> None:
            self._now, self._open = {}, []
            self._start()
            run()
            self._stop("")
            self._rounds.append(self._now)

        return whole

    def timings(self, warm_up: int) -> dict[str, Timing]:
        """Returns what was taken after the warm-up."""
        rounds = self._rounds[warm_up:]
        paths = dict.fromkeys(path for found in rounds for path in found)
        return {path: Timing(tuple(found.get(path, 0.0) for found in rounds)) for path in paths}

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()
