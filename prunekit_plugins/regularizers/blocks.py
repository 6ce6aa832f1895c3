"""Arithmetic on weights in blocks of rows, so that nothing of the size of a large one is made on the way.

Fresh memory for a copy of a large parameter may cost more than the arithmetic on it; what is computed for a block stays
in the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

EVERYTHING = slice(None)
"""The rows of a weight that is one block."""

_ELEMENTS = 2**17
_ELEMENTS_OF_A_LAUNCH = 2**22
"""Elements of a block on a CPU, and on a device where each operation costs its launch."""


def _rows_of_a_block(weight: torch.Tensor) -> int:
    elements = _ELEMENTS if weight.is_cpu else _ELEMENTS_OF_A_LAUNCH
    return max(1, elements * weight.shape[0] // max(1, weight.numel()))


def sums_of_squares(weight: torch.Tensor, dims: Sequence[int], wide: torch.dtype) -> list[torch.Tensor]:
    """Computes sums of squares along some dims of a weight, each over all other dims, in one pass.

    Args:
        weight: Tensor of two dims or more.
        dims: Dims, some of them perhaps several times.
        wide: The dtype to compute in.

    Returns:
        A tensor ``[size of the dim]`` for each.
    """
    along_rows: list[torch.Tensor] = []
    rest: torch.Tensor | None = None
    for block in weight.split(_rows_of_a_block(weight)):
        squares = block.to(wide).flatten(1).square()
        if 0 in dims:
            along_rows.append(squares.sum(1))
        if any(dims):
            columns = squares.sum(0)
            rest = columns if rest is None else rest.add_(columns)
    found = {0: along_rows[0] if len(along_rows) == 1 else torch.cat(along_rows)} if along_rows else {}
    if rest is not None:
        rest = rest.view(weight.shape[1:])
        for dim in {*dims} - {0}:
            others = [other for other in range(rest.dim()) if other != dim - 1]
            found[dim] = rest.sum(others) if others else rest
    return [found[dim] for dim in dims]


def combined(
    weight: torch.Tensor,
    values: Mapping[int, torch.Tensor],
    combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Combines values of the positions of several dims into values of the elements.

    Args:
        weight: Tensor of one dim or more.
        values: Dim to a tensor ``[size of the dim]``; at least one.
        combine: Associative, such as ``operator.add``.

    Yields:
        Rows of the weight, and a tensor that broadcasts with them; `EVERYTHING` where that isn't made row by row.
    """
    shaped = {dim: part.view(-1, *[1] * (weight.dim() - dim - 1)) for dim, part in values.items()}
    along_rows = shaped.pop(0) if len(shaped) > 1 and 0 in shaped else None
    others = functools.reduce(combine, shaped.values())
    step = _rows_of_a_block(weight)
    if along_rows is None:
        yield EVERYTHING, others
    elif step >= len(along_rows):
        yield EVERYTHING, combine(along_rows, others)
    else:
        for start in range(0, len(along_rows), step):
            rows = slice(start, start + step)
            yield rows, combine(along_rows[rows], others)
