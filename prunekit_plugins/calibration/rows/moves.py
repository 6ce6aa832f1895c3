"""What operations do to rows: which rows of their operands the tensors hold that they return."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.program.trace import is_continuous
from prunekit_plugins.calibration.rows.origins import Rows


@attrs.frozen(eq=False)
class Given:
    """A tensor that an operation is given, and that follows from the inputs of the model.

    Attributes:
        tensor: The tensor.
        rows: The rows that it holds.
        decided: Whether it holds decisions: integers, booleans or a cast of them that follow from real numbers.
    """

    tensor: torch.Tensor
    rows: Rows
    decided: bool

    @property
    def continuous(self) -> bool:
        """Whether it holds real numbers."""
        return is_continuous(self.tensor.dtype)


@attrs.frozen(eq=False)
class Call:
    """An operation that has run.

    Attributes:
        op: The operation.
        arguments: Its arguments by name.
        outputs: The tensors that it returned.
        given: Identity of the tensors among its arguments that follow from the model's inputs to what is known of them.
    """

    op: Any
    arguments: Mapping[str, Any]
    outputs: Sequence[torch.Tensor]
    given: Mapping[int, Given]

    def rows(self, name: str) -> Rows | None:
        """Returns the rows of an argument; None for constants."""
        return self.rows_of(self.arguments.get(name))

    def rows_of(self, value: object) -> Rows | None:
        """Returns the rows of a tensor; None for constants."""
        return self.given[id(value)].rows if id(value) in self.given else None

    def decided(self, *values: object) -> bool:
        """Tells whether some of these tensors hold decisions."""
        return any(id(value) in self.given and self.given[id(value)].decided for value in values)

    @property
    def unknown(self) -> Rows:
        """Rows that can't be told."""
        return Rows(None, chosen=any(one.rows.chosen or one.decided for one in self.given.values()))

    def run(self, name: str, value: object) -> Any:
        """Runs the operation with another value of an argument."""
        return self.op(**{**self.arguments, name: value})


Move = Callable[[Call], Sequence[Rows]]
"""Returns the rows of each tensor that an operation returned."""


def combined(call: Call) -> list[Rows]:
    """Computes row by row: a result has the rows of the operand that reaches along the same dims."""
    given = [one for one in call.given.values() if one.continuous] or list(call.given.values())
    return [_combined(call, output.shape, given) for output in call.outputs]


def _combined(call: Call, shape: Sequence[int], given: Sequence[Given]) -> Rows:
    known = [one.rows for one in given if one.rows.ids is not None]
    undivided = [one for one in given if one.rows.ids is not None and not one.rows.dims]
    for one in sorted(undivided, key=lambda one: one.rows.count):
        if not one.rows.chosen and shape and one.tensor.dim() and one.tensor.shape[0] == shape[0]:
            return one.rows
    for rows in known:
        if rows.dims and rows.begins(shape):
            return rows
    if len(known) < len(given):
        return call.unknown
    reduced = (rows.first_of(shape) for rows in known if rows.dims)
    found = next((rows for rows in reduced if rows is not None), None)
    if found is None and undivided:
        return undivided[0].rows
    return found or call.unknown


def multiplied(call: Call) -> list[Rows]:
    """Matrix products: one with a mask that was decided on picks rows, in a way that isn't followed."""
    given = [one for one in call.given.values() if one.continuous]
    sizes = {one.tensor.shape[:1] for one in given} | {output.shape[:1] for output in call.outputs}
    if len({one.decided for one in given}) > 1 and len(sizes) > 1:
        return [call.unknown] * len(call.outputs)
    return combined(call)


def index(call: Call) -> list[Rows]:
    """``x[i]``, with a mask or with positions."""
    source, indices = call.arguments["self"], call.arguments["indices"]
    rows, tensors = call.rows("self"), [one for one in indices if one is not None]
    if rows is None:
        first = call.rows_of(indices[0])
        return [first] if first is not None and len(tensors) == 1 else combined(call)
    return [_picked(call, rows.divided(source.shape, _reach(indices)), *tensors)]


_MASKS = (torch.bool, torch.uint8)


def _reach(indices: Sequence[torch.Tensor | None]) -> int:
    """Returns how many of the first dims of a tensor are looked at by the indices of ``x[i, j]``."""
    reach = after = 0
    for one in indices:
        after += one.dim() if one is not None and one.dtype in _MASKS else 1
        reach = reach if one is None else after
    return reach


def _picked(call: Call, rows: Rows, *by: torch.Tensor) -> Rows:
    """Does to the numbers of rows what an operation does to rows."""
    if rows.ids is None:
        return call.unknown
    return rows.of(call.run("self", rows.ids), chosen=call.decided(*by))


