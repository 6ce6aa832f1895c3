"""Reductions over dims."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunekit_core import Axis, OpCall, Rule, Scaling, TensorArgument, Verb, scales


def _reduced(call: OpCall, source: TensorArgument) -> list[int]:
    dims = call.get("dim")
    if dims is None or dims == []:
        return list(range(source.ndim))
    return [dim % source.ndim for dim in ([dims] if isinstance(dims, int) else dims)] if source.ndim else []


def reduce(call: OpCall) -> list[list[Axis]]:
    """Sums, means, norms, extrema: the result depends on all units of a reduced dim."""
    source = call.tensors()[0]
    gone = _reduced(call, source)
    for dim in gone:
        call.whole(source.axes[dim], Verb.MIX)
    return [_remaining(call, source, gone)] * len(call.shapes)


def locate(call: OpCall) -> list[list[Axis]]:
    """Reductions that return positions (argmax, max with dim): units can't be renumbered, so the dim is pinned."""
    source = call.tensors()[0]
    gone = _reduced(call, source)
    call.pin([source.axes[dim] for dim in gone], "its positions are looked up")
    return [_remaining(call, source, gone)] * len(call.shapes)


def _remaining(call: OpCall, source: TensorArgument, gone: list[int]) -> list[Axis]:
    keep = len(call.shape) == source.ndim and bool(call.get("keepdim", False))
    result = []
    for dim, axis in enumerate(source.axes):
        if dim not in gone:
            result.append(axis)
        elif keep:
            result.append(Axis(1))
    return result


_HOMOGENEOUS = "sum mean amax amin std nansum nanmean"
"""Reductions that scale with what they are given."""

_REDUCTIONS = """
_is_all_true _is_any_true all any count_nonzero linalg_vector_norm logsumexp max median min norm prod std_mean var
var_mean
"""

RULES: Mapping[str | torch.Tag, Rule] = {
    **{f"aten::{name}": reduce for name in _REDUCTIONS.split()},
    **{f"aten::{name}": scales(Scaling.WHOLE)(reduce) for name in _HOMOGENEOUS.split()},
    "aten::argmax": locate,
    "aten::argmin": locate,
    "aten::max.dim": locate,
    "aten::min.dim": locate,
    "aten::median.dim": locate,
}
