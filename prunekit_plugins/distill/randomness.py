"""Random generators of a run: seeded for every epoch, and stored, so that a run that goes on is the same."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

_LARGE = 1_000_003
"""Seeds of the epochs of one run are this far from those of the run with the next seed."""


@contextlib.contextmanager
def own_randomness(devices: Sequence[torch.device], generator: torch.Generator | None = None) -> Iterator[None]:
    """Puts the generators of PyTorch, Python and NumPy back at the end of a ``with`` statement.

    Args:
        devices: Devices other than the CPU whose generators are put back.
        generator: A further generator.
    """
    numbers = [device for device in devices if device.type == "cuda"]
    python, numpy = random.getstate(), _numpy()
    own = None if generator is None else generator.get_state()
    before = None if numpy is None else numpy.random.get_state()
    with torch.random.fork_rng(devices=numbers):
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(before)
            if generator is not None and own is not None:
                generator.set_state(own)


def seed_epoch(seed: int, epoch: int) -> None:
    """Seeds all generators for an epoch."""
    number = (seed * _LARGE + epoch) % 2**63
    torch.manual_seed(number)
    random.seed(number)
    numpy = _numpy()
    if numpy is not None:
        numpy.random.seed(number % 2**32)


def random_state(devices: Sequence[torch.device]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns the states of the generators: tensors by name, and the rest as plain data."""
    tensors = {"cpu": torch.get_rng_state()}
    tensors |= {str(device): torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"}
    version, numbers, spare = random.getstate()
    plain: dict[str, Any] = {"python": [version, list(numbers), spare]}
    numpy = _numpy()
    if numpy is not None:
        kind, keys, *rest = numpy.random.get_state()
        plain["numpy"] = [kind, keys.tolist(), *rest]
    return tensors, plain


def set_random_state(tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> None:
    """Sets the generators to states that `random_state` returned."""
    for name, state in tensors.items():
        if name == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, name)
    version, numbers, spare = plain["python"]
    random.setstate((version, tuple(numbers), spare))
    numpy = _numpy()
    if numpy is not None and "numpy" in plain:
        kind, keys, *rest = plain["numpy"]
        numpy.random.set_state((kind, numpy.array(keys, dtype="uint32"), *rest))


def _numpy() -> Any:
    """NumPy, if the program uses it."""
    return sys.modules.get("numpy")
