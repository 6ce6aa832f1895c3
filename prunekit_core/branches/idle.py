"""Operations that go on to run although nothing needs them any more: cheap ones, between modules that are gone."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from prunekit_core.branches.needs import Needs
from prunekit_core.program.rules import Elementwise, RuleTable
from prunekit_core.program.scaling import Scaling
from prunekit_core.program.trace import Operation, TensorRef


class Idle:
    """Finds them in one recording, as ``relu`` in ``self.down(self.up(x).relu())`` once both layers are gone.

    Args:
        needs: What depends on what.
        only: Indices of the operations that are needed for some branches only.
        rules: The op rules.
    """

    def __init__(self, needs: Needs, only: Collection[int], rules: RuleTable) -> None:
        self._needs, self._only, self._rules = needs, only, rules
        self._readers: dict[int, list[int]] = {}  # by memory
        for operation in needs.trace.operations:
            for memory in {needs.trace.memory(ref.index) for ref in operation.references()}:
                self._readers.setdefault(memory, []).append(operation.index)

    def readers(self, ref: TensorRef, start: int) -> list[int]:
        """Lists the operations from some index on that read the memory of a tensor."""
        return [index for index in self._readers.get(self._needs.trace.memory(ref.index), ()) if index >= start]

    def after(self, ref: TensorRef, start: int, removed: Collection[int]) -> set[int] | None:
        """Finds the operations that may be given another tensor, of any shape, in the place of one.

        Args:
            ref: The tensor.
            start: The operation from which on it is read.
            removed: Indices of the operations that run no more.

        Returns:
            None where something else depends on the tensor than operations that are removed and cheap ones that nothing
            needs.
        """
        found: set[int] = set()
        pending = [ref]
        while pending:
            for index in self.readers(pending.pop(), start):
                if index in removed or index in found:
                    continue
                operation = self._needs.trace.operations[index]
                if index not in self._only or not self._is_by_element(operation):
                    return None
                found.add(index)
                pending.extend(operation.outputs)
        return found

    def _is_by_element(self, operation: Operation) -> bool:
        """Whether an operation makes a new tensor of each element by itself, of whatever shape."""
        rule, trace = self._rules.find(operation.op), self._needs.trace
        if rule is None or self._needs.written_memory(operation) or len(operation.outputs) != 1:
            return False
        read, (out,) = operation.references(), operation.outputs
        if len({(trace.shapes[ref.index], trace.dtypes[ref.index]) for ref in (*read, out)}) > 1:
            return False
        return isinstance(rule.zeros, Elementwise) or (rule.scaling is Scaling.PRODUCT and len(read) == 1)

    def reshaped(
        self, others: Mapping[int, TensorRef], removed: Collection[int]
    ) -> tuple[dict[int, TensorRef], Operation | None]:
        """Follows tensors of other shapes through a program.

        Args:
            others: By `TensorRef.index`: the tensor of another shape that stands for one.
            removed: Indices of the operations that run no more.

        Returns:
            By index: the tensor whose shape it has, these and what is computed from them; and an operation that reads
            tensors of several shapes, or None.
        """
        found, trace = dict(others), self._needs.trace
        for operation in trace.operations:
            read = operation.references()
            if operation.index in removed or not any(ref.index in found for ref in read):
                continue
            like = next(found[ref.index] for ref in read if ref.index in found)
            shapes = {trace.shapes[found.get(ref.index, ref).index] for ref in read}
            if len(shapes) > 1 or operation.index not in self._only or not self._is_by_element(operation):
                return found, operation
            found.update((ref.index, like) for ref in operation.outputs)
        return found, None
