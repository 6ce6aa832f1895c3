"""Rules of attention: written answers, and execution."""

from __future__ import annotations

import torch

from prunekit_plugins.ops import attention
from tests.plugins.ops.cases import case, checks_of


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    """Small random numbers: whole ones would leave a softmax with a single one in it."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


EXCUSED: dict[str, str] = {}
CLOSE = 1e-12

CASES = [
    case(
        "F.scaled_dot_product_attention(q, k, v)",
        "a2 b4 c5 d6, a2 b4 e7 d6, a2 b4 e7 f3 -> a2 b4 c5 f3",
        q=scores(2, 4, 5, 6),
        k=scores(2, 4, 7, 6),
        v=scores(2, 4, 7, 3),
        says={"q1": "heads", "q2": "", "q3": "contract head_dim", "k2": "mix", "v3": "head_dim"},
        tolerance=CLOSE,
    ),
    case(
        "F.scaled_dot_product_attention(q, k, v, scale=0.3)",
        "a2 b4 c5 d6, a2 b4 e7 d6, a2 b4 e7 f3 -> a2 b4 c5 f3",
        q=scores(2, 4, 5, 6),
        k=scores(2, 4, 7, 6),
        v=scores(2, 4, 7, 3),
        tolerance=CLOSE,
    ),
    case(
        "F.scaled_dot_product_attention(q, k, v)",
        "a2 b5 c6, a2 d7 c6, a2 d7 e3 -> a2 b5 e3",
        q=scores(2, 5, 6),
        k=scores(2, 7, 6),
        v=scores(2, 7, 3),
        says={"q2": "contract"},
        tolerance=CLOSE,
    ),
    # under a causal mask queries and keys are the same positions
    case(
        "F.scaled_dot_product_attention(q, k, v, is_causal=True)",
        "a2 b5 c6, a2 b5 c6, a2 b5 d3 -> a2 b5 d3",
        q=scores(2, 5, 6),
        k=scores(2, 5, 6),
        v=scores(2, 5, 3),
        tolerance=CLOSE,
    ),
    # fewer key heads than query heads
    case(
        "F.scaled_dot_product_attention(q, k, v, enable_gqa=True)",
        "a2 (b2*c3) d5 e6, a2 b2 f7 e6, a2 b2 f7 g3 -> a2 (b2*c3) d5 g3",
        q=scores(2, 6, 5, 6),
        k=scores(2, 2, 7, 6),
        v=scores(2, 2, 7, 3),
        says={"q1": "heads queries_per_head", "k1": "heads"},
        tolerance=CLOSE,
    ),
    # broadcast keys
    case(
        "F.scaled_dot_product_attention(q, k, v)",
        "a2 b4 c5 d6, a2 1 e7 d6, a2 1 e7 f3 -> a2 b4 c5 f3",
        q=scores(2, 4, 5, 6),
        k=scores(2, 1, 7, 6),
        v=scores(2, 1, 7, 3),
        tolerance=CLOSE,
    ),
    # masks
    case(
        "F.scaled_dot_product_attention(q, k, v, attn_mask=m)",
        "a2 b4 c5 d6, a2 b4 e7 d6, a2 b4 e7 f3, a2 b4 c5 e7 -> a2 b4 c5 f3",
        q=scores(2, 4, 5, 6),
        k=scores(2, 4, 7, 6),
        v=scores(2, 4, 7, 3),
        m=scores(2, 4, 5, 7),
        tolerance=CLOSE,
    ),
    case(
        "F.scaled_dot_product_attention(q, k, v, attn_mask=m)",
        "a2 b4 c5 d6, a2 b4 e7 d6, a2 b4 e7 f3, c5 e7 -> a2 b4 c5 f3",
        q=scores(2, 4, 5, 6),
        k=scores(2, 4, 7, 6),
        v=scores(2, 4, 7, 3),
        m=scores(5, 7),
        tolerance=CLOSE,
    ),
    case(
        "F.scaled_dot_product_attention(q, k, v, attn_mask=m)",
        "2! a4 5! b6, 2! a4 7! b6, 2! a4 7! c3, 2! 1 5! 7! -> 2! a4 5! c3",
        q=scores(2, 4, 5, 6),
        k=scores(2, 4, 7, 6),
        v=scores(2, 4, 7, 3),
        m=torch.ones(2, 1, 5, 7, dtype=torch.bool),
        tolerance=CLOSE,
    ),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    attention.RULES, CASES, EXCUSED
)
