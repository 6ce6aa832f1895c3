"""Recorded programs without their branches: what is left of a recording, and of what is known about a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import torch

from prunekit_core.algebra.requirements import NeedsZeros
from prunekit_core.branches.branch import Branch, Summand
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.recording import Recording
from prunekit_core.program.calls import bind_arguments, operation_name
from prunekit_core.program.extents import Whole, Wholes
from prunekit_core.program.trace import Operation, TensorRef, Trace

_T = TypeVar("_T")
_ZEROS_LIKE = torch.ops.aten.zeros_like.default
_NEW_ZEROS = torch.ops.aten.new_zeros.default


@attrs.frozen
class Filling:
    """Zeros that a program makes in the place of operations that are gone.

    Attributes:
        start: Index of the first of those operations.
        module: Path of the module that makes them.
        like: The tensor whose shape, dtype and device they have.
        tensor: The tensor that they stand for.
        shape: The shape that they have where it isn't that of ``like``.
    """

    start: int
    module: str
    like: TensorRef
    tensor: TensorRef
    shape: tuple[int, ...] | None = None


def without(analysis: Analysis, branches: Iterable[Branch]) -> Analysis:
    """Returns what is known about a model that has lost some branches, for cost models.

    The operations that ran for them only, the sums that added them, and the parameters that only they read are gone.

    Args:
        analysis: The analysed model.
        branches: Some of its branches.
    """
    absent = list(branches)
    parameters = {name for branch in absent for name in branch.parameters}
    recordings = []
    for position, recording in enumerate(analysis.recordings):
        sums = [summand for branch in absent for summand in branch.sums if summand.recording == position]
        gone = {index for summand in sums for index in summand.operations}
        passed, added = _passed_on(recording.trace, sums)
        recordings.append(reduced(recording, gone | added, passed))
    return attrs.evolve(
        analysis,
        recordings=tuple(recordings),
        parameters={name: found for name, found in analysis.parameters.items() if name not in parameters},
    )


def _passed_on(trace: Trace, sums: Iterable[Summand]) -> tuple[dict[int, TensorRef], set[int]]:
    """Finds the sums of which one operand is left, and what stands for their results; both by index."""
    lost: dict[int, list[Summand]] = {}
    for summand in sums:
        lost.setdefault(summand.operation, []).append(summand)
    passed: dict[int, TensorRef] = {}
    for index, summands in lost.items():
        if len(summands) == 1:
            (result,) = trace.operations[index].outputs
            if result != summands[0].rest:
                passed[result.index] = summands[0].rest
    return passed, {index for index, summands in lost.items() if len(summands) == 1}


def reduced(
    recording: Recording,
    gone: Collection[int],
    passed: Mapping[int, TensorRef] | None = None,
    fillings: Sequence[Filling] = (),
) -> Recording:
    """Returns a recording without some operations, numbered as if the rest had been recorded.

    A tensor that only they made is one that no operation makes.

    Args:
        recording: The recording.
        gone: Indices of the operations.
        passed: By `TensorRef.index`: which tensor is read in the place of one that they made.
        fillings: Tensors of zeros that are made in their place.
    """
    return _Reduction(recording, gone, passed or {}, fillings).recording()


class _Reduction:
    """Numbers what is left: operations in order, tensors as a recorder meets them (`TraceBuilder`)."""

    def __init__(
        self,
        recording: Recording,
        gone: Collection[int],
        passed: Mapping[int, TensorRef],
        fillings: Sequence[Filling],
    ) -> None:
        self._recording, self._passed = recording, passed
        self._left: list[Operation] = []
        self._places: dict[int, int] = {}
        made: dict[int, list[Operation]] = {}
        for filling in fillings:
            made.setdefault(filling.start, []).append(_zeros(filling))
        for operation in recording.trace.operations:
            self._left.extend(made.get(operation.index, ()))
            if operation.index not in gone:
                self._places[operation.index] = len(self._left)
                self._left.append(operation)
        self._numbers: dict[int, int] = {}

    def recording(self) -> Recording:
        old, trace = self._recording, self._trace()
        return attrs.evolve(
            old,
            trace=trace,
            live=self._by_tensor(old.live),
            wholes={place: self._wholes(found) for place, found in self._by_place(old.wholes).items()},
            least=self._by_place(old.least),
            expectations=self._by_place(old.expectations),
            temperatures=self._by_place(old.temperatures),
            choices=self._by_place(old.choices),
            unread=frozenset(self._places[index] for index in old.unread if index in self._places),
            marks=frozenset((self._numbers[index], dim) for index, dim in old.marks if index in self._numbers),
            needs_zeros={place: self._needs(found) for place, found in self._by_place(old.needs_zeros).items()},
        )

    def _wholes(self, wholes: Wholes) -> Wholes:
        return Wholes(
            tuple(
                Whole(use.layout, use.verb, tuple((self._renamed(ref), dim) for ref, dim in use.operands))
                for use in wholes.uses
            )
        )

    def _needs(self, needs: Sequence[NeedsZeros]) -> list[NeedsZeros]:
        return [attrs.evolve(need, tensor=self._renamed(TensorRef(need.tensor)).index) for need in needs]

    def _trace(self) -> Trace:
        old = self._recording.trace
        parameters = {name: self._renamed(ref) for name, ref in old.parameters.items()}
        inputs = tuple(map(self._renamed, old.inputs))
        operations = tuple(self._operation(place, operation) for place, operation in enumerate(self._left))
        results = tuple(map(self._renamed, old.results))
        order = sorted(self._numbers, key=self._numbers.__getitem__)
        return attrs.evolve(
            old,
            operations=operations,
            shapes=tuple(old.shapes[index] for index in order),
            dtypes=tuple(old.dtypes[index] for index in order),
            parameters=parameters,
            inputs=inputs,
            results=results,
            shares=self._shares(old.shares),
            decisions=self._by_place(old.decisions),
            kept={self._renamed(ref): why for ref, why in old.kept.items() if ref.index in self._numbers},
            read=frozenset(self._numbers[index] for index in old.read if index in self._numbers),
            escaped={self._renamed(ref): why for ref, why in old.escaped.items() if ref.index in self._numbers},
            stored={self._renamed(ref): why for ref, why in old.stored.items() if ref.index in self._numbers},
            constants=self._by_tensor(old.constants),
            handed=tuple(self._renamed(ref) for ref in old.handed if ref.index in self._numbers),
        )

    def _operation(self, place: int, operation: Operation) -> Operation:
        arguments = {name: self._value(value) for name, value in operation.arguments.items()}
        outputs = tuple(map(self._renamed, operation.outputs))
        return attrs.evolve(operation, index=place, arguments=arguments, outputs=outputs)

    def _value(self, value: Any) -> Any:
        if isinstance(value, TensorRef):
            return self._renamed(value)
        if isinstance(value, list):
            return [self._value(item) for item in value]
        return value

    def _renamed(self, ref: TensorRef) -> TensorRef:
        index, seen = ref.index, set[int]()
        while (
            index in self._passed and index not in seen
        ):  # tensors that are added to each other in place may be a circle
            seen.add(index)
            index = self._passed[index].index
        return TensorRef(self._numbers.setdefault(index, len(self._numbers)))

    def _shares(self, shares: Mapping[int, int]) -> dict[int, int]:
        found = {}
        for index, source in shares.items():
            while source not in self._numbers and source in shares:
                source = shares[source]
            if index in self._numbers and source in self._numbers:
                found[self._numbers[index]] = self._numbers[source]
        return found

    def _by_tensor(self, table: Mapping[int, _T]) -> dict[int, _T]:
        return {self._numbers[index]: value for index, value in table.items() if index in self._numbers}

    def _by_place(self, table: Mapping[int, _T]) -> dict[int, _T]:
        return {self._places[index]: value for index, value in table.items() if index in self._places}


def _zeros(filling: Filling) -> Operation:
    op, given = (_ZEROS_LIKE, ()) if filling.shape is None else (_NEW_ZEROS, (list(filling.shape),))
    arguments = bind_arguments(op, (filling.like, *given), {})
    return Operation(filling.start, op, operation_name(op), filling.module, arguments, (filling.tensor,))
