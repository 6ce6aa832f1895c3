"""A plan is data: it is pickled and copied, and keeps neither the analysis nor the model alive."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch

import prunekit as pk
from tests.models import Encoder, Residual

CASES = {
    "convolutions": (Residual, torch.randn(2, 3, 8, 8)),
    "attention": (Encoder, torch.randn(2, 6, 10)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("asked", [False, True], ids=["not asked before", "asked before"])
def test_pickles_and_copies_are_equal_and_show_the_same(name: str, asked: bool) -> None:
    make, x = CASES[name]
    pruner = pk.BasePruner(make().eval(), x)
    plan = pruner.plan()
    preview = pruner.plan().preview()
    assert not asked or plan.preview() == preview
    assert preview.costs["macs"][0] > preview.costs["macs"][1] > 0
    for other in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan), copy.copy(plan)):
        assert other == plan
        assert hash(other) == hash(plan)
        assert other.preview() == preview
        assert other.to_json() == plan.to_json()
    other = pickle.loads(pickle.dumps(plan))
    smaller = other.apply(make().eval())
    assert sum(p.numel() for p in smaller.parameters()) == preview.params_after


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_neither_model_nor_analysis_lives_on(name: str) -> None:
    make, x = CASES[name]
    pruner = pk.BasePruner(make().eval(), x)
    expected = pruner.plan().preview()
    plan = pruner.plan()
    watched = [weakref.ref(thing) for thing in (pruner.model, pruner.graph.analysis, pruner.graph.drafts)]
    del pruner
    gc.collect()
    assert [thing() for thing in watched] == [None] * 3
    assert plan.preview() == expected  # worked out when the analysis went
    assert plan.preview().costs == pickle.loads(pickle.dumps(plan)).preview().costs


def test_a_decision_works_out_no_costs() -> None:
    pruner = pk.BasePruner(Residual().eval(), CASES["convolutions"][1])
    pruner.step()
    assert pruner.graph.drafts._previewed is None
