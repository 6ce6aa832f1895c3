"""Joining tensors along a dim, and taking them apart again."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunekit.plugin import (
    Axis,
    AxisMismatchError,
    OpCall,
    OpRule,
    Rule,
    Scaling,
    TensorArgument,
    concat,
    cut,
    is_pinned,
    look_up,
    split,
)
from prunekit_plugins.ops.names import aten
from prunekit_plugins.ops.pointwise import zeros_of_first
from prunekit_plugins.ops.scatters import written_zeros

BEFORE = "positions before the first one"
MIXED = "its positions are joined with other numbers"


def _tie_others(call: OpCall, tensors: list[TensorArgument], dim: int) -> list[Axis]:
    result = list(tensors[0].axes)
    for tensor in tensors[1:]:
        for position, axis in enumerate(tensor.axes):
            if position != dim:
                call.tie(result[position], axis)
    return result


def _like_joined(arguments: Mapping[str, Any]) -> tuple[torch.Tensor, Sequence[int]] | None:
    """The shape of what tensors of one dtype make, if they fit; it is contiguous unless they are channels_last."""
    first, *others = arguments["tensors"]
    dim, shape = arguments["dim"], list(first.shape)
    if _channels_last(first) or not -len(shape) <= dim < len(shape) or shape == [0]:
        return None
    dim %= len(shape)
    for tensor in others:
        own = list(tensor.shape)
        if tensor.dtype != first.dtype or _channels_last(tensor) or len(own) != len(shape):
            return None
        shape[dim] += own[dim]
        if own[:dim] != shape[:dim] or own[dim + 1 :] != shape[dim + 1 :] or own == [0]:
            return None
    return first, shape


def _channels_last(tensor: torch.Tensor) -> bool:
    """Whether a tensor of pictures or volumes may lie with its channels innermost."""
    return tensor.dim() in (4, 5) and not tensor.is_contiguous() and tensor.stride(1) <= tensor.stride(-1)


def _like_stacked(arguments: Mapping[str, Any]) -> tuple[torch.Tensor, Sequence[int]] | None:
    """The shape of what contiguous tensors of one shape and dtype make."""
    tensors, dim = arguments["tensors"], arguments["dim"]
    first = tensors[0]
    shape = list(first.shape)
    if not -len(shape) - 1 <= dim <= len(shape):
        return None
    if any(t.shape != first.shape or t.dtype != first.dtype or not t.is_contiguous() for t in tensors):
        return None
    shape.insert(dim % (len(shape) + 1), len(tensors))
    return first, shape


def _joined_positions(call: OpCall, tensors: list[TensorArgument]) -> None:
    """Positions that stand in one tensor are positions of one axis; together with other numbers they are none."""
    domains = [call.domain(tensor) for tensor in tensors]
    known = [axis for axis in domains if axis is not None]
    if known and len(known) == len(domains):
        call.numbers(call.tie(*known))
    else:
        call.pin(known, MIXED)


def cat(call: OpCall) -> list[Axis]:
    """The joined dim is the concat of the inputs' axes; all others are the same axis."""
    tensors = [t for t in call["tensors"] if t.shape != (0,)]
    if not tensors:
        return [call.fresh(size, "an empty tensor") for size in call.shape]
    dim = call["dim"] % len(call.shape)
    if all(call.expanded_dims(tensor) for tensor in tensors):
        call.expanded(frozenset.intersection(*map(call.expanded_dims, tensors)) - {dim})
    _joined_positions(call, tensors)
    result = _tie_others(call, tensors, dim)
    result[dim] = concat(tensor.axes[dim] for tensor in tensors)
    return result


def stack(call: OpCall) -> list[Axis]:
    """A new dim counts the inputs."""
    tensors = call["tensors"]
    _joined_positions(call, tensors)
    result = _tie_others(call, tensors, -1)
    result.insert(call["dim"] % len(call.shape), call.fresh(len(tensors), "counts the stacked tensors"))
    return result


