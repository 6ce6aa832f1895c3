"""Rules of losses: written answers, and execution."""

from __future__ import annotations

import torch

from prunekit_plugins.ops import losses
from tests.plugins.ops.cases import case, checks_of

EXCUSED: dict[str, str] = {}
CLASSES = "classes are looked up by number"

CASES = [
    case('F.mse_loss(x, y, reduction="none")', "a3 b5, a3 b5 -> a3 b5", x=(3, 5), y=(3, 5)),
    case("F.mse_loss(x, y)", "a3 b5, a3 b5 -> ()", x=(3, 5), y=(3, 5), says={"x0": "mix", "y1": "mix"}),
    case('F.mse_loss(x, y, reduction="sum")', "a3 b5, a3 b5 -> ()", x=(3, 5), y=(3, 5), says={"x1": "mix"}),
    case('F.smooth_l1_loss(x, y, reduction="none")', "a3 b5, a3 b5 -> a3 b5", x=(3, 5), y=(3, 5)),
    case('F.huber_loss(x, y, reduction="none")', "a3 b5, a3 b5 -> a3 b5", x=(3, 5), y=(3, 5)),
    case('F.soft_margin_loss(x, y, reduction="none")', "a3 b5, a3 b5 -> a3 b5", x=(3, 5), y=(3, 5), tolerance=1e-12),
    case(
        'F.binary_cross_entropy(x, y, reduction="none")',
        "a3 b5, a3 b5 -> a3 b5",
        x=torch.rand(3, 5, dtype=torch.float64),
        y=torch.rand(3, 5, dtype=torch.float64),
        tolerance=1e-12,
    ),
    case(
        'F.binary_cross_entropy_with_logits(x, y, pos_weight=w, reduction="none")',
        "a3 b5, a3 b5, b5 -> a3 b5",
        x=(3, 5),
        y=(3, 5),
        w=(5,),
        tolerance=1e-12,
    ),
    case(
        'F.nll_loss(x, y, reduction="none")',
        "3! 4!, 3! -> 3!",
        x=(3, 4),
        y=torch.tensor([0, 3, 1]),
        pins={"x1": CLASSES},
    ),
    case("F.nll_loss(x, y)", "3! 4!, 3! -> ()", x=(3, 4), y=torch.tensor([0, 3, 1])),
    case("F.nll_loss(x, y)", "4!, () -> ()", x=(4,), y=torch.tensor(2)),
    case("F.nll_loss(x, y, w)", "3! 4!, 3!, 4! -> ()", x=(3, 4), y=torch.tensor([0, 3, 1]), w=(4,)),
    case(
        'F.nll_loss(x, y, reduction="none")',
        "2! 4! 3! 2!, 2! 3! 2! -> 2! 3! 2!",
        x=(2, 4, 3, 2),
        y=torch.zeros(2, 3, 2, dtype=torch.int64),
    ),
    case("F.cross_entropy(x, y)", "3! 4!, 3! -> ()", x=(3, 4), y=torch.tensor([0, 3, 1])),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    losses.RULES, CASES, EXCUSED
)
