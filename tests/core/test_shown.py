"""What is shown in a session: short, and said where a number may be meant otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunekit as pk

X = torch.randn(2, 8)


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))


def test_what_a_session_shows_is_one_line() -> None:
    result = pk.prune(chain(), X)
    assert repr(result) == (
        "PruneResult(Sequential: 420 -> 212 parameters (50.5% kept), 1 groups pruned; print(result) says what and why)"
    )
    assert repr(result.plan) == "Plan(1 groups cut, in 3 parameters)"
    assert repr(pk.Graph.of(chain(), X)) == "Graph(Sequential: 1 groups)"
    assert repr(pk.DependencyGraph()) == "DependencyGraph(empty)"


def test_a_notebook_shows_costs_and_folds_the_report() -> None:
    shown = pk.prune(chain(), X)._repr_html_()
    assert "<tr><td>params</td><td>420</td><td>212</td><td>50.5%</td></tr>" in shown
    assert "<details>" in shown
    assert "0: 32 -&gt; 16" in shown


def test_a_number_that_may_be_meant_as_a_fraction_is_told_how_it_was_read() -> None:
    with pytest.raises(pk.ArgumentError, match="can't be reached") as refused:
        pk.prune(chain(), X, target={"macs": 1.5})
    assert "(1.5 is an absolute value, because it is above 1; macs=0.5 leaves half)" in refused.value.why
    with pytest.raises(pk.ArgumentError, match="can't be reached") as text:
        pk.prune(chain(), X, target={"macs": "0.6"})
    assert "('0.6' is a text, so an absolute value; the number is a fraction)" in text.value.why
    with pytest.raises(pk.ArgumentError, match="target is a mapping") as half:
        pk.prune(chain(), X, target=0.5)  # type: ignore[arg-type]
    assert '{"macs": 0.5}' in half.value.hint


def test_a_target_without_a_unit_is_told_which_was_taken() -> None:
    result = pk.prune(chain(), X, target={"memory": 1500})
    assert "the target memory=1500 has no unit: it was read as 1,500 bytes" in result.report.notes
    for target in ({"memory": "1500B"}, {"memory": 0.9}, {"params": 300}):
        notes = pk.prune(chain(), X, target=target).report.notes  # type: ignore[arg-type]
        assert not any("unit" in note for note in notes)


def test_a_target_that_is_met_already_is_a_success() -> None:
    model = chain()
    result = pk.prune(model, X, target={"params": 1e6})
    assert any("meets the target as it is" in note for note in (*result.plan.notes, *result.report.notes))
    assert model[0].out_features == 32