def pieces(call: OpCall) -> list[list[Axis]]:
    """``split``, ``chunk`` and ``tensor_split`` cut one dim into consecutive pieces.

    ``chunk`` and ``split`` with a number compute their sizes from the tensor: the pieces stay equal, so they are tied.
    """
    source: TensorArgument = call["self"]
    dim = call["dim"] % source.ndim
    sizes = [shape[dim] for shape in call.shapes]
    parts = cut(source.axes[dim], [0, *itertools.accumulate(sizes)])
    listed = call.get("split_sizes", call.get("split_size"))
    if isinstance(listed, list):
        name = "split_sizes" if "split_sizes" in call else "split_size"
        for position, part in enumerate(parts):
            call.expect(name, [part], position)
    elif "indices" in call:
        for position in range(len(parts) - 1):
            call.expect("indices", parts[: position + 1], position)
    else:
        for part, size in zip(parts[1:], sizes[1:], strict=True):
            if size == sizes[0]:
                call.tie(parts[0], part)
            else:
                call.pin([*parts], "the pieces are of unequal size")
        if listed == sizes[0]:
            call.expect("split_size", [parts[0]])
    for output in range(len(parts)):
        call.expanded(call.expanded_dims(source), output)
    return [[part if k == dim else axis for k, axis in enumerate(source.axes)] for part in parts]


def unbind(call: OpCall) -> list[list[Axis]]:
    """One output for each position of a dim: that dim is pinned."""
    source: TensorArgument = call["self"]
    dim = call["dim"] % source.ndim
    call.pin(source.axes[dim], "taken apart one by one")
    for output in range(len(call.shapes)):
        call.numbers(call.domain(source), output)
    return [[axis for k, axis in enumerate(source.axes) if k != dim] for _ in call.shapes]


def select(call: OpCall) -> list[Axis]:
    """Takes one position of a dim: that dim is pinned, unless all positions are equal and this one always exists.

    If the position has just been read from those of another axis (``stack[index]``), the dim is that axis.
    """
    source: TensorArgument = call["self"]
    dim = call["dim"] % source.ndim
    equal = call.expanded_dims(source)
    chosen = call.last_number()
    call.numbers(call.domain(source))
    if chosen is not None and not is_pinned(chosen):
        look_up(source.axes[dim], chosen)
    elif dim not in equal or call["index"] not in (0, -1):
        call.expect("index", [call.fresh(call["index"] % source.shape[dim], BEFORE)], along=source.axes[dim])
        call.pin(source.axes[dim], "one position of it is selected")
    call.expanded(k - (k > dim) for k in equal if k != dim)
    return [axis for k, axis in enumerate(source.axes) if k != dim]


