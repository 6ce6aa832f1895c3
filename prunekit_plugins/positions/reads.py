"""Where a recorded program reads rows by the positions of a sequence, and which parameters and buffers these are of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import attrs

from prunekit_core.program.trace import Operation, TensorRef, Trace, tensor_refs
from prunekit_plugins.vocabulary.flow import LOOKUPS, packet_of

_LOOKUPS = {**LOOKUPS, "gather": ("self", "index")}
"""Operations that look up along a dim: the arguments with what is looked up in, and with the positions."""
_RUNS = ("slice", "narrow")


@attrs.frozen
class Read:
    """An operation that reads a tensor by position.

    Attributes:
        argument: The argument with the tensor.
        dim: Its dim along positions.
        size: The size of that dim.
        name: The parameter or buffer that it is, or a view of.
        whole: Whether the tensor is that parameter or buffer itself.
        first: The row of the first position.
        used: How many positions are read.
        indices: The argument with the positions; empty where a run of rows is taken.
    """

    argument: str
    dim: int
    size: int
    name: str
    whole: bool
    first: int
    used: int
    indices: str = ""

    @property
    def positions(self) -> int:
        """How many positions there are."""
        return self.size - self.first


def reads_of(trace: Trace, numbers: Mapping[int, int], lengths: Collection[int]) -> dict[int, Read]:
    """Finds what a program reads by position, in its parameters and buffers.

    Args:
        trace: The recorded program.
        numbers: What numbers positions, see `prunekit_plugins.positions.numbering.first_numbers`.
        lengths: How many positions the example inputs may have: a run of rows from the first one that is as long as
            one of them is read by position.

    Returns:
        The reads, by the index of the operation.
    """
    names = {trace.memory(ref.index): name for name, ref in trace.parameters.items()}
    found = {}
    for operation in trace.operations:
        read = _looked_up(trace, operation, names, numbers) or _run(trace, operation, names, lengths)
        if read is not None:
            found[operation.index] = read
    return found


def _looked_up(trace: Trace, operation: Operation, names: Mapping[int, str], numbers: Mapping[int, int]) -> Read | None:
    name, arguments = packet_of(operation), operation.arguments
    if name not in _LOOKUPS:
        return None
    argument, indices = _LOOKUPS[name]
    table, given = arguments[argument], tensor_refs(arguments[indices])
    owner = names.get(trace.memory(table.index)) if isinstance(table, TensorRef) else None
    if owner is None or len(given) != 1 or given[0].index not in numbers or not trace.shapes[given[0].index]:
        return None
    shape, first, used = trace.shapes[table.index], numbers[given[0].index], trace.shapes[given[0].index][-1]
    dim = list(arguments[indices]).index(given[0]) if name == "index" else arguments.get("dim", 0) % len(shape)
    whole = table == trace.parameters[owner]
    read = Read(argument, dim, shape[dim], owner, whole, first, used, indices)
    return read if first >= 0 and used <= read.positions else None


def _run(trace: Trace, operation: Operation, names: Mapping[int, str], lengths: Collection[int]) -> Read | None:
    if packet_of(operation) not in _RUNS:
        return None
    source, dim = operation.arguments["self"], operation.arguments["dim"]
    owner, shape = names.get(trace.memory(source.index)), trace.shapes[source.index]
    start, stop = _bounds(operation, shape[dim % len(shape)])
    if owner is None or stop not in lengths or not 0 <= start < stop < shape[dim % len(shape)]:
        return None
    dim %= len(shape)
    return Read("self", dim, shape[dim], owner, source == trace.parameters[owner], 0, stop)


def _bounds(operation: Operation, size: int) -> tuple[int, int]:
    """Where a run of rows begins and ends; (-1, -1) where it counts from the end, or takes not every row."""
    arguments = operation.arguments
    start = arguments["start"] or 0
    if type(start) is not int or start < 0 or arguments.get("step", 1) != 1:
        return -1, -1
    stop = start + arguments["length"] if "length" in arguments else arguments["end"]
    return (start, min(stop, size)) if type(stop) is int and stop >= 0 else (-1, -1)


def learnt(reads: Mapping[int, Read], parameters: Collection[str]) -> Iterator[Read]:
    """Yields the reads of whole parameters, from the first position on."""
    return (read for read in reads.values() if read.whole and read.name in parameters)