def index_select(call: Call) -> list[Rows]:
    """``x.index_select(dim, index)``."""
    source, rows, dim = call.arguments["self"], call.rows("self"), _dim(call, "self")
    if rows is None:
        return [call.rows("index") or call.unknown] if not dim else combined(call)
    if _is_last(source, dim):
        return [rows]
    return [_picked(call, rows.divided(source.shape, dim + 1), call.arguments["index"])]


def gather(call: Call) -> list[Rows]:
    """``x.gather(dim, index)``: rows are picked where the index is the same for all that a row has."""
    source, rows, dim = call.arguments["self"], call.rows("self"), _dim(call, "self")
    chosen = call.arguments["index"]
    if rows is None:
        return combined(call)
    if _is_last(source, dim):
        return [rows]
    rows = rows.divided(source.shape, dim + 1)
    if rows.ids is None:
        return [call.unknown]
    for _ in range(chosen.dim() - rows.dims):
        chosen = chosen[..., 0] if chosen.shape[-1] else chosen.sum(-1)
    return [rows.of(rows.ids.gather(dim, chosen), chosen=call.decided(call.arguments["index"]))]


def embedding(call: Call) -> list[Rows]:
    """A table, looked up by each position."""
    return [call.rows("indices") or call.unknown]


def select(call: Call) -> list[Rows]:
    """``x[i]`` with a number: of tokens, not of features or channels."""
    return _along(call, within=lambda source, dim: dim == 0 or dim == source.dim() - 2)


def part(call: Call) -> list[Rows]:
    """``x[a:b]``, and all that divides a tensor along a dim into parts."""
    return _along(call, within=lambda source, dim: dim == 0)


def _along(call: Call, *, within: Callable[[torch.Tensor, int], bool]) -> list[Rows]:
    source, rows, dim = call.arguments["self"], call.rows("self"), _dim(call, "self")
    if rows is None or rows.ids is None:
        return [call.unknown] * len(call.outputs)
    if dim >= rows.dims and not (within(source, dim) and not _is_all(call, source)):
        return [rows] * len(call.outputs)
    rows = rows.divided(source.shape, dim + 1)
    made = call.run("self", rows.ids)
    return [rows.of(ids) for ids in (made if isinstance(made, list | tuple) else (made,))]


def _is_all(call: Call, source: torch.Tensor) -> bool:
    """Whether an operation hands on all that it is given, as ``x[:]``."""
    return len(call.outputs) == 1 and call.outputs[0].shape == source.shape


def viewed(call: Call) -> list[Rows]:
    """The same numbers in another shape."""
    (output,), source, rows = call.outputs, call.arguments["self"], call.rows("self")
    if rows is None or rows.ids is None:
        return [call.unknown]
    if not rows.dims:
        return [rows]
    for dims in range(rows.dims, source.dim() + 1):
        finer = rows.divided(source.shape, dims)
        for reach in range(output.dim() + 1):
            if math.prod(output.shape[:reach]) == finer.known.numel():
                return [finer.of(finer.known.reshape(output.shape[:reach]))]
    return [call.unknown]


def expanded(call: Call) -> list[Rows]:
    """The same numbers several times."""
    (output,), source, rows = call.outputs, call.arguments["self"], call.rows("self")
    if rows is None or rows.ids is None or (rows.dims and output.dim() != source.dim()):
        return [call.unknown]
    return [rows.of(rows.ids.expand(output.shape[: rows.dims]))]


def transposed(call: Call) -> list[Rows]:
    """Two dims exchanged."""
    source, rows = call.arguments["self"], call.rows("self")
    dims = sorted(_dim(call, "self", name) for name in ("dim0", "dim1"))
    if rows is None or rows.ids is None:
        return [call.unknown]
    if dims[0] >= rows.dims:
        return [rows]
    rows = rows.divided(source.shape, dims[1] + 1)
    return [rows.of(rows.known.transpose(*dims))]


def permuted(call: Call) -> list[Rows]:
    """All dims in another order."""
    source, rows = call.arguments["self"], call.rows("self")
    order = [dim % source.dim() for dim in call.arguments["dims"]]
    if rows is None or rows.ids is None:
        return [call.unknown]
    moved = next(dims for dims in range(rows.dims, len(order) + 1) if {*order[:dims]} == {*range(dims)})
    if not moved:
        return [rows]
    rows = rows.divided(source.shape, moved)
    return [rows.of(rows.known.permute(order[: rows.dims]))]


def joined(call: Call) -> list[Rows]:
    """``cat``: one tensor behind the other."""
    tensors = call.arguments["tensors"]
    dim = call.arguments.get("dim", 0) % max(1, tensors[0].dim())
    return [_together(call, tensors, dim, dim + 1)]


