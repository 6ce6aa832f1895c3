"""Rules of fake quantisation: written answers, and execution."""

from __future__ import annotations

import torch

from prunekit_plugins.ops import quantization
from tests.plugins.ops.cases import case, checks_of

EXCUSED: dict[str, str] = {}
X = torch.linspace(-3, 3, 24).reshape(2, 3, 4)
ONE, ZERO = torch.tensor([0.25]), torch.tensor([3], dtype=torch.int32)
SCALES, POINTS = torch.tensor([0.25, 0.5, 0.125]), torch.tensor([3, 0, -5], dtype=torch.int32)
ON = torch.tensor([1], dtype=torch.int64)
LOW, HIGH = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([1.0, 2.0, 3.0])
OBSERVED = (
    "torch.fused_moving_avg_obs_fake_quant(x, on, on, low.clone(), high.clone(), s.clone(), z, 0.01, -128, 127, 0, "
)

CASES = [
    case("torch.fake_quantize_per_tensor_affine(x, 0.25, 3, -128, 127)", "a2 b3 c4 -> a2 b3 c4", x=X),
    case(
        "torch.fake_quantize_per_tensor_affine(x, s, z, -128, 127)",
        "a2 b3 c4, 1, 1 -> a2 b3 c4",
        x=X,
        s=ONE,
        z=ZERO,
    ),
    case(
        "aten.fake_quantize_per_tensor_affine_cachemask(x, 0.25, 3, -8, 7)",
        "a2 b3 c4 -> a2 b3 c4, a2 b3 c4",
        x=X,
    ),
    case(
        "aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams(x, s, z, on, -8, 7)",
        "a2 b3 c4, 1, 1, 1 -> a2 b3 c4, a2 b3 c4",
        x=X,
        s=ONE,
        z=ZERO,
        on=ON,
    ),
    case(
        "aten._fake_quantize_learnable_per_tensor_affine(x, s, f, -8, 7)",
        "a2 b3 c4, 1, 1 -> a2 b3 c4",
        x=X,
        s=ONE,
        f=ZERO.float(),
    ),
    # scales and zero points lie along the channels, although zero points are integers
    case(
        "torch.fake_quantize_per_channel_affine(x, s, z, 1, -8, 7)",
        "a2 b3 c4, b3, b3 -> a2 b3 c4",
        x=X,
        s=SCALES,
        z=POINTS,
        weights="s z",
        says={"s0": "along", "z0": "along"},
    ),
    case(
        "aten.fake_quantize_per_channel_affine_cachemask(x, s, z, 1, -8, 7)",
        "a2 b3 c4, b3, b3 -> a2 b3 c4, a2 b3 c4",
        x=X,
        s=SCALES,
        z=POINTS,
        weights="s z",
    ),
    case(
        "aten._fake_quantize_learnable_per_channel_affine(x, s, f, 1, -8, 7)",
        "a2 b3 c4, b3, b3 -> a2 b3 c4",
        x=X,
        s=SCALES,
        f=POINTS.float(),
    ),
    # numbers that are used for anything else are positions
    case(
        "torch.fake_quantize_per_channel_affine(x, s, z, 1, -8, 7) + y[z.abs()]",
        "a2 3! b4, 3!, 3!, 6! b4 -> a2 3! b4",
        x=X,
        s=SCALES,
        z=POINTS,
        y=(6, 4),
        weights="s z",
    ),
    case(
        OBSERVED + "True, False)",
        "a3 b2 c4, 1, a3, a3, a3, a3 -> a3 b2 c4",
        x=X.mT.contiguous().view(3, 2, 4),
        on=ON,
        low=LOW,
        high=HIGH,
        s=SCALES,
        z=POINTS,
        weights="on z",
        says={"x0": "", "x1": "mix", "x2": "mix", "z0": "along"},
    ),
    case(
        OBSERVED.replace("torch.fused_moving_avg_obs_fake_quant", "aten._fused_moving_avg_obs_fq_helper") + "False)",
        "a2 b3 c4, 1, 1, 1, 1, 1 -> a2 b3 c4, a2 b3 c4",
        x=X,
        on=ON,
        low=LOW[:1].clone(),
        high=HIGH[:1].clone(),
        s=ONE,
        z=ZERO,
        weights="on z",
        says={"x1": "mix"},
    ),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    quantization.RULES, CASES, EXCUSED
)
