"""Rules of the operations that autograd runs: written answers, and execution."""

from __future__ import annotations

from prunekit_plugins.ops import derivatives
from tests.plugins.ops.cases import case, checks_of

EXCUSED: dict[str, str] = {}
CLOSE = 1e-12
EACH = "a3 b4, a3 b4 -> a3 b4"

CASES = [
    case("aten.elu_backward(g, 1.0, 1.0, 1.0, False, x)", EACH, g=(3, 4), x=(3, 4), tolerance=CLOSE),
    case("aten.hardswish_backward(g, x)", EACH, g=(3, 4), x=(3, 4), tolerance=CLOSE),
    case("aten.leaky_relu_backward(g, x, 0.1, False)", EACH, g=(3, 4), x=(3, 4), tolerance=CLOSE),
    case(
        "aten.log_sigmoid_backward(g, x, b)",
        "a3 b4, a3 b4, a3 b4 -> a3 b4",
        g=(3, 4),
        x=(3, 4),
        b=(3, 4),
        tolerance=CLOSE,
    ),
    case("aten.mish_backward(g, x)", EACH, g=(3, 4), x=(3, 4), tolerance=CLOSE),
    case("aten.softplus_backward(g, x, 1, 20)", EACH, g=(3, 4), x=(3, 4), tolerance=CLOSE),
    case("aten.select_backward(g, [5, g.shape[0], g.shape[1]], 0, 2)", "a3 b4 -> 5! a3 b4", g=(3, 4)),
    case("aten.slice_backward(g, [g.shape[0], 6], 1, 0, 4, 1)", "a3 4! -> a3 6!", g=(3, 4)),
    case("aten.slice_backward(g, [g.shape[0], g.shape[1]], 1, 0, g.shape[1], 1)", "a3 b4 -> a3 b4", g=(3, 4)),
    case(
        "aten._softmax_backward_data(g, y, 1, torch.float64)",
        EACH,
        g=(3, 4),
        y=(3, 4),
        says={"g0": "", "g1": "mix"},
        tolerance=CLOSE,
    ),
    case(
        "aten._log_softmax_backward_data(g, y, 1, torch.float64)",
        EACH,
        g=(3, 4),
        y=(3, 4),
        says={"y0": "", "y1": "mix"},
        tolerance=CLOSE,
    ),
    case(
        "aten.native_layer_norm_backward(g, x, [x.shape[1]], m, r, w, b, [True, True, False])",
        "a3 b4, a3 b4, a3 1, a3 1, b4, b4 -> a3 b4, b4",
        g=(3, 4),
        x=(3, 4),
        m=(3, 1),
        r=(3, 1),
        w=(4,),
        b=(4,),
        weights="w b",
        says={"x0": "contract", "x1": "mix", "w0": "along mix"},
        tolerance=CLOSE,
    ),
    case(
        "aten.convolution_backward(g, x, w, [w.shape[0]], [1], [1], [1], False, [0], 1, [True, True, True])",
        "a2 b4 5!, a2 c3 5!, b4 c3 3! -> a2 c3 5!, b4 c3 3!, b4",
        g=(2, 4, 5),
        x=(2, 3, 5),
        w=(4, 3, 3),
        weights="w",
        says={"w0": "contract out", "w1": "in"},
        tolerance=CLOSE,
    ),
    case(
        "aten.convolution_backward(g, x, w, None, [1], [0], [1], True, [0], 1, [True, False, False])",
        "a2 b4 7!, a2 c3 5!, c3 b4 3! -> a2 c3 5!",
        g=(2, 4, 7),
        x=(2, 3, 5),
        w=(3, 4, 3),
        weights="w",
        tolerance=CLOSE,
    ),
    case(
        "aten.convolution_backward(g, x, w, None, [1], [1], [1], False, [0], 2, [True, False, False])",
        "2! 4! 5!, 2! 4! 5!, 4! 2! 3! -> 2! 4! 5!",
        g=(2, 4, 5),
        x=(2, 4, 5),
        w=(4, 2, 3),
        gap="the backward of a convolution in groups",
    ),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    derivatives.RULES, CASES, EXCUSED
)
