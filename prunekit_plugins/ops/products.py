"""Linear layers, matrix products and einsum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit.plugin import (
    Axis,
    AxisMismatchError,
    Kind,
    OpCall,
    Operands,
    OpRule,
    Role,
    Rule,
    Scaling,
    TensorArgument,
    TensorRef,
    Verb,
    is_pinned,
    resolve,
)
from prunekit_plugins.ops import readings
from prunekit_plugins.ops.names import aten
from prunekit_plugins.ops.pointwise import broadcast


def _like_rows(arguments: Mapping[str, Any]) -> tuple[torch.Tensor, list[int]] | None:
    """A linear layer's output has the leading dims of its input and the rows of its weight, if the parameters fit."""
    source, weight, bias = arguments["input"], arguments["weight"], arguments["bias"]
    if source.dim() < 2 or weight.dim() != 2 or source.shape[-1] != weight.shape[1] or source.dtype != weight.dtype:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return source, [*source.shape[:-1], weight.shape[0]]


def linear(call: OpCall) -> list[Axis]:
    """``y = x W^T + b`` with ``W [out, in]``."""
    source, weight, bias = call["input"], call["weight"], call["bias"]
    call.tie(source.axes[-1], weight.axes[-1])
    call.role(weight, -1, Role.IN)
    if not weight.parameter:
        call.whole(weight.axes[-1], Verb.CONTRACT, operands=((source, -1), (weight, -1)))
    if weight.ndim == 1:
        return list(source.axes[:-1])
    call.role(weight, 0, Role.OUT)
    call.kind(weight.axes[0], Kind.NEURONS)
    if bias is not None:
        call.tie(weight.axes[0], bias.axes[0])
        call.role(bias, 0, Role.ALONG)
    return [*source.axes[:-1], weight.axes[0]]


def linear_zeros(operands: Operands, dim: int) -> bool:
    """A row of the weight makes an output feature; what is zero for all features gets the bias."""
    weight, bias = operands["weight"], operands["bias"]
    if operands.ndim(weight) == 2 and dim == len(operands.shape) - 1:
        return operands.along(weight, 0) and (bias is None or operands.along(bias, 0))
    return bias is None and operands.along(operands["input"], dim)


def multiply(call: OpCall, left: TensorArgument, right: TensorArgument, shape: tuple[int, ...]) -> list[Axis]:
    """Batched matrix product of two tensors with at least one dim each."""
    rows = [left.axes[-2]] if left.ndim > 1 else []
    columns = [right.axes[-1]] if right.ndim > 1 else []
    inner = left.axes[-1]
    call.tie(inner, right.axes[-2] if right.ndim > 1 else right.axes[-1])
    call.whole(inner, Verb.CONTRACT, operands=((left, -1), (right, max(-2, -right.ndim))))
    for tensor, out, produced, consumed in ((left, rows, -2, -1), (right, columns, -1, max(-2, -right.ndim))):
        if tensor.parameter:
            call.role(tensor, consumed, Role.IN)
            for axis in out:
                call.role(tensor, produced, Role.OUT)
                call.kind(axis, Kind.NEURONS)
    lead_shape = shape[: len(shape) - len(rows) - len(columns)]
    lead = broadcast(call, [_lead(left), _lead(right)], lead_shape)
    if not left.parameter and not right.parameter and any(not is_pinned(axis) for axis in lead):
        for axis in lead:
            call.kind(axis, Kind.HEADS)
        for axis in (inner, *columns):
            call.kind(axis, Kind.HEAD_DIM)
    return [*lead, *rows, *columns]


def _lead(tensor: TensorArgument) -> TensorArgument:
    return TensorArgument(tensor.ref, tensor.shape[:-2], tensor.axes[:-2], tensor.dtype)


def matmul(call: OpCall) -> list[Axis]:
    left, right = call.tensors()[:2]
    return multiply(call, left, right, call.shape)


def matmul_zeros(operands: Operands, dim: int) -> bool:
    """Rows come from the first matrix, columns from the second, and either one can make a whole product zero."""
    return _product_zeros(operands, operands.operation.references()[:2], dim)


def _product_zeros(operands: Operands, factors: Sequence[TensorRef], dim: int) -> bool:
    left, right = factors
    back = len(operands.shape) - dim
    columns, rows = int(operands.ndim(right) > 1), int(operands.ndim(left) > 1)
    if back <= columns:
        return operands.along(right, -1)
    if back <= columns + rows:
        return operands.along(left, -2)
    lead = back - columns - rows + 2
    return any(operands.along(factor, -lead) for factor in (left, right) if operands.ndim(factor) >= lead)


