"""Rules of writing by position: written answers, and execution."""

from __future__ import annotations

from collections.abc import Callable

import torch

from prunekit.testing import read_axes
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
    # a number where a mask says so, is pointwise
    case("x.index_put((x > 0.5,), v)", "a2 b3, 1 -> a2 b3", x=(2, 3), v=(1,)),
    case("aten.index_put(x, [None, x[0] > 0.5], v)", "2! a3 b4, 1 -> 2! a3 b4", x=(2, 3, 4), v=(1,)),
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
    case("x.masked_select(m)", "2! 3!, 2! 3! -> 3!", x=(2, 3), m=MASK, pins={"x0": DEALT, "x1": DEALT}, slow=True),
    case("x.masked_scatter(m, v)", "2! 3!, 2! 3!, 6! -> 2! 3!", x=(2, 3), m=MASK, v=(6,)),
    # a mask that is the same along the last dims deals out whole rows of them
    case("x.masked_scatter(m[..., None], v)", "2! 3! a4, 2! 3!, 5! a4 -> 2! 3! a4", x=(2, 3, 4), m=MASK, v=(5, 4)),
    case(
        "x.masked_scatter(m[..., None].expand_as(x), v)",
        "2! 3! a4, 2! 3!, 5! a4 -> 2! 3! a4",
        x=(2, 3, 4),
        m=MASK,
        v=(5, 4),
        pins={"v0": DEALT},
    ),
    case(
        "x.masked_scatter(~m[..., None].expand(-1, -1, 4).to(torch.uint8).bool().contiguous(), v.flatten())",
        "2! 3! a4, 2! 3!, 5! a4 -> 2! 3! a4",
        x=(2, 3, 4),
        m=MASK,
        v=(5, 4),
    ),
    case(
        "x.masked_scatter(m[..., None, None].repeat(1, 1, 2, 4), v)",
        "2! 3! a2 b4, 2! 3!, 3! a2 b4 -> 2! 3! a2 b4",
        x=(2, 3, 2, 4),
        m=MASK,
        v=(3, 2, 4),
    ),
    case("x.masked_scatter(m, v)", "2! a3, 2! 1, 4! a3 -> 2! a3", x=(2, 3), m=MASK[:, :1].clone(), v=(4, 3)),
    # along a dim before one in which the mask changes, it deals out nothing whole
    case(
        "x.masked_scatter(m[:, None].expand(2, 4, 3), v)",
        "2! 4! 3!, 2! 3!, 24! -> 2! 4! 3!",
        x=(2, 4, 3),
        m=MASK,
        v=(24,),
    ),
    case("x.masked_scatter(m[..., None], v)", "2! 3! 4!, 2! 3!, 13! -> 2! 3! 4!", x=(2, 3, 4), m=MASK, v=(13,)),
    case("x.masked_select(m[..., None])", "2! 3! a4, 2! 3! -> (3!*a4)", x=(2, 3, 4), m=MASK, slow=True),
    case(
        "x.masked_select(m[..., None].expand_as(x)).view(3, -1)",
        "2! 3! a4, 2! 3! -> 3! a4",
        x=(2, 3, 4),
        m=MASK,
        slow=True,
    ),
    case("x.masked_select(m[..., None] & False)", "2! 3! 4!, 2! 3! -> 0", x=(2, 3, 4), m=MASK, slow=True),
    case("x.masked_select(m)", "a3, 2! 1 -> a3", x=(3,), m=torch.tensor([[True], [False]]), slow=True),
    case(
        "x.index_put((m[..., None].expand_as(x),), v.flatten())",
        "2! 3! a4, 2! 3!, 3! a4 -> 2! 3! a4",
        x=(2, 3, 4),
        m=MASK,
        v=(3, 4),
        pins={"v0": WRITTEN},
    ),
    case("x.index_put((m[..., None].expand_as(x),), v)", "2! 3! a4, 2! 3!, 1 -> 2! 3! a4", x=(2, 3, 4), m=MASK, v=(1,)),
    case("x.take(i)", "2! 3!, 2! -> 2!", x=(2, 3), i=ROWS),
    case("x.put(i, v)", "2! 3!, 2!, 2! -> 2! 3!", x=(2, 3), i=ROWS, v=(2,)),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    scatters.RULES, CASES, EXCUSED
)


def _scattered(prepare: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """What is said of ``x.masked_scatter`` by a mask of 2 x 3 that is made the size of ``x`` in some way."""

    def function(x: torch.Tensor, m: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return x.masked_scatter(prepare(m), v)

    read = read_axes(function, [torch.randn(2, 3, 4), MASK, torch.randn(6, 4)])
    return str(read).partition(",")[0]


def test_what_is_written_into_an_expanded_mask_is_not_overlooked() -> None:
    def untouched(m: torch.Tensor) -> torch.Tensor:
        return m[..., None].expand(2, 3, 4).clone()

    def one_column(m: torch.Tensor) -> torch.Tensor:
        mask = untouched(m)
        mask[..., 0] = False
        return mask

    def through_a_view(m: torch.Tensor) -> torch.Tensor:
        mask = untouched(m)
        flat = mask.view(-1)
        flat[4:8] = True
        return mask

    def a_view_made_before(m: torch.Tensor) -> torch.Tensor:
        mask = untouched(m)
        view = mask.view(6, 4)
        mask[0, 0, 0] = False
        return view.view(2, 3, 4)

    def in_place(m: torch.Tensor) -> torch.Tensor:
        return untouched(m).logical_and_(torch.arange(4) > 1)

    def drawn(m: torch.Tensor) -> torch.Tensor:
        return torch.rand_like(untouched(m).float()) > 0.5

    def another_place(m: torch.Tensor) -> torch.Tensor:
        mask = untouched(m)
        mask.clone()[..., 0] = False
        return mask

    assert [_scattered(prepare) for prepare in (untouched, another_place)] == ["2! 3! a4"] * 2
    for prepare in (one_column, through_a_view, a_view_made_before, in_place, drawn):
        assert _scattered(prepare) == "2! 3! 4!", prepare.__name__


def test_equal_elements_are_followed_through_views_and_pointwise_operations() -> None:
    ways: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda m: m.repeat_interleave(4).view(2, 3, 4),
        lambda m: m.expand(4, 2, 3).permute(1, 2, 0),
        lambda m: m.expand(4, 2, 3).movedim(0, -1),
        lambda m: m[:, None].expand(2, 4, 3).transpose(1, 2),
        lambda m: m.reshape(6, 1).expand(6, 4).view(2, 3, 4) & torch.ones(2, 3, 4, dtype=torch.bool),
        lambda m: torch.where(m[..., None].expand(2, 3, 4), 1.0, torch.zeros(4)) > 0.5,
        lambda m: torch.cat([m[:1, :, None].expand(1, 3, 4), m[1:, :, None].expand(1, 3, 4)]),
        lambda m: torch.stack(m[..., None].expand(2, 3, 4).unbind(0)),
        lambda m: m[..., None].expand(2, 3, 8)[..., :4],
        lambda m: m[..., None].expand(2, 3, 8).chunk(2, -1)[1],
    ]
    found = [_scattered(way) for way in ways]
    assert found.count("2! 3! a4") >= 7, found
