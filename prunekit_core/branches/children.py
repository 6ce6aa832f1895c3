"""What a module goes on to do without its branch: the calls of modules in it, on what is left of its sums."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Mapping
from typing import Any

from prunekit_core.branches.calls import Call, Calls, Thing
from prunekit_core.branches.needs import Needs
from prunekit_core.modules.absent import Called, Handed, Item, Plain, Result, Several
from prunekit_core.program.trace import TensorRef


class UnfitError(Exception):
    """Nothing can stand in the place of a module."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(why)
        self.path, self.why = path, why


class Children:
    """Finds modules that only call modules in them and add up, in one recording.

    Args:
        calls: The calls of modules.
        needs: What depends on what.
        only: Indices of the operations that are needed for the branches only.
        lifted: By index of a sum: the operand that stands for its result.
    """

    def __init__(self, calls: Calls, needs: Needs, only: Collection[int], lifted: Mapping[int, TensorRef]) -> None:
        self._calls, self._needs, self._only, self._lifted = calls, needs, only, lifted
        self._made: dict[int, list[int]] = {}  # by tensor: operations that return it
        self._written: dict[int, list[int]] = {}  # by memory: operations that write to it
        for operation in needs.trace.operations:
            for ref in operation.outputs:
                if ref not in operation.references():
                    self._made.setdefault(ref.index, []).append(operation.index)
            for memory in needs.written_memory(operation):
                self._written.setdefault(memory, []).append(operation.index)

    def of(self, path: str) -> set[str] | None:
        """Lists the modules in one that have to be called; None where it computes something itself, or in part."""
        found: set[str] = set()
        for call in self._calls.get(path, ()):
            staying = self.staying(path, call)
            inside = {index for _, one in staying for index in range(one.start, one.stop)}
            if any(self._stays(index) and index not in inside for index in range(call.start, call.stop)):
                return None
            if any(index in self._only or index in self._lifted for index in inside):
                return None
            found.update(child for child, _ in staying)
        return found

    def _stays(self, index: int) -> bool:
        """Whether an operation is needed for more than the branches."""
        return self._needs.needed[index] and index not in self._only and index not in self._lifted

    def staying(self, path: str, call: Call) -> list[tuple[str, Call]]:
        """Lists the outermost calls of other modules that a call of a module has to make, in order."""
        found: list[tuple[str, Call]] = []
        end = call.start
        for child, one in self._sorted(path, call):
            if one.start >= end and any(map(self._stays, range(one.start, one.stop))):
                found.append((child, one))
                end = one.stop
        return found

    def _sorted(self, path: str, call: Call) -> list[tuple[str, Call]]:
        inside = [
            (child, one)
            for child, calls in self._calls.items()
            if child.startswith(f"{path}.")
            for one in calls
            if one.order > call.order and call.start <= one.start and one.stop <= call.stop
        ]
        return sorted(inside, key=lambda entry: entry[1].order)

    def result(self, path: str, call: Call) -> Result:
        """Says what a call of a module returns, by calls of modules in it.

        Raises:
            UnfitError: It can't be said.
        """
        return self._form(path, call, call.result, call.stop)

    def _form(self, path: str, call: Call, value: Any, time: int) -> Result:
        if type(value) in (tuple, list):
            items = tuple(self._form(path, call, item, time) for item in value)
            return Several(items, type(value) is list)
        if isinstance(value, TensorRef):
            return self._tensor(path, call, value, time)
        for given, argument in call.arguments:
            if isinstance(value, Thing) and argument == value:
                return Handed(given)
        if isinstance(value, Thing):
            raise UnfitError(path, f"{path} needs a {value.kind}")
        return Plain(value)

    def _tensor(self, path: str, call: Call, ref: TensorRef, time: int) -> Result:
        """Says what a tensor is, as it is before an operation."""
        writer = self._writer(ref, time)
        if writer < call.start:
            for given, argument in call.arguments:
                if argument == ref:
                    return Handed(given)
        elif writer in self._lifted:
            return self._tensor(path, call, self._lifted[writer], writer)
        for child, one in self.staying(path, call):
            if one.start <= writer < one.stop:
                return self._called(path, call, child, one, ref)
        raise UnfitError(path, f"{path} reads a tensor that no module in it returns")

    def _called(self, path: str, call: Call, child: str, one: Call, ref: TensorRef) -> Result:
        arguments = tuple((given, self._form(path, call, value, one.start)) for given, value in one.arguments)
        called = Called(child[len(path) + 1 :], arguments)
        if one.result == ref:
            return called
        if isinstance(one.result, tuple | list) and ref in one.result:
            return Item(called, one.result.index(ref))
        raise UnfitError(path, f"{child} returns another tensor than {path} goes on with")

    def _writer(self, ref: TensorRef, time: int) -> int:
        """Returns the last operation before another one that made a tensor or wrote to its memory; -1 if none did."""
        memory = self._needs.trace.memory(ref.index)
        found = -1
        for places in (self._made.get(ref.index, ()), self._written.get(memory, ())):
            place = bisect.bisect_left(places, time)
            found = max(found, places[place - 1] if place else -1)
        return found
