"""Memory of one inference: weights, and the activations that are alive at the same time."""

from __future__ import annotations

import attrs
import torch

from prunekit.plugin import (
    Analysis,
    Compiled,
    CostModel,
    Operation,
    Polynomial,
    Recording,
    Sizes,
    SymbolicSizer,
    as_polynomial,
    compile_polynomials,
    group_sizes,
    multiplied,
)
from prunekit_plugins.budgets.counts import weights


@attrs.frozen
class Life:
    """How long the memory of a tensor is held.

    Attributes:
        tensor: Index of the tensor that it was made for.
        first: Index of the operation that made it; -1 for the inputs.
        last: Index of the last operation during which it is held.
    """

    tensor: int
    first: int
    last: int


def lives(recording: Recording) -> list[Life]:
    """Tells which memory a forward pass holds when, in inference mode.

    Views and results written in place share memory. What a module was called with is held until it returns, as Python
    does; what a function keeps in a variable that it doesn't use any more isn't known. Outputs and inputs of the model
    are held to the end.
    """
    trace = recording.trace
    end = len(trace.operations) - 1
    inside = _Calls(trace.operations)
    roots: dict[int, int] = {}
    first = {ref.index: -1 for ref in trace.inputs}
    last = {ref.index: end for ref in trace.inputs}
    homes: dict[int, str] = dict.fromkeys(first, "")
    for operation in trace.operations:
        for ref in operation.references():
            root = _root(roots, ref.index)
            if root in first:
                last[root] = max(last[root], inside.end(operation, homes[root]))
        for ref in operation.outputs:
            source = trace.shares.get(ref.index, _passed_on(operation))
            if source is not None and source != ref.index:
                roots[ref.index] = source
            elif ref.index not in first and ref not in operation.references():
                first[ref.index], last[ref.index], homes[ref.index] = operation.index, operation.index, operation.module
    for ref in (*trace.results, *trace.handed):
        root = _root(roots, ref.index)
        if root in first:
            last[root] = end
    return [Life(tensor, start, last[tensor]) for tensor, start in first.items()]


def _root(roots: dict[int, int], tensor: int) -> int:
    while tensor in roots:
        tensor = roots[tensor]
    return tensor


def _passed_on(operation: Operation) -> int | None:
    """Index of the tensor that an operation hands on: dropout does that where it isn't training."""
    if "dropout" in operation.name and operation.arguments.get("train") is False:
        return operation.references()[0].index
    return None


class _Calls:
    """When the module calls of a trace end."""

    def __init__(self, operations: tuple[Operation, ...]) -> None:
        self._ends: dict[tuple[int, int], int] = {}
        self._paths = [operation.module.split(".") if operation.module else [] for operation in operations]
        for index in reversed(range(len(operations))):
            path = self._paths[index]
            later = self._paths[index + 1] if index + 1 < len(operations) else []
            for depth in range(1, len(path) + 1):
                same = later[:depth] == path[:depth]
                self._ends[index, depth] = self._ends[index + 1, depth] if same else index

    def end(self, operation: Operation, home: str) -> int:
        """Returns the last operation of the outermost call that an operation is in and a tensor's maker isn't."""
        made, used = home.split(".") if home else [], self._paths[operation.index]
        depth = 1
        while depth <= len(used) and made[:depth] == used[:depth]:
            depth += 1
        return self._ends.get((operation.index, depth), operation.index)


class MemoryCost(CostModel):
    """Bytes of weights, and of activations at their peak, of one forward on the (first) example inputs.

    It is the first recorded mode, run without gradients: what is needed for a backward pass doesn't count, nor does
    the scratch memory that kernels use while they run.
    """

    unit = "bytes"

    def compile(self, analysis: Analysis) -> Compiled:
        """Finds out once what is alive when; then only sizes change."""
        recording, sizer = analysis.counted[0][0], SymbolicSizer()
        held = lives(recording)
        sizes: list[Polynomial] = []
        for life in held:
            width = recording.trace.dtypes[life.tensor].itemsize
            sizes.append(as_polynomial(multiplied(recording.shape(life.tensor, sizer)) * width))
        evaluate = compile_polynomials(sizes, group_sizes(analysis))
        starts = torch.tensor([life.first + 1 for life in held], dtype=torch.long, device="cpu")
        ends = torch.tensor([life.last + 2 for life in held], dtype=torch.long, device="cpu")
        empty = torch.zeros(len(recording.trace.operations) + 2, dtype=torch.long, device="cpu")
        fixed = weights.compile(analysis)

        def cost(sizes: Sizes) -> float:
            held_bytes = evaluate(sizes)
            alive = empty.index_add(0, starts, held_bytes).index_add_(0, ends, -held_bytes).cumsum(0)
            return fixed(sizes) + float(alive.max())

        return cost


memory = MemoryCost()
"""Bytes of weights and of activations at their peak; see `MemoryCost`."""
