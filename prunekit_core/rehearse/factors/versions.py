"""Which operation wrote what another one reads: operations that write in place give one tensor several versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prunekit_core.groups.recording import Recording
from prunekit_core.program.rules import RuleTable, scaling_of
from prunekit_core.program.scaling import Scaling
from prunekit_core.program.trace import Operation, TensorRef, Trace

Version = tuple[int, int]
"""(`TensorRef.index`, index of the operation that wrote it; -1 for what the program is given)."""

_LAYERS = (Scaling.ROWS, Scaling.CHANNELS, Scaling.ALONG)


class Flow:
    """Who writes and who reads each version of the tensors of one recorded program.

    Args:
        recording: The recorded program.

    Attributes:
        operations: Its operations.
        readers: Indices of the operations that read a version, ascending; ``end`` for outputs of the model. Operations
            that nobody reads don't count.
        end: An index after all operations, at which the outputs are read.
        results: The outputs of the model as versions.
    """

    def __init__(self, recording: Recording) -> None:
        self.operations: Sequence[Operation] = recording.trace.operations
        self.readers: dict[Version, list[int]] = {}
        self.end = len(self.operations)
        self._read: list[dict[int, Version]] = []
        self._makers: dict[int, Operation] = {}
        written: dict[int, int] = {}
        for operation in self.operations:
            read = {ref.index: (ref.index, written.get(ref.index, -1)) for ref in operation.references()}
            self._read.append(read)
            for version in () if operation.index in recording.unread else read.values():
                self.readers.setdefault(version, []).append(operation.index)
            for ref in operation.outputs:
                self._makers.setdefault(ref.index, operation)
            written.update((ref.index, operation.index) for ref in operation.outputs)
        results = dict.fromkeys((ref.index, written.get(ref.index, -1)) for ref in recording.trace.results)
        self.results: tuple[Version, ...] = tuple(results)
        for version in results:
            self.readers.setdefault(version, []).append(self.end)
        self._wholes = recording.wholes
        self._families = _families(recording.trace)

    def version(self, operation: int, ref: TensorRef) -> Version:
        """Returns the version of a tensor that an operation reads."""
        return self._read[operation][ref.index]

    def result(self, ref: TensorRef) -> Version:
        """Returns the version of a tensor that is an output of the model."""
        return next(version for version in self.results if version[0] == ref.index)

    def maker(self, version: Version) -> Operation | None:
        """Returns the operation that wrote a version; None where the program was given it."""
        return self.operations[version[1]] if version[1] >= 0 else None

    def is_made(self, version: Version, rules: RuleTable) -> bool:
        """Tells whether a tensor depends on what a layer or a matrix product makes, not on constants only."""

        def makes(maker: Operation) -> bool:
            return maker.index in self._wholes or scaling_of(rules, maker.op) in _LAYERS

        return next(self.nearest([version], makes), None) is not None

    def nearest(self, versions: Iterable[Version], wanted: Callable[[Operation], bool]) -> Iterator[Operation]:
        """Yields the nearest wanted operations that some tensors were computed by; what lies behind one isn't asked."""
        pending, seen = list(versions), set[Version]()
        while pending:
            current = pending.pop()
            maker = self.maker(current)
            if maker is None or current in seen:
                continue
            seen.add(current)
            if wanted(maker):
                yield maker
            else:
                pending.extend(self._read[maker.index].values())

    def first_maker(self, index: int) -> Operation | None:
        """Returns the operation that made a tensor; None where the program was given it."""
        return self._makers.get(index)

    def views_read_later(self, operation: Operation, ref: TensorRef) -> list[int]:
        """Lists the other tensors in the memory of one that an operation writes into, which are read after it.

        Returns:
            Their `TensorRef.index`.
        """
        family = self._families.get(ref.index, frozenset[int]())
        return [
            index
            for (index, writer), readers in (self.readers.items() if family else ())
            if index in family and index != ref.index and writer < operation.index < readers[-1]
        ]


def _families(trace: Trace) -> dict[int, frozenset[int]]:
    """Groups tensors that use the same memory."""
    groups: dict[int, set[int]] = {}
    for tensor in trace.shares:
        root = trace.memory(tensor)
        groups.setdefault(root, {root}).add(tensor)
    return {tensor: frozenset(members) for members in groups.values() for tensor in members}
