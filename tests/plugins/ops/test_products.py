"""Rules of products: written answers, and execution."""

from __future__ import annotations

import torch

from prunekit_plugins.ops import products
from tests.plugins.ops.cases import case, checks_of

EXCUSED: dict[str, str] = {}

CASES = [
    case(
        "F.linear(x, w, b)",
        "a2 b6, c9 b6, c9 -> a2 c9",
        x=(2, 6),
        w=(9, 6),
        b=(9,),
        weights="w b",
        says={"w0": "neurons out", "w1": "in", "b0": "along neurons", "x1": ""},
    ),
    case("F.linear(x, w)", "a2 b3 c6, d9 c6 -> a2 b3 d9", x=(2, 3, 6), w=(9, 6), weights="w"),
    case("F.linear(x, w)", "a6, b9 a6 -> b9", x=(6,), w=(9, 6), weights="w"),
    case("F.linear(x, w)", "a2 b6, b6 -> a2", x=(2, 6), w=(6,), weights="w"),
    # a weight that is itself computed: the contraction is one of activations
    case("F.linear(x, w)", "a2 b6, c9 b6 -> a2 c9", x=(2, 6), w=(9, 6), says={"x1": "contract"}),
    case(
        "F.linear(x, torch.cat([v, w], 1))",
        "a2 (b2+c3), d4 b2, d4 c3 -> a2 d4",
        x=(2, 5),
        v=(4, 2),
        w=(4, 3),
        weights="v w",
    ),
    case(
        "x @ w",
        "a2 b6, b6 c9 -> a2 c9",
        x=(2, 6),
        w=(6, 9),
        weights="w",
        says={"w0": "contract in", "w1": "neurons out"},
    ),
    case(
        "w @ x",
        "a9 b6, b6 c2 -> a9 c2",
        w=(9, 6),
        x=(6, 2),
        weights="w",
        says={"w0": "neurons out", "w1": "contract in"},
    ),
    case("torch.matmul(x, y)", "a6, a6 -> ()", x=(6,), y=(6,), says={"x0": "contract"}),
    case("torch.matmul(x, y)", "a6, a6 b4 -> b4", x=(6,), y=(6, 4)),
    case("torch.matmul(x, y)", "a4 b6, b6 -> a4", x=(4, 6), y=(6,)),
    case("torch.matmul(x, y)", "a6, b5 a6 c4 -> b5 c4", x=(6,), y=(5, 6, 4)),
    case("torch.matmul(x, y)", "a5 b4 c6, c6 -> a5 b4", x=(5, 4, 6), y=(6,)),
    case("torch.matmul(x, y)", "a5 b4 c6, c6 d3 -> a5 b4 d3", x=(5, 4, 6), y=(6, 3)),
    case("torch.matmul(x, y)", "a4 b6, c5 b6 d3 -> c5 a4 d3", x=(4, 6), y=(5, 6, 3)),
    case(
        "torch.matmul(x, y)",
        "a2 b5 c4 d6, a2 b5 d6 e3 -> a2 b5 c4 e3",
        x=(2, 5, 4, 6),
        y=(2, 5, 6, 3),
        says={"x0": "heads", "x1": "heads", "x3": "contract head_dim", "y3": "head_dim"},
    ),
    case("torch.matmul(x, y)", "a2 1 b4 c6, d5 c6 e3 -> a2 d5 b4 e3", x=(2, 1, 4, 6), y=(5, 6, 3)),
    case("torch.matmul(x, y)", "a2 b5 c4 d6, 1 b5 d6 e3 -> a2 b5 c4 e3", x=(2, 5, 4, 6), y=(1, 5, 6, 3)),
    case("torch.matmul(x, y)", "a4 1, 1 b3 -> a4 b3", x=(4, 1), y=(1, 3)),
    case("torch.matmul(x, y)", "a4 0, 0 b3 -> a4 b3", x=(4, 0), y=(0, 3)),
    case("torch.mm(x, y)", "a4 b6, b6 c3 -> a4 c3", x=(4, 6), y=(6, 3)),
    case("torch.bmm(x, y)", "a2 b4 c6, a2 c6 d3 -> a2 b4 d3", x=(2, 4, 6), y=(2, 6, 3)),
    case("torch.mv(x, y)", "a4 b6, b6 -> a4", x=(4, 6), y=(6,)),
    case("torch.dot(x, y)", "a6, a6 -> ()", x=(6,), y=(6,)),
    case(
        "torch.addmm(b, x, w)",
        "a3, b4 c6, c6 a3 -> b4 a3",
        b=(3,),
        x=(4, 6),
        w=(6, 3),
        weights="b w",
        says={"b0": "along neurons", "w0": "contract in"},
    ),
    case("torch.addmm(b, x, w, beta=2, alpha=3)", "a4 b3, a4 c6, c6 b3 -> a4 b3", b=(4, 3), x=(4, 6), w=(6, 3)),
    case("torch.addmm(b, x, w)", "1 a3, b4 c6, c6 a3 -> b4 a3", b=(1, 3), x=(4, 6), w=(6, 3)),
    case("torch.baddbmm(b, x, y)", "a2 b4 c3, a2 b4 d6, a2 d6 c3 -> a2 b4 c3", b=(2, 4, 3), x=(2, 4, 6), y=(2, 6, 3)),
    case("torch.baddbmm(b, x, y)", "1 a3, b2 c4 d6, b2 d6 a3 -> b2 c4 a3", b=(1, 3), x=(2, 4, 6), y=(2, 6, 3)),
    case("torch.addbmm(b, x, y)", "a2 b4, c3 a2 d5, c3 d5 b4 -> a2 b4", b=(2, 4), x=(3, 2, 5), y=(3, 5, 4)),
    case("torch.addbmm(b, x, y)", "a4, b3 c2 d5, b3 d5 a4 -> c2 a4", b=(4,), x=(3, 2, 5), y=(3, 5, 4)),
    case("torch.addr(b, x, y)", "a2 b4, a2, b4 -> a2 b4", b=(2, 4), x=(2,), y=(4,)),
    case("torch.addmv(b, x, y)", "a4, a4 b6, b6 -> a4", b=(4,), x=(4, 6), y=(6,)),
    # einsum
    case(
        'torch.einsum("ab,bc->ac", x, y)',
        "a2 b3, b3 c4 -> a2 c4",
        x=(2, 3),
        y=(3, 4),
        says={"x1": "contract", "x0": ""},
    ),
    case('torch.einsum("ab,bc", x, y)', "a2 b3, b3 c4 -> a2 c4", x=(2, 3), y=(3, 4)),
    case('torch.einsum("ba, cb", x, y)', "a3 b2, c4 a3 -> b2 c4", x=(3, 2), y=(4, 3)),
    case(
        'torch.einsum("bi,oi->bo", x, w)',
        "a2 b3, c4 b3 -> a2 c4",
        x=(2, 3),
        w=(4, 3),
        weights="w",
        says={"w0": "out", "w1": "contract in"},
    ),
    case(
        'torch.einsum("bhqd,bhkd->bhqk", x, y)',
        "a2 b3 c4 d5, a2 b3 e6 d5 -> a2 b3 c4 e6",
        x=(2, 3, 4, 5),
        y=(2, 3, 6, 5),
        says={"x1": "heads", "x3": "contract"},
    ),
    case(
        'torch.einsum("...ab,...bc->...ac", x, y)',
        "a2 b3 c4 d5, a2 b3 d5 e6 -> a2 b3 c4 e6",
        x=(2, 3, 4, 5),
        y=(2, 3, 5, 6),
    ),
    case('torch.einsum("...a,ab->...b", x, y)', "a2 b3 c4, c4 d5 -> a2 b3 d5", x=(2, 3, 4), y=(4, 5)),
    case('torch.einsum("...a,ab", x, y)', "a2 b3 c4, c4 d5 -> a2 b3 d5", x=(2, 3, 4), y=(4, 5)),
    case(
        'torch.einsum("...ab,...bc->...ac", x, y)', "a3 b4 c5, d2 a3 c5 e6 -> d2 a3 b4 e6", x=(3, 4, 5), y=(2, 3, 5, 6)
    ),
    case('torch.einsum("...ab,...bc->...ac", x, y)', "1 a4 b5, c3 b5 d6 -> c3 a4 d6", x=(1, 4, 5), y=(3, 5, 6)),
    case('torch.einsum("a...,a...->...", x, y)', "a4 b3, a4 b3 -> b3", x=(4, 3), y=(4, 3)),
    case('torch.einsum("...", x)', "a2 b3 -> a2 b3", x=(2, 3)),
    # a label twice in one term is a diagonal, or a trace
    case('torch.einsum("aab->ab", x)', "a3 a3 b4 -> a3 b4", x=(3, 3, 4)),
    case('torch.einsum("aa->a", x)', "a3 a3 -> a3", x=(3, 3)),
    case('torch.einsum("aa->", x)', "a3 a3 -> ()", x=(3, 3), says={"x0": "sum"}),
    case('torch.einsum("aab,bc->ac", x, y)', "a3 a3 b4, b4 c2 -> a3 c2", x=(3, 3, 4), y=(4, 2)),
    case('torch.einsum("ab->ba", x)', "a2 b3 -> b3 a2", x=(2, 3)),
    case('torch.einsum("ba", x)', "a2 b3 -> b3 a2", x=(2, 3)),
    case('torch.einsum("ab->a", x)', "a2 b3 -> a2", x=(2, 3), says={"x1": "sum"}),
    case('torch.einsum("ab->", x)', "a2 b3 -> ()", x=(2, 3)),
    case('torch.einsum("a,b->ab", x, y)', "a2, b3 -> a2 b3", x=(2,), y=(3,)),
    case('torch.einsum("ab,ab->ab", x, y)', "a2 b3, a2 b3 -> a2 b3", x=(2, 3), y=(2, 3)),
    case('torch.einsum("ab,ab->ab", x, y)', "a2 1, a2 b3 -> a2 b3", x=(2, 1), y=(2, 3)),
    case('torch.einsum("ab,ab->ab", x, y)', "a2 b3, a2 1 -> a2 b3", x=(2, 3), y=(2, 1)),
    case('torch.einsum("ab,cb,db->acd", x, y, z)', "a2 b3, c4 b3, d5 b3 -> a2 c4 d5", x=(2, 3), y=(4, 3), z=(5, 3)),
    case('torch.einsum("xY,Yz->xz", x, y)', "a2 b3, b3 c4 -> a2 c4", x=(2, 3), y=(3, 4)),
    case("torch.einsum(x, [0, 1], y, [1, 2], [0, 2])", "a2 b3, b3 c4 -> a2 c4", x=(2, 3), y=(3, 4)),
    case("torch.vdot(x, y)", "a3, a3 -> ()", x=(3,), y=(3,), says={"x0": "contract"}),
    case(
        "F.bilinear(x, y, w, b)",
        "a2 b3, a2 c4, d5 b3 c4, d5 -> a2 d5",
        x=(2, 3),
        y=(2, 4),
        w=(5, 3, 4),
        b=(5,),
        weights="w b",
        says={"w0": "neurons out", "w1": "in", "w2": "in"},
    ),
    case("torch.cdist(x, y)", "a3 b2, c4 b2 -> a3 c4", x=(3, 2), y=(4, 2), says={"x1": "mix"}, tolerance=1e-9),
    case("torch.cdist(x, y, 1.0)", "a2 b3 c2, a2 d4 c2 -> a2 b3 d4", x=(2, 3, 2), y=(2, 4, 2), tolerance=1e-9),
    case("aten._cdist_forward(x, y, 2.0, None)", "a3 b2, c4 b2 -> a3 c4", x=(3, 2), y=(4, 2), tolerance=1e-9),
    # rows sorted by expert: an expert's number can't change
    case(
        "torch._grouped_mm(x, w, offs=i)",
        "4! a8, 2! a8 b8, 2! -> 4! b8",
        x=torch.randn(4, 8, dtype=torch.bfloat16),
        w=torch.randn(2, 8, 8, dtype=torch.bfloat16),
        i=torch.tensor([1, 4], dtype=torch.int32),
        weights="w",
        says={"w1": "contract in", "w2": "neurons out"},
        pins={"w0": "experts are told apart by number", "x0": "rows are sorted by expert"},
        unrun="it takes multiples of 16 bytes only",
    ),
    case(
        "torch._grouped_mm(x, w)",
        "a2 b4 c8, a2 c8 d8 -> a2 b4 d8",
        x=torch.randn(2, 4, 8, dtype=torch.bfloat16),
        w=torch.randn(2, 8, 8, dtype=torch.bfloat16),
        unrun="it takes multiples of 16 bytes only",
    ),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    products.RULES, CASES, EXCUSED
)
