"""Scaled dot-product attention as one operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunekit.plugin import (
    Axis,
    AxisMismatchError,
    Kind,
    OpCall,
    Operands,
    OpRule,
    Rule,
    Scaling,
    TensorArgument,
    Verb,
    split,
)


def attention(call: OpCall) -> list[Axis]:
    """``softmax(q k^T * scale + mask) v``: head dims of q and k are contracted, those of v pass through.

    The default scale is ``1 / sqrt(D)``: a constant that follows the size of an axis.
    """
    query: TensorArgument = call["query"]
    key: TensorArgument = call["key"]
    value: TensorArgument = call["value"]
    call.tie(query.axes[-1], key.axes[-1])
    call.tie(key.axes[-2], value.axes[-2])
    call.whole(query.axes[-1], Verb.CONTRACT, operands=((query, -1), (key, -1)))
    call.whole(key.axes[-2], Verb.MIX)
    if call["is_causal"]:
        if query.shape[-2] == key.shape[-2]:
            call.tie(query.axes[-2], key.axes[-2])
        else:
            call.pin([query.axes[-2], key.axes[-2]], "a causal mask over lengths that differ")
    lead = [_lead(call, query, key, value, dim) for dim in range(query.ndim - 2)]
    if call.get("scale") is None:
        call.temperature("scale", query.shape[-1] ** -0.5, query.axes[-1], "query")
    mask = call.get("attn_mask")
    if mask is not None:
        scores = [*lead, query.axes[-2], key.axes[-2]]
        for back in range(1, mask.ndim + 1):
            if mask.shape[-back] == scores[-back].size:
                call.tie(scores[-back], mask.axes[-back])
    if query.ndim > 3:
        for axis in query.axes[1:-2]:  # windows may stand beside them, which belong to no parameter
            call.kind(axis, Kind.HEADS)
        call.kind(query.axes[-1], Kind.HEAD_DIM)
        call.kind(value.axes[-1], Kind.HEAD_DIM)
    return [*lead, query.axes[-2], value.axes[-1]]


def _lead(call: OpCall, query: TensorArgument, key: TensorArgument, value: TensorArgument, dim: int) -> Axis:
    """Ties a leading dim; fewer key heads than query heads are grouped-query attention."""
    axis = query.axes[dim]
    for other in (key, value):
        if other.shape[dim] == query.shape[dim]:
            call.tie(axis, other.axes[dim])
        elif other.shape[dim] != 1:
            if not call.get("enable_gqa") or query.shape[dim] % other.shape[dim]:
                raise AxisMismatchError("query and key heads don't match")
            heads, repeats = split(axis, other.shape[dim], query.shape[dim] // other.shape[dim])
            call.tie(heads, other.axes[dim])
            call.kind(repeats, Kind.QUERIES_PER_HEAD)
    return axis


def _like_query(arguments: Mapping[str, Any]) -> torch.Tensor | None:
    """Fused kernels write their output as the query lies; None where another one might run, or nothing fits."""
    query, key, value, mask = (arguments[name] for name in ("query", "key", "value", "attn_mask"))
    operands = (query, key, value)
    alike = all(t.dim() == 4 and t.dtype == query.dtype and t.shape[:2] == query.shape[:2] for t in operands)
    if not alike or arguments["dropout_p"] or arguments["enable_gqa"] or not query.is_floating_point():
        return None
    fits = query.shape[3] == key.shape[3] == value.shape[3] and key.shape[2] == value.shape[2]
    weights = (*query.shape[:3], key.shape[2])
    masked = mask is None or (
        mask.dim() <= 4 and all(own in (1, size) for own, size in zip(mask.shape[::-1], weights[::-1], strict=False))
    )
    whole = query.stride(3) == 1 and 0 not in query.stride()
    return query if fits and masked and whole else None


def weighted_zeros(operands: Operands, dim: int) -> bool:
    """A weighted mean of the values: zero where they are."""
    value = operands["value"]
    queries = dim == len(operands.shape) - 2
    return not queries and operands.along(value, dim - len(operands.shape) + operands.ndim(value))


RULES: Mapping[str | torch.Tag, Rule] = {
    "aten::scaled_dot_product_attention": OpRule(
        attention, like=_like_query, scaling=Scaling.CONSTANT, factors="scale", zeros=weighted_zeros
    ),
}
