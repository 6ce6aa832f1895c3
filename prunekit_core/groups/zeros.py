"""Which tensors of a program are zero where units were removed.

Zeroing the parameters that make a unit zeroes what is computed from them, as long as every operation in between makes
zeros of zeros: ``relu`` does, ``elu(x) + 1`` and ``sigmoid`` don't. A sum over an axis is exact only if what is summed
is zero at the removed units. The question is answered by walking back from that sum; op rules say how an operation
hands zeros on (`OpRule.zeros`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.algebra.layout import Layout, groups_of
from prunekit_core.program.rules import Elementwise, RuleTable
from prunekit_core.program.scaling import Scaling
from prunekit_core.program.trace import Operation, TensorRef, Trace

_REALS = (-3.1, -0.4, 0.7, 42.0)
_WHOLES = (-3, 0, 1, 5)
_COUNTS = (0, 1, 5)
"""Numbers that stand for any number, in a test of what an operation makes of zeros and others."""

_Question = tuple[int, int, int, str]
"""A tensor, the operation that wrote it last, one of its dims, and a group of units."""


class _UnknownError(Exception):
    """An answer depends on one that isn't there yet."""

    def __init__(self, question: _Question) -> None:
        super().__init__()
        self.question = question


@attrs.frozen(eq=False)
class Operands:
    """The operands of one operation, with what is zero in them along the units of one group.

    Attributes:
        operation: The operation.
        output: Which of its outputs is asked about.
        shape: The shape of that output.
    """

    operation: Operation
    output: int
    shape: tuple[int, ...]
    _zeros: Zeros
    _group: str

    def __getitem__(self, argument: str) -> Any:
        """Returns an argument by its schema name; a tensor is a `TensorRef`, and None may stand for a missing one."""
        return self.operation.arguments.get(argument)

    def ndim(self, tensor: TensorRef) -> int:
        """Returns the number of dims of an operand."""
        return len(self._zeros.trace.shapes[tensor.index])

    def dims(self, tensor: TensorRef) -> list[int]:
        """Lists the dims of an operand that hold units of the group."""
        return self._zeros.dims(tensor, self._group)

    def along(self, tensor: Any, dim: int) -> bool:
        """Tells whether an operand is zero where units along one of its dims were removed.

        Args:
            tensor: An argument; what is no tensor isn't zero.
            dim: One of its dims, which may be counted from the end.
        """
        if not isinstance(tensor, TensorRef):
            return False
        dim %= max(1, self.ndim(tensor))
        return dim in self.dims(tensor) and self._zeros.ask(tensor, dim, self._group, self.operation.index)

    def everywhere(self, *tensors: Any) -> bool:
        """Tells whether all of these operands that hold units of the group are zero at removed ones, and some do."""
        held = [tensor for tensor in tensors if isinstance(tensor, TensorRef) and self.dims(tensor)]
        return bool(held) and all(self.along(tensor, dim) for tensor in held for dim in self.dims(tensor))


