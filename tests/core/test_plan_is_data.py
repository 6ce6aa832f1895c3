"""A plan is data: it is pickled and copied, and keeps neither the analysis nor the model alive."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit_core.modules.edits import Table, TableEdit
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


def listed(old: Any, new: Any) -> pk.Plan:
    tables = [Table.of(value) for value in (old, new)]
    assert tables[0] is not None
    assert tables[1] is not None
    return pk.Plan(tables=(TableEdit("", "labels", *tables),))


@pytest.mark.parametrize(
    ("old", "middle", "new"),
    [
        ([4, 6, 9], [2, 3], []),
        ([[1, 5], [2, None]], [[1, 2]], []),
        ({0: "a", 1: "b", 2: "c"}, {0: "a", 1: "c"}, {0: "c"}),
        ({"a": 0, "b": 1, "c": 2}, {"a": 0, "c": 1}, {"c": 0}),
    ],
)
def test_lists_and_mappings_in_attributes_are_data(old: Any, middle: Any, new: Any) -> None:
    first = listed(old, middle)
    assert pk.Plan.from_json(first.to_json()) == first
    assert pickle.loads(pickle.dumps(first)) == first
    if new:
        both = first.then(listed(middle, new))
        assert both == listed(old, new)
        assert both.since(first) == listed(middle, new)
    model = Residual()
    model.labels = copy.deepcopy(old)
    first.apply(model)
    assert (model.labels, type(model.labels)) == (middle, type(middle))
    with pytest.raises(pk.PlanError, match="it isn't what the plan expects there"):
        first.apply(model)
    bare = Residual()
    first.apply(bare)
    assert not hasattr(bare, "labels")
