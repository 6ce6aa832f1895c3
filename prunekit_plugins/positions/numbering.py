"""Which tensors of a recorded program number the positions of a sequence: one more from each to the next.

A program makes such numbers (``arange``), adds up a mask (``cumsum``), slices a buffer of them, or is given them. What
it does with them from there to a lookup moves all of them alike: so it is known which number the first position has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunekit_core.program.trace import Operation, TensorRef, Trace, tensor_refs
from prunekit_plugins.vocabulary.flow import MOVES, packet_of

_ADDED = {"add": 1, "sub": -1}
"""Operations that shift numbers, with the sign of what they shift by."""
_RUNS = ("slice", "narrow")
"""Operations that take a run of numbers."""
_JOINED = ("cat", "stack")
"""Operations that put numbers one behind the other."""
_BOUNDED = ("clamp", "clamp_min", "relu")


def first_numbers(trace: Trace, known: Mapping[int, int]) -> dict[int, int]:
    """Follows numbers of positions through a program.

    Args:
        trace: The recorded program.
        known: Index of each tensor that numbers positions from the start, to the number of the first one.

    Returns:
        Index of every tensor that numbers positions, to the number that the first position has in it.
    """
    found = dict(known)
    for operation in trace.operations:
        first = _first(trace, operation, found)
        if first is not None:
            for ref in operation.outputs[:1]:
                found.setdefault(ref.index, first)
    return found


def first_of(values: torch.Tensor) -> int | None:
    """Returns the first number in a tensor that numbers positions along its last dim; None for any other.

    Args:
        values: A buffer or an input. One on the meta device is believed to count from zero.
    """
    if values.ndim == 0 or not values.numel() or values.dtype not in (torch.int32, torch.int64):
        return None
    if values.is_meta:
        return 0
    rows = values.reshape(-1, values.shape[-1])
    first = rows[0, 0]
    numbers = torch.arange(rows.shape[1], device=rows.device, dtype=rows.dtype) + first
    return int(first) if bool((rows == numbers).all()) else None


def _first(trace: Trace, operation: Operation, found: Mapping[int, int]) -> int | None:
    """Returns the first number in what an operation makes; None if that doesn't number positions."""
    name, arguments = packet_of(operation), operation.arguments
    if name == "arange":
        whole = operation.outputs and not trace.dtypes[operation.outputs[0].index].is_floating_point
        return arguments.get("start", 0) if whole and arguments.get("step", 1) == 1 else None
    if name == "cumsum":
        return None if arguments["self"].index in found else 1
    if name in _ADDED:
        return _shifted(arguments, found, _ADDED[name])
    if name == "mul":
        return _masked(arguments, found)
    if name in _BOUNDED:
        return found.get(arguments["self"].index) if arguments.get("max") is None else None
    return _moved(trace, name, arguments, found)


def _shifted(arguments: Mapping[str, Any], found: Mapping[int, int], sign: int) -> int | None:
    first, by = found.get(arguments["self"].index), arguments["other"]
    if first is None or type(by) is not int or type(arguments.get("alpha", 1)) is not int:
        return None
    return first + sign * by * int(arguments.get("alpha", 1))


def _masked(arguments: Mapping[str, Any], found: Mapping[int, int]) -> int | None:
    """Numbers times a mask: zero where there is padding."""
    given = [arguments["self"], arguments["other"]]
    first = [found[ref.index] for ref in given if isinstance(ref, TensorRef) and ref.index in found]
    masks = [one for one in given if isinstance(one, TensorRef) or one == 1]
    return first[0] if len(first) == 1 and len(masks) == 2 else None


def _moved(trace: Trace, name: str, arguments: Mapping[str, Any], found: Mapping[int, int]) -> int | None:
    """Numbers that are moved, with other numbers where there is padding."""
    refs = [ref for argument in MOVES.get(name, ()) for ref in tensor_refs(arguments.get(argument))]
    firsts = [found[ref.index] for ref in refs if ref.index in found]
    if not firsts or (name in _JOINED and len(firsts) < len(refs)):
        return None
    if name in _RUNS and arguments["dim"] % len(trace.shapes[refs[0].index]) == len(trace.shapes[refs[0].index]) - 1:
        start = arguments["start"]
        return firsts[0] + (start or 0) if start is None or (type(start) is int and start >= 0) else None
    return min(firsts)
