"""Rules of normalisation: written answers, and execution."""

from __future__ import annotations

import torch

from prunekit_plugins.ops import norms
from tests.plugins.ops.cases import case, checks_of

EXCUSED: dict[str, str] = {}
CLOSE = 1e-12
POSITIVE = torch.arange(1.0, 5, dtype=torch.float64)

CASES = [
    case(
        "F.batch_norm(x, m, v, w, b)",
        "a3 b4 c5, b4, b4, b4, b4 -> a3 b4 c5",
        x=(3, 4, 5),
        m=(4,),
        v=POSITIVE,
        w=(4,),
        b=(4,),
        weights="m v w b",
        says={"w0": "along", "b0": "along", "m0": "along", "v0": "along", "x1": ""},
        tolerance=CLOSE,
    ),
    case(
        "F.batch_norm(x, m, v)",
        "a3 b4 c5 d5, b4, b4 -> a3 b4 c5 d5",
        x=(3, 4, 5, 5),
        m=(4,),
        v=POSITIVE,
        says={"x0": "mix", "x1": "", "x2": "mix", "x3": "mix"},  # in train mode, which isn't recorded for it
        tolerance=CLOSE,
    ),
    case(
        "F.batch_norm(x, m, v, w, b)",
        "a3 b4, b4, b4, b4, b4 -> a3 b4",
        x=(3, 4),
        m=(4,),
        v=POSITIVE,
        w=(4,),
        b=(4,),
        tolerance=CLOSE,
    ),
    # in training the statistics are taken over all dims but the channels
    case(
        "F.batch_norm(x, m, v, w, b, training=True)",
        "a3 b4 c5, b4, b4, b4, b4 -> a3 b4 c5",
        x=(3, 4, 5),
        m=(4,),
        v=POSITIVE,
        w=(4,),
        b=(4,),
        says={"x0": "mix", "x1": "", "x2": "mix"},
        tolerance=CLOSE,
    ),
    case(
        "F.instance_norm(x, weight=w, bias=b)",
        "a3 b4 5!, b4, b4 -> a3 b4 5!",
        x=(3, 4, 5),
        w=(4,),
        b=(4,),
        weights="w b",
        pins={"x2": "a spatial dim"},
        says={"w0": "along"},
        tolerance=CLOSE,
    ),
    case("F.instance_norm(x)", "a3 b4 5! 5! -> a3 b4 5! 5!", x=(3, 4, 5, 5), tolerance=CLOSE),
    case(
        "aten.native_batch_norm(x, w, b, m, v, False, 0.1, 1e-5)[0]",
        "a3 b4 c5, b4, b4, b4, b4 -> a3 b4 c5",
        x=(3, 4, 5),
        w=(4,),
        b=(4,),
        m=(4,),
        v=POSITIVE,
        tolerance=CLOSE,
    ),
    case(
        "aten.native_batch_norm(x, w, b, m, v, True, 0.1, 1e-5)[0]",
        "a3 b4 c5, b4, b4, b4, b4 -> a3 b4 c5",
        x=(3, 4, 5),
        w=(4,),
        b=(4,),
        m=(4,),
        v=POSITIVE,
        says={"x0": "mix", "x1": "", "x2": "mix"},
        tolerance=CLOSE,
    ),
    case(
        "aten._native_batch_norm_legit(x, w, b, m, v, False, 0.1, 1e-5)[0]",
        "a3 b4 c5, b4, b4, b4, b4 -> a3 b4 c5",
        x=(3, 4, 5),
        w=(4,),
        b=(4,),
        m=(4,),
        v=POSITIVE,
        tolerance=CLOSE,
    ),
    case(
        "aten._native_batch_norm_legit_no_training(x, w, b, m, v, 0.1, 1e-5)[0]",
        "a3 b4 c5, b4, b4, b4, b4 -> a3 b4 c5",
        x=(3, 4, 5),
        w=(4,),
        b=(4,),
        m=(4,),
        v=POSITIVE,
        tolerance=CLOSE,
    ),
    # whole groups leave exactly, units inside a group change the statistics
    case(
        "F.group_norm(x, 3, w, b)",
        "a2 (b3*c2) 4!, (b3*c2), (b3*c2) -> a2 (b3*c2) 4!",
        x=(2, 6, 4),
        w=(6,),
        b=(6,),
        weights="w b",
        pins={"x2": "a spatial dim"},
        says={"w0": "along mix norm_groups"},
        tolerance=CLOSE,
    ),
    case(
        "F.group_norm(torch.cat([x, y], 1), 3, w)",
        "a2 (b2*c2) 3!, a2 c2 3!, ((b2*c2)+c2) -> a2 ((b2*c2)+c2) 3!",
        x=(2, 4, 3),
        y=(2, 2, 3),
        w=(6,),
        tolerance=CLOSE,
    ),
    case(
        "F.group_norm(torch.cat([x, y], 1), 2)",
        "2! 4! 3!, 2! 2! 3! -> 2! 6! 3!",
        x=(2, 4, 3),
        y=(2, 2, 3),
        gap="multiples of 3",
    ),
    # groups of 6 over 8 + 4: runs of 2 lose the same unit each, in every group
    case(
        "F.group_norm(torch.cat([x, y], 1), 2, w)",
        "a2 (4!*b2) 3!, a2 (2!*b2) 3!, ((4!*b2)+(2!*b2)) -> a2 ((4!*b2)+(2!*b2)) 3!",
        x=(2, 8, 3),
        y=(2, 4, 3),
        w=(12,),
        weights="w",
        says={"x1": "mix", "w0": "along mix"},
        tolerance=CLOSE,
    ),
    case("F.group_norm(x, 1)", "a2 b6 4! -> a2 b6 4!", x=(2, 6, 4), says={"x1": "mix"}, tolerance=CLOSE),
    case("F.group_norm(x, 6, w)", "a2 b6 4!, b6 -> a2 b6 4!", x=(2, 6, 4), w=(6,), tolerance=CLOSE),
    case("F.group_norm(x, 2)", "a3 (b2*c2) -> a3 (b2*c2)", x=(3, 4), tolerance=CLOSE),
    case(
        "F.layer_norm(x, (6,), w, b)",
        "a2 b4 c6, c6, c6 -> a2 b4 c6",
        x=(2, 4, 6),
        w=(6,),
        b=(6,),
        weights="w b",
        says={"x2": "mix", "w0": "along mix", "x1": ""},
        tolerance=CLOSE,
    ),
    case(
        "F.layer_norm(x, (4, 6), w, b)",
        "a2 b4 c6, b4 c6, b4 c6 -> a2 b4 c6",
        x=(2, 4, 6),
        w=(4, 6),
        b=(4, 6),
        weights="w b",
        says={"w0": "along mix", "w1": "along mix"},
        tolerance=CLOSE,
    ),
    case(
        "F.layer_norm(x.flatten(1), (12,), w)", "a2 b3 c4, (b3*c4) -> a2 (b3*c4)", x=(2, 3, 4), w=(12,), tolerance=CLOSE
    ),
    case(
        "F.layer_norm(torch.cat([x, y], 1), (7,), w)",
        "a2 b3, a2 c4, (b3+c4) -> a2 (b3+c4)",
        x=(2, 3),
        y=(2, 4),
        w=(7,),
        tolerance=CLOSE,
    ),
    case("F.layer_norm(x, (6,))", "a2 b4 c6 -> a2 b4 c6", x=(2, 4, 6), says={"x2": "mix"}, tolerance=CLOSE),
    case("F.layer_norm(x, (6,), w)", "a6, a6 -> a6", x=(6,), w=(6,), tolerance=CLOSE),
    case("F.layer_norm(x.transpose(1, 2), (6,), w)", "a2 b6 c4, b6 -> a2 c4 b6", x=(2, 6, 4), w=(6,), tolerance=CLOSE),
    case(
        "F.rms_norm(x, (6,), w)",
        "a2 b4 c6, c6 -> a2 b4 c6",
        x=(2, 4, 6),
        w=(6,),
        weights="w",
        says={"w0": "along mix"},
        tolerance=CLOSE,
    ),
    case("F.rms_norm(x, (4, 6))", "a2 b4 c6 -> a2 b4 c6", x=(2, 4, 6), says={"x1": "mix"}, tolerance=CLOSE),
    case(
        "aten.native_layer_norm(x, [6], w, b, 1e-5)[0]",
        "a2 b4 c6, c6, c6 -> a2 b4 c6",
        x=(2, 4, 6),
        w=(6,),
        b=(6,),
        tolerance=CLOSE,
    ),
    case(
        "aten.native_layer_norm(x, [6], w, b, 1e-5)[1]",
        "a2 b4 c6, c6, c6 -> a2 b4 1",
        x=(2, 4, 6),
        w=(6,),
        b=(6,),
        tolerance=CLOSE,
    ),
    case("aten._fused_rms_norm(x, [6], w, 1e-5)[0]", "a2 b4 c6, c6 -> a2 b4 c6", x=(2, 4, 6), w=(6,), tolerance=CLOSE),
    case(
        "aten._weight_norm_interface(v, g, 0)",
        "a4 b3 c2, a4 1 1 -> a4 b3 c2, a4 1 1",
        v=(4, 3, 2),
        g=(4, 1, 1),
        weights="v g",
        says={"v0": "out", "v1": "in mix", "v2": "in mix", "g0": "along"},
        tolerance=1e-12,
    ),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    norms.RULES, CASES, EXCUSED
)
