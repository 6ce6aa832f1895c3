"""Functions of whole matrices and of whole dims: what they look at is pinned, leading dims pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from prunekit.plugin import Axis, AxisMismatchError, OpCall, OpRule, Rule, TensorArgument
from prunekit_plugins.ops.names import aten
from prunekit_plugins.ops.pointwise import zeros_of_first

MATRIX = "a function of the whole matrix"


def whole_matrix(call: OpCall) -> Sequence[Sequence[Axis]]:
    """Inverses, determinants, decompositions: the last two dims are pinned."""
    source: TensorArgument = call.tensors()[0]
    lead = list(source.axes[:-2])
    for tensor in call.tensors():
        if tensor.shape[:-2] != source.shape[:-2] or tensor.ndim != source.ndim:
            raise AxisMismatchError("matrices and vectors with different leading dims")
        for own, other in zip(lead, tensor.axes, strict=False):
            call.tie(own, other)
        call.pin(tensor.axes[-2:], MATRIX)
    return [
        [*lead, *(call.fresh(size, MATRIX) for size in shape[len(lead) :])]
        if shape[: len(lead)] == source.shape[: len(lead)]
        else [call.fresh(size, MATRIX) for size in shape]
        for shape in call.shapes
    ]


def fourier(call: OpCall) -> list[Axis]:
    """Every frequency depends on all positions of a transformed dim, and on how many there are: it is pinned."""
    source: TensorArgument = call["self"]
    result = list(source.axes)
    for dim in call["dim"]:
        call.pin(source.axes[dim], "a dim of a Fourier transform")
        result[dim] = call.fresh(call.shape[dim], "a dim of a Fourier transform")
    return result


def cross(call: OpCall) -> list[Axis]:
    """Three components are mixed, all other dims are shared."""
    first, second = call["self"], call["other"]
    dim = call["dim"] % first.ndim
    call.pin([first.axes[dim], second.axes[dim]], "a dim of a cross product")
    for position, (own, other) in enumerate(zip(first.axes, second.axes, strict=True)):
        if first.shape[position] == second.shape[position]:
            call.tie(own, other)
        elif position != dim:
            call.pin([own, other], "a cross product that broadcasts")
    return [axis if first.shape[k] == call.shape[k] else second.axes[k] for k, axis in enumerate(first.axes)]


_MATRICES = """
_linalg_det _linalg_slogdet _linalg_eigh _linalg_eigvals _linalg_svd linalg_inv_ex linalg_cholesky_ex linalg_qr
linalg_eig linalg_lu linalg_lu_factor_ex linalg_matrix_exp linalg_pinv linalg_ldl_factor_ex cholesky_inverse
"""

RULES: Mapping[str | torch.Tag, Rule] = {
    **aten(_MATRICES, whole_matrix),
    **aten("_fft_r2c _fft_c2r _fft_c2c", OpRule(fourier, zeros=zeros_of_first)),
    "aten::linalg_cross": cross,
}
