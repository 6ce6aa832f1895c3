"""Costs of a cut, computed from the recorded operations and the sizes that remain; nothing is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from prunekit_core import Analysis, Kept, Operation, Recording, Sizer

Shape = tuple[int, ...]


class Shapes:
    """The shapes of one operation's tensors when only the kept units stay."""

    def __init__(self, recording: Recording, operation: Operation, sizer: Sizer) -> None:
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


def params(analysis: Analysis, kept: Kept) -> float:
    """Number of parameter elements (buffers don't count)."""
    sizer = Sizer(kept)
    return float(sum(math.prod(map(sizer, p.dims)) for p in analysis.parameters.values() if not p.buffer))


def memory(analysis: Analysis, kept: Kept) -> float:
    """Bytes of parameters and buffers."""
    sizer = Sizer(kept)
    return float(sum(math.prod(map(sizer, p.dims)) * p.itemsize for p in analysis.parameters.values()))


def macs(analysis: Analysis, kept: Kept) -> float:
    """Multiply-accumulates of one forward on the (first) example inputs, in the first recorded mode.

    Linear layers, matrix products, einsum, convolutions and attention count, one for each product that is added up
    (half of what ``torch.utils.flop_counter`` calls flops); biases, norms and pointwise operations don't.
    """
    recording, sizer = analysis.recordings[0], Sizer(kept)
    total = 0
    for operation in recording.trace.operations:
        formula = FORMULAS.get(operation.name.split(".")[0])
        if formula is not None:
            total += formula(Shapes(recording, operation, sizer))
    return float(total)


def _linear(shapes: Shapes) -> int:
    return math.prod(shapes.out) * shapes["input"][-1]


def _matmul(shapes: Shapes) -> int:
    return math.prod(shapes.out) * shapes["self"][-1]


def _added_matmul(shapes: Shapes) -> int:
    first = "mat1" if "mat1" in shapes.operation.arguments else "batch1"
    return math.prod(shapes.out) * shapes[first][-1]


def _convolution(shapes: Shapes) -> int:
    return math.prod(shapes.out) * math.prod(shapes["weight"][1:])


def _transposed(shapes: Shapes) -> int:
    return math.prod(shapes["input"]) * math.prod(shapes["weight"][1:])


def _either_convolution(shapes: Shapes) -> int:
    return _transposed(shapes) if shapes.operation.arguments["transposed"] else _convolution(shapes)


def _attention(shapes: Shapes) -> int:
    *lead, queries, width = shapes["query"]
    keys, values = shapes["value"][-2:]
    return math.prod(lead) * queries * keys * (width + values)


def _einsum(shapes: Shapes) -> int:
    """Products of all labels' sizes: the cost of summing in one go."""
    terms = shapes.operation.arguments["equation"].replace(" ", "").split("->")[0].split(",")
    listed = shapes.listed("tensors")
    if len(listed) < 2:
        return 0
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, listed, strict=True):
        named = term.replace("...", "")
        hidden = len(shape) - len(named)
        at = term.find("...")
        labels = list(named) if at < 0 else [*term[:at], *(f"...{hidden - k}" for k in range(hidden)), *term[at + 3 :]]
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


FORMULAS: Mapping[str, Callable[[Shapes], int]] = {
    "aten::linear": _linear,
    "aten::matmul": _matmul,
    "aten::mm": _matmul,
    "aten::bmm": _matmul,
    "aten::mv": _matmul,
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
