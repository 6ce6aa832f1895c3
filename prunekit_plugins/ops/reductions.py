"""Reductions over dims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunekit.plugin import Axis, OpCall, OpRule, Rule, Scaling, TensorArgument, Verb
from prunekit_plugins.ops.names import aten
from prunekit_plugins.ops.pointwise import zeros_of_first


def _reduced(call: OpCall, source: TensorArgument) -> list[int]:
    dims = call.get("dim")
    if dims is None or dims == []:
        return list(range(source.ndim))
    return [dim % source.ndim for dim in ([dims] if isinstance(dims, int) else dims)] if source.ndim else []


def _like_reduced(arguments: Mapping[str, Any]) -> tuple[torch.Tensor, Sequence[int]] | None:
    """Sums and means of a contiguous tensor of real numbers, in their dtype."""
    source, dims = arguments["self"], arguments.get("dim")
    if not source.is_contiguous() or not source.is_floating_point() or arguments.get("dtype") is not None:
        return None
    ndim = source.dim()
    if not dims:
        dims = range(ndim)
    if any(not -ndim <= dim < ndim for dim in dims) or len({dim % ndim for dim in dims}) != len(dims):
        return None
    gone = {dim % ndim for dim in dims}
    shape = [1 if dim in gone else size for dim, size in enumerate(source.shape)]
    kept = arguments.get("keepdim")
    return source, shape if kept else [size for dim, size in enumerate(shape) if dim not in gone]


def reduce(call: OpCall) -> list[list[Axis]]:
    """Sums, means, norms, extrema: the result depends on all units of a reduced dim."""
    source = call.tensors()[0]
    gone = _reduced(call, source)
    for dim in gone:
        call.whole(source.axes[dim], Verb.MIX)
    return [_remaining(call, source, gone)] * len(call.shapes)


def deviate(call: OpCall) -> list[list[Axis]]:
    """Variances and deviations: a sum of squares divided by the number of elements less the correction."""
    source = call.tensors()[0]
    given = call.get("correction", 1 if call.get("unbiased", True) else 0)
    correction = 1 if given is None else given
    needed = math.floor(correction) + 1
    text = f"a variance with correction {correction:g} needs {needed} elements"
    call.at_least([source.axes[dim] for dim in _reduced(call, source)], needed, text)
    return reduce(call)


def add_up(call: OpCall) -> list[list[Axis]]:
    """Sums, and norms, which are roots of sums: zeros contribute nothing."""
    source = call.tensors()[0]
    gone = _reduced(call, source)
    order = call.get("ord", call.get("p", 2))
    plain = order is None or (isinstance(order, int | float) and order > 0)
    for dim in gone:
        call.whole(source.axes[dim], Verb.SUM if plain else Verb.MIX, operands=((source, dim),))
    return [_remaining(call, source, gone)] * len(call.shapes)


def locate(call: OpCall) -> list[list[Axis]]:
    """Reductions that return positions: of one dim, one is chosen (argmax, max with dim); several dims are pinned."""
    if len(call.shapes) > 1 and not call.is_read(1):  # ``max(dim)[0]``
        return reduce(call)
    source = call.tensors()[0]
    gone = _reduced(call, source)
    if len(gone) == 1 and "median" not in call.name:
        call.choose(source, gone[0], 1, len(call.shapes) - 1, gone[0] if len(call.shape) == source.ndim else None)
        return [_remaining(call, source, gone)] * len(call.shapes)
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


_HOMOGENEOUS = "amax amin nanmean"
"""Reductions that scale with what they are given."""
_SUMS = "nansum"
_COUNTS = "_is_any_true any count_nonzero"
"""Reductions to which zeros contribute nothing."""

_DEVIATIONS = "std_mean var var_mean"
_REDUCTIONS = "_aminmax aminmax prod max min median nanmedian"

RULES: Mapping[str | torch.Tag, Rule] = {
    **aten(_REDUCTIONS, OpRule(reduce, zeros=zeros_of_first)),
    **aten(_DEVIATIONS, OpRule(deviate, zeros=zeros_of_first)),
    "aten::std": OpRule(deviate, scaling=Scaling.WHOLE),
    **aten("_is_all_true all logsumexp", reduce),
    **aten(_COUNTS, OpRule(add_up, zeros=zeros_of_first)),
    **aten("linalg_vector_norm norm", OpRule(add_up, scaling=Scaling.REDUCED, zeros=zeros_of_first)),
    "aten::sum": OpRule(add_up, like=_like_reduced, scaling=Scaling.REDUCED),
    "aten::mean": OpRule(reduce, like=_like_reduced, scaling=Scaling.REDUCED),
    **aten(_SUMS, OpRule(add_up, scaling=Scaling.REDUCED)),
    **aten(_HOMOGENEOUS, OpRule(reduce, scaling=Scaling.REDUCED)),
    **aten("argmax argmin max.dim min.dim median.dim nanmedian.dim", locate),
}
