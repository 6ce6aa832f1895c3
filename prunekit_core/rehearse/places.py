"""Where layouts show in a recorded program, so that what is learnt in one module can be looked for in its siblings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from prunekit_core.algebra.layout import Concat, Kept, Layout, Product, groups_of
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.recording import Recording
from prunekit_core.program.trace import Operation

PieceKey = tuple[int, int, int, int]
"""Where a piece of a layout shows in a module: operation within the module, tensor, dim, piece.

Behind the tensors of an operation stand the arguments of which its rule says what size they are, as dims of -1."""


class Sites:
    """Finds pieces of layouts by where they show.

    Args:
        analysis: The analysed model.
    """

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis
        self._operations: dict[int, dict[str, list[Operation]]] = {}

    def operations(self, recording: int, path: str) -> list[Operation]:
        """Lists the operations that ran in a module or in what it contains."""
        inside = self._operations.get(recording)
        if inside is None:
            inside = self._operations[recording] = _by_module(self._analysis.recordings[recording])
        return inside.get(path, [])

    def pieces(self, recording: int, path: str) -> Iterator[tuple[PieceKey, Layout]]:
        """Yields every piece of every layout that shows in the operations of a module, with its place."""
        record = self._analysis.recordings[recording]
        for ordinal, operation in enumerate(self.operations(recording, path)):
            tensors = tensors_at(operation)
            for slot, index in enumerate(tensors):
                for dim, layout in enumerate(record.live.get(index, ())):
                    for number, piece in enumerate(_runs(layout)):
                        yield (ordinal, slot, dim, number), piece
            for slot, layout in enumerate(_expected_sizes(record, operation), len(tensors)):
                yield (ordinal, slot, -1, 0), layout

    def piece(self, recording: int, path: str, key: PieceKey) -> Layout | None:
        """Returns the piece that shows at a place in a module, None if there is no such place."""
        ordinal, slot, dim, number = key
        operations = self.operations(recording, path)
        record = self._analysis.recordings[recording]
        tensors = tensors_at(operations[ordinal]) if ordinal < len(operations) else []
        if dim < 0:
            sizes = _expected_sizes(record, operations[ordinal]) if ordinal < len(operations) else []
            return next(itertools.islice(sizes, slot - len(tensors), None), None) if slot >= len(tensors) else None
        dims = record.live.get(tensors[slot], ()) if slot < len(tensors) else ()
        return next(itertools.islice(_runs(dims[dim]), number, None), None) if dim < len(dims) else None

    def siblings(self, modules: Mapping[str, nn.Module], path: str, recording: int) -> list[str]:
        """Lists the modules of the same class that run the same operations."""
        names = [operation.name for operation in self.operations(recording, path)]
        cls = type(modules[path])
        return [
            other
            for other, module in modules.items()
            if other != path
            and type(module) is cls
            and [operation.name for operation in self.operations(recording, other)] == names
        ]


def _expected_sizes(record: Recording, operation: Operation) -> list[Layout]:
    """Lists the layouts whose sizes arguments of an operation are."""
    expected = record.expectations.get(operation.index, ())
    return [one.pieces[0] for one in expected if len(one.pieces) == 1]


def ancestors(path: str) -> list[str]:
    """Lists a module path and those of all modules around it, innermost first."""
    result = [path]
    while result[-1]:
        result.append(result[-1].rpartition(".")[0])
    return result


def _by_module(record: Recording) -> dict[str, list[Operation]]:
    found: dict[str, list[Operation]] = {}
    for operation in record.trace.operations:
        for path in ancestors(operation.module):
            found.setdefault(path, []).append(operation)
    return found


def tensors_at(operation: Operation) -> list[int]:
    """Lists the tensors of an operation, results first, by `TensorRef.index`."""
    return [ref.index for ref in (*operation.outputs, *operation.references())]


def groups_at(record: Recording, indices: Iterable[int]) -> list[str]:
    """Names the groups that some operations touch, in order."""
    names: dict[str, None] = {}
    for index in indices:
        for tensor in tensors_at(record.trace.operations[index]):
            for layout in record.live.get(tensor, ()):
                names.update(dict.fromkeys(groups_of(layout)))
    return list(names)


def groups_before(record: Recording, index: int, kept: Kept) -> Iterator[list[str]]:
    """Yields the shrinking groups that an operation touches, then those of the operations before it."""
    for position in range(index, -1, -1):
        names = [name for name in groups_at(record, [position]) if name in kept]
        if names:
            yield names


def groups_near(analysis: Analysis, record: Recording, index: int, kept: Kept) -> list[str]:
    """Names the shrinking groups that an operation (or the nearest one before it) touches, cheapest first."""
    names = next(groups_before(record, index, kept), list(kept))
    groups = analysis.groups
    return sorted(names, key=lambda name: (not groups[name].outer, len(groups[name].members), name))


def _runs(layout: Layout) -> Iterator[Layout]:
    """Yields the parts of a layout whose size an attribute may hold: segments, and runs of neighbouring factors."""
    yield layout
    if isinstance(layout, Concat):
        for part in layout.parts:
            yield from _runs(part)
    elif isinstance(layout, Product):
        for start in range(len(layout.parts)):
            for stop in range(start + 1, len(layout.parts) + 1):
                run = layout.parts[start:stop]
                if len(run) < len(layout.parts):
                    yield run[0] if len(run) == 1 else Product(run)
                if len(run) == 1 and isinstance(run[0], Concat):
                    yield from _runs(run[0])
