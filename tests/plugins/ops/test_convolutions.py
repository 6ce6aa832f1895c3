"""Rules of convolutions: written answers, and execution."""

from __future__ import annotations

import itertools

import pytest
import torch

from prunekit_plugins.ops import convolutions
from prunekit_plugins.ops.convolutions import _like_convolved
from tests.plugins.ops.cases import case, checks_of

EXCUSED: dict[str, str] = {}

CASES = [
    case(
        "F.conv2d(x, w, b)",
        "a2 b4 5! 6!, c3 b4 3! 2!, c3 -> a2 c3 3! 5!",
        x=(2, 4, 5, 6),
        w=(3, 4, 3, 2),
        b=(3,),
        weights="w b",
        pins={"w2": "a kernel dim", "w3": "a kernel dim", "x2": "a spatial dim"},
        says={"w0": "channels out", "w1": "in", "b0": "along channels", "x0": ""},
    ),
    case("F.conv2d(x, w)", "a2 b4 5! 5!, c3 b4 3! 3! -> a2 c3 3! 3!", x=(2, 4, 5, 5), w=(3, 4, 3, 3), weights="w"),
    case(
        "F.conv2d(x, w, stride=2, padding=1, dilation=2)",
        "a2 b4 7! 7!, c3 b4 3! 3! -> a2 c3 3! 3!",
        x=(2, 4, 7, 7),
        w=(3, 4, 3, 3),
        weights="w",
    ),
    # a picture without a batch dim
    case(
        "F.conv2d(x, w, b)", "a4 5! 5!, b3 a4 3! 3!, b3 -> b3 3! 3!", x=(4, 5, 5), w=(3, 4, 3, 3), b=(3,), weights="w b"
    ),
    case("F.conv1d(x, w, b)", "a2 b4 7!, c3 b4 3!, c3 -> a2 c3 5!", x=(2, 4, 7), w=(3, 4, 3), b=(3,), weights="w b"),
    case("F.conv1d(x, w)", "a4 7!, b3 a4 3! -> b3 5!", x=(4, 7), w=(3, 4, 3), weights="w"),
    case(
        "F.conv3d(x, w, b)",
        "a2 b4 3! 3! 3!, c3 b4 2! 2! 2!, c3 -> a2 c3 2! 2! 2!",
        x=(2, 4, 3, 3, 3),
        w=(3, 4, 2, 2, 2),
        b=(3,),
        weights="w b",
    ),
    # where a kernel is 1, places are convolved one by one
    case("F.conv1d(x, w, b)", "a2 b4 c5, d3 b4 1, d3 -> a2 d3 c5", x=(2, 4, 5), w=(3, 4, 1), b=(3,), weights="w b"),
    case("F.conv2d(x, w)", "a2 b4 5! c6, d3 b4 2! 1 -> a2 d3 4! c6", x=(2, 4, 5, 6), w=(3, 4, 2, 1), weights="w"),
    case("F.conv1d(x, w, stride=2)", "a2 b4 5!, c3 b4 1 -> a2 c3 3!", x=(2, 4, 5), w=(3, 4, 1), weights="w"),
    case("F.conv1d(x, w, padding=1)", "a2 b4 5!, c3 b4 1 -> a2 c3 7!", x=(2, 4, 5), w=(3, 4, 1), weights="w"),
    case('F.conv1d(x, w, padding="same")', "a2 b4 c5, d3 b4 1 -> a2 d3 c5", x=(2, 4, 5), w=(3, 4, 1), weights="w"),
    case("F.conv_transpose1d(x, w)", "a2 b4 c5, b4 d3 1 -> a2 d3 c5", x=(2, 4, 5), w=(4, 3, 1), weights="w"),
    # padding by name is another overload
    case('F.conv1d(x, w, padding="same")', "a2 b4 7!, c3 b4 3! -> a2 c3 7!", x=(2, 4, 7), w=(3, 4, 3), weights="w"),
    case(
        'F.conv2d(x, w, padding="same")',
        "a2 b4 5! 5!, c3 b4 3! 3! -> a2 c3 5! 5!",
        x=(2, 4, 5, 5),
        w=(3, 4, 3, 3),
        weights="w",
    ),
    case(
        'F.conv2d(x, w, padding="valid", groups=2)',
        "a2 (b2*c3) 5! 5!, (b2*d2) c3 3! 3! -> a2 (b2*d2) 3! 3!",
        x=(2, 6, 5, 5),
        w=(4, 3, 3, 3),
        weights="w",
    ),
    case(
        'F.conv3d(x, w, padding="same")',
        "a2 b4 3! 3! 3!, c3 b4 3! 3! 3! -> a2 c3 3! 3! 3!",
        x=(2, 4, 3, 3, 3),
        w=(3, 4, 3, 3, 3),
        weights="w",
    ),
    # groups: G x i channels in, G x o out
    case(
        "F.conv2d(x, w, b, groups=3)",
        "a2 (b3*c2) 5! 5!, (b3*d4) c2 3! 3!, (b3*d4) -> a2 (b3*d4) 3! 3!",
        x=(2, 6, 5, 5),
        w=(12, 2, 3, 3),
        b=(12,),
        weights="w b",
        says={"w1": "in", "w0": "channels conv_groups out"},
    ),
    # depthwise, also with a multiplier
    case(
        "F.conv2d(x, w, b, groups=6)",
        "a2 b6 5! 5!, b6 1 3! 3!, b6 -> a2 b6 3! 3!",
        x=(2, 6, 5, 5),
        w=(6, 1, 3, 3),
        b=(6,),
        weights="w b",
        says={"w0": "channels out"},
    ),
    case(
        "F.conv2d(x, w, groups=6)",
        "a2 b6 5! 5!, (b6*c2) 1 3! 3! -> a2 (b6*c2) 3! 3!",
        x=(2, 6, 5, 5),
        w=(12, 1, 3, 3),
        weights="w",
    ),
    case("F.conv1d(x, w, groups=2)", "a2 (b2*c3) 5!, b2 c3 3! -> a2 b2 3!", x=(2, 6, 5), w=(2, 3, 3), weights="w"),
    # transposed: the weight is in x out per group
    case(
        "F.conv_transpose2d(x, w, b)",
        "a2 b4 5! 5!, b4 c3 3! 3!, c3 -> a2 c3 7! 7!",
        x=(2, 4, 5, 5),
        w=(4, 3, 3, 3),
        b=(3,),
        weights="w b",
        says={"w0": "in", "w1": "channels out", "b0": "along channels"},
    ),
    case("F.conv_transpose2d(x, w)", "a4 5! 5!, a4 b3 3! 3! -> b3 7! 7!", x=(4, 5, 5), w=(4, 3, 3, 3), weights="w"),
    case(
        "F.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=1, groups=3)",
        "a2 (b3*c2) 3! 3!, (b3*c2) d4 3! 3!, (b3*d4) -> a2 (b3*d4) 6! 6!",
        x=(2, 6, 3, 3),
        w=(6, 4, 3, 3),
        b=(12,),
        weights="w b",
    ),
    case(
        "F.conv_transpose2d(x, w, b, groups=6)",
        "a2 b6 3! 3!, b6 1 3! 3!, b6 -> a2 b6 5! 5!",
        x=(2, 6, 3, 3),
        w=(6, 1, 3, 3),
        b=(6,),
        weights="w b",
    ),
    case(
        "F.conv_transpose1d(x, w, b)",
        "a2 b4 5!, b4 c3 3!, c3 -> a2 c3 7!",
        x=(2, 4, 5),
        w=(4, 3, 3),
        b=(3,),
        weights="w b",
    ),
    case(
        "F.conv_transpose3d(x, w, b)",
        "a2 b4 2! 2! 2!, b4 c3 2! 2! 2!, c3 -> a2 c3 3! 3! 3!",
        x=(2, 4, 2, 2, 2),
        w=(4, 3, 2, 2, 2),
        b=(3,),
        weights="w b",
    ),
    # the operation that all others become
    case(
        "torch.convolution(x, w, b, [1, 1], [0, 0], [1, 1], False, [0, 0], 2)",
        "a2 (b2*c3) 5! 5!, (b2*d2) c3 3! 3!, (b2*d2) -> a2 (b2*d2) 3! 3!",
        x=(2, 6, 5, 5),
        w=(4, 3, 3, 3),
        b=(4,),
        weights="w b",
    ),
    case(
        "torch.convolution(x, w, b, [1, 1], [0, 0], [1, 1], True, [0, 0], 1)",
        "a2 b4 5! 5!, b4 c3 3! 3!, c3 -> a2 c3 7! 7!",
        x=(2, 4, 5, 5),
        w=(4, 3, 3, 3),
        b=(3,),
        weights="w b",
    ),
    # a concat read as groups
    case(
        "F.conv2d(torch.cat([x, y], 1), w, groups=3)",
        "a2 (b2*c2) 1 1, a2 c2 1 1, ((b2+1)*d3) c2 1 1 -> a2 ((b2+1)*d3) 1 1",
        x=(2, 4, 1, 1),
        y=(2, 2, 1, 1),
        w=(9, 2, 1, 1),
        weights="w",
    ),
    # a depthwise convolution keeps two halves apart
    case(
        "F.conv2d(torch.cat([x, y], 1), w, groups=5)",
        "a2 b2 3! 3!, a2 c3 3! 3!, (b2+c3) 1 3! 3! -> a2 (b2+c3) 1 1",
        x=(2, 2, 3, 3),
        y=(2, 3, 3, 3),
        w=(5, 1, 3, 3),
        weights="w",
    ),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    convolutions.RULES, CASES, EXCUSED
)


def test_the_shape_said_without_running_is_that_of_running() -> None:
    said = 0
    for kernel, padding, dilation, stride, groups in itertools.product((1, 2, 3), (0, 1, 2), (1, 2), (1, 3), (1, 2)):
        x, weight = torch.randn(2, 4, 4, 7), torch.randn(6, 4 // groups, kernel, kernel)
        lists = {"padding": [padding], "dilation": [dilation] * 2, "stride": [stride] * 2}
        found = _like_convolved({"input": x, "weight": weight, "bias": None, "groups": groups, **lists})
        if found is None:
            with pytest.raises(RuntimeError):
                torch.conv2d(x, weight, None, stride, padding, dilation, groups)
            continue
        said += 1
        assert list(torch.conv2d(x, weight, None, stride, padding, dilation, groups).shape) == list(found[1])
    assert said > 50
    misfit = {"input": torch.randn(2, 3, 8, 8), "weight": torch.randn(6, 4, 3, 3), "bias": None, "groups": 1}
    assert _like_convolved({**misfit, "padding": [0], "dilation": [1], "stride": [1]}) is None