def stacked(call: Call) -> list[Rows]:
    """``stack``: one tensor beside the other, along a new dim."""
    tensors = call.arguments["tensors"]
    return [_together(call, tensors, call.arguments.get("dim", 0) % (tensors[0].dim() + 1), 0)]


def _together(call: Call, tensors: Sequence[torch.Tensor], dim: int, least: int) -> Rows:
    found = [call.rows_of(tensor) for tensor in tensors]
    rows = [one for one in found if one is not None]
    if any(one.ids is None for one in rows):
        return call.unknown
    dims = max(one.dims for one in rows)
    whole = not dims and all(one.count == 1 and not one.chosen for one in rows)
    if whole or dim > dims or (least and dim == dims and dim):
        return rows[0]  # along features
    if len(rows) < len(tensors):
        return call.unknown
    rows = [one.divided(tensor.shape, max(dims, least)) for one, tensor in zip(rows, tensors, strict=True)]
    if len({one.count for one in rows}) > 1 or len({one.dims for one in rows}) > 1:
        return call.unknown
    chosen = any(one.chosen for one in rows)
    return rows[0].of(call.run("tensors", [one.known for one in rows]), chosen=chosen)


def put(call: Call) -> list[Rows]:
    """``x[i] = values``: rows that are put back."""
    indices = call.arguments["indices"]
    places = tuple(slice(None) if one is None else one for one in indices)
    tensors = [one for one in indices if one is not None]
    return [_written(call, "values", places, _reach(indices), chosen=call.decided(*tensors))]


def added_at(call: Call) -> list[Rows]:
    """``x.index_add(dim, index, source)``: rows that are put back."""
    by, dim = call.arguments["index"], _dim(call, "self")
    return [_written(call, "source", (*(slice(None) for _ in range(dim)), by), dim + 1, chosen=call.decided(by))]


def _written(call: Call, name: str, places: tuple[Any, ...], reach: int, *, chosen: bool) -> Rows:
    """Rows written into a tensor; where that holds whatever was there before, each of them stays where it is."""
    base, source, rows = call.rows("self"), call.arguments["self"], call.rows(name)
    if base is not None and base.ids is not None and not base.dims:
        return base
    if rows is None or rows.ids is None or (base is not None and base.ids is None):
        return call.unknown
    beside = call.arguments[name].dim() - rows.dims
    if source.dim() - reach != beside or (base is not None and (base.dims, base.count) != (reach, rows.count)):
        return call.unknown
    empty = torch.full(source.shape[:reach], -1, dtype=torch.int64, device=source.device)
    ids = (empty if base is None else base.known).clone()
    ids[places] = rows.ids
    return rows.of(ids, chosen=chosen or (base is not None and base.chosen))


def untold(call: Call) -> list[Rows]:
    """Rows in a way that isn't followed."""
    return [call.unknown] * len(call.outputs)


def _dim(call: Call, source: str, name: str = "dim") -> int:
    dim: int = call.arguments[name] % max(1, call.arguments[source].dim())
    return dim


def _is_last(source: torch.Tensor, dim: int) -> bool:
    return source.dim() > 1 and dim == source.dim() - 1


MOVES: Mapping[str, Move] = {
    "aten::index": index,
    "aten::index_select": index_select,
    "aten::gather": gather,
    "aten::take_along_dim": gather,
    "aten::masked_select": untold,
    "aten::embedding": embedding,
    "aten::select": select,
    "aten::unbind": select,
    **dict.fromkeys(("aten::slice", "aten::narrow", "aten::split", "aten::split_with_sizes", "aten::chunk"), part),
    "aten::tensor_split": part,
    **dict.fromkeys(("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::flatten", "aten::unflatten"), viewed),
    **dict.fromkeys(("aten::squeeze", "aten::unsqueeze", "aten::view_as", "aten::reshape_as"), viewed),
    **dict.fromkeys(("aten::expand", "aten::expand_as"), expanded),
    **dict.fromkeys(("aten::transpose", "aten::swapaxes", "aten::swapdims"), transposed),
    "aten::permute": permuted,
    **dict.fromkeys(("aten::cat", "aten::concat", "aten::concatenate"), joined),
    "aten::stack": stacked,
    **dict.fromkeys(("aten::index_put", "aten::index_put_", "aten::_unsafe_index_put"), put),
    **dict.fromkeys(("aten::index_add", "aten::index_add_"), added_at),
    **dict.fromkeys(("aten::matmul", "aten::mm", "aten::bmm", "aten::einsum", "aten::baddbmm"), multiplied),
    "aten::addmm": multiplied,
}
"""By the name of an operation, without its overload; all others compute row by row."""
SHAPES = frozenset(
    f"aten::{name}"
    for name in ("zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full")
)
"""Operations that look at nothing but the shape of what they are given."""
