"""Rules of lookups: written answers, and execution."""

from __future__ import annotations

import torch

from prunekit_plugins.ops import indexing
from tests.plugins.ops.cases import case, checks_of

LOOKUP = "its positions are looked up"

EXCUSED: dict[str, str] = {}

CASES = [
    case(
        'F.embedding_bag(i, w, mode="sum")',
        "2! 2!, 7! a4 -> 2! a4",
        i=torch.tensor([[1, 0], [6, 2]]),
        w=(7, 4),
        weights="w",
        pins={"w0": "its rows are looked up"},
        says={"w1": "neurons out"},
    ),
    case(
        "aten._embedding_bag(w, i, o)[0]",
        "7! a4, 3!, 2! -> 2! a4",
        w=(7, 4),
        i=torch.tensor([1, 0, 6]),
        o=torch.tensor([0, 2]),
    ),
    case(
        "aten.embedding_bag(w, i, o)[0]",
        "7! a4, 3!, 2! -> 2! a4",
        w=(7, 4),
        i=torch.tensor([1, 0, 6]),
        o=torch.tensor([0, 2]),
    ),
    case(
        "aten._embedding_bag_forward_only(w, i, o)[0]",
        "7! a4, 3!, 2! -> 2! a4",
        w=(7, 4),
        i=torch.tensor([1, 0, 6]),
        o=torch.tensor([0, 2]),
    ),
    # batch and steps become one dim
    case(
        "aten._pack_padded_sequence(x, n, True)",
        "2! 3! a4, 2! -> 5! a4, 3!",
        x=(2, 3, 4),
        n=torch.tensor([3, 2]),
        pins={"x0": "laid out step by step", "x1": "laid out step by step"},
        slow=True,
    ),
    case(
        "F.embedding(i, w)",
        "3!, 7! a4 -> 3! a4",
        i=torch.tensor([1, 0, 6]),
        w=(7, 4),
        weights="w",
        pins={"w0": "its rows are looked up"},
        says={"w1": "neurons out"},
    ),
    case("F.embedding(i, w, padding_idx=0)", "2! 2!, 7! a4 -> 2! 2! a4", i=torch.tensor([[1, 0], [6, 2]]), w=(7, 4)),
    case("F.embedding(i, w)", "(), 7! a4 -> a4", i=torch.tensor(3), w=(7, 4)),
    case("x[i]", "5! a3, 2! -> 2! a3", x=(5, 3), i=torch.tensor([4, 1]), pins={"x0": LOOKUP}),
    case("x[:, i]", "a5 3!, 4! -> a5 4!", x=(5, 3), i=torch.tensor([2, 1, 0, 0]), pins={"x1": LOOKUP}),
    case("x[:, i]", "a5 3! b2, 2! 2! -> a5 2! 2! b2", x=(5, 3, 2), i=torch.tensor([[2, 1], [0, 0]])),
    case("x[i, j]", "5! 3! a4, 2!, 2! -> 2! a4", x=(5, 3, 4), i=torch.tensor([4, 1]), j=torch.tensor([0, 2])),
    case("x[:, i, j]", "a5 3! 4!, 2!, 2! -> a5 2!", x=(5, 3, 4), i=torch.tensor([2, 1]), j=torch.tensor([0, 2])),
    # index tensors that don't stand together put their dims first
    case("x[i, :, j]", "5! a3 4!, 2!, 2! -> 2! a3", x=(5, 3, 4), i=torch.tensor([4, 1]), j=torch.tensor([0, 2])),
    case(
        "x[:, i, :, j]",
        "a5 3! b4 2!, 3!, 3! -> 3! a5 b4",
        x=(5, 3, 4, 2),
        i=torch.tensor([2, 1, 0]),
        j=torch.tensor([0, 1, 0]),
    ),
    case("x[i, j]", "5! 3! a4, 2! 1, 2! -> 2! 2! a4", x=(5, 3, 4), i=torch.tensor([[4], [1]]), j=torch.tensor([0, 2])),
    case("aten.index(x, [None, i])", "a5 3!, 2! -> a5 2!", x=(5, 3), i=torch.tensor([2, 1])),
    # bool masks take as many dims as they have
    case("x[m]", "3! a2, 3! -> 2! a2", x=(3, 2), m=torch.tensor([True, False, True]), slow=True),
    case("x[:, m]", "a2 3!, 3! -> a2 2!", x=(2, 3), m=torch.tensor([True, False, True]), slow=True),
    # whole rows of the last dims along which a mask is the same
    case(
        "x[m[..., None].expand_as(x)].view(3, -1)",
        "2! 2! a3, 2! 2! -> 3! a3",
        x=(2, 2, 3),
        m=torch.tensor([[True, False], [True, True]]),
        slow=True,
    ),
    case(
        "x[:, m[..., None].repeat(1, 3)]",
        "a2 2! b3 c4, 2! -> a2 b3 c4",
        x=(2, 2, 3, 4),
        m=torch.tensor([True, False]),
        slow=True,
    ),
    case("x[m]", "2! 2! a3, 2! 2! -> 3! a3", x=(2, 2, 3), m=torch.tensor([[True, False], [True, True]]), slow=True),
    case(
        "x[:, m]",
        "a2 2! 2! b3, 2! 2! -> a2 3! b3",
        x=(2, 2, 2, 3),
        m=torch.tensor([[True, False], [True, True]]),
        slow=True,
    ),
    case("x.index_select(1, i)", "a5 3!, 2! -> a5 2!", x=(5, 3), i=torch.tensor([2, 1]), pins={"x1": LOOKUP}),
    case("x.index_select(-2, i)", "5! a3, 2! -> 2! a3", x=(5, 3), i=torch.tensor([2, 1])),
    case(
        "x.gather(1, i)",
        "2! 3!, 2! 4! -> 2! 4!",
        x=(2, 3),
        i=torch.tensor([[0, 1, 2, 0], [1, 1, 0, 0]]),
        pins={"x1": LOOKUP},
    ),
    case(
        "x.gather(0, i)",
        "4! 3!, 2! 2! -> 2! 2!",
        x=(4, 3),
        i=torch.tensor([[0, 1], [1, 1]]),
        pins={"x1": "gathered in part"},
    ),
    case("x.gather(-1, i)", "2! 3!, 2! 1 -> 2! 1", x=(2, 3), i=torch.tensor([[0], [2]])),
    # an index with a copied dim leaves that dim free
    case(
        "x.gather(1, i.unsqueeze(-1).expand(2, 3, 5))",
        "2! 4! a5, 2! 3! -> 2! 3! a5",
        x=(2, 4, 5),
        i=torch.tensor([[0, 3, 1], [2, 2, 0]]),
    ),
    case("aten._unsafe_index(x, [None, i])", "a5 3!, 2! -> a5 2!", x=(5, 3), i=torch.tensor([2, 1])),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    indexing.RULES, CASES, EXCUSED
)