def add_matmul_zeros(operands: Operands, dim: int) -> bool:
    """The product is zero, and so is what is added to it."""
    bias, *factors = operands.operation.references()[:3]
    back = len(operands.shape) - dim
    added = operands.ndim(bias) >= back and operands.along(bias, -back)
    return added and _product_zeros(operands, factors, dim)


def add_matmul(call: OpCall) -> list[Axis]:
    """``addmm``, ``baddbmm``, ``addmv``: a product with something broadcast onto it."""
    bias, left, right = call.tensors()[:3]
    result = multiply(call, left, right, call.shape)
    for back in range(1, bias.ndim + 1):
        if bias.shape[-back] == call.shape[-back]:
            call.tie(result[-back], bias.axes[-back])
            call.role(bias, -back, Role.ALONG)
    return result


def sum_of_products(call: OpCall) -> list[Axis]:
    """``addbmm``: products of pairs of matrices, added up."""
    bias, left, right = call.tensors()[:3]
    call.tie(left.axes[0], right.axes[0])
    call.tie(left.axes[2], right.axes[1])
    call.whole(left.axes[0], Verb.CONTRACT)
    call.whole(left.axes[2], Verb.CONTRACT)
    return broadcast(call, [_matrix(left.axes[1], right.axes[2], left), bias], call.shape)


def outer_product(call: OpCall) -> list[Axis]:
    """``addr``: the outer product of two vectors, with something broadcast onto it."""
    bias, first, second = call.tensors()[:3]
    return broadcast(call, [_matrix(first.axes[0], second.axes[0], first), bias], call.shape)


def _matrix(rows: Axis, columns: Axis, like: TensorArgument) -> TensorArgument:
    return TensorArgument(like.ref, (rows.size, columns.size), (rows, columns), like.dtype)


def grouped_matmul(call: OpCall) -> list[Axis]:
    """Rows sorted by expert, times one matrix per expert; where the rows of an expert end is written in the offsets.

    ``[tokens, k] x [experts, k, n]`` with offsets, or ``[experts, tokens, k] x [experts, k, n]`` without.
    """
    left, right = call["self"], call["mat2"]
    offsets: TensorArgument | None = call["offs"]
    if call["bias"] is not None or right.ndim != 3:
        raise AxisMismatchError("a grouped product with a bias, or of another number of dims")
    if offsets is None:
        return multiply(call, left, right, call.shape)
    if call.is_chosen(offsets.axes[0]):
        call.tie(offsets.axes[0], right.axes[0])
    else:
        call.pin([right.axes[0], *offsets.axes], "experts are told apart by number")
    call.tie(left.axes[-1], right.axes[1])
    call.whole(left.axes[-1], Verb.CONTRACT, operands=((left, -1), (right, 1)))
    call.role(right, 1, Role.IN)
    call.role(right, 2, Role.OUT)
    call.kind(right.axes[2], Kind.NEURONS)
    call.pin(left.axes[0], "rows are sorted by expert")
    return [left.axes[0], right.axes[2]]


def bilinear(call: OpCall) -> list[Axis]:
    """``y_o = x1 W_o x2 + b_o`` with ``W [out, in1, in2]``."""
    first, second, weight, bias = call["input1"], call["input2"], call["weight"], call["bias"]
    for dim, source in ((1, first), (2, second)):
        call.tie(source.axes[-1], weight.axes[dim])
        call.role(weight, dim, Role.IN)
        if not weight.parameter:
            call.whole(weight.axes[dim], Verb.CONTRACT, operands=((source, -1), (weight, dim)))
    call.role(weight, 0, Role.OUT)
    call.kind(weight.axes[0], Kind.NEURONS)
    if bias is not None:
        call.tie(weight.axes[0], bias.axes[0])
        call.role(bias, 0, Role.ALONG)
    for own, other in zip(first.axes[:-1], second.axes[:-1], strict=True):
        call.tie(own, other)
    return [*first.axes[:-1], weight.axes[0]]


def distances(call: OpCall) -> list[Axis]:
    """All pairs of rows: the norm of their difference depends on every unit."""
    left, right = call["x1"], call["x2"]
    call.tie(left.axes[-1], right.axes[-1])
    call.whole(left.axes[-1], Verb.MIX)
    return [*broadcast(call, [_lead(left), _lead(right)], call.shape[:-2]), left.axes[-2], right.axes[-2]]


