"""Two hundred programs of the grammar; ten thousand are run by hand (``docs/random-programs.md``)."""

from __future__ import annotations

import collections

import pytest

from prunekit_plugins.ops import derivatives, prunekit_op_rules, quantization, sparse
from tests.programs.grammar.judge import Outcome
from tests.programs.grammar.reaching import keys_of_all
from tests.programs.grammar.trials import trial
from tests.programs.grammar.writing import write

FIRST, COUNT, PARTS = 20_000, 200, 4
UNREACHED = {
    "aten::cpu": "Tensor.cpu is recorded as aten::to",
    "aten::cuda": "there is none here",
    "aten::div.Scalar_mode": "torch.div of a number is recorded as aten::div.Tensor_mode",
    "aten::div_.Scalar_mode": "the same in place",
    "aten::divide.Scalar_mode": "the same by its other name",
    "aten::is_pinned": "a question about memory, which no program of the grammar asks",
    "aten::requires_grad_": "it isn't dispatched",
    "aten::tensor": "torch.tensor makes its tensor outside of the dispatcher",
}
UNREACHED |= dict.fromkeys(derivatives.RULES, "no program of the grammar differentiates")
UNREACHED |= dict.fromkeys(sparse.RULES, "no program of the grammar makes sparse tensors")
UNREACHED |= dict.fromkeys(quantization.RULES, "no program of the grammar is in quantisation-aware training")
UNREACHED |= dict.fromkeys(
    [f"aten::{name}_window" for name in ("bartlett", "blackman", "hamming", "kaiser")]
    + ["aten::fft_fftfreq", "aten::fft_rfftfreq", "aten::range"],
    "numbers of positions, as aten::arange, which programs meet",
)
UNREACHED |= dict.fromkeys(
    """
    aten::_aminmax aten::_linalg_eigvals aten::addbmm aten::addr aten::cholesky_solve aten::isin aten::linalg_ldl_solve
    aten::linalg_lu_solve aten::masked_fill aten::nanmedian aten::nanmedian.dim aten::resize_ aten::resize_as_
    aten::triangular_solve aten::where.default
    """.split(),  # noqa: SIM905
    "held against a written answer and by execution alone, in tests/plugins/ops",
)
"""Op rules that no production meets, with the reason."""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_program_disagrees(part: int) -> None:
    size = COUNT // PARTS
    found = [trial(seed) for seed in range(FIRST + part * size, FIRST + (part + 1) * size)]
    assert not {result.seed: str(result.verdict) for result in found if result.verdict.disagrees}
    counts = collections.Counter(result.verdict.outcome for result in found)
    assert counts[Outcome.UNFIT] <= size // 10
    assert sum(result.verdict.compared for result in found) >= size // 2, "most must be compared to the last bit"


@pytest.mark.slow
def test_every_rule_is_met_by_some_production() -> None:
    found = set().union(*keys_of_all().values())
    missing = {str(key) for key in prunekit_op_rules()} - found
    assert missing <= UNREACHED.keys()


def test_a_number_gives_one_program() -> None:
    for seed in range(20):
        one, two = write(seed), write(seed)
        assert one == two
        assert one.source() == two.source()
