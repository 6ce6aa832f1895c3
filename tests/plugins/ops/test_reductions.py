"""Rules of reductions: written answers, and execution."""

from __future__ import annotations

from prunekit_plugins.ops import reductions
from tests.plugins.ops.cases import case, checks_of

CLOSE = 1e-12
EXCUSED: dict[str, str] = {}

ONE_DIM = "sum mean amax amin std var nansum nanmean logsumexp any all prod count_nonzero"
HELD = "an output holds its positions"
WITH_PLACE = {"max": HELD, "min": HELD, "median": "its positions are looked up"}
ADDED = {"sum", "nansum", "any", "count_nonzero", "norm"}
"""Zeros contribute nothing to these."""


def used(name: str) -> str:
    """How a reduction uses the whole extent of what it reduces."""
    return "sum" if name in ADDED else "mix"


CASES = [
    *(
        case(
            f"torch.{name}(x, 1)",
            "a2 b3 c4 -> a2 c4",
            x=(2, 3, 4),
            says={"x1": used(name), "x0": "", "x2": ""},
            tolerance=CLOSE,
        )
        for name in ONE_DIM.split()
    ),
    *(
        case(f"torch.{name}(x, -1)", "a2 b3 c4 -> a2 b3", x=(2, 3, 4), says={"x2": used(name)}, tolerance=CLOSE)
        for name in ONE_DIM.split()
    ),
    *(
        case(f"torch.{name}(x, 1, keepdim=True)", "a2 b3 c4 -> a2 1 c4", x=(2, 3, 4), tolerance=CLOSE)
        for name in ONE_DIM.split()
        if name != "count_nonzero"
    ),
    *(
        case(f"torch.{name}(x)", "a3 b4 -> ()", x=(3, 4), says={"x0": used(name), "x1": used(name)}, tolerance=CLOSE)
        for name in [*ONE_DIM.split(), "max", "min", "median", "norm"]
        if name != "logsumexp"
    ),
    case("torch.sum(x, (0, 2))", "a2 b3 c4 -> b3", x=(2, 3, 4), says={"x0": "sum", "x2": "sum", "x1": ""}),
    case("torch.sum(x, (0, -1), keepdim=True)", "a2 b3 c4 -> 1 b3 1", x=(2, 3, 4)),
    case("torch.mean(x, (-2, -1), keepdim=True)", "a2 b3 c4 d5 -> a2 b3 1 1", x=(2, 3, 4, 5), tolerance=CLOSE),
    case("torch.mean(x, [])", "a3 b4 -> ()", x=(3, 4), tolerance=CLOSE),
    case("torch.amax(x, (), keepdim=True)", "a3 b4 -> 1 1", x=(3, 4)),
    case("torch.sum(x, 0)", "() -> ()", x=()),
    case("torch.sum(x, 1)", "a3 0 -> a3", x=(3, 0)),
    case("torch.sum(x, 1, keepdim=True)", "a3 1 -> a3 1", x=(3, 1)),
    case("torch.var_mean(x, 1)", "a3 b4 -> a3, a3", x=(3, 4), says={"x1": "mix"}, tolerance=CLOSE),
    case("torch.std_mean(x, (1, 2), keepdim=True)", "a2 b3 c4 -> a2 1 1, a2 1 1", x=(2, 3, 4), tolerance=CLOSE),
    case("torch.std_mean(x)", "a3 b4 -> (), ()", x=(3, 4), tolerance=CLOSE),
    case("torch.var(x, 1, correction=0)", "a3 b4 -> a3", x=(3, 4), tolerance=CLOSE),
    case("aten._is_all_true(x > 0)", "a3 b4 -> ()", x=(3, 4), says={"x1": "mix"}),
    case("aten._is_any_true(x > 0)", "a3 b4 -> ()", x=(3, 4)),
    case("x.aminmax(dim=1)", "a3 b4 -> a3, a3", x=(3, 4), says={"x1": "mix"}),
    case("aten._aminmax(x)", "a3 b4 -> (), ()", x=(3, 4), says={"x0": "mix", "x1": "mix"}),
    case("x.nanmedian()", "a3 b4 -> ()", x=(3, 4)),
    case("x.max(1)[0]", "a3 b4 -> a3", x=(3, 4), says={"x1": "mix"}),
    case("x.nanmedian(1)", "a3 4! -> a3, a3", x=(3, 4), pins={"x1": "its positions are looked up"}),
    case("x.norm(2, 1)", "a3 b4 -> a3", x=(3, 4), says={"x1": "sum"}, tolerance=CLOSE),
    case("aten.norm(x, 2, [1], False)", "a3 b4 -> a3", x=(3, 4), says={"x1": "sum"}, tolerance=CLOSE),
    case("x.norm(1, (0, 1), keepdim=True)", "a3 b4 -> 1 1", x=(3, 4), tolerance=CLOSE),
    case("torch.linalg.vector_norm(x, dim=1)", "a3 b4 -> a3", x=(3, 4), says={"x1": "sum"}, tolerance=CLOSE),
    case("torch.linalg.vector_norm(x, -1, 1)", "a3 b4 -> a3", x=(3, 4), says={"x1": "mix"}, tolerance=CLOSE),
    case("torch.linalg.vector_norm(x)", "a3 b4 -> ()", x=(3, 4), tolerance=CLOSE),
    case("F.normalize(x, dim=1)", "a3 b4 -> a3 b4", x=(3, 4), tolerance=CLOSE),
    case("torch.any(x, (0, 2))", "a2 b3 c4 -> b3", x=(2, 3, 4)),
    # results that are positions: units of outputs can't be renumbered
    *(
        case(f"torch.{name}(x, 1)", "a2 3! b4 -> a2 b4, a2 b4", x=(2, 3, 4), pins={"x1": why})
        for name, why in WITH_PLACE.items()
    ),
    *(case(f"torch.{name}(x, -1, keepdim=True)", "a2 b3 4! -> a2 b3 1, a2 b3 1", x=(2, 3, 4)) for name in WITH_PLACE),
    *(
        case(f"torch.{name}(x, 1)", "a2 3! b4 -> a2 b4", x=(2, 3, 4), pins={"x1": HELD})
        for name in ("argmax", "argmin")
    ),
    case("torch.argmax(x)", "2! 3! -> ()", x=(2, 3)),
    case("torch.argmax(x, -1, keepdim=True)", "a2 3! -> a2 1", x=(2, 3)),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    reductions.RULES, CASES, EXCUSED
)
