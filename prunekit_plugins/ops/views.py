"""Views: the same elements under another shape or order of dims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from prunekit.plugin import (
    Axis,
    AxisMismatchError,
    Kind,
    OpCall,
    OpRule,
    Rule,
    Scaling,
    TensorArgument,
    Verb,
    product,
    regroup,
    split,
)
from prunekit_plugins.ops.names import aten
from prunekit_plugins.ops.pointwise import same_along, zeros_of_first

COUNTED = "repeated as often as a tensor says"


def reshape(call: OpCall) -> list[Axis]:
    """``view`` and its relatives deal the factors of the input out to the new sizes."""
    source: TensorArgument = call.tensors()[0]
    equal = call.expanded_dims(source)
    if equal:
        call.expanded(_equal_after(source.shape, equal, call.shape))
    call.numbers(call.domain(source))
    return regroup(source.axes, call.shape)


def _equal_after(shape: tuple[int, ...], equal: frozenset[int], target: tuple[int, ...]) -> list[int]:
    """Lists the dims along which elements are equal once a shape with such dims is viewed as another.

    Both shapes are read in the shortest runs of dims of equal size; the dims of a run are equal where all of its were.
    """
    if 0 in shape:
        return []
    found: list[int] = []
    old, new = 0, 0
    while new < len(target):
        first, counted, size, wanted = old, new, 1, target[new]
        new += 1
        while size != wanted:
            if size < wanted:
                size *= shape[old]
                old += 1
            else:
                wanted *= target[new]
                new += 1
        if all(dim in equal or shape[dim] == 1 for dim in range(first, old)):
            found.extend(range(counted, new))
    return found


def view_dtype(call: OpCall) -> list[Axis]:
    """A view under another dtype changes what an element is."""
    raise AxisMismatchError("a view under another dtype")


def permute(call: OpCall) -> list[Axis]:
    return _in_order(call, [dim % len(call.shape) for dim in call["dims"]])


def _in_order(call: OpCall, order: Sequence[int]) -> list[Axis]:
    """The dims of the first tensor in another order."""
    source: TensorArgument = call.tensors()[0]
    equal = call.expanded_dims(source)
    call.expanded(place for place, dim in enumerate(order) if dim in equal)
    call.numbers(call.domain(source))
    return [source.axes[dim] for dim in order]


def transpose(call: OpCall) -> list[Axis]:
    """Swaps two dims; the argument names differ between ``transpose``, ``swapaxes`` and ``swapdims``."""
    order = list(range(len(call.shape)))
    first, second = [value for name, value in call.operation.arguments.items() if name != "self"][:2]
    if order:
        order[first], order[second] = order[second], order[first]
    return _in_order(call, order)


def reverse_dims(call: OpCall) -> list[Axis]:
    """``t`` and ``numpy_T`` reverse all dims."""
    return _in_order(call, range(len(call.shape))[::-1])


def swap_last(call: OpCall) -> list[Axis]:
    """``mT``, ``mH`` and ``adjoint`` swap the last two dims."""
    *lead, rows, columns = range(len(call.shape))
    return _in_order(call, [*lead, columns, rows])


def movedim(call: OpCall) -> list[Axis]:
    source = call["self"]
    origin = call["source"] if isinstance(call["source"], list) else [call["source"]]
    target = call["destination"] if isinstance(call["destination"], list) else [call["destination"]]
    placed = {new % source.ndim: old % source.ndim for old, new in zip(origin, target, strict=True)}
    rest = iter(dim for dim in range(source.ndim) if dim not in placed.values())
    return _in_order(call, [placed[dim] if dim in placed else next(rest) for dim in range(source.ndim)])


def expand(call: OpCall) -> list[Axis]:
    """A dim of size one that is repeated becomes a new, free axis (the repeat of grouped-query attention)."""
    source = call["self"]
    lead = len(call.shape) - source.ndim
    result: list[Axis] = []
    call.expanded(same_along(call, source, call.shape))
    call.numbers(call.domain(source))
    for dim, size in enumerate(call.shape):
        if dim >= lead and source.shape[dim - lead] == size:
            result.append(source.axes[dim - lead])
        else:
            result.append(_repeats(call, size, heads=len(call.shape) > 4))
    return result


def _repeats(call: OpCall, size: int, *, heads: bool = False) -> Axis:
    """A new, free axis that counts repeats; of key and value heads, where the tensor has a dim for heads."""
    axis = Axis(size)
    if heads:
        call.kind(axis, Kind.QUERIES_PER_HEAD)
    return axis


def expand_as(call: OpCall) -> list[Axis]:
    """The sizes are those of the other tensor: so are the axes."""
    source, other = call["self"], call["other"]
    call.expanded(same_along(call, source, call.shape))
    call.numbers(call.domain(source))
    for back in range(1, source.ndim + 1):
        if source.shape[-back] == other.shape[-back]:
            call.tie(other.axes[-back], source.axes[-back])
    return list(other.axes)


def reshape_as(call: OpCall) -> list[Axis]:
    """A reshape to sizes that are those of the other tensor."""
    result = reshape(call)
    for own, other in zip(result, call["other"].axes, strict=True):
        call.tie(own, other)
    return result


def repeat(call: OpCall) -> list[Axis]:
    """``repeat`` and ``tile`` put copies one after another: the count is the outer factor."""
    source = call["self"]
    name = "repeats" if "repeats" in call else "dims"
    ndim = len(call.shape)
    counts = [1] * (ndim - len(call[name])) + list(call[name])
    given = [Axis(1)] * (ndim - source.ndim) + list(source.axes)
    result = []
    for dim, (axis, count) in enumerate(zip(given, counts, strict=True)):
        if count == 1:
            result.append(axis)
            continue
        copies = _repeats(call, count)
        call.expect(name, [copies], dim - ndim + len(call[name]))
        result.append(product([copies, axis]))
    call.expanded(same_along(call, source, call.shape))
    call.numbers(call.domain(source))
    return result


def repeat_interleave(call: OpCall) -> list[Axis]:
    """``repeat_interleave`` repeats each unit: the count is the inner factor."""
    if "self" not in call:
        call.pin(call["repeats"].axes, COUNTED)
        return [call.fresh(call.shape[0], COUNTED)]
    source, count, dim = call["self"], call["repeats"], call["dim"]
    call.numbers(call.domain(source))
    if not isinstance(count, int):
        return _counted_repeats(call, source, count, dim)
    repeats = _repeats(call, count, heads=source.ndim > 3)
    call.expect("repeats", [repeats])
    if dim is None:
        return [product([*source.axes, repeats])]
    result = list(source.axes)
    result[dim] = product([result[dim], repeats])
    call.expanded(same_along(call, source, call.shape))
    return result


def _counted_repeats(call: OpCall, source: TensorArgument, counts: TensorArgument, dim: int | None) -> list[Axis]:
    """Each unit is repeated as often as a tensor says: that dim is pinned."""
    call.pin([*counts.axes, *(source.axes if dim is None else [source.axes[dim]])], COUNTED)
    made = call.fresh(call.shape[0 if dim is None else dim], COUNTED)
    return [made] if dim is None else [made if k == dim % source.ndim else axis for k, axis in enumerate(source.axes)]


def pixel_shuffle(call: OpCall) -> list[Axis]:
    """Channels ``C x r x r`` become ``C`` channels of a larger picture."""
    source, factor = call["self"], call["upscale_factor"]
    channels, inner = split(source.axes[-3], call.shape[-3], factor * factor)
    call.pin([inner, *source.axes[-2:]], "becomes part of the picture")
    return [*source.axes[:-3], channels, *(call.fresh(size, "a spatial dim") for size in call.shape[-2:])]


def pixel_unshuffle(call: OpCall) -> list[Axis]:
    source, factor = call["self"], call["downscale_factor"]
    call.pin(source.axes[-2:], "a spatial dim")
    channels = product([source.axes[-3], call.fresh(factor * factor, "was part of the picture")])
    return [*source.axes[:-3], channels, *(call.fresh(size, "a spatial dim") for size in call.shape[-2:])]


def channel_shuffle(call: OpCall) -> list[Axis]:
    """Channels ``G x n`` become ``n x G``."""
    source, groups = call["self"], call["groups"]
    outer, inner = split(source.axes[1], groups, source.shape[1] // groups)
    call.expect("groups", [outer])
    return [source.axes[0], product([inner, outer]), *source.axes[2:]]


def as_complex(call: OpCall) -> list[Axis]:
    """The last dim holds the real and the imaginary part."""
    source = call["self"]
    call.pin(source.axes[-1], "real and imaginary part")
    return list(source.axes[:-1])


def as_real(call: OpCall) -> list[Axis]:
    return [*call["self"].axes, call.fresh(2, "real and imaginary part")]


def windows(call: OpCall) -> list[Axis]:
    """``unfold`` reads overlapping windows along one dim."""
    source = call["self"]
    if not source.ndim:
        return [call.fresh(size, "a window") for size in call.shape]
    dim = call["dimension"] % source.ndim
    call.pin(source.axes[dim], "windows are read along it")
    result = list(source.axes)
    result[dim] = call.fresh(call.shape[dim], "the place of the window")
    return [*result, call.fresh(call.shape[-1], "a window")]


def diagonal(call: OpCall) -> list[Axis]:
    """The main diagonal of a square ties its two dims; any other diagonal pins them."""
    source = call["self"]
    first, second = call["dim1"] % source.ndim, call["dim2"] % source.ndim
    rest = [axis for dim, axis in enumerate(source.axes) if dim not in (first, second)]
    if call["offset"] == 0 and source.shape[first] == source.shape[second]:
        return [*rest, call.tie(source.axes[first], source.axes[second])]
    call.pin([source.axes[first], source.axes[second]], "a diagonal off the middle")
    return [*rest, call.fresh(call.shape[-1], "a diagonal off the middle")]


def diagonal_of(call: OpCall) -> list[Axis]:
    """``diag_embed`` makes a square whose two dims are the given one; off the middle it is pinned."""
    source: TensorArgument = call["self"]
    ndim = len(call.shape)
    first, second = call["dim1"] % ndim, call["dim2"] % ndim
    rest = iter(source.axes[:-1])
    if call["offset"] == 0:
        own: list[Axis] = [source.axes[-1], source.axes[-1]]
    else:
        call.pin(source.axes[-1], "a diagonal off the middle")
        own = [call.fresh(call.shape[first], "a diagonal off the middle") for _ in range(2)]
    return [own[0] if k == first else own[1] if k == second else next(rest) for k in range(ndim)]


def resized(call: OpCall) -> list[Axis]:
    """``resize_`` to the shape that the tensor has already changes nothing; any other reads its memory anew."""
    source: TensorArgument = call["self"]
    if source.shape != call.shape:
        raise AxisMismatchError("resized to another shape")
    for position, axis in enumerate(source.axes):
        if "size" in call:
            call.expect("size", [axis], position)
        else:
            call.tie(axis, call["the_template"].axes[position])
    return list(source.axes)


def trace(call: OpCall) -> list[Axis]:
    """The sum of the main diagonal: a unit is a row and its column."""
    rows, columns = call["self"].axes
    if rows.size == columns.size:
        call.whole(call.tie(rows, columns), Verb.MIX)
    else:
        call.pin([rows, columns], "the trace of a matrix that isn't square")
    return []


def by_strides(call: OpCall) -> list[Axis]:
    """Reads memory at given distances; numbers of the program say what an element means."""
    raise AxisMismatchError("a view by strides, which are numbers of the program")


_RESHAPES = """
view reshape _unsafe_view flatten unflatten _reshape_alias squeeze unsqueeze ravel squeeze_ unsqueeze_
"""

_SHAPE = "it is the shape of the output"
_TIMES = "times the shape of the input it is the shape of the output"
_SIZES = {"size": _SHAPE, "shape": _SHAPE, "sizes": _SHAPE, "stride": "the distances in memory follow from the shape"}
_INTERLEAVED = {"repeats": _TIMES, "output_size": _SHAPE}

RULES: Mapping[str | torch.Tag, Rule] = {
    **aten(_RESHAPES, OpRule(reshape, scaling=Scaling.MOVED, positions="self", sizes=_SIZES)),
    "aten::view.dtype": view_dtype,
    "aten::permute": OpRule(permute, scaling=Scaling.MOVED, positions="self"),
    **aten("transpose swapaxes swapdims", OpRule(transpose, scaling=Scaling.MOVED, positions="self")),
    **aten("t numpy_T", OpRule(reverse_dims, scaling=Scaling.MOVED, positions="self")),
    **aten("mT mH adjoint", OpRule(swap_last, scaling=Scaling.MOVED, positions="self")),
    **aten("movedim moveaxis", OpRule(movedim, scaling=Scaling.MOVED, positions="self")),
    "aten::expand": OpRule(expand, scaling=Scaling.MOVED, positions="self", sizes={"size": _SHAPE}),
    "aten::expand_as": OpRule(expand_as, scaling=Scaling.MOVED, positions="self", zeros=zeros_of_first),
    **aten("view_as reshape_as", OpRule(reshape_as, scaling=Scaling.MOVED, positions="self", zeros=zeros_of_first)),
    "aten::broadcast_to": OpRule(expand, scaling=Scaling.MOVED, positions="self", sizes={"size": _SHAPE}),
    **aten(
        "repeat tile",
        OpRule(repeat, scaling=Scaling.MOVED, positions="self", sizes={"repeats": _TIMES, "dims": _TIMES}),
    ),
    "aten::repeat_interleave": OpRule(repeat_interleave, positions="self", sizes=_INTERLEAVED),
    "aten::repeat_interleave.self_int": OpRule(
        repeat_interleave, positions="self", scaling=Scaling.MOVED, sizes=_INTERLEAVED
    ),
    "aten::as_strided": by_strides,
    "aten::diag_embed": diagonal_of,
    **aten("resize_ resize_as_", resized),
    "aten::trace": trace,
    "aten::channel_shuffle": OpRule(channel_shuffle, scaling=Scaling.MOVED),
    "aten::diagonal": OpRule(diagonal, scaling=Scaling.MOVED),
    "aten::unfold": OpRule(windows, scaling=Scaling.MOVED),
    "aten::view_as_complex": OpRule(as_complex, scaling=Scaling.WHOLE),
    "aten::view_as_real": OpRule(as_real, scaling=Scaling.WHOLE),
    "aten::pixel_shuffle": OpRule(pixel_shuffle, scaling=Scaling.MOVED),
    "aten::pixel_unshuffle": OpRule(pixel_unshuffle, scaling=Scaling.MOVED),
}
