"""Constants that follow a size: keeping an attention's temperature when its head dim shrinks.

``softmax(q k^T / sqrt(D))`` computes its scale from the size of an axis. When the axis shrinks to ``D'`` the scale
becomes ``1 / sqrt(D')``; the rows of the parameter that make ``q`` are multiplied by ``sqrt(D' / D)`` to make up for
it. Which rows these are is found by walking back from ``q`` through operations that only move or combine elements
linearly: the op rules say which do (`Scaling`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from prunekit_core import layout as layouts
from prunekit_core.analysis import Analysis, Recording
from prunekit_core.edits import Rescale, runs_of
from prunekit_core.ladder import Rehearsed
from prunekit_core.rules import RuleTable, Scaling
from prunekit_core.trace import Operation, TensorRef, tensor_refs


class _UnresolvedError(Exception):
    """The rows can't be found; the message says why."""


def find_rescales(
    analysis: Analysis, rules: RuleTable, rehearsed: Rehearsed
) -> tuple[tuple[Rescale, ...], tuple[str, ...]]:
    """Finds the rows to scale for every constant that follows a size that shrinks.

    Args:
        analysis: The analysed model.
        rules: The op rules, which say how operations scale.
        rehearsed: The cut.

    Returns:
        The rescales, and a note for each constant that could not be made up for.
    """
    found: dict[tuple[str, tuple[tuple[int, int], ...]], Rescale] = {}
    notes: dict[str, None] = {}
    for position, recording in enumerate(analysis.recordings):
        changes = list(_changes(recording, rules, position, rehearsed)) if recording.replayed else []
        walk = _Walk(recording, rules) if changes else None
        for index, ref, factor in changes:
            assert walk is not None
            operation = recording.trace.operations[index]
            try:
                for parameter, rows in walk.rows(ref, index).items():
                    runs = runs_of(sorted(rows))
                    found.setdefault((parameter, runs), Rescale(parameter, runs, factor))
            except _UnresolvedError as why:
                site = f"{operation.name} in {operation.module or 'the model'}"
                notes[f"a constant of {site} follows a size and changes by a factor of {1 / factor:.4g}: {why}"] = None
    for drift in rehearsed.drifts:
        operation = analysis.recordings[drift.recording].trace.operations[drift.operation]
        if not _sources(operation) or not drift.old or not drift.new:
            site = f"{operation.name} in {operation.module or 'the model'}"
            notes[f"a constant of {site} follows a size: {drift.old:g} became {drift.new:g}"] = None
    return tuple(found.values()), tuple(notes)


def _changes(
    recording: Recording, rules: RuleTable, position: int, rehearsed: Rehearsed
) -> Iterable[tuple[int, TensorRef, float]]:
    """Yields (operation, tensor to scale, factor) for default scales and for drifted factors."""
    for index, (temperature, axis) in recording.temperatures.items():
        size = layouts.new_size(axis, rehearsed.kept)
        if size != axis.size:
            source = recording.trace.operations[index].arguments[temperature.scaled]
            yield index, source, math.sqrt(size / axis.size)
    for drift in rehearsed.drifts:
        if drift.recording != position:
            continue
        operation = recording.trace.operations[drift.operation]
        source = next(iter(_sources(operation)), None)
        if source is not None and drift.old and drift.new:
            factor = drift.old / drift.new
            yield drift.operation, source, 1 / factor if rules.scaling(operation.op) is Scaling.QUOTIENT else factor


