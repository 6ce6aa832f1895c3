"""The program that is left: what has to be recorded of a model without some branches, and whether that is right."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import attrs

from prunekit_core.branches.branch import Summand
from prunekit_core.branches.calls import Calls
from prunekit_core.branches.idle import Idle
from prunekit_core.branches.needs import Needs
from prunekit_core.branches.without import Filling, reduced
from prunekit_core.groups.recording import Recording
from prunekit_core.groups.zeros import zeros_after
from prunekit_core.modules.absent import Called, Given, Handed, Item, Plain, Result, Several, Zeros, children_of
from prunekit_core.modules.edits import Stub
from prunekit_core.program.rules import RuleTable
from prunekit_core.program.trace import TensorRef

_T = TypeVar("_T")


class WrongError(Exception):
    """The program that is left wouldn't be the original with the branches switched off."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class LeftOver:
    """Works out what is left of one recording.

    Args:
        recording: The recording of the whole model.
        rules: The op rules.
        calls: Its calls of modules.
        needs: What depends on what.
        idle: What may go on to run for nothing.
        sums: Where the branches are added.
        lifted: By index of a sum: the operand that stands for its result.
        removed: Indices of the operations that run no more.
    """

    def __init__(
        self,
        recording: Recording,
        rules: RuleTable,
        calls: Calls,
        needs: Needs,
        idle: Idle,
        sums: Sequence[Summand],
        lifted: Mapping[int, TensorRef],
        removed: Collection[int],
    ) -> None:
        self._recording, self._rules, self._calls, self._needs = recording, rules, calls, needs
        self._idle, self._sums, self._lifted, self._removed = idle, sums, lifted, removed
        self._trace = recording.trace
        self._passed: dict[int, TensorRef] = {}
        self._fillings: list[Filling] = []

    def recording(self, stubs: Sequence[Stub]) -> Recording:
        """Returns what has to be recorded of the model that is left.

        Raises:
            WrongError: It would be another program, or one that isn't right.
        """
        for stub in stubs:
            for call in self._calls.get(stub.module, ()):
                if children_of(stub.result):
                    self._pass_sums(range(call.start, call.stop))
                self._fill(stub, dict(call.arguments), stub.result, call.result, call.start)
        self._check_memory()
        self._check_zeros({filling.tensor.index for filling in self._fillings})
        # programs that are the same where units are may differ where branches are: each is run
        left = attrs.evolve(self._reshaped(), replayed=True)
        return reduced(left, self._removed, self._passed, self._fillings)

    def _pass_sums(self, inside: range) -> None:
        """Lets what is left of each sum be read in the place of its result."""
        for index in inside:
            if index in self._lifted and index in self._removed:
                (out,) = self._trace.operations[index].outputs
                if out != self._lifted[index]:
                    self._passed[out.index] = self._lifted[index]

    def _reshaped(self) -> Recording:
        """Lets operations that run for nothing be given anything."""
        trace, recording = self._trace, self._recording
        stands = {index: self._source(source) for index, source in self._passed.items()}
        others = {
            index: source
            for index, source in stands.items()
            if trace.shapes[index] != trace.shapes[source.index]
            and self._idle.after(TensorRef(index), 0, self._removed)
        }
        if not others:
            return recording
        found, wrong = self._idle.reshaped(others, self._removed)
        if wrong is not None:
            raise WrongError(f"it would read tensors of other shapes: {wrong.site}")
        run = {o.index for o in trace.operations if any(ref.index in found for ref in o.outputs)} - set(self._removed)
        shapes = (trace.shapes[found[index].index if index in found else index] for index in range(len(trace.shapes)))
        return attrs.evolve(
            recording,
            trace=attrs.evolve(trace, shapes=tuple(shapes)),
            live=_without(recording.live, found),
            wholes=_without(recording.wholes, run),
            least=_without(recording.least, run),
            expectations=_without(recording.expectations, run),
            temperatures=_without(recording.temperatures, run),
            choices=_without(recording.choices, run),
            unread=recording.unread | run,
        )

    def _source(self, ref: TensorRef) -> TensorRef:
        """Follows a tensor through those that stand for others."""
        seen: set[TensorRef] = set()
        while ref.index in self._passed and ref not in seen:
            seen.add(ref)
            ref = self._passed[ref.index]
        return ref

    def _fill(self, stub: Stub, arguments: Mapping[Given, Any], result: Result, value: Any, start: int) -> None:
        """Notes what stands in the place of a result of a call."""
        match result:
            case Several(items, _) if isinstance(value, tuple | list) and len(items) == len(value):
                for item, part in zip(items, value, strict=True):
                    self._fill(stub, arguments, item, part, start)
            case Zeros(like, joined) if isinstance(value, TensorRef):
                shape = self._trace.shapes[value.index] if joined else None
                self._fillings.append(Filling(start, stub.module, self._argument(arguments, like, stub), value, shape))
            case Handed(like) if isinstance(value, TensorRef):
                source = self._argument(arguments, like, stub)
                if source != value:
                    self._passed[value.index] = source
            case Called() | Item() if isinstance(value, TensorRef):
                pass  # what stays makes it
            case Handed(_) | Plain(_) if not isinstance(value, tuple | list):
                pass
            case _:
                raise WrongError(f"{stub.module} returns something else")

    def _argument(self, arguments: Mapping[Given, Any], given: Given, stub: Stub) -> TensorRef:
        found = arguments.get(given)
        if not isinstance(found, TensorRef):
            raise WrongError(f"{stub.module} isn't given {given.name or given.position} in every call")
        return found

    def _check_memory(self) -> None:
        """Refuses where the result of a sum that goes, and what is left of it, may no longer be one tensor.

        One is written to while the other is read afterwards, or was there before the forward, or is returned.
        """
        trace, lifted, removed = self._trace, self._lifted, self._removed
        if not any(index in removed for index in lifted):
            return
        read: dict[int, int] = {}  # by memory: what reads it last
        for operation in trace.operations:
            if operation.index not in removed:
                read.update({trace.memory(ref.index): operation.index for ref in operation.references()})
        given = (*trace.parameters.values(), *trace.inputs)
        outside = {trace.memory(ref.index) for ref in (*given, *trace.results, *trace.kept, *trace.stored)}
        one: dict[int, set[int]] = {}  # by memory: those that are one with it
        for operation in trace.operations:
            index = operation.index
            if index in removed and index in lifted:
                (out,) = operation.outputs
                pair = {trace.memory(out.index), trace.memory(lifted[index].index)}
                merged = set[int]().union(pair, *(one.get(memory, ()) for memory in pair))
                one.update(dict.fromkeys(merged, merged))
            elif index not in removed:
                for memory in self._needs.written_memory(operation):
                    others = one.get(memory, {memory}) - {memory}
                    if any(other in outside or read.get(other, -1) > index for other in others):
                        raise WrongError(f"{operation.site} writes to what would be one tensor with another")

    def _check_zeros(self, zero: set[int]) -> None:
        """Refuses where what the program computes from the zeros isn't zero in the sums."""
        trace = self._trace
        sums: dict[int, list[Summand]] = {}
        for summand in self._sums:
            sums.setdefault(summand.operation, []).append(summand)
        for operation in trace.operations:
            if operation.index in self._removed:
                continue
            for summand in sums.get(operation.index, ()):
                if summand.tensor.index not in zero:
                    raise WrongError(f"what is added isn't zero without them: {operation.site}")
            zero = zeros_after(trace, operation, zero, self._rules)


def _without(table: Mapping[int, _T], indices: Collection[int]) -> dict[int, _T]:
    return {index: value for index, value in table.items() if index not in indices}
