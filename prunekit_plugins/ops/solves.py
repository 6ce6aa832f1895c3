"""Systems of linear equations: the matrix and the rows that belong to it are pinned, right-hand sides pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from prunekit.plugin import Axis, OpCall, Rule, TensorArgument
from prunekit_plugins.ops.matrices import MATRIX
from prunekit_plugins.ops.names import aten
from prunekit_plugins.ops.pointwise import broadcast


def _without(tensor: TensorArgument, count: int) -> TensorArgument:
    """A tensor without its last dims."""
    keep = tensor.ndim - count
    return TensorArgument(tensor.ref, tensor.shape[:keep], tensor.axes[:keep], tensor.dtype)


def _solved(
    call: OpCall, matrix: TensorArgument, right: TensorArgument, *, left: bool = True, vector: bool = False
) -> tuple[list[Axis], list[Axis], list[Axis]]:
    """``A X = B`` (or ``X A = B``): every right-hand side is solved by itself, and so is every matrix of a batch.

    Returns:
        The axes of the solution, its leading dims, and the right-hand sides (none for a vector).
    """
    rows = -1 if vector or not left else -2
    call.pin([*matrix.axes[-2:], right.axes[rows]], MATRIX)
    count = 1 if vector else 2
    shape = call.shape
    lead = broadcast(call, [_without(matrix, 2), _without(right, count)], shape[: len(shape) - count])
    columns = [] if vector else [right.axes[-1] if left else right.axes[-2]]
    made = [call.fresh(shape[rows], MATRIX)]
    return [*lead, *((made + columns) if left else (columns + made))], lead, columns


def _further(call: OpCall, lead: Sequence[Axis], first: int = 1) -> list[list[Axis]]:
    """Factors, pivots and ranks: the leading dims, then dims that belong to the matrix."""
    sizes = tuple(axis.size for axis in lead)
    return [
        [*lead, *(call.fresh(size, MATRIX) for size in shape[len(lead) :])]
        if shape[: len(lead)] == sizes
        else [call.fresh(size, MATRIX) for size in shape]
        for shape in call.shapes[first:]
    ]


def solve_triangular(call: OpCall) -> list[Axis]:
    return _solved(call, call["self"], call["B"], left=call["left"])[0]


def triangular_solve(call: OpCall) -> list[list[Axis]]:
    """The matrix is the second argument; it is returned as well, broadcast."""
    solution, lead, _ = _solved(call, call["A"], call["self"])
    return [solution, *_further(call, lead)]


def solve_factored(call: OpCall) -> list[Axis]:
    """Solved with what a decomposition gave: ``LU`` and pivots, ``LD`` and pivots, or a triangle."""
    if "input2" in call:
        return _solved(call, call["input2"], call["self"])[0]
    matrix: TensorArgument = call["LU"] if "LU" in call else call["LD"]
    solution, lead, _ = _solved(call, matrix, call["B"], left=call.get("left", True))
    pivots: TensorArgument = call["pivots"]
    call.pin(pivots.axes[-1], MATRIX)
    broadcast(call, [_without(pivots, 1)], tuple(axis.size for axis in lead))
    for own, other in zip(matrix.axes[:-2], pivots.axes[:-1], strict=True):
        call.tie(own, other)
    return solution


def solve(call: OpCall) -> list[list[Axis]]:
    """``linalg.solve``: a right-hand side without columns is a vector for each matrix."""
    matrix, right = call["A"], call["B"]
    vector = right.ndim == 1 or right.shape == matrix.shape[:-1]
    solution, _, _ = _solved(call, matrix, right, left=call["left"], vector=vector)
    return [solution, *_further(call, matrix.axes[:-2])]


def least_squares(call: OpCall) -> list[list[Axis]]:
    """``linalg.lstsq``: the residuals belong to the right-hand sides."""
    solution, lead, columns = _solved(call, call["self"], call["b"])
    residuals, *rest = _further(call, lead)
    if call.shapes[1] == tuple(axis.size for axis in (*lead, *columns)):
        residuals = [*lead, *columns]
    return [solution, residuals, *rest]


RULES: Mapping[str | torch.Tag, Rule] = {
    "aten::linalg_solve_triangular": solve_triangular,
    "aten::triangular_solve": triangular_solve,
    "aten::_linalg_solve_ex": solve,
    **aten("linalg_lu_solve linalg_ldl_solve cholesky_solve", solve_factored),
    "aten::linalg_lstsq": least_squares,
}
