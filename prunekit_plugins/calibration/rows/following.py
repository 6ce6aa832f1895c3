"""Following rows through a running forward, to the consumers that read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch.utils.weak import WeakIdKeyDictionary

from prunekit_core.program.calls import operation_name, tensors_of
from prunekit_core.program.rules import ModuleOp
from prunekit_core.program.trace import is_continuous
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.observation import Seen, Watched, WatchingListener
from prunekit_plugins.calibration.rows.moves import MOVES, SHAPES, Call, Given, combined, untold
from prunekit_plugins.calibration.rows.origins import Rows

LookAtRows = Callable[[Seen, Rows], None]


class RowsListener(WatchingListener):
    """The listener that shows all consumers with the rows that they read, one number for each vector of features.

    Args:
        watched: The model that runs.
        batch: The batch that runs.
        look: Called with every consumer once it ran, and its rows: numbers ``[rows]``, each of as many samples as
            there are for it, or unknown.

    Attributes:
        decides: Whether values decided, in what ran so far, which rows were read, or what runs.
    """

    def __init__(self, watched: Watched, batch: Batch, look: LookAtRows) -> None:
        super().__init__(watched, batch, self._look_at, every=True)
        self.decides = False
        self._show = look
        self._rows: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of tensors that follow from the inputs
        self._decisions: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def start(self, tensors: Mapping[str, torch.Tensor], inputs: Any) -> None:
        """Numbers the rows of the inputs."""
        super().start(tensors, inputs)
        for tensor in tensors_of(inputs):
            self._rows[tensor] = Rows.whole(tensor)

    def operation(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> None:
        """Shows consumers, and follows rows through all operations."""
        super().operation(op, module, arguments, outputs)
        given = {
            id(tensor): Given(tensor, self._rows[tensor], tensor in self._decisions)
            for tensor in tensors_of(list(arguments.values()))
            if tensor in self._rows
        }
        made = tensors_of(outputs)
        if not given or not made:
            return
        call = Call(op, arguments, made, given)
        for tensor, rows in zip(made, _moved(call), strict=True):
            self._rows[tensor] = rows
            self.decides = self.decides or (rows.chosen and is_continuous(tensor.dtype))
        self._note_decisions(call)

    def rows_of(self, tensor: torch.Tensor) -> Rows:
        """Returns the rows that a tensor holds now; all of them where it doesn't follow from the inputs."""
        rows: Rows = self._rows[tensor] if tensor in self._rows else Rows.whole(tensor)
        return rows

    def _note_decisions(self, call: Call) -> None:
        if _name(call) in SHAPES:
            return
        every = all(one.decided for one in call.given.values())
        real = any(one.continuous or one.decided for one in call.given.values())
        for tensor in call.outputs:
            if every or (real and not is_continuous(tensor.dtype)):
                self._decisions[tensor] = True

    def alias(self, source: torch.Tensor, result: torch.Tensor) -> None:
        """Takes the result for the same tensor."""
        super().alias(source, result)
        for table in (self._rows, self._decisions):
            if source in table:
                table[result] = table[source]

    def leaves(self, tensor: torch.Tensor, way: str) -> None:
        """Notes that Python reads decisions."""
        super().leaves(tensor, way)
        self.decides = self.decides or tensor in self._decisions

    def reads(self, tensor: torch.Tensor) -> None:
        """Notes that Python reads a decision."""
        super().reads(tensor)
        self.decides = self.decides or tensor in self._decisions

    def _look_at(self, seen: Seen) -> None:
        source, weight = (seen.arguments[name] for name in (seen.reading.source, seen.reading.weight))
        dims = source.dim() - 1 if seen.reading.channels_last else int(source.dim() == weight.dim())
        rows = self.rows_of(source).divided(source.shape, dims)
        fits = rows.ids is not None and rows.dims == dims
        flat = rows.of(rows.known.flatten()) if fits else Rows(None, math.prod(source.shape[:dims]), rows.chosen)
        self._show(seen, flat)


def _moved(call: Call) -> list[Rows]:
    """Returns the rows of what an operation returned."""
    if isinstance(call.op, ModuleOp):
        return combined(call)
    try:
        found = list(MOVES.get(_name(call), combined)(call))
    except (RuntimeError, IndexError, TypeError):  # numbers of rows can't be moved as the rows are
        return list(untold(call))
    return [rows if _fits(rows, tensor) else call.unknown for rows, tensor in zip(found, call.outputs, strict=True)]


def _fits(rows: Rows, tensor: torch.Tensor) -> bool:
    return rows.ids is None or rows.begins(tensor.shape)


def _name(call: Call) -> str:
    return operation_name(call.op).partition(".")[0]


@attrs.frozen(eq=False)
class Runs:
    """The times that consumers ran in one forward.

    Attributes:
        rows: Name of a parameter to the rows that it was multiplied by, each time.
        decides: Whether values decided which rows were read, or what ran.
    """

    rows: Mapping[str, list[Rows]]
    decides: bool

    @classmethod
    def of(cls, watched: Watched, batch: Batch) -> Runs:
        """Runs a batch."""
        found: dict[str, list[Rows]] = {}

        def look(seen: Seen, rows: Rows) -> None:
            found.setdefault(seen.site.parameter, []).append(rows)

        listener = RowsListener(watched, batch, look)
        watched.run_into(batch, listener)
        return cls(found, listener.decides)
