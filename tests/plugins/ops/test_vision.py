"""Rules of torchvision's own operations: written answers, and execution."""

from __future__ import annotations

import torch
import torchvision

from prunekit_plugins.ops import vision
from tests.plugins.ops.cases import case, checks_of

EXCUSED: dict[str, str] = {}
TV = "torch.ops.torchvision"
BOXES = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 7.0, 7.0]], dtype=torch.float64)
ROIS = torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0], [1.0, 1.0, 1.0, 5.0, 4.0]], dtype=torch.float64)
CLOSE = 1e-12
OFFSETS = torch.rand(2, 8, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TWICE = torch.cat([OFFSETS, -OFFSETS], 1)
DEFORM = f"{TV}.deform_conv2d(x, w, o, m, b, 1, 1, 0, 0, 1, 1"

CASES = [
    case(f"{TV}.nms(x, s, 0.5)", "3! 4!, 3! -> 2!", x=BOXES, s=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)),
    case(
        f"{TV}.roi_align(x, r, 1.0, 2, 2, 2, False)",
        "2! a3 6! 6!, b2 5! -> b2 a3 2! 2!",
        x=(2, 3, 6, 6),
        r=ROIS,
        pins={"x0": "addressed by regions", "r1": "addressed by regions"},
        tolerance=CLOSE,
    ),
    case(f"{TV}.roi_pool(x, r, 1.0, 2, 2)", "2! a3 6! 6!, b2 5! -> b2 a3 2! 2!, b2 a3 2! 2!", x=(2, 3, 6, 6), r=ROIS),
    # every cell of a region reads channels of its own
    case(
        f"{TV}.ps_roi_align(x, r, 1.0, 2, 2, 2)",
        "2! (a3*4!) 6! 6!, b2 5! -> b2 a3 2! 2!, b2 a3 2! 2!",
        x=(2, 12, 6, 6),
        r=ROIS,
        values=False,
    ),
    case(
        f"{TV}.ps_roi_pool(x, r, 1.0, 2, 2)",
        "2! (a3*4!) 6! 6!, b2 5! -> b2 a3 2! 2!, b2 a3 2! 2!",
        x=(2, 12, 6, 6),
        r=ROIS,
        values=False,
    ),
    case(
        f"{DEFORM}, 1, 1, True)",
        "a2 b3 4! 4!, c5 b3 2! 2!, a2 8! 3! 3!, a2 4! 3! 3!, c5 -> a2 c5 3! 3!",
        x=(2, 3, 4, 4),
        w=(5, 3, 2, 2),
        o=OFFSETS,
        m=(2, 4, 3, 3),
        b=(5,),
        weights="w b",
        says={"w0": "channels out", "w1": "in", "b0": "along channels"},
        pins={"o1": "belongs to kernel positions", "w2": "a kernel dim"},
        tolerance=CLOSE,
    ),
    # two parts of the channels with offsets of their own
    case(
        f"{DEFORM}, 1, 2, False)",
        "a2 (2!*b3) 4! 4!, c5 (2!*b3) 2! 2!, a2 16! 3! 3!, d2 e4 f3 g3, c5 -> a2 c5 3! 3!",
        x=(2, 6, 4, 4),
        w=(5, 6, 2, 2),
        o=TWICE,
        m=torch.zeros(2, 4, 3, 3, dtype=torch.float64),
        b=(5,),
        weights="w b",
        tolerance=CLOSE,
        unrun="the mask isn't used, so nothing ties its dims",
    ),
    case(
        f"{DEFORM}, 2, 1, True)",
        "a2 (2!*b3) 4! 4!, (2!*c2) b3 2! 2!, a2 8! 3! 3!, a2 4! 3! 3!, (2!*c2) -> a2 (2!*c2) 3! 3!",
        x=(2, 6, 4, 4),
        w=(4, 3, 2, 2),
        o=OFFSETS,
        m=(2, 4, 3, 3),
        b=(4,),
        weights="w b",
        tolerance=CLOSE,
    ),
]


def test_every_key_is_an_operation_of_torchvision() -> None:
    assert torchvision.__version__
    for key in vision.RULES:
        assert isinstance(key, str)
        assert hasattr(torch.ops.torchvision, key.removeprefix("torchvision::"))


test_written_answer, test_by_execution, _, test_every_rule_is_met = checks_of(vision.RULES, CASES, EXCUSED)
