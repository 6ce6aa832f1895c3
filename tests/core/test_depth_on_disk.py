"""Depth where the weights are on disk: the same choice, plan and files as in memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import prunekit as pk
from prunekit_plugins.checkpoints.tensorfile import TensorFile
from prunekit_plugins.importance import CalibratedImportance
from tests.core.test_depth import Deep, X, deep, scaled, without


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


SMALL = {"layers.1.mlp": 0.01, "layers.2.attend": 0.02}
"""Branches that add little."""


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(16, 6, 3, generator=generator) for _ in range(3)]


@pytest.mark.parametrize(
    ("sizes", "target", "branches"),
    [
        (SMALL, {"params": 0.5}, 2),
        (SMALL, {"macs": 0.8, "params": 0.8}, 2),
        pytest.param({}, {"macs": 0.7}, 0, marks=pytest.mark.slow),
    ],
)
def test_branches_and_units_are_weighed_on_disk_as_in_memory(
    sizes: dict[str, float], target: dict[str, float], branches: int, tmp_path: Path
) -> None:
    """The same trials are carried out and measured, the same one is taken, and its weights are repaired alike."""
    pk.save(scaled(sizes), tmp_path / "dense.safetensors")
    options: dict[str, Any] = {"target": target, "by": "both", "calibration": batches()}
    memory = scaled(sizes)
    expected = pk.prune(memory, X, importance=CalibratedImportance(curvatures=False), **options)
    found = pk.prune(skeleton(), X, weights=tmp_path / "dense.safetensors", **options)
    assert found.plan == expected.plan
    assert len(found.plan.absent) == branches
    assert found.report.branches == expected.report.branches
    measured = [note for note in found.report.notes if "held-out outputs change by" in note]
    assert measured == [note for note in expected.report.notes if "held-out outputs change by" in note]
    assert len(measured) > 1
    assert str(found.tradeoffs) == str(expected.tradeoffs)
    pk.prune_checkpoint(
        tmp_path / "dense.safetensors", tmp_path / "small.safetensors", found.plan, repaired=found.repaired
    )
    loaded = pk.load(deep(), tmp_path / "small.safetensors")
    assert torch.allclose(loaded(X), memory(X), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected.plan.apply(scaled(sizes))(X), memory(X), rtol=1e-3, atol=1e-3)


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of tensors read from files that were in memory at a time, for each tensor that was read."""
    alive: list[tuple[StorageWeakRef, int]] = []
    counts: list[int] = []
    read = TensorFile.read

    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        tensor = read(*arguments, **options)
        alive[:] = [entry for entry in alive if not entry[0].expired()]
        alive.append((StorageWeakRef(tensor.untyped_storage()), tensor.nbytes))
        counts.append(sum(size for _, size in alive))
        return tensor

    monkeypatch.setattr(TensorFile, "read", watched)
    return counts


@pytest.mark.parametrize(
    "options",
    [
        {"branch_ratio": 0.5, "branch_importance": "block_influence"},
        {"branch_ratio": 0.5, "branch_importance": "output_change"},
        {"target": {"macs": 0.7}, "by": "depth"},
        {"target": {"params": 0.5}, "by": "both"},
    ],
)
def test_weights_of_one_layer_are_in_memory_at_a_time(
    options: dict[str, Any], read_bytes: list[int], dense: Path
) -> None:
    pk.prune(skeleton(), X, weights=dense, calibration=batches(), **options)
    model = deep()
    largest = max(sum(one.nbytes for one in part.parameters(recurse=False)) for part in model.modules())
    assert len(read_bytes) > 100
    assert max(read_bytes) <= 2 * largest < sum(one.nbytes for one in model.parameters()) / 4


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
        ({"target": {"params": 0.5}, "by": "both"}, "(?s)needs calibration data.*there are none"),
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
