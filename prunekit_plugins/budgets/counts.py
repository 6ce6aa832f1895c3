"""Counts of the trace: parameters, their bytes, and multiply-accumulates, as polynomials in the sizes of groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prunekit.plugin import (
    Analysis,
    Compiled,
    CostModel,
    Layout,
    Number,
    Operation,
    Recording,
    Sizer,
    SymbolicSizer,
    as_polynomial,
    compile_sum,
    multiplied,
)

Shape = tuple[Any, ...]
"""Sizes: numbers, or polynomials in the sizes of groups."""


class Shapes:
    """The shapes of one operation's tensors.

    Args:
        recording: The recording that the operation is in.
        operation: The operation.
        sizer: Computes sizes: a `Sizer` numbers, a `SymbolicSizer` polynomials.
    """

    def __init__(self, recording: Recording, operation: Operation, sizer: Callable[[Layout], Any]) -> None:
        self._recording, self.operation, self._sizer = recording, operation, sizer

    def __getitem__(self, argument: str) -> Shape:
        return self._recording.shape(self.operation.arguments[argument].index, self._sizer)

    @property
    def out(self) -> Shape:
        """The shape of the first output."""
        return self._recording.shape(self.operation.outputs[0].index, self._sizer)

    def listed(self, argument: str) -> list[Shape]:
        """The shapes of a list of tensors."""
        return [self._recording.shape(ref.index, self._sizer) for ref in self.operation.arguments[argument]]


class ParameterCost(CostModel):
    """A cost of parameters and buffers.

    Args:
        buffers: Whether buffers count, too.
        in_bytes: Whether bytes are counted instead of elements.
    """

    def __init__(self, *, buffers: bool, in_bytes: bool) -> None:
        self._buffers, self._in_bytes = buffers, in_bytes
        self.unit = "bytes" if in_bytes else ""

    def compile(self, analysis: Analysis) -> Compiled:
        """Adds all tensors up to one polynomial."""
        total = as_polynomial(0)
        for name, elements in analysis.elements(SymbolicSizer()).items():
            parameter = analysis.parameters[name]
            if self._buffers or not parameter.buffer:
                total += elements * (parameter.itemsize if self._in_bytes else 1)
        return compile_sum(total, analysis)


class MacsCost(CostModel):
    """Multiply-accumulates of one forward on the (first) example inputs, in the first recorded mode; of a workload,
    those of all its calls.

    Linear layers, matrix products, einsum, convolutions and attention count, one for each product that is added up
    (half of what ``torch.utils.flop_counter`` calls flops); biases, norms and pointwise operations don't.
    """

    def compile(self, analysis: Analysis) -> Compiled:
        """Adds all operations up to one polynomial, in which recordings that count half a time count whole numbers."""
        total, whole = as_polynomial(0), 1 if all(times.is_integer() for _, times in analysis.counted) else 2
        for recording, times in analysis.counted:
            for _, macs in operation_macs(recording, SymbolicSizer()):
                total += macs * round(times * whole)
        found = compile_sum(total, analysis)
        return found if whole == 1 else lambda sizes: found(sizes) / whole


def operation_macs(recording: Recording, sizer: Callable[[Layout], Any]) -> Iterator[tuple[Operation, Number]]:
    """Yields the multiply-accumulates of every operation of a recording that has any.

    Args:
        recording: The recording.
        sizer: Computes sizes: a `Sizer` numbers, a `SymbolicSizer` polynomials.
    """
    for operation in recording.trace.operations:
        formula = FORMULAS.get(operation.name.split(".")[0])
        if formula is not None:
            yield operation, formula(Shapes(recording, operation, sizer))


def whole_macs(recording: Recording) -> dict[int, int]:
    """Returns the multiply-accumulates of every operation of a recording that has any, with all units, by its index."""
    found = {}
    for operation, count in operation_macs(recording, Sizer({})):
        assert isinstance(count, int)  # a Sizer computes numbers
        found[operation.index] = count
    return found


params = ParameterCost(buffers=False, in_bytes=False)
"""Number of parameter elements (buffers don't count)."""
weights = ParameterCost(buffers=True, in_bytes=True)
"""Bytes of parameters and buffers."""
macs = MacsCost()
"""Multiply-accumulates of one forward; see `MacsCost`."""


def _linear(shapes: Shapes) -> Any:
    return multiplied(shapes.out) * shapes["input"][-1]


def _matmul(shapes: Shapes) -> Any:
    return multiplied(shapes.out) * shapes["self"][-1]


def _grouped_matmul(shapes: Shapes) -> Any:
    """Each row is multiplied by the matrix of one group: rows in all groups together, or the same number in each."""
    rows, out = shapes["self"], shapes.out
    if len(rows) == 2 and len(out) == 3:  # what is summed over is split among the groups
        return multiplied(rows) * out[-1]
    return multiplied(out) * rows[-1]


def _added_matmul(shapes: Shapes) -> Any:
    first = "mat1" if "mat1" in shapes.operation.arguments else "batch1"
    return multiplied(shapes.out) * shapes[first][-1]


def _convolution(shapes: Shapes) -> Any:
    return multiplied(shapes.out) * multiplied(shapes["weight"][1:])


def _transposed(shapes: Shapes) -> Any:
    return multiplied(shapes["input"]) * multiplied(shapes["weight"][1:])


def _either_convolution(shapes: Shapes) -> Any:
    return _transposed(shapes) if shapes.operation.arguments["transposed"] else _convolution(shapes)


def _attention(shapes: Shapes) -> Any:
    *lead, queries, width = shapes["query"]
    keys, values = shapes["value"][-2:]
    return multiplied(lead) * queries * keys * (width + values)


def _einsum(shapes: Shapes) -> Any:
    """Products of all labels' sizes: the cost of summing in one go."""
    terms = shapes.operation.arguments["equation"].replace(" ", "").split("->")[0].split(",")
    listed = shapes.listed("tensors")
    if len(listed) < 2:
        return 0
    sizes: dict[str, Any] = {}
    for term, shape in zip(terms, listed, strict=True):
        named = term.replace("...", "")
        hidden = len(shape) - len(named)
        at = term.find("...")
        labels = list(named) if at < 0 else [*term[:at], *(f"...{hidden - k}" for k in range(hidden)), *term[at + 3 :]]
        for label, size in zip(labels, shape, strict=True):
            if isinstance(sizes.get(label, 1), int) and sizes.get(label, 1) == 1:  # a size of one is broadcast
                sizes[label] = size
    return multiplied(sizes.values())


FORMULAS: Mapping[str, Callable[[Shapes], Any]] = {
    "aten::linear": _linear,
    "aten::matmul": _matmul,
    "aten::mm": _matmul,
    "aten::bmm": _matmul,
    "aten::mv": _matmul,
    "aten::_grouped_mm": _grouped_matmul,
    "aten::addmm": _added_matmul,
    "aten::baddbmm": _added_matmul,
    "aten::einsum": _einsum,
    "aten::conv1d": _convolution,
    "aten::conv2d": _convolution,
    "aten::conv3d": _convolution,
    "aten::conv_transpose1d": _transposed,
    "aten::conv_transpose2d": _transposed,
    "aten::conv_transpose3d": _transposed,
    "aten::convolution": _either_convolution,
    "aten::scaled_dot_product_attention": _attention,
}
