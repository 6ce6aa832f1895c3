"""Rules of linear systems: written answers, and execution."""

from __future__ import annotations

import pytest
import torch

from prunekit_plugins.ops import solves
from tests.plugins.ops.cases import case, checks_of

# PyTorch says it once per process: without this, whether the test passes depends on which test came first
pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")

MATRIX = "a function of the whole matrix"
EXCUSED: dict[str, str] = {}
CLOSE = 1e-9
DRAWN = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
REGULAR = DRAWN @ DRAWN.mT + torch.eye(3, dtype=torch.float64)
LOWER = torch.linalg.cholesky(REGULAR)
LU, PIVOTS = torch.linalg.lu_factor(REGULAR)
LD, LD_PIVOTS = torch.linalg.ldl_factor(REGULAR)

CASES = [
    case(
        "torch.linalg.solve_triangular(x, y, upper=False)",
        "a2 3! 3!, a2 3! b4 -> a2 3! b4",
        x=LOWER,
        y=(2, 3, 4),
        pins={"x1": MATRIX, "x2": MATRIX, "y1": MATRIX},
        tolerance=CLOSE,
    ),
    case(
        "torch.linalg.solve_triangular(x, y, upper=True, left=False, unitriangular=True)",
        "a2 3! 3!, a2 b4 3! -> a2 b4 3!",
        x=LOWER.mT.contiguous(),
        y=(2, 4, 3),
        tolerance=CLOSE,
    ),
    # leading dims broadcast
    case(
        "torch.linalg.solve_triangular(x[0], y, upper=False)",
        "2! 3! 3!, a5 3! b4 -> a5 3! b4",
        x=LOWER,
        y=(5, 3, 4),
        tolerance=CLOSE,
    ),
    case(
        "torch.linalg.solve_triangular(x[:, None], y, upper=False)",
        "a2 3! 3!, b5 3! c4 -> a2 b5 3! c4",
        x=LOWER,
        y=(5, 3, 4),
        tolerance=CLOSE,
    ),
    case(
        "torch.triangular_solve(y, x, upper=False)",
        "a2 3! 3!, a2 3! b4 -> a2 3! b4, a2 3! 3!",
        x=LOWER,
        y=(2, 3, 4),
        tolerance=CLOSE,
    ),
    case("torch.linalg.solve(x, y)", "a2 3! 3!, a2 3! b4 -> a2 3! b4", x=REGULAR, y=(2, 3, 4), tolerance=CLOSE),
    case(
        "torch.linalg.solve(x, y, left=False)",
        "a2 3! 3!, a2 b4 3! -> a2 b4 3!",
        x=REGULAR,
        y=(2, 4, 3),
        tolerance=CLOSE,
    ),
    case("torch.linalg.solve(x, y)", "a2 3! 3!, a2 3! -> a2 3!", x=REGULAR, y=(2, 3), tolerance=CLOSE),
    case(
        "aten._linalg_solve_ex(x, y)",
        "a2 3! 3!, a2 3! b4 -> a2 3! b4, a2 3! 3!, a2 3!, a2",
        x=REGULAR,
        y=(2, 3, 4),
        tolerance=CLOSE,
    ),
    case("torch.cholesky_solve(y, x)", "a2 3! 3!, a2 3! b4 -> a2 3! b4", x=LOWER, y=(2, 3, 4), tolerance=CLOSE),
    case(
        "torch.linalg.lu_solve(x, p, y)",
        "2! 3! 3!, 2! 3!, 2! 3! a4 -> 2! 3! a4",
        x=LU,
        p=PIVOTS,
        y=(2, 3, 4),
        tolerance=CLOSE,
    ),
    case(
        "torch.linalg.ldl_solve(x, p, y)",
        "2! 3! 3!, 2! 3!, 2! 3! a4 -> 2! 3! a4",
        x=LD,
        p=LD_PIVOTS,
        y=(2, 3, 4),
        tolerance=CLOSE,
    ),
    case(
        "torch.linalg.lstsq(x, y)[0]",
        "a2 3! 3!, a2 3! b4 -> a2 3! b4",
        x=REGULAR,
        y=(2, 3, 4),
        tolerance=CLOSE,
        slow=True,
    ),
    case(
        "torch.linalg.lstsq(x, y, driver='gelsd')[:2]",
        "a2 3! 2!, a2 3! b4 -> a2 2! b4, a2 b4",
        x=DRAWN[..., :2].contiguous(),
        y=(2, 3, 4),
        tolerance=CLOSE,
        slow=True,
    ),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    solves.RULES, CASES, EXCUSED
)