class Zeros:
    """What is zero in one recorded program where units were removed.

    Args:
        trace: The program.
        live: Layouts of the tensors that can shrink, by `TensorRef.index`.
        rules: The op rules.
        zeroed: Names of the parameters (and buffers) that are zeroed where units go.
        marks: Tensors and their dims along which they are zero for units that weren't chosen.
    """

    def __init__(
        self,
        trace: Trace,
        live: Mapping[int, Sequence[Layout]],
        rules: RuleTable,
        zeroed: Collection[str],
        marks: Collection[tuple[int, int]] = (),
    ) -> None:
        self.trace = trace
        self._live, self._rules, self._marks = live, rules, marks
        self._zeroed = {ref.index for name, ref in trace.parameters.items() if name in zeroed}
        self._known: dict[_Question, bool] = {}
        self._tried: dict[Hashable, bool] = {}
        self._dims: dict[tuple[int, str], list[int]] = {}
        self._writers: dict[int, list[int]] = {}
        self._rewritten: dict[int, list[tuple[int, TensorRef]]] = {}
        for operation in trace.operations:
            for ref in operation.outputs:
                self._writers.setdefault(ref.index, []).append(operation.index)
                if ref in operation.references():  # written in place, which tensors of the same memory show as well
                    self._rewritten.setdefault(self.trace.memory(ref.index), []).append((operation.index, ref))

    def dims(self, tensor: TensorRef, group: str) -> list[int]:
        """Lists the dims of a tensor that hold units of a group."""
        key = (tensor.index, group)
        if key not in self._dims:
            layouts = self._live.get(tensor.index, ())
            self._dims[key] = [dim for dim, layout in enumerate(layouts) if group in groups_of(layout)]
        return self._dims[key]

    def sums(
        self, operation: Operation, operands: Sequence[tuple[TensorRef, int]], group: str, *, several: bool
    ) -> bool:
        """Tells whether removed units contribute nothing to a sum.

        Args:
            operation: The operation that sums.
            operands: What is summed over, each with its dim; if empty, everything that holds units of the group.
            group: The group.
            several: Whether products of the operands are summed, so that one that is zero is enough.
        """
        if not operands:
            refs = dict.fromkeys(operation.references())
            held = [(ref, dim) for ref in refs for dim in self.dims(ref, group)]
            return bool(held) and all(self.at(ref, dim, group, operation.index) for ref, dim in held)
        answers = (self.at(ref, dim, group, operation.index) for ref, dim in operands)
        return any(answers) if several else all(answers)

    def at(self, tensor: TensorRef, dim: int, group: str, reader: int) -> bool:
        """Tells whether a tensor is zero at removed units.

        Args:
            tensor: The tensor.
            dim: A dim that holds units of the group.
            group: The group.
            reader: Index of the operation that reads it.
        """
        pending = [self._question(tensor, dim, group, reader)]
        while pending:
            question = pending[-1]
            if question not in self._known:
                try:
                    self._known[question] = self._answer(question)
                except _UnknownError as unknown:
                    pending.append(unknown.question)
                    continue
            pending.pop()
        return self._known[self._question(tensor, dim, group, reader)]

    def ask(self, tensor: TensorRef, dim: int, group: str, reader: int) -> bool:
        """Returns an answer to another question (see `at`) while one is being answered."""
        question = self._question(tensor, dim, group, reader)
        if question not in self._known:
            raise _UnknownError(question)
        return self._known[question]

    def _question(self, tensor: TensorRef, dim: int, group: str, reader: int) -> _Question:
        return (tensor.index, self._written(tensor.index, reader), dim, group)

    def _written(self, index: int, reader: int) -> int:
        """Returns the last operation before a reader that wrote into the memory of a tensor; -1 if none did."""
        last = max((writer for writer in self._writers.get(index, ()) if writer < reader), default=-1)
        others = self._rewritten.get(self.trace.memory(index), ())
        return max((writer for writer, _ in others if last < writer < reader), default=last)

    def _answer(self, question: _Question) -> bool:
        index, writer, dim, group = question
        if writer < 0:
            return index in self._zeroed
        tensor, operation = TensorRef(index), self.trace.operations[writer]
        if tensor in operation.outputs:
            return self._made(operation, operation.outputs.index(tensor), dim, group)
        # something else wrote into its memory: zeros stay zeros where only zeros were written
        part = next(ref for place, ref in self._rewritten[self.trace.memory(index)] if place == writer)
        before = self.ask(tensor, dim, group, writer)
        written = all(self.ask(part, place, group, writer + 1) for place in self.dims(part, group))
        return before and written

    def _made(self, operation: Operation, output: int, dim: int, group: str) -> bool:
        if (operation.outputs[output].index, dim) in self._marks:
            return True
        shape = self.trace.shapes[operation.outputs[output].index]
        operands = Operands(operation, output, shape, self, group)
        rule = self._rules.find(operation.op)
        if rule is None:
            return False
        if isinstance(rule.zeros, Elementwise):
            return self._elementwise(operands, dim)
        if rule.zeros is not None:
            return bool(rule.zeros(operands, dim))
        tensors, how = operation.references(), rule.scaling
        if how in (Scaling.MOVED, Scaling.SUM):
            return operands.everywhere(*tensors)
        if how in (Scaling.WHOLE, Scaling.REDUCED, Scaling.QUOTIENT):
            return operands.everywhere(*tensors[:1])
        return how is Scaling.PRODUCT and any(operands.everywhere(tensor) for tensor in tensors)

    def _elementwise(self, operands: Operands, dim: int) -> bool:
        """Tries what an operation makes of single numbers, zero for operands that are and others for all others."""
        operation, shapes = operands.operation, self.trace.shapes
        zero = {}
        for tensor in operation.references():
            own = dim - len(operands.shape) + operands.ndim(tensor)
            aligned = own >= 0 and shapes[tensor.index][own] == operands.shape[dim]
            zero[tensor.index] = aligned and operands.along(tensor, own)
        if not any(zero.values()):
            return False
        key = (
            operation.name,
            tuple(self._form(value, zero) for value in operation.arguments.values()),
            operands.output,
        )
        if key not in self._tried:
            self._tried[key] = zero_of_zeros(self.trace, operation, zero, operands.output)
        return self._tried[key]

    def _form(self, value: Any, zero: Mapping[int, bool]) -> Hashable:
        if isinstance(value, TensorRef):
            return (zero[value.index], self.trace.dtypes[value.index])
        return tuple(self._form(item, zero) for item in value) if isinstance(value, list) else repr(value)


