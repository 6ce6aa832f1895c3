"""Rules of functions of whole matrices and dims: written answers, and execution."""

from __future__ import annotations

import torch

from prunekit_plugins.ops import matrices
from tests.plugins.ops.cases import Case, case, checks_of

MATRIX = "a function of the whole matrix"
FOURIER = "a dim of a Fourier transform"
EXCUSED: dict[str, str] = {}
CLOSE = 1e-9
SQUARES = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
REGULAR = SQUARES @ SQUARES.mT + torch.eye(2, dtype=torch.float64)


def lead(expression: str, out: str) -> Case:
    """A function of each of three matrices."""
    return case(expression, f"a3 2! 2! -> {out}", x=REGULAR, pins={"x1": MATRIX, "x2": MATRIX}, tolerance=CLOSE)


CASES = [
    lead("torch.linalg.inv_ex(x)", "a3 2! 2!, a3"),
    lead("aten._linalg_det(x)", "a3, a3 2! 2!, a3 2!"),
    lead("aten._linalg_slogdet(x)", "a3, a3, a3 2! 2!, a3 2!"),
    lead("aten._linalg_eigh(x)", "a3 2!, a3 2! 2!"),
    lead("aten._linalg_svd(x)", "a3 2! 2!, a3 2!, a3 2! 2!"),
    lead("torch.linalg.cholesky_ex(x)", "a3 2! 2!, a3"),
    lead("torch.linalg.qr(x)", "a3 2! 2!, a3 2! 2!"),
    lead("torch.linalg.eig(x)", "a3 2!, a3 2! 2!"),
    lead("torch.linalg.lu(x)", "a3 2! 2!, a3 2! 2!, a3 2! 2!"),
    lead("torch.linalg.lu_factor_ex(x)", "a3 2! 2!, a3 2!, a3"),
    lead("torch.linalg.matrix_exp(x)", "a3 2! 2!"),
    lead("aten.linalg_pinv(x, rcond=1e-9)", "a3 2! 2!"),
    lead("torch.linalg.ldl_factor_ex(x)", "a3 2! 2!, a3 2!, a3"),
    lead("torch.cholesky_inverse(x)", "a3 2! 2!"),
    lead("aten._linalg_eigvals(x)", "a3 2!"),
    case("torch.fft.rfft(x).abs()", "a3 6! -> a3 4!", x=(3, 6), pins={"x1": FOURIER}, tolerance=CLOSE),
    case("torch.fft.fft2(x).abs()", "a3 4! 6! -> a3 4! 6!", x=(3, 4, 6), tolerance=CLOSE),
    case("torch.fft.irfft(torch.fft.rfft(x, dim=0), dim=0)", "6! a3 -> 6! a3", x=(6, 3), tolerance=CLOSE),
    case(
        "torch.linalg.cross(x, y)", "a4 3!, a4 3! -> a4 3!", x=(4, 3), y=(4, 3), pins={"x1": "a dim of a cross product"}
    ),
    case("torch.linalg.cross(x, y, dim=0)", "3! a4 b5, 3! a4 b5 -> 3! a4 b5", x=(3, 4, 5), y=(3, 4, 5)),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    matrices.RULES, CASES, EXCUSED
)
