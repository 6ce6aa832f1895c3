"""Random numbers of a forward, from generators of its own: those of the process go on as if nothing had run.

PyTorch's operations draw from a generator that they are handed. Python and NumPy have one for all threads; where a
forward draws from those, every run starts in the state of the first one, and they are put back.

What is relied on: a ``TorchDispatchMode`` sees operations inside of composite ones that ``OpOverload.decompose`` runs.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from prunekit_core.program.calls import bind_arguments
from prunekit_core.torch_private.dispatch import Mode, uncompiled
from prunekit_core.torch_private.operators import arguments_of, decomposes, overload_of, packet_of

_SEED = 0
_OFF = {"dropout_p": 0, "dropout": 0, "train": False, "training": False}
"""Arguments whose value says that an operation draws nothing."""
_Call = tuple[Any, Sequence[Any], Mapping[str, Any]]


def draws(op: Any, arguments: Mapping[str, Any]) -> bool:
    """Tells whether an operation draws random numbers when it is given some arguments, by name."""
    if torch.Tag.nondeterministic_seeded not in op.tags:
        return False
    return not any(name in arguments and arguments[name] == value for name, value in _OFF.items())


class RandomNumbers(Mode):
    """Hands operations on real tensors generators of its own.

    Composite operations that take none are run as the operations that they are made of; what takes none at all runs
    with those of the process, which are put back.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generators: dict[torch.device, torch.Generator] = {}

    @uncompiled
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        seeded = torch.Tag.nondeterministic_seeded in func.tags  # the others needn't have their arguments bound
        if not seeded or not draws(func, bind_arguments(func, args, kwargs)):
            return func(*args, **kwargs)
        call = self._handed(func, args, kwargs)
        if call is not None:
            return call[0](*call[1], **call[2])
        if decomposes(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        with self.seeded():
            return func(*args, **kwargs)

    def _handed(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Call | None:
        """Returns an operation, or its overload that takes a generator, with one; None where there is none."""
        names = [argument.name for argument in arguments_of(op)]
        if "generator" in names:
            if bind_arguments(op, args, kwargs)["generator"] is not None:
                return op, args, kwargs  # the program's own
            return op, args[: names.index("generator")], {**kwargs, "generator": self._generator(args, kwargs)}
        suffix = "generator" if overload_of(op) == "default" else f"{overload_of(op)}_generator"
        other = getattr(packet_of(op), suffix, None)
        return None if other is None else (other, args, {**kwargs, "generator": self._generator(args, kwargs)})

    def _generator(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Generator:
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        device = kwargs.get("device") or (tensors[0].device if tensors else torch.get_default_device())
        device = torch.device(device)
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(_SEED)
        return self._generators[device]

    @contextlib.contextmanager
    def seeded(self) -> Iterator[None]:
        """Seeds the generators of the process for one operation that takes none, and puts them back."""
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(self._next_seed())
            if devices:
                torch.cuda.manual_seed_all(self._next_seed())
            yield

    def _next_seed(self) -> int:
        return int(torch.randint(2**31, (), generator=self._generator((), {"device": "cpu"}), device="cpu"))


class OtherRandomNumbers:
    """The generators of Python and NumPy in the runs of one shadow."""

    def __init__(self) -> None:
        self._first: tuple[Any, Any] | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Lets a run draw from them; afterwards they are as before, and so is PyTorch's where the run seeded it."""
        before, seed, numbers = _states(), torch.initial_seed(), torch.get_rng_state()
        if self._first is not None:
            _set_states(self._first)
        try:
            yield
        finally:
            if self._first is not None or not _equal(before, _states()):
                self._first = self._first or before
                _set_states(before)
            if torch.initial_seed() != seed:
                torch.set_rng_state(numbers)


def draw_once() -> None:
    """Draws a number from each of them, so that what follows is another one."""
    random.random()
    numpy = _numpy()
    if numpy is not None:
        numpy.random()


def _numpy() -> Any:
    return getattr(sys.modules.get("numpy"), "random", None)


def _states() -> tuple[Any, Any]:
    numpy = _numpy()
    return random.getstate(), None if numpy is None else numpy.get_state()


def _set_states(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    numpy = _numpy()
    if numpy is not None and states[1] is not None:
        numpy.set_state(states[1])


def _equal(first: tuple[Any, Any], second: tuple[Any, Any]) -> bool:
    if first[0] != second[0] or (first[1] is None) != (second[1] is None):
        return False
    return first[1] is None or (first[1][2] == second[1][2] and bool((first[1][1] == second[1][1]).all()))
