"""Rules of creation operations: written answers, and execution."""

from __future__ import annotations

import torch

from prunekit_plugins.ops import factories
from tests.plugins.ops.cases import case, checks_of

EXCUSED = {
    "aten::_linalg_check_errors": "met by linalg.solve, among the linear systems",
    "aten::tensor": "torch.tensor makes its value before the dispatcher sees anything",
}

UNIFORM = {
    "torch.zeros(3, 4)": True,
    "torch.ones(3, 4)": True,
    "torch.full((3, 4), 2.5)": True,
    "torch.empty(3, 4)": False,
    "torch.empty_strided((3, 4), (4, 1))": False,
    "x.new_zeros(3, 4)": True,
    "x.new_zeros((3, 4), dtype=torch.bool)": True,
    "x.new_ones(3, 4)": True,
    "x.new_full((3, 4), 2.5)": True,
    "x.new_empty(3, 4)": False,
    "x.new_empty_strided((3, 4), (4, 1))": False,
}
NUMBERED = {
    "torch.rand(4)": False,
    "torch.randn(4)": False,
    "torch.randint(7, (4,))": False,
    "torch.randint(2, 7, (4,))": False,
    "torch.randperm(4)": False,
    "torch.arange(4)": True,
    "torch.arange(1, 5)": True,
    "torch.arange(0, 8, 2)": True,
    "torch.linspace(0, 1, 4)": True,
    "torch.logspace(0, 1, 4)": True,
}

CASES = [
    *(case(text, "a2 -> b3 c4", x=(2,), values=fixed) for text, fixed in UNIFORM.items()),
    *(case(text, "a2 -> 4!", x=(2,), values=fixed) for text, fixed in NUMBERED.items()),
    # a square identity matrix stays one when a row leaves with its column
    case("torch.eye(3)", "a2 -> b3 b3", x=(2,)),
    case("torch.eye(3, 3) + x", "a3 a3 -> a3 a3", x=(3, 3)),
    case("torch.eye(3, 4)", "a2 -> 3! 4!", x=(2,)),
    case("torch.tril_indices(2, 3)", "a2 -> 2! 3!", x=(2,)),
    case("torch.triu_indices(2, 3)", "a2 -> 2! 5!", x=(2,)),
    case("torch.scalar_tensor(3.0)", "a2 -> ()", x=(2,)),
    # uniform values take the axes of what they meet
    case("torch.ones(2, 3, dtype=torch.float64) * x", "a2 b3 -> a2 b3", x=(2, 3)),
    case("torch.zeros(2, 1, dtype=torch.float64) + x", "a2 b3 -> a2 b3", x=(2, 3)),
    case("torch.cat([x, x.new_zeros(2, 4)], 1)", "a2 b3 -> a2 (b3+c4)", x=(2, 3)),
    # a value that the program reads ties nothing
    case("x * y.item()", "a3, () -> a3", x=(3,), y=torch.tensor(2.0), slow=True),
    # an assertion makes nothing
    case("torch._assert_async(y > 1) or x * 2", "a3, () -> a3", x=(3,), y=torch.tensor(2.0)),
    case("x.is_pinned() or x * 2", "a3 -> a3", x=(3,)),
    # numbered values pin it
    *(
        case(f"torch.{name}(4) + x", "4! -> 4!", x=(4,), pins={"x0": "its values depend on their position"})
        for name in (
            *(f"{kind}_window" for kind in ("hann", "hamming", "blackman", "bartlett", "kaiser")),
            "fft.fftfreq",
        )
    ),
    case("torch.fft.rfftfreq(4) + x", "3! -> 3!", x=(3,)),
    case("aten.range(0, 3) + x", "4! -> 4!", x=(4,)),
    case("torch.arange(3) + x", "a2 3! -> a2 3!", x=(2, 3), pins={"x1": "its values depend on their position"}),
    case("torch.eye(3, dtype=torch.float64) @ x", "a3 b2 -> a3 b2", x=(3, 2)),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    factories.RULES, CASES, EXCUSED
)
