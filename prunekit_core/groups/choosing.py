"""Choices that are made in the place of a program, so that its recording holds whichever units are left.

A program that loops over the experts that were chosen runs other operations for other choices. It is recorded with the
first units chosen, always: as many of them stay as it chooses, so that the smaller program can make the same choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from prunekit_core.algebra.layout import Kept, groups_of
from prunekit_core.groups.recording import Recording
from prunekit_core.program.extents import Chosen
from prunekit_core.program.trace import Operation
from prunekit_core.record.decisions import Choices, Choose, ChosenFrom, with_output


def first_choices(recordings: Sequence[Recording]) -> Choices | None:
    """Returns choices of the first units, for recordings on real tensors; None if no program chooses units that may go.

    Args:
        recordings: The recordings of a model, in which it chose by itself.
    """
    return next(choices_in_turn(recordings), None)


def choices_in_turn(recordings: Sequence[Recording]) -> Iterator[Choices]:
    """Yields choices of the first units, of those behind them, and so on until all have been chosen.

    Args:
        recordings: The recordings of a model on real tensors, in which it chose by itself.
    """
    found = {
        key: choice
        for recording in recordings
        for key, operation, choice in _choices(recording)
        if operation.index in recording.trace.decisions and groups_of(choice.layout)
    }
    turns = max((-(-choice.layout.size // choice.count) for choice in found.values()), default=0)
    for turn in range(turns):
        yield Choices({key: _chosen(choice, turn) for key, choice in found.items()}, assumed=True)


def _chosen(choice: Chosen, turn: int) -> Choose:
    start = min(turn * choice.count, choice.layout.size - choice.count)

    def choose(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Any:
        def made(found: torch.Tensor) -> torch.Tensor:
            if choice.dim is None:
                return torch.full_like(found, start)
            shape = [-1 if dim == choice.dim % found.ndim else 1 for dim in range(found.ndim)]
            numbers = torch.arange(start, start + found.shape[choice.dim], dtype=found.dtype, device=found.device)
            return numbers.reshape(shape).expand(found.shape).contiguous()

        return with_output(result, choice.output, made)

    return choose


def choices_among(recordings: Sequence[Recording], kept: Kept) -> Choices | None:
    """Returns the choices that programs make when removed units are at minus infinity; None if that changes none.

    Args:
        recordings: The recordings of a model.
        kept: Kept units per group.
    """
    made: dict[tuple[str, int], Choose] = {}
    for recording in recordings:
        for key, operation, _ in _choices(recording):
            among = recording.chosen_from(operation.index, kept)
            if among is not None:
                made[key] = _among(among)
    return Choices(made, assumed=False) if made else None


def _among(among: ChosenFrom) -> Choose:
    def choose(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Any:
        return among.run(op, args, kwargs)

    return choose


def _choices(recording: Recording) -> Iterable[tuple[tuple[str, int], Operation, Chosen]]:
    """Yields the choices of a program with the operation, its name, and how many of that name ran before it."""
    ran: dict[str, int] = {}
    for operation in recording.trace.operations:
        count = ran[operation.name] = ran.get(operation.name, -1) + 1
        if operation.index in recording.choices:
            yield (operation.name, count), operation, recording.choices[operation.index]
