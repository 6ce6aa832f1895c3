"""Rules of joins and cuts: written answers, and execution."""

from __future__ import annotations

from prunekit_plugins.ops import joins
from tests.plugins.ops.cases import case, checks_of

EXCUSED: dict[str, str] = {}

CASES = [
    case("torch.cat([a, b], 1)", "a2 b3, a2 c4 -> a2 (b3+c4)", a=(2, 3), b=(2, 4)),
    case("torch.cat([a, b], -1)", "a2 b3, a2 c4 -> a2 (b3+c4)", a=(2, 3), b=(2, 4)),
    case("torch.cat([a, b, a], 0)", "a2 b3, c4 b3 -> (a2+c4+a2) b3", a=(2, 3), b=(4, 3)),
    case("torch.cat([a, b], 1)", "a2 b3, a2 1 -> a2 (b3+1)", a=(2, 3), b=(2, 1)),
    case("torch.cat([a, b], 1)", "a2 b3, 0 -> a2 b3", a=(2, 3), b=(0,)),
    case("torch.cat([a, b], 1)", "a2 b3, a2 0 -> a2 b3", a=(2, 3), b=(2, 0)),
    case("torch.cat([a, b])", "0, 0 -> 0", a=(0,), b=(0,)),
    case("torch.concat([a, b], 1)", "a2 b3, a2 c4 -> a2 (b3+c4)", a=(2, 3), b=(2, 4)),
    case("torch.concatenate([a, b], 0)", "a3, b4 -> (a3+b4)", a=(3,), b=(4,)),
    case("torch.cat([torch.cat([a, b], 1), a], 1)", "a2 b3, a2 c4 -> a2 (b3+c4+b3)", a=(2, 3), b=(2, 4)),
    case("torch.stack([a, b])", "a2 b3, a2 b3 -> 2! a2 b3", a=(2, 3), b=(2, 3)),
    case("torch.stack([a, b, a], 1)", "a2 b4, a2 b4 -> a2 3! b4", a=(2, 4), b=(2, 4)),
    case("torch.stack([a, b], -1)", "a2 b3, a2 b3 -> a2 b3 2!", a=(2, 3), b=(2, 3)),
    case("torch.stack([a, b], -2)", "a2 b3, a2 b3 -> a2 2! b3", a=(2, 3), b=(2, 3)),
    case("torch.stack([a])", "a3 -> 1 a3", a=(3,)),
    # cutting
    case("x.split(3, 1)", "a2 (b3+b3+b3) -> a2 b3, a2 b3, a2 b3", x=(2, 9)),
    case("x.split(3, -1)", "a2 (b3+b3) -> a2 b3, a2 b3", x=(2, 6)),
    case(
        "x.split(4, 1)",
        "a2 10! -> a2 4!, a2 4!, a2 2!",
        x=(2, 10),
        pins={"x1": "the pieces are of unequal size"},
    ),
    case("x.split(6, 1)", "a2 b6 -> a2 b6", x=(2, 6)),
    case("x.split([2, 4, 3], 1)", "a2 (b2+c4+d3) -> a2 b2, a2 c4, a2 d3", x=(2, 9)),
    case("x.split([2, 0, 3], 0)", "(a2+b3) -> a2, 0, b3", x=(5,)),
    case("x.split_with_sizes([2, 4], 1)", "a2 (b2+c4) -> a2 b2, a2 c4", x=(2, 6)),
    case("aten.unsafe_split(x, 3, 1)", "a2 (b3+b3) -> a2 b3, a2 b3", x=(2, 6)),
    case("aten.unsafe_split_with_sizes(x, [2, 4], 1)", "a2 (b2+c4) -> a2 b2, a2 c4", x=(2, 6)),
    case("x.chunk(3, 1)", "a2 (b4+b4+b4) -> a2 b4, a2 b4, a2 b4", x=(2, 12)),
    case("x.chunk(2, -1)", "a2 (b3+b3) -> a2 b3, a2 b3", x=(2, 6)),
    case("x.chunk(3, 1)", "a2 7! -> a2 3!, a2 3!, a2 1", x=(2, 7), pins={"x1": "the pieces are of unequal size"}),
    case("x.chunk(1, 1)", "a2 b6 -> a2 b6", x=(2, 6)),
    case("aten.unsafe_chunk(x, 2, 1)", "a2 (b3+b3) -> a2 b3, a2 b3", x=(2, 6)),
    case("x.tensor_split(3, 1)", "a2 (b2+b2+b2) -> a2 b2, a2 b2, a2 b2", x=(2, 6)),
    case("x.tensor_split([2, 5], 1)", "a2 (b2+c3+d7) -> a2 b2, a2 c3, a2 d7", x=(2, 12)),
    case("x.tensor_split([2], -2)", "(a2+b3) c4 -> a2 c4, b3 c4", x=(5, 4)),
    case("x.hsplit(2)", "a2 (b3+b3) -> a2 b3, a2 b3", x=(2, 6)),
    # a gate: the halves are tied by the product
    case("x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid()", "a2 (b3+b3) -> a2 b3", x=(2, 6), tolerance=1e-12),
    # heads inside the pieces
    case(
        "x.view(2, 4, 9).split([2, 7], -1)",
        "a2 (b4*(c2+d7)) -> a2 b4 c2, a2 b4 d7",
        x=(2, 36),
    ),
    case("x.flatten(1).chunk(3, 1)", "a2 3! b4 -> a2 b4, a2 b4, a2 b4", x=(2, 3, 4)),
    case("x.flatten(1).chunk(2, 1)", "a2 (b2+b2) c3 -> a2 (b2*c3), a2 (b2*c3)", x=(2, 4, 3)),
    case("x.flatten(1).split([3, 9], 1)", "a2 (1+b3) c3 -> a2 c3, a2 (b3*c3)", x=(2, 4, 3)),
    # a cut inside a unit: blocks of a common divisor lose the same, if there is one
    case("x.flatten(1).chunk(2, 1)", "a2 3! (2!*b2) -> a2 (3!*b2), a2 (3!*b2)", x=(2, 3, 4)),
    case("x.flatten(1).split([4, 11], 1)", "2! 3! 5! -> 2! 4!, 2! 11!", x=(2, 3, 5), gap="splits units of 5"),
    case("torch.cat([x, y], 1)[:, 2:5]", "a2 (b2+1), a2 (c2+d2) -> a2 (1+c2)", x=(2, 3), y=(2, 4)),
    case("x.unbind(1)", "a2 3! -> a2, a2, a2", x=(2, 3), pins={"x1": "taken apart one by one"}),
    case("x.unbind(-2)", "2! a3 -> a3, a3", x=(2, 3)),
    case("x.select(1, 0)", "a2 3! -> a2", x=(2, 3), pins={"x1": "one position of it is selected"}),
    case("x[0]", "2! a3 -> a3", x=(2, 3)),
    case("x[:, -1]", "a2 3! -> a2", x=(2, 3)),
    case("x[..., 1]", "a2 b3 4! -> a2 b3", x=(2, 3, 4)),
    # slices
    case("x[:, 2:]", "a2 (b2+c5) -> a2 c5", x=(2, 7)),
    case("x[:, :2]", "a2 (b2+c5) -> a2 b2", x=(2, 7)),
    case("x[:, 2:5]", "a2 (b2+c3+d2) -> a2 c3", x=(2, 7)),
    case("x[:, :]", "a2 b7 -> a2 b7", x=(2, 7)),
    case("x[:, :100]", "a2 b7 -> a2 b7", x=(2, 7)),
    case("x[:, 3:100]", "a2 (b3+c4) -> a2 c4", x=(2, 7)),
    case("x[:, 0::2]", "a2 (b4*2!) -> a2 b4", x=(2, 8), pins={"x1": "every n-th unit is taken"}),
    case("x[:, 1::2]", "a2 (b4*2!) -> a2 b4", x=(2, 8)),
    case("x[:, 2::3]", "a2 (b3*3!) -> a2 b3", x=(2, 9)),
    case("x[:, ::2]", "2! 7! -> 2! 4!", x=(2, 7), gap="a slice 0:7:2 of 7 units"),
    case("x[:, -3:]", "a2 (b4+3!) -> a2 3!", x=(2, 7), pins={"x1": "positions before it are counted from the end"}),
    case("x[:, :-1]", "a2 (b6+1) -> a2 b6", x=(2, 7)),
    case("x[:, :-2]", "a2 (b5+2!) -> a2 b5", x=(2, 7), pins={"x1": "positions before it are counted from the end"}),
    case("x[:, 2:-2]", "a2 (b2+c3+2!) -> a2 c3", x=(2, 7)),
    case("x[:, -5:-2]", "a2 (b2+3!+2!) -> a2 3!", x=(2, 7)),
    case("x[:, -5:4]", "a2 (b2+2!+3!) -> a2 2!", x=(2, 7)),
    case("torch.cat([x, y], 1)[:, :-2]", "a2 b3, a2 2! -> a2 b3", x=(2, 3), y=(2, 2)),
    case("x[:, 4:4]", "a2 7! -> a2 0", x=(2, 7), gap="", pins={"x1": "an empty slice"}),
    case("x.narrow(1, 2, 3)", "a2 (b2+c3+d2) -> a2 c3", x=(2, 7)),
    case("x.narrow(-1, 0, 3)", "a2 (b3+c4) -> a2 b3", x=(2, 7)),
    case("x.narrow(1, 3, 4)", "a2 (b3+c4) -> a2 c4", x=(2, 7)),
    case("x.narrow(1, 0, 7)", "a2 b7 -> a2 b7", x=(2, 7)),
    case(
        "x.narrow(1, -3, 2)",
        "a2 (b4+2!+1) -> a2 2!",
        x=(2, 7),
        pins={"x1": "positions before it are counted from the end"},
    ),
    # rotate half: two halves of one dim
    case("torch.cat([-x[..., 3:], x[..., :3]], -1)", "a2 (b3+c3) -> a2 (c3+b3)", x=(2, 6)),
    case("torch.cat([-x[..., 3:], x[..., :3]], -1) + x", "a2 (b3+b3) -> a2 (b3+b3)", x=(2, 6)),
    # the halves are multiplied with each other
    case("F.glu(x)", "a2 (b3+b3) -> a2 b3", x=(2, 6), tolerance=1e-12),
    case("F.glu(x, 0)", "(a2+a2) b3 -> a2 b3", x=(4, 3), tolerance=1e-12),
    case("x.select_scatter(y, 1, 2)", "a2 3! b4, a2 b4 -> a2 3! b4", x=(2, 3, 4), y=(2, 4)),
    case(
        "x.slice_scatter(y, 1, 1, 3)",
        "a2 5!, a2 2! -> a2 5!",
        x=(2, 5),
        y=(2, 2),
        pins={"y1": "a run of it is written"},
    ),
    case("x.slice_scatter(y, 1)", "a2 b5, a2 b5 -> a2 b5", x=(2, 5), y=(2, 5)),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    joins.RULES, CASES, EXCUSED
)