class _Walk:
    """Walks back from a tensor to the parameter rows that make it."""

    def __init__(self, recording: Recording, rules: RuleTable) -> None:
        self._recording, self._rules = recording, rules
        self._names = {ref.index: name for name, ref in recording.trace.parameters.items()}
        self._makers: dict[int, Operation] = {}
        self._users: dict[int, list[Operation]] = {}
        for operation in recording.trace.operations:
            for ref in operation.outputs:
                self._makers.setdefault(ref.index, operation)
            for ref in _sources(operation):
                self._users.setdefault(ref.index, []).append(operation)
        self._found: dict[str, set[int]] = {}
        self._scaled: list[tuple[TensorRef, torch.Tensor]] = []
        self._passed: set[tuple[int, int]] = set()

    def rows(self, ref: TensorRef, user: int) -> dict[str, set[int]]:
        """Returns, per parameter, the rows that scale the tensor when they are scaled.

        Raises:
            _UnresolvedError: The tensor is made otherwise, or something else would be scaled along.
        """
        operation = self._recording.trace.operations[user]
        plain = self._rules.scaling(operation.op) in (Scaling.PRODUCT, Scaling.QUOTIENT, Scaling.CONSTANT)
        if not plain and user not in self._recording.temperatures:
            raise _UnresolvedError("it is no plain factor")
        self._found, self._scaled = {}, []
        self._passed = {(operation.index, output.index) for output in operation.outputs}
        shape = self._recording.trace.shapes[ref.index]
        self._back(ref, torch.ones(shape, dtype=torch.bool))
        for scaled, wanted in self._scaled:
            self._check_private(scaled, wanted)
        return self._found

    def _back(self, ref: TensorRef, wanted: torch.Tensor) -> None:
        maker = self._makers.get(ref.index)
        if maker is None:
            raise _UnresolvedError("its operand is made by no operation")
        self._scaled.append((ref, wanted))
        self._passed.add((maker.index, ref.index))
        how = self._rules.scaling(maker.op)
        if how is Scaling.ROWS and isinstance(maker.arguments.get("weight"), TensorRef):
            self._reach_rows(maker, wanted)
        elif how is Scaling.MOVED:
            for source in dict.fromkeys(_sources(maker)):
                part = self._moved(maker, source, ref, wanted)
                if part.any():
                    self._back(source, part)
        elif how is Scaling.MATRIX:
            if not wanted.all():
                raise _UnresolvedError(f"part of what {maker.name} makes would be scaled")
            source = _sources(maker)[0]
            self._back(source, torch.ones(self._recording.trace.shapes[source.index], dtype=torch.bool))
        elif how in (Scaling.SUM, Scaling.PRODUCT, Scaling.QUOTIENT):
            for source in self._scaled_with(maker, how):
                if self._recording.trace.shapes[source.index] != tuple(wanted.shape):
                    raise _UnresolvedError(f"{maker.name} broadcasts")
                self._back(source, wanted)
        else:
            raise _UnresolvedError(f"its operand comes from {maker.name}")

    def _scaled_with(self, maker: Operation, how: Scaling) -> list[TensorRef]:
        """Lists the operands that have to be scaled for the result to be."""
        sources = _sources(maker)
        made = [source for source in sources if self._is_made(source)]
        if how is Scaling.SUM:
            other = maker.arguments.get("other")
            if made != sources or (isinstance(other, int | float) and other):
                raise _UnresolvedError(f"{maker.name} adds something that is not scaled")
        elif len(made) != 1 or (how is Scaling.QUOTIENT and made != sources[:1]):
            raise _UnresolvedError(f"{maker.name} combines several activations")
        return list(dict.fromkeys(made))

    def _is_made(self, ref: TensorRef) -> bool:
        """Tells whether a tensor depends on what a layer or a matrix product makes, not on constants only."""
        pending, seen = [ref], set[int]()
        while pending:
            current = pending.pop()
            maker = self._makers.get(current.index)
            if current.index in seen or maker is None:
                continue
            seen.add(current.index)
            if self._rules.scaling(maker.op) is Scaling.ROWS or maker.index in self._recording.wholes:
                return True
            pending.extend(_sources(maker))
        return False

    def _check_private(self, ref: TensorRef, wanted: torch.Tensor) -> None:
        """Makes sure that whatever reads the elements that will be scaled was passed on the way back."""
        for reader in self._users.get(ref.index, []):
            for output in reader.outputs:
                if (reader.index, output.index) in self._passed:
                    continue
                moves = self._rules.scaling(reader.op) is Scaling.MOVED
                if moves and not self._users.get(output.index):
                    continue
                if not moves or (self._moved(reader, ref, output, None) & wanted).any():
                    raise _UnresolvedError(f"{reader.name} reads the same elements")

    def _moved(
        self, mover: Operation, source: TensorRef, output: TensorRef, wanted: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns which elements of a mover's input are read by (the wanted part of) one of its outputs."""
        shape = self._recording.trace.shapes[source.index]
        if "dtype" in mover.arguments and self._recording.trace.shapes[output.index] == shape:
            return torch.ones(shape, dtype=torch.bool) if wanted is None else wanted.clone()  # a conversion
        labels = torch.arange(math.prod(shape)).reshape(shape)

        def labelled(value: Any) -> Any:
            if isinstance(value, list) and any(isinstance(item, TensorRef) for item in value):
                return [labelled(item) for item in value]
            if not isinstance(value, TensorRef):
                return value
            return labels if value == source else torch.full(self._recording.trace.shapes[value.index], -1)

        arguments = {name: labelled(value) for name, value in mover.arguments.items()}
        result = mover.op(**_plain(mover, arguments))
        results = [result] if isinstance(result, torch.Tensor) else list(result)
        moved = results[list(mover.outputs).index(output)]
        read = moved.reshape(-1) if wanted is None else moved[wanted]
        mask = torch.zeros(math.prod(shape), dtype=torch.bool)
        mask[read[read >= 0]] = True
        return mask.reshape(shape)

    def _reach_rows(self, maker: Operation, wanted: torch.Tensor) -> None:
        kernel = len(self._recording.trace.shapes[maker.arguments["weight"].index]) - 2
        channel = wanted.dim() - 1 - max(0, kernel)
        per_row = wanted.movedim(channel, 0).reshape(wanted.shape[channel], -1)
        chosen = per_row.any(1)
        if not per_row[chosen].all():
            raise _UnresolvedError("part of a row would be scaled")
        for argument in ("weight", "bias"):
            ref = maker.arguments.get(argument)
            if isinstance(ref, TensorRef):
                self._take(ref, chosen, maker)

    def _take(self, ref: TensorRef, chosen: torch.Tensor, user: Operation) -> None:
        name = self._names.get(ref.index)
        if name is not None:
            if any(other is not user and other.outputs for other in self._users.get(ref.index, [])):
                raise _UnresolvedError(f"{name} is used elsewhere, too")
            self._found.setdefault(name, set()).update(chosen.nonzero().flatten().tolist())
            return
        maker = self._makers.get(ref.index)
        if maker is None or self._rules.scaling(maker.op) is not Scaling.MOVED:
            raise _UnresolvedError("its weight is computed")
        shape = self._recording.trace.shapes[ref.index]
        wanted = chosen.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        for source in dict.fromkeys(_sources(maker)):
            mask = self._moved(maker, source, ref, wanted)
            rows = mask.reshape(mask.shape[0], -1)
            if not rows[rows.any(1)].all():
                raise _UnresolvedError("part of a row would be scaled")
            if rows.any():
                self._take(source, rows.any(1), maker)


def _sources(operation: Operation) -> list[TensorRef]:
    return list(tensor_refs(list(operation.arguments.values())))


def _plain(operation: Operation, arguments: dict[str, Any]) -> dict[str, Any]:
    known = {argument.name for argument in operation.op._schema.arguments}
    return {name: value for name, value in arguments.items() if name in known and name not in _DTYPES}


_DTYPES = frozenset({"dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format", "copy"})
