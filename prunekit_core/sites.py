"""Where layouts show in a recorded program, so that what is learnt in one module can be looked for in its siblings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from prunekit_core.analysis import Analysis, Recording
from prunekit_core.layout import Concat, Layout, Product
from prunekit_core.trace import Operation, tensor_refs

PieceKey = tuple[int, int, int, int]
"""Where a piece of a layout shows in a module: operation within the module, tensor, dim, piece."""


class Sites:
    """Finds pieces of layouts by where they show.

    Args:
        analysis: The analysed model.
    """

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis
        self._known: dict[tuple[int, str], dict[PieceKey, Layout]] = {}

    def pieces(self, recording: int, path: str) -> dict[PieceKey, Layout]:
        """Lists every piece of every layout that shows in the operations of a module, by place."""
        cached = self._known.get((recording, path))
        if cached is not None:
            return cached
        pieces: dict[PieceKey, Layout] = {}
        record = self._analysis.recordings[recording]
        for ordinal, operation in enumerate(operations_in(record, path)):
            for slot, index in enumerate(tensors_at(record, operation.index)):
                for dim, layout in enumerate(record.live.get(index, ())):
                    for number, piece in enumerate(_runs(layout)):
                        pieces[ordinal, slot, dim, number] = piece
        self._known[recording, path] = pieces
        return pieces

    def twins(self, modules: Mapping[str, nn.Module], path: str, recording: int) -> list[str]:
        """Lists the modules of the same class that run the same operations."""
        record = self._analysis.recordings[recording]
        names = [operation.name for operation in operations_in(record, path)]
        cls = type(modules[path])
        return [
            other
            for other, module in modules.items()
            if other != path
            and type(module) is cls
            and [operation.name for operation in operations_in(record, other)] == names
        ]


def ancestors(path: str) -> list[str]:
    """Lists a module path and those of all modules around it, innermost first."""
    result = [path]
    while result[-1]:
        result.append(result[-1].rpartition(".")[0])
    return result


def operations_in(record: Recording, path: str) -> list[Operation]:
    """Lists the operations that ran in a module or in what it contains."""
    inside = path + "."
    return [op for op in record.trace.operations if not path or op.module == path or op.module.startswith(inside)]


def tensors_at(record: Recording, index: int) -> list[int]:
    """Lists the tensors of an operation, results first, by `TensorRef.index`."""
    operation = record.trace.operations[index]
    refs = [*operation.outputs, *(ref for value in operation.arguments.values() for ref in tensor_refs(value))]
    return [ref.index for ref in refs]


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
