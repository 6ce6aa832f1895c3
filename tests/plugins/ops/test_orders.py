"""Rules of operations that order a dim: written answers, and execution."""

from __future__ import annotations

import torch

from prunekit_plugins.ops import orders
from tests.plugins.ops.cases import case, checks_of

ORDERED = "its positions are ordered by value"
HELD = "an output holds its positions"
EXCUSED: dict[str, str] = {}

CASES = [
    case("x.topk(2)", "a3 5! -> a3 2!, a3 2!", x=(3, 5), pins={"x1": HELD}),
    case("x.topk(2).values", "a3 b5 -> a3 2!", x=(3, 5), says={"x1": "choose experts"}),
    case("x.topk(2, 0).values", "a5 b3 -> 2! b3", x=(5, 3)),
    case("x.topk(1).indices.sort(0).values", "3! 5! -> 3! 1", x=(3, 5), pins={"x1": HELD}),
    case("x.topk(2, dim=0, largest=False)", "5! a3 -> 2! a3, 2! a3", x=(5, 3)),
    case("x.topk(1)", "a3 5! -> a3 1, a3 1", x=(3, 5)),
    case("x.sort()", "a3 5! -> a3 5!, a3 5!", x=(3, 5), pins={"x1": ORDERED}),
    case("x.sort(dim=1, stable=True)", "a3 5! b2 -> a3 5! b2, a3 5! b2", x=(3, 5, 2)),
    case("x.argsort(0)", "5! a3 -> 5! a3", x=(5, 3)),
    case("x.kthvalue(2)", "a3 5! -> a3, a3", x=(3, 5)),
    case("x.kthvalue(2, 0, keepdim=True)", "5! a3 -> 1 a3, 1 a3", x=(5, 3)),
    case("x.mode(0)", "5! a3 -> a3, a3", x=(5, 3)),
    case("x.cummax(1)", "a3 5! -> a3 5!, a3 5!", x=(3, 5)),
    case("x.cummin(-2)", "5! a3 -> 5! a3, 5! a3", x=(5, 3)),
    case("x.logcumsumexp(1)", "a3 5! -> a3 5!", x=(3, 5), tolerance=1e-12),
    case("x.unique()", "2! 3! -> 6!", x=(2, 3), pins={"x0": ORDERED}, slow=True),
    case("torch._unique(x)", "2! 3! -> 6!, 0", x=(2, 3), slow=True),
    case("x.unique(dim=0)", "2! 3! -> 2! 3!", x=(2, 3), slow=True),
    case("x.unique_consecutive()", "5! -> 5!", x=(5,), slow=True),
    case("torch.searchsorted(s, x)", "4!, 5! -> 5!", s=torch.arange(4.0), x=torch.rand(5)),
    case("torch.bucketize(x, s)", "5!, 4! -> 5!", x=torch.rand(5), s=torch.arange(4.0)),
    case("x.multinomial(2)", "5! -> 2!", x=torch.ones(5), values=False),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    orders.RULES, CASES, EXCUSED
)
