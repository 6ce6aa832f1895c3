"""Which operations of a recorded program its results need, and which of them they need for one operand only."""

from __future__ import annotations

import heapq
import weakref
from collections.abc import Iterable, Sequence

import torch

from prunekit_core.groups.analysis import Analysis
from prunekit_core.program.calls import written_arguments
from prunekit_core.program.rules import ModuleOp
from prunekit_core.program.trace import Operation, TensorRef, Trace, is_continuous, tensor_refs

Source = tuple[TensorRef, tuple[int, ...]]
"""A tensor that an operation reads, and the operations that it depends on for that: those that made it and wrote to its
memory last."""

Version = tuple[int, int]
"""The index of the operation that made a tensor or wrote to it last, -1 for what was there before the forward; and
`TensorRef.index`."""


Read = tuple[int, TensorRef]
"""The index of an operation, and a tensor that it reads."""
_KNOWN: weakref.WeakKeyDictionary[Analysis, tuple[Needs, ...]] = weakref.WeakKeyDictionary()


def needs_of(analysis: Analysis) -> Sequence[Needs]:
    """Returns what depends on what in each recorded program; worked out once for an analysis."""
    known = _KNOWN.get(analysis)
    if known is None:
        known = _KNOWN[analysis] = tuple(Needs(recording.trace) for recording in analysis.recordings)
    return known


