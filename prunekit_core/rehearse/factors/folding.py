"""Tensors that are made of numbers of the program only: their values, when recorded and when a size has changed.

``x / torch.sqrt(torch.tensor(x.shape[-1]))`` makes a constant of a size with operations of its own. They are computed
here, on both numbers, up to the operation that brings the constant and the activations together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from prunekit_core.groups.recording import Recording
from prunekit_core.program.rules import ModuleOp, rule_keys
from prunekit_core.program.trace import Operation, TensorRef
from prunekit_core.rehearse.factors.factor import Logs, compact
from prunekit_core.torch_private.operators import arguments_of

LARGEST = 64
"""Elements up to which constants are followed."""

Changes = Mapping[int, Mapping[str, float]]
"""By operation index: the arguments that are numbers and have changed, with their new values."""


class Folding:
    """Values of the tensors of one recorded program that depend on numbers of the program only.

    Args:
        recording: The recorded program.
        changes: Numbers in it that have changed.

    Attributes:
        values: By `TensorRef.index`: (value as recorded, value with the changes), for those that depend on a change.
        makers: By `TensorRef.index`: the operation that made the tensor.
    """

    def __init__(self, recording: Recording, changes: Changes) -> None:
        self._recording, self._changes = recording, changes
        self.values: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.makers = {ref.index: op for op in reversed(recording.trace.operations) for ref in op.outputs}
        self._logs: dict[int, Logs | None] = {}
        self._fixed: dict[int, torch.Tensor | None] = {}
        self._overwritten: set[int] = set()
        for operation in recording.trace.operations:
            if operation.index in changes or any(ref.index in self.values for ref in operation.references()):
                self._follow(operation)

    def meetings(self) -> Iterator[tuple[Operation, TensorRef]]:
        """Yields the operations where a changed constant meets anything else: (operation, the constant)."""
        for operation in self._recording.trace.operations:
            met = [ref for ref in dict.fromkeys(operation.references()) if ref.index in self.values]
            followed = operation.outputs and all(ref.index in self.values for ref in operation.outputs)
            if met and (operation.index in self._recording.trace.decisions or (operation.outputs and not followed)):
                yield from ((operation, ref) for ref in met)

    def logs(self, ref: TensorRef) -> Logs | None:
        """Returns the logarithms of the factors by which a constant has changed; None where they aren't positive."""
        if ref.index not in self._logs:
            old, new = (value.to(torch.float64) for value in self.values[ref.index])
            self._logs[ref.index] = None
            if ref.index not in self._overwritten and old.shape == new.shape:
                ratios = torch.where((old == 0) & (new == 0), 1.0, new / old)
                if bool((ratios.isfinite() & (ratios > 0)).all()):
                    self._logs[ref.index] = compact(ratios.log())
        return self._logs[ref.index]

    def fixed(self, ref: TensorRef) -> torch.Tensor | None:
        """Returns the value of a small constant that hasn't changed."""
        return None if ref.index in self.values else self._value(ref, False)

    def _follow(self, operation: Operation) -> None:
        if operation.index in self._recording.trace.decisions:
            return
        old, new = (self._compute(operation, changed) for changed in (False, True))
        if old is None or new is None:
            self._overwritten.update(ref.index for ref in operation.outputs if ref.index in self.values)
            return
        ref = operation.outputs[0]
        if ref.index in self.values and not torch.equal(old, self.values[ref.index][0]):
            self._overwritten.add(ref.index)
        self.values[ref.index] = (old, new)

    def _is_literal(self, operation: Operation) -> bool:
        """Whether an operation brings a number of the program in: what it reads is made by no other operation."""
        return all(self.makers.get(ref.index, operation) is operation for ref in operation.references())

    def _compute(self, operation: Operation, changed: bool) -> torch.Tensor | None:
        """Runs an operation on constants; None if it reads anything else, or isn't one of a few numbers."""
        shapes, keys = self._recording.trace.shapes, rule_keys(operation.op)
        if len(operation.outputs) != 1 or math.prod(shapes[operation.outputs[0].index]) > LARGEST:
            return None
        if isinstance(operation.op, ModuleOp) or torch.Tag.nondeterministic_seeded in keys:
            return None
        arguments = dict(operation.arguments) | (dict(self._changes.get(operation.index, {})) if changed else {})
        literal = arguments.get("fill_value")
        if literal is not None and "size" not in arguments and self._is_literal(operation):
            return torch.tensor(literal, dtype=self._recording.trace.dtypes[operation.outputs[0].index], device="cpu")
        values = {}
        for ref in operation.references():
            value = self._value(ref, changed)
            if value is None or value.numel() > LARGEST:
                return None
            values[ref.index] = value.clone()  # the operation may write into it
        known = {argument.name for argument in arguments_of(operation.op)}
        plain = {name: _exchanged(value, values) for name, value in arguments.items() if name in known}
        if plain.get("device") is not None:
            plain["device"] = torch.device("cpu")
        result = operation.op(**plain)
        return result if isinstance(result, torch.Tensor) else None

    def _value(self, ref: TensorRef, changed: bool) -> torch.Tensor | None:
        if ref.index in self.values:
            return self.values[ref.index][changed]
        if ref.index not in self._fixed:
            maker = self.makers.get(ref.index)
            inside = maker is not None and ref not in maker.references()
            self._fixed[ref.index] = self._compute(maker, False) if maker is not None and inside else None
        return self._fixed[ref.index]


def _exchanged(value: Any, values: Mapping[int, torch.Tensor]) -> Any:
    if isinstance(value, TensorRef):
        return values[value.index]
    if isinstance(value, list) and any(isinstance(item, TensorRef) for item in value):
        return [_exchanged(item, values) for item in value]
    return value