def zero_of_zeros(trace: Trace, operation: Operation, zero: Mapping[int, bool], output: int) -> bool:
    """Tells whether an elementwise operation makes zeros of zeros, by trying it on single numbers.

    Args:
        trace: The program that it is in.
        operation: The operation.
        zero: By `TensorRef.index`: whether each of its operands is zero; any other is taken to be any number.
        output: Which of its outputs is meant.
    """
    indices = list(zero)
    samples = [(0,) if zero[index] else _samples(trace.dtypes[index]) for index in indices]
    rows = list(itertools.product(*samples))
    columns = {
        index: torch.tensor([row[k] for row in rows], dtype=trace.dtypes[index], device="cpu")
        for k, index in enumerate(indices)
    }

    def filled(value: Any) -> Any:
        if isinstance(value, TensorRef):
            return columns[value.index].clone()
        return [filled(item) for item in value] if isinstance(value, list) else value

    try:
        result = operation.op(**{name: filled(value) for name, value in operation.arguments.items()})
    except Exception:  # not on this device, or not of this dtype: then nothing is known
        return False
    made = [result] if isinstance(result, torch.Tensor) else list(result)
    return bool((made[output].nan_to_num(nan=0.0) == 0).all())  # what is no number counts as zero, see MaskedOriginal


def zeros_after(trace: Trace, operation: Operation, zero: Collection[int], rules: RuleTable) -> set[int]:
    """Returns which tensors are zero throughout once an operation has run, by the op rules.

    Args:
        trace: The program that it is in.
        operation: The operation.
        zero: By `TensorRef.index`: the tensors that are zero before it.
        rules: The op rules.
    """
    written = {trace.memory(ref.index) for ref in operation.outputs if ref in operation.references()}
    left = {index for index in zero if trace.memory(index) not in written}
    outputs = enumerate(operation.outputs)
    return left | {ref.index for output, ref in outputs if _is_zero(trace, operation, output, zero, rules)}


def _is_zero(trace: Trace, operation: Operation, output: int, zero: Collection[int], rules: RuleTable) -> bool:
    rule, read = rules.find(operation.op), {ref.index: ref.index in zero for ref in operation.references()}
    if rule is None or not any(read.values()):
        return False
    if isinstance(rule.zeros, Elementwise):
        return zero_of_zeros(trace, operation, read, output)
    tensors = [read[ref.index] for ref in operation.references()]
    match rule.scaling:
        case Scaling.PRODUCT | Scaling.MATRIX | Scaling.MULTILINEAR | Scaling.ZEROS:
            return True
        case Scaling.MOVED:
            return all(tensors)
        case Scaling.ADDED_MATRIX:
            return tensors[0] and any(tensors[1:])
        case Scaling.CONSTANT:
            return len(tensors) > 2 and tensors[2]
        case Scaling.ROWS | Scaling.CHANNELS | Scaling.ALONG:
            weight, bias = (operation.arguments.get(name) for name in ("weight", "bias"))
            given = [value for value in (weight, bias) if isinstance(value, TensorRef)]
            return isinstance(weight, TensorRef) and all(read[ref.index] for ref in given)
    return False


def _samples(dtype: torch.dtype) -> tuple[Any, ...]:
    if dtype is torch.bool:
        return (False, True)
    if dtype.is_floating_point or dtype.is_complex:
        return _REALS
    return _COUNTS if dtype is torch.uint8 else _WHOLES