def slice_(call: OpCall) -> list[Axis]:
    """Takes a run of positions; every ``n``-th position reads the dim as ``outer x n``."""
    source: TensorArgument = call["self"]
    dim = call["dim"] % source.ndim
    size = source.shape[dim]
    start, stop, step = slice(call["start"], call["end"], call["step"]).indices(size)
    result = list(source.axes)
    call.expanded(call.expanded_dims(source))
    call.numbers(call.domain(source))
    axis = source.axes[dim]
    if (start, stop, step) == (0, size, 1):
        call.expect("start", [], along=axis)
        return result
    if is_pinned(axis) or call.shape[dim] == 0 or step != 1:
        call.expect("start", [call.fresh(start, BEFORE)], along=axis)
    if is_pinned(axis) or call.shape[dim] == 0:
        result[dim] = call.fresh(call.shape[dim], "a slice of a pinned dim")
        if call.shape[dim] == 0:
            call.pin(axis, "an empty slice")
        return result
    if step != 1:
        if size % step or stop != size or start >= step:
            raise AxisMismatchError(f"a slice {start}:{stop}:{step} of {size} units")
        outer, inner = split(axis, size // step, step)
        call.pin(inner, "every n-th unit is taken")
        result[dim] = outer
        return result
    points = sorted({0, start, stop, size})
    parts = cut(axis, points)
    low = points.index(start)
    counted: list[Axis] = []  # what lies behind a position that counts from the end must keep its size
    call.expect("start", parts[:low], along=axis)
    if (call["start"] or 0) < 0:
        counted += parts[low:]
    if call["end"] is not None and call["end"] < 0:
        counted += parts[low + 1 :]
    elif stop < size:
        call.expect("end", parts[: low + 1], along=axis)
    call.pin(counted, "positions before it are counted from the end")
    result[dim] = parts[low]
    return result


def narrow(call: OpCall) -> list[Axis]:
    source: TensorArgument = call["self"]
    dim, start, length = call["dim"] % source.ndim, call["start"], call["length"]
    if not isinstance(start, int):
        raise AxisMismatchError("narrow counts from a tensor")
    result = list(source.axes)
    call.expanded(call.expanded_dims(source))
    place = start % source.shape[dim] if start < 0 else start
    points = sorted({0, place, place + length, source.shape[dim]})
    parts = cut(source.axes[dim], points)
    low = points.index(place)
    call.expect("start", parts[:low], along=source.axes[dim])
    if start < 0:
        call.pin(parts[low:], "positions before it are counted from the end")
    call.expect("length", [parts[low]])
    result[dim] = parts[low]
    return result


def glu(call: OpCall) -> list[Axis]:
    """``a * sigmoid(b)`` with the halves of one dim: they are tied."""
    source: TensorArgument = call["self"]
    dim = call["dim"] % source.ndim
    half = call.shape[dim]
    first, second = cut(source.axes[dim], [0, half, 2 * half])
    result = list(source.axes)
    result[dim] = call.tie(first, second)
    return result


def write_position(call: OpCall) -> list[Axis]:
    """``select_scatter`` writes one position of a dim: that dim is pinned, all others are shared."""
    target: TensorArgument = call["self"]
    dim = call["dim"] % target.ndim
    call.pin(target.axes[dim], "one position of it is written")
    rest = [axis for k, axis in enumerate(target.axes) if k != dim]
    for own, other in zip(rest, call["src"].axes, strict=True):
        call.tie(own, other)
    return list(target.axes)


def write_run(call: OpCall) -> list[Axis]:
    """``slice_scatter`` writes a run of positions: unless that is all, the dim is pinned."""
    target: TensorArgument = call["self"]
    source: TensorArgument = call["src"]
    dim = call["dim"] % target.ndim
    start, stop, _ = slice(call["start"], call["end"], call["step"]).indices(target.shape[dim])
    before = call.fresh(start, BEFORE)
    call.expect("start", [before], along=target.axes[dim])
    everything = source.shape[dim] == target.shape[dim]
    run = target.axes[dim] if everything else call.fresh(stop - start, "a run of it is written")
    call.expect("end", [before, run], along=target.axes[dim])
    for position, (own, other) in enumerate(zip(target.axes, source.axes, strict=True)):
        if position != dim or source.shape[dim] == target.shape[dim]:
            call.tie(own, other)
        else:
            call.pin([own, other], "a run of it is written")
    return list(target.axes)


_SPLITS = "split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk tensor_split"
_CUTS = dict.fromkeys(
    ("split_size", "split_sizes", "indices", "sections", "chunks"),
    "the shapes of the pieces say where they begin and end",
)
_LENGTH = "with the place where it begins, the shape of the output says where the run ends"

RULES: Mapping[str | torch.Tag, Rule] = {
    **aten(_SPLITS, OpRule(pieces, scaling=Scaling.MOVED, sizes=_CUTS)),
    **aten("cat concat concatenate", OpRule(cat, like=_like_joined, scaling=Scaling.MOVED, positions="tensors")),
    "aten::stack": OpRule(stack, like=_like_stacked, scaling=Scaling.MOVED, positions="tensors"),
    "aten::unbind": OpRule(unbind, scaling=Scaling.MOVED, positions="self"),
    "aten::select": OpRule(select, scaling=Scaling.MOVED, positions="self"),
    "aten::slice": OpRule(slice_, scaling=Scaling.MOVED, sizes={"end": _LENGTH}, positions="self"),
    "aten::narrow": OpRule(narrow, scaling=Scaling.MOVED, sizes={"length": _LENGTH}),
    "aten::glu": OpRule(glu, zeros=zeros_of_first),
    "aten::select_scatter": OpRule(write_position, zeros=written_zeros),
    "aten::slice_scatter": OpRule(write_run, zeros=written_zeros),
}
