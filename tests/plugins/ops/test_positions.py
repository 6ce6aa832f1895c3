"""Rules of positions that are compared, counted and found: written answers, and execution.

``x.topk(2).indices`` are positions along the last dim of ``x``; a table that they look up has that axis, too.
"""

from __future__ import annotations

import pytest
import torch

from prunekit.plugin import Axis, AxisMismatchError, Reason, look_up, product
from prunekit_plugins.ops import positions
from tests.plugins.ops.cases import case, checks_of

ROWS = torch.tensor([4, 1])
NUMBERS = "its positions are used as numbers"
APART = "one of its positions is told apart from the others"
PICKED = "x.topk(2).indices"
SMALL = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
EXCUSED: dict[str, str] = {}

CASES = [
    *(case(f"x.{name}(0.5)", "a2 b5 -> a2 b5", x=(2, 5)) for name in ("eq", "ne", "gt", "ge", "lt", "le")),
    *(case(f"x.{name}(y)", "a2 b5, a2 b5 -> a2 b5", x=(2, 5), y=(2, 5)) for name in ("eq", "gt")),
    case("torch.cumsum(x, 1)", "a3 4! -> a3 4!", x=(3, 4), pins={"x1": "order along this dim matters"}),
    case("torch.cumsum(x, -2)", "3! a4 -> 3! a4", x=(3, 4)),
    case("torch.cumprod(x, 0)", "3! a4 -> 3! a4", x=(3, 4)),
    case("x.nonzero()", "2! 3! -> 6! 2!", x=torch.ones(2, 3), slow=True),
    case("torch.where(x)", "2! 3! -> 6!, 6!", x=torch.ones(2, 3), pins={"x1": "its places are listed"}, slow=True),
    case("i.bincount()", "2! -> 5!", i=ROWS, slow=True),
    case("x.histc(4)", "5! -> 4!", x=(5,)),
    case("x * y.item()", "a3, () -> a3", x=(3,), y=torch.tensor(2.0), slow=True),
    # tables that positions look up have the axis that was chosen from
    case(f"t[{PICKED}]", "a3 b5, b5 c4 -> a3 2! c4", x=SMALL, t=(5, 4), values=False),
    case(f"t[{PICKED}.view(-1)]", "a3 b5, b5 c4 -> (a3*2!) c4", x=SMALL, t=(5, 4), values=False),
    case(f"F.embedding({PICKED}, t)", "a3 b5, b5 c4 -> a3 2! c4", x=SMALL, t=(5, 4), values=False),
    case("t.index_select(1, x.argmax(-1))", "a3 b5, c4 b5 -> c4 a3", x=SMALL, t=(4, 5), values=False),
    case(f"x.gather(1, {PICKED})", "a3 b5 -> a3 2!", x=SMALL, values=False),
    case(f"torch.zeros_like(x).scatter(1, {PICKED}, 1.0)", "a3 b5 -> a3 b5", x=SMALL, values=False),
    case(
        f"x.new_zeros(7).index_add(0, {PICKED}.flatten(), y.float())",
        "3! a5, 6! -> (a5+b2)",
        x=SMALL,
        y=(6,),
        values=False,
    ),
    # counts of positions, and a one-hot code, have it as well
    case("x.argmax(1).float().histc(5, 0, 4) * 2", "a3 b5 -> b5", x=SMALL, values=False),
    case("x.argmax(1).float().histc(4, 0, 4) * 2", "3! 5! -> 4!", x=SMALL),
    case("F.one_hot(x.argmax(1), 5) * 2", "a3 b5 -> a3 b5", x=SMALL, values=False, slow=True),
    case("F.one_hot(x.argmax(1), 6)[:, :5] * 2", "a3 b5 -> a3 b5", x=SMALL, values=False, slow=True),
    case("(x.argmax(1) == 3) * 2", "a3 (b3+1+1) -> a3", x=SMALL, values=False),
    case("x.masked_fill(x > 3, 0.5)", "a2 b5 -> a2 b5", x=(2, 5)),
    case("x.clone().masked_fill_(y > 3, 0.5)", "a2 b5, b5 -> a2 b5", x=(2, 5), y=(5,)),
    case("(x.argmax(1) < 5) * 2", "a3 b5 -> a3", x=SMALL, values=False),
    case("(x.argmax(1) < 2) * 2", "a3 (b2+c3) -> a3", x=SMALL, values=False),
    # whatever computes with them pins it
    case(f"t[{PICKED} + 1]", "3! 5!, 6! a4 -> 3! 2! a4", x=SMALL, t=(6, 4)),
    case("x.argmax(1) * 2.0", "a3 5! -> a3", x=SMALL, pins={"x1": NUMBERS}),
    case("x.argmax(1).bool() * 2", "a3 5! -> a3", x=SMALL),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    positions.RULES, CASES, EXCUSED
)


def test_the_shorter_of_two_axes_is_the_beginning_of_the_longer() -> None:
    table, chosen = Axis(5), Axis(6)
    look_up(table, chosen)
    assert repr(chosen) == "(5 + 1)"
    longer = Axis(8)
    look_up(longer, table)
    assert repr(longer) == "(5 + 3)"


def test_a_lookup_inside_of_a_run_that_belongs_together_is_refused() -> None:
    heads = product([Axis(4), Axis(3, pinned=Reason("three of them"))])
    with pytest.raises(AxisMismatchError, match="splits units of 3"):
        look_up(Axis(5), heads)