class Needs:
    """What depends on what in one recorded program.

    A program needs an operation if its results depend on it: what the model returns, what may be an output though it
    isn't returned, what a module keeps, and what is written to the inputs. What is written to parameters and buffers (a
    running mean) is needed only for whoever reads them.

    Args:
        trace: The program.

    Attributes:
        sources: By operation index: what it reads.
        readers: Name of each parameter and buffer to the indices of the operations that read it.
        needed: Whether the results need each operation.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.sources: list[tuple[Source, ...]] = []
        self.readers: dict[str, set[int]] = {name: set() for name in trace.parameters}
        self._names = {ref.index: name for name, ref in trace.parameters.items()}
        self._written: dict[int, int] = {}  # the operation that made or wrote a tensor last
        self._memory: dict[int, int] = {}  # the one that wrote to some memory last
        self._made: set[int] = set()
        self._writes: dict[int, list[str]] = {}  # by operation: names of the parameters and buffers that it writes to
        results: list[int] = []
        for operation in trace.operations:
            results.extend(self._add(operation))
        self._ends = {
            source for ref in (*trace.results, *trace.kept, *trace.stored) for source in self._sources_of(ref)
        }
        self._count([*results, *self._ends])

    def _add(self, operation: Operation) -> list[int]:
        """Notes an operation; returns it where it writes to memory that was there before the forward."""
        read = dict.fromkeys(operation.references())
        self.sources.append(tuple((ref, self._sources_of(ref)) for ref in read))
        for ref in read:
            name = self._names.get(self.trace.memory(ref.index))
            if name is not None:
                self.readers[name].add(operation.index)
        outside = False
        written = self._written_by(operation)
        for ref in written:
            root = self.trace.memory(ref.index)
            self._memory[root] = self._written[ref.index] = operation.index
            if root in self._names:
                self._writes.setdefault(operation.index, []).append(self._names[root])
            else:
                outside = outside or root not in self._made
        written_down = operation.op is torch.ops.aten.lift_fresh.default  # what it reads came into being just now
        for ref in operation.outputs:
            if ref not in read or written_down:
                self._made.add(ref.index)
            if ref not in read or ref in written:  # else it only hands on what it read, as a conversion to the same
                self._written[ref.index] = operation.index
        return [operation.index] if outside else []

    def _written_by(self, operation: Operation) -> list[TensorRef]:
        if isinstance(operation.op, ModuleOp):
            read = operation.references()
            return [ref for ref in operation.outputs if ref in read]
        names = written_arguments(operation.op)
        return [ref for name in names for ref in tensor_refs([operation.arguments.get(name)])]

    def written_memory(self, operation: Operation) -> set[int]:
        """Lists the memory (see `Trace.memory`) that an operation writes to in place."""
        return {self.trace.memory(ref.index) for ref in self._written_by(operation)}

    def _sources_of(self, ref: TensorRef) -> tuple[int, ...]:
        last = (self._written.get(ref.index), self._memory.get(self.trace.memory(ref.index)))
        return tuple(dict.fromkeys(index for index in last if index is not None))

    def _count(self, results: Iterable[int]) -> None:
        """Counts by how many arguments of needed operations each one is needed."""
        self.needed = [False] * len(self.trace.operations)
        self._uses = [0] * len(self.trace.operations)
        pending = list(results)
        while pending:
            index = pending.pop()
            self._uses[index] += 1
            if not self.needed[index]:
                self.needed[index] = True
                pending.extend(source for _, sources in self.sources[index] for source in sources)
        self._idle_readers: dict[int, list[int]] = {}  # by operation: those that depend on it and aren't needed
        for index, needed in enumerate(self.needed):
            for source in () if needed else (one for _, sources in self.sources[index] for one in sources):
                self._idle_readers.setdefault(source, []).append(index)

    def is_result(self, operation: int) -> bool:
        """Tells whether what an operation made or wrote is among the results, or may be."""
        return operation in self._ends

    def source(self, operation: int, ref: TensorRef) -> tuple[int, ...]:
        """Returns the operations that an operation depends on for one of the tensors that it reads."""
        return next(sources for read, sources in self.sources[operation] if read == ref)

    def only_for(self, reads: Iterable[Read]) -> set[int]:
        """Finds the operations that the results need only because some operations read some tensors.

        They are those that the results don't need any more once these operations don't read these tensors.

        Args:
            reads: Each index of an operation with a tensor that it reads.
        """
        unread = set(reads)
        spare: dict[int, int] = {}
        found: set[int] = set()
        pending = [source for operation, ref in sorted(unread, key=_place) for source in self.source(operation, ref)]
        while pending:
            index = pending.pop()
            spare[index] = spare.get(index, 0) + 1
            if spare[index] == self._uses[index]:
                found.add(index)
                pending.extend(
                    source for ref, sources in self.sources[index] if (index, ref) not in unread for source in sources
                )
        return found

    def followers(self, operations: set[int]) -> set[int]:
        """Finds the operations that the results don't need and that depend on some of these (statistics kept)."""
        found: set[int] = set()
        pending = list(operations)
        while pending:
            readers = [index for index in self._idle_readers.get(pending.pop(), ()) if index not in found]
            found.update(readers)
            pending.extend(readers)
        return found

    def names_read(self, operations: Iterable[int]) -> tuple[str, ...]:
        """Lists the parameters and buffers that some operations read, in the model's order."""
        roots = {self.trace.memory(ref.index) for index in operations for ref, _ in self.sources[index]}
        return tuple(self._names[root] for root in sorted(roots & self._names.keys()))  # numbered in that order

    def names_written(self, operations: Iterable[int]) -> tuple[str, ...]:
        """Lists the parameters and buffers that some operations write to."""
        return tuple(dict.fromkeys(name for index in sorted(operations) for name in self._writes.get(index, ())))

    def version(self, operation: int, ref: TensorRef) -> Version:
        """Returns the version of a tensor that an operation reads."""
        return (max(self.source(operation, ref), default=-1), ref.index)

    def meeting(self, first: Read, second: Read) -> Version | None:
        """Finds the last tensor of real numbers from which two tensors are computed that operations read.

        Args:
            first: One of the tensors, with an operation that reads it.
            second: The other one, likewise.

        Returns:
            Its version, which may be that of one of the two; None where there is none. Parameters don't count.
        """
        colours: dict[Version, int] = {}
        queue: list[tuple[int, int]] = []  # latest first

        def reach(ref: TensorRef, sources: tuple[int, ...], colour: int) -> None:
            version = (max(sources, default=-1), ref.index)
            if version not in colours:
                colours[version] = 0
                heapq.heappush(queue, (-version[0], ref.index))
            colours[version] |= colour

        for (operation, tensor), colour in ((first, 1), (second, 2)):
            reach(tensor, self.source(operation, tensor), colour)
        while queue:
            negative, index = heapq.heappop(queue)
            version = (-negative, index)
            if colours[version] == 3 and is_continuous(self.trace.dtypes[index]) and not self._is_given(version):
                return version
            for ref, sources in self.sources[version[0]] if version[0] >= 0 else ():
                reach(ref, sources, colours[version])
        return None

    def _is_given(self, version: Version) -> bool:
        """Whether a version is a parameter or buffer as it was before the forward."""
        return version[0] < 0 and self.trace.memory(version[1]) in self._names


def _place(read: Read) -> tuple[int, int]:
    return (read[0], read[1].index)