def einsum(call: OpCall) -> list[Axis]:
    """Labels are axes; a label that is summed away is contracted."""
    tensors: list[TensorArgument] = call["tensors"]
    inputs, output = _labels(call["equation"], [tensor.ndim for tensor in tensors])
    known: dict[str, Axis] = {}
    for labels, tensor in zip(inputs, tensors, strict=True):
        for label, axis in zip(labels, tensor.axes, strict=True):
            if label not in known or resolve(known[label]).size == 1:
                known[label] = axis
            elif resolve(axis).size != 1:
                call.tie(known[label], axis)
    if not any(tensor.parameter for tensor in tensors):
        for label in output:
            if all(label in labels for labels in inputs) and len(inputs) > 1:
                call.kind(known[label], Kind.HEADS)
    for labels, tensor in zip(inputs, tensors, strict=True):
        for dim, label in enumerate(labels):
            call.role(tensor, dim, Role.OUT if label in output else Role.IN)
    for label in dict.fromkeys("".join(inputs)):
        if label not in output:
            pairs = zip(inputs, tensors, strict=True)
            held = [(tensor, dim) for labels, tensor in pairs for dim, own in enumerate(labels) if own == label]
            verb = Verb.CONTRACT if len({id(tensor) for tensor, _ in held}) > 1 else Verb.SUM
            call.whole(known[label], verb, operands=held)
    return [known[label] for label in output]


def einsum_zeros(operands: Operands, dim: int) -> bool:
    """Any operand that has the label can make the product zero."""
    tensors = operands["tensors"]
    inputs, output = _labels(operands["equation"], [operands.ndim(tensor) for tensor in tensors])
    pairs = zip(inputs, tensors, strict=True)
    held = ((tensor, place) for labels, tensor in pairs for place, own in enumerate(labels) if own == output[dim])
    return any(operands.along(tensor, place) for tensor, place in held)


def _labels(equation: str, ndims: list[int]) -> tuple[list[str], str]:
    """Reads an einsum equation; an ellipsis becomes upper-case Greek labels, counted from the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = [chr(0x391 + position) for position in range(17)]
    widest = max((ndim - len(term.replace("...", "")) for term, ndim in zip(terms, ndims, strict=True)), default=0)
    if widest > len(spare):
        raise AxisMismatchError("an einsum with too many dims under its ellipsis")
    filled = []
    for term, ndim in zip(terms, ndims, strict=True):
        hidden = ndim - len(term.replace("...", ""))
        filled.append(term.replace("...", "".join(spare[widest - hidden : widest])))
    if not arrow:
        joined = "".join(filled)
        right = "".join(spare[:widest]) + "".join(
            sorted(c for c in set(joined) if joined.count(c) == 1 and c not in spare)
        )
    return filled, right.replace("...", "".join(spare[:widest]))


_PRODUCT = OpRule(matmul, scaling=Scaling.MATRIX, zeros=matmul_zeros)
_ADDED = OpRule(add_matmul, scaling=Scaling.ADDED_MATRIX, factors=("alpha", "beta"), zeros=add_matmul_zeros)

RULES: Mapping[str | torch.Tag, Rule] = {
    "aten::linear": OpRule(linear, like=_like_rows, scaling=Scaling.ROWS, zeros=linear_zeros, reads=readings.LINEAR),
    "aten::matmul": attrs.evolve(_PRODUCT, reads=readings.PRODUCT),
    "aten::mm": attrs.evolve(_PRODUCT, reads=readings.PLAIN_PRODUCT),
    "aten::bmm": _PRODUCT,
    **aten("mv dot vdot", OpRule(matmul, scaling=Scaling.MULTILINEAR, zeros=matmul_zeros)),
    "aten::addmm": attrs.evolve(_ADDED, reads=readings.ADDED_PRODUCT),
    "aten::baddbmm": _ADDED,
    "aten::addmv": OpRule(add_matmul, zeros=add_matmul_zeros),
    "aten::addbmm": sum_of_products,
    "aten::addr": outer_product,
    "aten::_grouped_mm": grouped_matmul,
    "aten::bilinear": bilinear,
    **aten("cdist _cdist_forward", distances),
    "aten::einsum": OpRule(einsum, scaling=Scaling.MULTILINEAR, zeros=einsum_zeros),
}
