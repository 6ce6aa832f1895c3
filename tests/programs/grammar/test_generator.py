"""The generator itself: it can fail. What is broken on purpose is seen, and what it says of programs is right."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit_core.program.rules import as_rule
from prunekit_core.rehearse import make_plan, rehearsal
from prunekit_core.rehearse.temperatures import Constants
from prunekit_plugins.ops import norms, pointwise, reductions
from tests.programs.grammar import shrinking
from tests.programs.grammar.following import expression, literals
from tests.programs.grammar.judge import Outcome, Verdict
from tests.programs.grammar.masking import difference, kept_positions, masked
from tests.programs.grammar.program import Program, Statement
from tests.programs.grammar.trials import verdict_of
from tests.programs.grammar.writing import write

WRONG = (Outcome.DIFFERS, Outcome.RAISES, Outcome.CHECK_TOLD, Outcome.CHECK_ALARM)
"""What shows that a pruned model is another program."""
BASE = ("layers.dense", "layers.convolution", "activations.activation")


def first_disagreement(only: tuple[str, ...], count: int) -> Outcome | None:
    """What goes wrong first with programs of a few productions."""
    verdicts = (verdict_of(write(seed, only)) for seed in range(count))
    return next((verdict.outcome for verdict in verdicts if verdict.disagrees), None)


@pytest.fixture
def with_rule(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    """Puts another rule in the place of one."""

    def put(key: str, rule: plugin.Rule) -> None:
        table = pk.default_registry().op_rules
        monkeypatch.setattr(table, "_rules", {**table._rules, key: as_rule(rule)})
        monkeypatch.setattr(table, "_cache", {})

    return put


@pytest.mark.slow
def test_sums_that_tie_nothing_are_seen(with_rule: Callable[[str, Any], None]) -> None:
    """The operands of a sum lose as many units, but others."""
    only = ("layers.joined", "layers.residual", *BASE)
    assert first_disagreement(only, 8) is None

    def first(call: plugin.OpCall) -> list[plugin.Axis]:
        largest = max(call.tensors(), key=lambda tensor: tensor.ndim)
        return list(largest.axes) if largest.shape == call.shape else [plugin.Axis(size) for size in call.shape]

    for name in ("add.Tensor", "mul.Tensor", "sub.Tensor"):
        with_rule(f"aten::{name}", first)
    assert first_disagreement(only, 60) in WRONG


@pytest.mark.slow
def test_norms_that_are_called_exact_are_seen(with_rule: Callable[[str, Any], None]) -> None:
    only = ("norms.layer", "norms.unit", *BASE)
    assert first_disagreement(only, 8) is None

    def exact(rule: plugin.Rule) -> plugin.Rule:
        known = as_rule(rule)

        def silent(call: plugin.OpCall) -> Any:
            result = known.ties(call)
            call._effects.whole.pop(call.operation.index, None)
            return result

        return attrs.evolve(known, ties=silent)

    for key in ("layer_norm", "rms_norm", "softmax", "mean", "linalg_vector_norm"):
        rule = {**norms.RULES, **reductions.RULES, **pointwise.RULES}[f"aten::{key}"]
        with_rule(f"aten::{key}", exact(rule))
    assert first_disagreement(only, 60) in WRONG


def test_a_rehearsal_that_passes_everything_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal.Stage, "replay", lambda self, edits: (None, []))
    assert first_disagreement(("asides.aside", "shapes.view"), 60) in WRONG


@pytest.mark.slow
def test_a_rescale_that_is_forgotten_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_plan, "find_rescales", lambda *_: Constants())
    assert first_disagreement(("attentions.attention",), 60) in WRONG


@pytest.mark.slow
def test_a_rescale_by_another_factor_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    find = make_plan.find_rescales

    def squared(*arguments: Any) -> Any:
        found = find(*arguments)
        return attrs.evolve(found, rescales=tuple(attrs.evolve(r, factor=r.factor**2) for r in found.rescales))

    monkeypatch.setattr(make_plan, "find_rescales", squared)
    assert first_disagreement(("attentions.attention",), 60) in WRONG


def test_rows_that_aren_t_those_of_the_plan_are_seen() -> None:
    program = _program("v2 = self.m1(v1)", "v3 = self.m2(v2.relu())", layers=("nn.Linear(6, 8)", "nn.Linear(8, 3)"))
    (model, inputs), (original, _) = program.build(), program.build()
    assert pk.prune(model, inputs).plan.cuts
    assert set(masked(original, model, {}).kept) == {"m1.weight", "m1.bias", "m2.weight"}
    with torch.no_grad():
        model.get_parameter("m1.weight").copy_(model.get_parameter("m1.weight").flip(0))
    with pytest.raises(ValueError, match="other values"):
        masked(original, model, {})


def _program(*lines: str, layers: tuple[str, ...] = (), seed: int = 0) -> Program:
    statements = [Statement("v1 = x", "v1"), *(Statement(line, line.split(" = ")[0]) for line in lines)]
    made = tuple(f"self.m{k} = {layer}" for k, layer in enumerate(layers, 1))
    return Program(seed, (("x", "torch.randn(2, 6)"),), made, tuple(statements), statements[-1].target)


def test_outcomes_of_programs_written_by_hand() -> None:
    layers = ("nn.Linear(6, 8)", "nn.Linear(8, 3)")
    exact = _program("v2 = self.m1(v1)", "v3 = self.m2(v2.relu())", layers=layers)
    told = _program("v2 = self.m1(v1)", "v3 = self.m2(v2.softmax(1))", layers=layers)
    nothing = _program("v2 = v1 * 2")
    random_ = _program("v2 = torch.randn(2, 6, generator=torch.Generator().manual_seed(int(torch.randint(9, ()))))")
    assert [verdict_of(p).outcome for p in (exact, told, nothing)] == [Outcome.EXACT, Outcome.TOLD, Outcome.NOTHING]
    assert verdict_of(exact).compared
    assert not verdict_of(random_).disagrees
    assert verdict_of(_program("v2 = v1[7]")).outcome is Outcome.UNFIT


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_kept_positions_are_read_off_values(shape: list[int], data: st.DataObject) -> None:
    old = torch.randperm(math.prod(shape), generator=torch.Generator().manual_seed(0)).double().view(shape)
    kept = [sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))) for size in shape]
    new = old
    for dim, positions in enumerate(kept):
        new = new.index_select(dim, torch.tensor(positions))
    found = kept_positions(old, new)
    assert found is not None
    assert [positions.tolist() for positions in found] == kept
    if new.numel() > 1:
        assert kept_positions(old, new.flip(0) if new.shape[0] > 1 else new + 0.5) is None


@given(st.integers(4, 20), st.one_of(st.integers(-9, 20), st.floats(-4, 4), st.booleans()), st.randoms())
def test_a_number_that_follows_a_size_has_its_value(size: int, value: Any, rng: random.Random) -> None:
    found = eval(expression(rng, "n", size, value), {"n": size})
    assert type(found) is type(value)
    assert found == pytest.approx(value)


def test_numbers_are_found_and_names_and_strings_are_not() -> None:
    text = 'v1 = torch.einsum("b2,2->b", v2, 0.5, keep=True)[v3 > 1]'
    assert [literal.value for literal in literals(text)] == [0.5, True, 1]


def test_a_program_that_disagrees_becomes_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever holds the sine disagrees."""

    def sine(model: nn.Module, inputs: Any, seed: int) -> Verdict:
        with torch.no_grad():
            model(**inputs)
        return Verdict(Outcome.DIFFERS if "sin" in type(model).__name__ else Outcome.EXACT)

    monkeypatch.setattr(shrinking, "judge", sine)
    build = Program.build

    def named(program: Program, variant: int = 0) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        model, inputs = build(program, variant)
        type(model).__name__ = "sin" if ".sin()" in program.source() else "other"
        return model, inputs

    monkeypatch.setattr(Program, "build", named)
    program = _program(
        "v2 = self.m1(v1)",
        "v3 = v2.sin()",
        "v4 = v2 + v3",
        "v5 = self.m2(v4)",
        layers=("nn.Linear(6, 8)", "nn.Linear(8, 3)"),
    )
    small = shrinking.shrink(program, Outcome.DIFFERS)
    assert [statement.text for statement in small.statements] == ["v1 = x", "v3 = v1.sin()"]
    assert not small.used_layers()


def test_differences() -> None:
    one = torch.ones(3)
    assert difference({"a": [one, 2]}, {"a": [one, 2]}) == 0
    assert difference(one, one + 0.5) == 0.5
    assert difference(one, one[:2]) == math.inf
    assert difference(one, one * math.nan) == math.inf
    assert difference((one,), (one, one)) == math.inf
    assert difference(torch.tensor([1]), torch.tensor([2])) == math.inf
