"""Sparse tensors: dims whose positions are stored as numbers are pinned, dense ones pass."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunekit.plugin import Axis, OpCall, OpRule, Rule, TensorArgument
from prunekit_plugins.ops.names import aten
from prunekit_plugins.ops.pointwise import like_first
from prunekit_plugins.ops.products import add_matmul, matmul

STORED = "its positions are stored as numbers"


def from_parts(call: OpCall) -> list[Axis]:
    """Indices and values make a sparse tensor; the values' own dims are its dense ones."""
    values: TensorArgument = call["values"]
    dense = values.axes[1:]
    parts = [tensor for tensor in call.tensors() if tensor is not values]
    call.pin([values.axes[0], *(axis for tensor in parts for axis in tensor.axes)], STORED)
    return [*(call.fresh(size, STORED) for size in call.shape[: len(call.shape) - len(dense)]), *dense]


def values_of(call: OpCall) -> list[Axis]:
    """The stored values, one after another."""
    source: TensorArgument = call["self"]
    dense = len(call.shape) - 1
    call.pin(source.axes[: source.ndim - dense], STORED)
    return [call.fresh(call.shape[0], STORED), *source.axes[source.ndim - dense :]]


def positions_of(call: OpCall) -> list[list[Axis]]:
    """The stored positions: all dims of the tensor are pinned, as it isn't known which of them are dense."""
    call.pin(call["self"].axes, STORED)
    return [[call.fresh(size, STORED) for size in shape] for shape in call.shapes]


def to_sparse(call: OpCall) -> list[Axis]:
    """Dims that become sparse are pinned; the last ones may stay dense."""
    source: TensorArgument = call["self"]
    sparse = call.get("sparse_dim")
    if sparse is None:
        sparse = source.ndim - (call.get("dense_dim") or 0)
    call.pin(source.axes[:sparse], STORED)
    return list(source.axes)


def storage_query(call: OpCall) -> None:
    """How a tensor is stored is nothing that a program computes with."""


def sparse_product(call: OpCall) -> list[list[Axis]]:
    """A sparse matrix times a dense one; a further output says which element was the extremum."""
    return [matmul(call)] * len(call.shapes)


def segments(call: OpCall) -> list[Axis]:
    """``segment_reduce``: runs along one dim become one unit each; other dims pass."""
    source: TensorArgument = call["data"]
    dim = call["axis"] % source.ndim
    bounds = [tensor for tensor in call.tensors() if tensor is not source]
    call.pin([source.axes[dim], *(axis for tensor in bounds for axis in tensor.axes)], "runs of it are reduced")
    result = list(source.axes)
    result[dim] = call.fresh(call.shape[dim], "runs of it are reduced")
    return result


_FROM_PARTS = """
_sparse_coo_tensor_with_dims_and_tensors _sparse_coo_tensor_unsafe sparse_coo_tensor.indices_size
"""

RULES: Mapping[str | torch.Tag, Rule] = {
    **aten(_FROM_PARTS, OpRule(from_parts, sizes={"size": "it is the shape of the output"})),
    "aten::_coalesce": like_first,
    **aten("_values values", values_of),
    **aten("_indices indices crow_indices col_indices", positions_of),
    "aten::_to_dense": like_first,
    **aten("_to_sparse _to_sparse_csr _to_sparse_csc", to_sparse),
    "aten::is_coalesced": storage_query,
    **aten("_sparse_mm _sparse_mm_reduce_impl", sparse_product),
    "aten::_sparse_addmm": add_matmul,
    "aten::segment_reduce": segments,
}
