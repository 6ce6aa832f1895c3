"""Rules of writing by position: written answers, and execution."""

from __future__ import annotations

import torch

from prunekit_plugins.ops import scatters
from tests.plugins.ops.cases import case, checks_of

WRITTEN = "its positions are written by index"
DEALT = "its elements are dealt out one after another"
EXCUSED: dict[str, str] = {}

ROWS = torch.tensor([4, 1])
COLUMNS = torch.tensor([0, 2])
ALONG = torch.tensor([[0, 2], [1, 0]])
MASK = torch.tensor([[True, False, True], [False, False, True]])

CASES = [
    # the values' trailing dims are those that weren't indexed
    case("x.index_put((i,), v)", "5! a3, 2!, 2! a3 -> 5! a3", x=(5, 3), i=ROWS, v=(2, 3), pins={"x0": WRITTEN}),
    case("x.index_put((i,), v)", "5! a3, 2!, a3 -> 5! a3", x=(5, 3), i=ROWS, v=(3,)),
    case("x.index_put((i,), v)", "5! a3, 2!, 2! 1 -> 5! a3", x=(5, 3), i=ROWS, v=(2, 1)),
    case("x.index_put((i,), v, accumulate=True)", "5! a3, 2!, 2! a3 -> 5! a3", x=(5, 3), i=ROWS, v=(2, 3)),
    case(
        "aten.index_put(x, [None, i], v)", "a2 5!, 2!, a2 2! -> a2 5!", x=(2, 5), i=ROWS, v=(2, 2), pins={"v1": WRITTEN}
    ),
    case("x.index_put((i, j), v)", "5! 3! a4, 2!, 2!, 2! a4 -> 5! 3! a4", x=(5, 3, 4), i=ROWS, j=COLUMNS, v=(2, 4)),
    # index tensors that don't stand together put their dims first
    case(
        "aten.index_put(x, [i, None, j], v)",
        "5! a4 3!, 2!, 2!, 2! a4 -> 5! a4 3!",
        x=(5, 4, 3),
        i=ROWS,
        j=COLUMNS,
        v=(2, 4),
    ),
    case("x.index_put((m,), v)", "2! 3! a4, 2! 3!, 3! a4 -> 2! 3! a4", x=(2, 3, 4), m=MASK, v=(3, 4)),
    case("aten._unsafe_index_put(x, [i], v)", "5! a3, 2!, 2! a3 -> 5! a3", x=(5, 3), i=ROWS, v=(2, 3)),
    case("aten._index_put_impl_(x.clone(), [i], v)", "5! a3, 2!, 2! a3 -> 5! a3", x=(5, 3), i=ROWS, v=(2, 3)),
    # every dim but one is shared
    case("x.scatter(1, i, 1.0)", "2! 3!, 2! 2! -> 2! 3!", x=(2, 3), i=ALONG, pins={"x1": WRITTEN}),
    case(
        "x.scatter(0, i, v)",
        "3! 4!, 2! 2!, 2! 2! -> 3! 4!",
        x=(3, 4),
        i=ALONG,
        v=(2, 2),
        pins={"x1": "scattered in part"},
    ),
    case(
        "x.scatter_add(1, i.unsqueeze(-1).expand(2, 2, 5), v)",
        "2! 4! a5, 2! 2!, 2! 2! a5 -> 2! 4! a5",
        x=(2, 4, 5),
        i=ALONG,
        v=(2, 2, 5),
    ),
    case(
        'x.scatter_reduce(1, i.unsqueeze(-1).expand(2, 2, 5), v, "amax")',
        "2! 4! a5, 2! 2!, 2! 2! a5 -> 2! 4! a5",
        x=(2, 4, 5),
        i=ALONG,
        v=(2, 2, 5),
    ),
    case("x.index_add(0, i, v)", "5! a3, 2!, 2! a3 -> 5! a3", x=(5, 3), i=ROWS, v=(2, 3), pins={"v0": WRITTEN}),
    case("x.index_copy(-1, i, v)", "a3 5!, 2!, a3 2! -> a3 5!", x=(3, 5), i=ROWS, v=(3, 2)),
    case("x.index_fill(1, i, 2.0)", "a3 5!, 2! -> a3 5!", x=(3, 5), i=ROWS),
    case(
        'x.index_reduce(0, i, v, "prod")',
        "5! a3, 2!, 2! a3 -> 5! a3",
        x=(5, 3),
        i=ROWS,
        v=(2, 3),
        unrun="it warns that it is in beta",
    ),
    # elements one after another
    case("x.masked_select(m)", "2! 3!, 2! 3! -> 3!", x=(2, 3), m=MASK, pins={"x0": DEALT, "x1": DEALT}),
    case("x.masked_scatter(m, v)", "2! 3!, 2! 3!, 6! -> 2! 3!", x=(2, 3), m=MASK, v=(6,)),
    case("x.nonzero()", "2! 3! -> 6! 2!", x=torch.ones(2, 3)),
    case("x.take(i)", "2! 3!, 2! -> 2!", x=(2, 3), i=ROWS),
    case("x.put(i, v)", "2! 3!, 2!, 2! -> 2! 3!", x=(2, 3), i=ROWS, v=(2,)),
    case("i.bincount()", "2! -> 5!", i=ROWS),
    case("x.histc(4)", "5! -> 4!", x=(5,)),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    scatters.RULES, CASES, EXCUSED
)
