"""Depth where the weights are on disk: the same choice, plan and files as in memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from tests.core.test_depth import Deep, X, deep, without


def skeleton() -> nn.Module:
    with torch.device("meta"):
        return Deep().eval()


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    pk.save(deep(), tmp_path / "dense.safetensors")
    return tmp_path / "dense.safetensors"


@pytest.mark.parametrize(
    "options",
    [
        {"branch_ratio": 0.5},
        {"branches": ["layers.1.mlp", "layers.2.attend"]},
        {"target": {"params": 0.6}, "by": "depth"},
        {"branch_ratio": 0.25, "ratio": 0.5},
        *(
            {"branch_ratio": 0.5, "calibration": [X, 2 * X], "branch_importance": name}
            for name in ("block_influence", "relative_energy", "branch_residual", "output_change", "magnitude")
        ),
        {"target": {"macs": 0.7}, "by": "depth", "calibration": [X]},
    ],
)
def test_files_are_pruned_as_the_model_in_memory_is(options: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    memory = copy.deepcopy(deep())
    expected = pk.prune(memory, X, **options)
    found = pk.prune(skeleton(), X, weights=dense, **options)
    assert found.plan == expected.plan
    assert found.plan.absent
    assert found.report.branches == expected.report.branches
    pk.prune_checkpoint(dense, tmp_path / "small.safetensors", found.plan, repaired=found.repaired)
    loaded = pk.load(deep(), tmp_path / "small.safetensors")
    assert torch.allclose(loaded(X), memory(X), rtol=1e-5, atol=1e-5)
    if expected.compensation is None:
        assert torch.equal(loaded(X), memory(X))
    if expected.compensation is None and not found.plan.cuts:
        assert torch.allclose(loaded(X), without(deep(), found.plan.absent), atol=1e-6)


@pytest.mark.parametrize("calibration", [None, [X]])
def test_steps_on_disk_are_those_in_memory(calibration: Any, dense: Path, tmp_path: Path) -> None:
    plans = []
    for model, where in ((deep(), None), (skeleton(), dense)):
        pruner = pk.BasePruner(
            model, X, branch_ratio=0.5, pruning_ratio=0.5, iterative_steps=2, weights=where, calibration=calibration
        )
        pruner.step()
        pruner.step()
        plans.append(pruner.graph.applied)
    assert plans[0] == plans[1]
    assert len(plans[0].absent) == 4
    pk.prune_checkpoint(dense, tmp_path / "small.safetensors", plans[1])
    memory = plans[0].apply(deep())
    assert torch.equal(pk.load(deep(), tmp_path / "small.safetensors")(X), memory(X))


def test_a_plan_made_without_values_is_for_the_model_and_for_its_files(dense: Path, tmp_path: Path) -> None:
    """Made on the meta device; applied in memory, to the skeleton, and to files: all the same model."""
    plan = pk.Graph.of(skeleton(), X).plan_without(["layers.0.mlp", "layers.3.attend"])
    assert plan == pk.Graph.of(deep(), X).plan_without(["layers.0.mlp", "layers.3.attend"])
    plan = pk.Plan.from_json(plan.to_json())
    memory = plan.apply(deep())
    pk.prune_checkpoint(dense, tmp_path / "small.safetensors", plan)
    small = plan.apply(skeleton())
    assert all(parameter.is_meta for parameter in small.parameters())
    assert [(n, p.shape) for n, p in small.named_parameters()] == [(n, p.shape) for n, p in memory.named_parameters()]
    for target in (deep(), skeleton()):
        loaded = pk.load(target, tmp_path / "small.safetensors")
        assert torch.equal(loaded(X), memory(X))
    assert torch.allclose(memory(X), without(deep(), plan.absent), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"branch_ratio": 0.5, "branch_importance": "gate_taylor", "calibration": [X]},
            "Derivatives can't be gathered",
        ),
        (
            {"target": {"params": 0.5}, "by": "both", "calibration": [X]},
            "(?s)needs calibration data and a model in memory.*weights are on disk",
        ),
        ({"branch_ratio": 0.5, "branch_importance": "block_influence"}, "needs calibration data for branches"),
        ({"target": {"latency": 0.5}, "by": "depth"}, "without values can't be measured"),
    ],
)
def test_what_needs_the_model_in_memory_says_so(options: dict[str, Any], message: str, dense: Path) -> None:
    with pytest.raises(pk.ArgumentError, match=message):
        pk.prune(skeleton(), X, weights=dense, **options)


def test_without_files_a_model_without_values_is_pruned_by_chance_alone() -> None:
    with pytest.raises(pk.ArgumentError, match=r"no values to score"):
        pk.prune(skeleton(), X, branch_ratio=0.5)
    result = pk.prune(skeleton(), X, branch_ratio=0.5, branch_importance="random")
    assert len(result.plan.absent) == 4
