"""Batches without end, epoch after epoch, from a place on where an earlier run stopped."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from prunekit_core.errors import ArgumentError
from prunekit_plugins.calibration import Batches
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.distill.losses import IGNORED
from prunekit_plugins.distill.outputs import Reader
from prunekit_plugins.distill.randomness import seed_epoch


def batches_of(given: Any, name: str) -> Batches:
    """Takes batches as they are, or wraps an iterable.

    Args:
        given: What was passed.
        name: Of the argument.

    Raises:
        ArgumentError: It can't be iterated over, or is a single batch.
    """
    if isinstance(given, torch.Tensor | Mapping | str) or not isinstance(given, Iterable | Batches):
        raise ArgumentError(
            f"{name} must be an iterable of batches.",
            why=f"got {type(given).__name__}",
            hint="for a single batch: [batch]",
        )
    return Batches.of(given)


def first_of(batches: Batches, name: str, device: torch.device | None) -> Batch:
    """Reads the first batch that isn't empty.

    Raises:
        ArgumentError: There is none.
    """
    if not any(True for _ in batches.source):  # in a message of its own, not in one about calibration
        raise ArgumentError(
            f"There is nothing in {name}.", hint="an iterator that was used up elsewhere gives nothing: pass a list"
        )
    return next(batches.read(device))


def check_labels(batches: Batches, name: str, reader: Reader) -> None:
    """Makes sure that the labels of some position count, reading batches up to the first one with such.

    Args:
        batches: The batches, some of which aren't empty.
        name: Of the argument.
        reader: Finds labels; where a batch has none, whoever needs them says so.

    Raises:
        ArgumentError: All labels of all batches are `IGNORED`: they would train nothing.
    """
    for batch in batches.read(None):
        labels = reader.labels_of(batch)
        if labels is None or bool((labels != IGNORED).any()):
            return
    raise ArgumentError(
        f"No label in {name} counts.",
        why=f"all of them are {IGNORED}, which marks positions that don't count",
        hint="look at what masks them: padding and prompts alone should be; or leave labels out of the weights",
    )


class Stream:
    """Yields batches for training.

    At the start of each epoch all random generators are seeded, so that the order and the contents of an epoch don't
    depend on what was done before.

    Args:
        batches: The batches.
        device: Where they belong; None for where they are.
        seed: Of the run.

    Attributes:
        epoch: The epoch that is read, counted from 0.
        number: How many of its batches were read.
    """

    def __init__(self, batches: Batches, device: torch.device | None, seed: int) -> None:
        self._batches, self._device, self._seed = batches, device, seed
        self.epoch, self.number = 0, 0
        self._running: Iterator[Batch] | None = None

    def go_to(self, epoch: int, number: int) -> int:
        """Goes to a place; the generators are then where reading up to there has left them.

        Returns:
            How many batches of the epoch were read; fewer than ``number`` where it has no more.
        """
        self.epoch, self.number = epoch, number
        self._running = None
        if number:
            self._start()
            assert self._running is not None
            self.number = sum(1 for _ in itertools.islice(self._running, number))
        return self.number

    def next(self) -> Batch:
        """Returns the next batch."""
        while True:
            if self._running is None:
                self._start()
            assert self._running is not None
            batch = next(self._running, None)
            if batch is not None:
                self.number += 1
                return batch
            self.epoch, self.number, self._running = self.epoch + 1, 0, None

    def _start(self) -> None:
        seed_epoch(self._seed, self.epoch)
        generator = generator_of(self._batches)
        if generator is not None:
            generator.manual_seed(self._seed + self.epoch)
        self._running = self._batches.read(self._device)


def generator_of(batches: Batches) -> torch.Generator | None:
    """Returns the generator that a ``DataLoader`` was given; None where it has none, or the batches are no such."""
    found = batches.source.generator if isinstance(batches.source, DataLoader) else None
    return found if isinstance(found, torch.Generator) else None
