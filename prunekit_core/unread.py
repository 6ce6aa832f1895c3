"""Operations whose results nobody reads: what they would pin or tie says nothing about the program."""

from __future__ import annotations

from prunekit_core.calls import writes
from prunekit_core.rules import ModuleOp
from prunekit_core.trace import Operation, Trace


def unread(trace: Trace) -> frozenset[int]:
    """Returns the indices of the operations that can be left out of the propagation.

    Their results are neither outputs of the model, nor read by an operation that counts, nor held by anything
    when the forward has returned. Operations that write into a
    tensor, decide something in Python, read a parameter, or bring several tensors together always count: without their
    ties, the smaller program might not run.
    """
    needed = {ref.index for ref in (*trace.results, *trace.kept)}
    parameters = {ref.index for ref in trace.parameters.values()}
    found = []
    for operation in reversed(trace.operations):
        read = {ref.index for ref in operation.references()}
        counts = len(read) != 1 or bool(read & parameters) or _acts(operation)
        if counts or any(ref.index in needed for ref in operation.outputs):
            needed |= read
        else:
            found.append(operation.index)
    return frozenset(found)


def _acts(operation: Operation) -> bool:
    """Tells whether an operation does more than return tensors."""
    return isinstance(operation.op, ModuleOp) or not operation.outputs or writes(operation.op)
