"""Models without some branches in files: saved, loaded, pruned on disk, and plans from strangers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import safetensors.torch
import torch
from torch import nn

import prunekit as pk
from prunekit_core.modules.absent import Absent
from prunekit_core.modules.edits import Rescale
from prunekit_core.modules.renaming import Tied
from prunekit_plugins.checkpoints import tensorfile
from prunekit_plugins.checkpoints.tensorfile import TensorFile
from tests.core.residual import MODELS, TiedMLP, close, other_weights, residual_mlp, small_vit, switched_off


def planned(model: nn.Module, x: torch.Tensor, branches: Any, size: int = 16) -> pk.Plan:
    """A plan without some branches, in which the groups of a size keep every second unit."""
    graph = pk.Graph.of(model, x)
    kept = {group.name: tuple(range(0, size, 2)) for group in graph.groups() if group.size == size}
    return graph.plan_without(branches, kept)


@pytest.mark.parametrize("size", [0, 16])
@pytest.mark.parametrize(("make", "branches"), MODELS)
def test_what_is_saved_is_loaded_into_the_whole_architecture(
    make: Any, branches: dict[str, str], size: int, tmp_path: Path
) -> None:
    model, x = make()
    plan = planned(model, x, branches, size)
    small = plan.apply(copy.deepcopy(model))
    pk.save(small, tmp_path / "small.safetensors", plan=plan)
    stored = TensorFile(tmp_path / "small.safetensors")
    assert sorted(stored.tensors) == sorted(small.state_dict())
    assert pk.read_plan(tmp_path / "small.safetensors") == plan
    for assign in (False, True):
        loaded = pk.load(other_weights(model), tmp_path / "small.safetensors", assign=assign)
        assert torch.equal(loaded(x), small(x))
        assert str(loaded) == str(small)
    if not size:
        assert close(small(x), switched_off(model, *branches.values())(x))
    with torch.device("meta"):
        skeleton = copy.deepcopy(model).to("meta")
    if not any(name.endswith("num_batches_tracked") for name in plan.gone):
        assert torch.equal(pk.load(skeleton, tmp_path / "small.safetensors")(x), small(x))


@pytest.mark.parametrize("size", [0, 16])
@pytest.mark.parametrize(("make", "branches"), MODELS)
def test_on_disk_a_checkpoint_becomes_what_is_saved(
    make: Any, branches: dict[str, str], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = make()
    safetensors.torch.save_model(model, str(tmp_path / "dense.safetensors"))
    plan = planned(model, x, branches, size)
    small = plan.apply(copy.deepcopy(model))
    pk.save(small, tmp_path / "expected.safetensors", plan=plan)
    monkeypatch.setattr(tensorfile, "_PIECE", 200)
    told: list[tuple[int, int]] = []
    source = tmp_path / "dense.safetensors"
    pk.prune_checkpoint(source, tmp_path / "small.safetensors", plan, progress=lambda *both: told.append(both))
    assert (tmp_path / "small.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    read = sum(value.nbytes for name, value in model.state_dict().items() if name not in plan.gone)
    assert told[-1] == (read, read)
    assert torch.equal(pk.load(other_weights(model), tmp_path / "small.safetensors")(x), small(x))


def test_shards_hold_what_is_left(tmp_path: Path) -> None:
    model, x = small_vit()
    pk.save(model, tmp_path / "dense", max_shard_size=3000)
    assert len([*(tmp_path / "dense").glob("*.safetensors")]) > 3
    plan = planned(model, x, ["layers.0.mlp", "layers.1.attn"])
    small = plan.apply(copy.deepcopy(model))
    pk.prune_checkpoint(tmp_path / "dense", tmp_path / "small", plan, max_shard_size=3000)
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == sorted(small.state_dict())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in small.state_dict().values())
    assert {path.name for path in (tmp_path / "small").glob("*.safetensors")} == set(index["weight_map"].values())
    loaded = pk.load(other_weights(model), tmp_path / "small")
    assert torch.equal(loaded(x), small(x))


def test_a_pruned_checkpoint_loses_branches_afterwards(tmp_path: Path) -> None:
    model, x = small_vit()
    original = copy.deepcopy(model)
    first = planned(model, x, ())
    first.apply(model)
    pk.save(model, tmp_path / "narrow.safetensors", plan=first)
    later = planned(model, x, ["layers.1.mlp"], 0)
    pk.prune_checkpoint(tmp_path / "narrow.safetensors", tmp_path / "small.safetensors", later)
    last = planned(later.apply(model), x, ["layers.0.attn"], 8)
    pk.prune_checkpoint(tmp_path / "small.safetensors", tmp_path / "last.safetensors", last)
    last.apply(model)
    loaded = pk.load(other_weights(original), tmp_path / "last.safetensors")
    assert torch.equal(loaded(x), model(x))
    whole = pk.read_plan(tmp_path / "last.safetensors")
    assert whole.absent == ("layers.1.mlp", "layers.0.attn")
    assert pk.check_exact(original, loaded, whole, x)
    with pytest.raises(
        pk.PlanError, match=r"(?s)second plan doesn't fit.*layers.1.norm2.weight.*first plan removes it"
    ):
        pk.prune_checkpoint(tmp_path / "small.safetensors", tmp_path / "twice.safetensors", later)
    assert not (tmp_path / "twice.safetensors").exists()


def test_a_tied_matrix_is_stored_under_the_name_that_it_keeps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = TiedMLP().double(), torch.randn(3, 8).double()
    plan = pk.Graph.of(model, x).plan_without(["first"])
    small = plan.apply(copy.deepcopy(model))
    pk.save(small, tmp_path / "expected.safetensors", plan=plan)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, left_out in (("first", "head.weight"), ("second", "first.weight"), ("both", "")):
        tensors = {key: value for key, value in state.items() if key != left_out}
        safetensors.torch.save_file(tensors, tmp_path / f"{name}.safetensors")
        pk.prune_checkpoint(tmp_path / f"{name}.safetensors", tmp_path / "small.safetensors", plan)
        assert (tmp_path / "small.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    assert sorted(TensorFile(tmp_path / "small.safetensors").tensors) == ["head.weight", "second.bias", "second.weight"]
    loaded = pk.load(other_weights(model), tmp_path / "small.safetensors")
    assert torch.equal(loaded(x), small(x))
    assert close(small(x), switched_off(model, "first")(x))


def test_all_names_of_a_shared_branch_go(tmp_path: Path) -> None:
    class Twice(nn.Module):
        """One layer under two names."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
            self.again = self.inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(x + self.again(x))

    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(2, 8).double()
    plan = pk.Graph.of(model, x).plan_without(["inner"])
    assert plan.tied == (
        Tied("", ("inner.weight", "again.weight")),
        Tied("", ("inner.bias", "again.bias")),
    )
    small = plan.apply(copy.deepcopy(model))
    assert small.inner is small.again
    assert torch.equal(small(x), model.last(x))  # type: ignore[operator]
    safetensors.torch.save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "dense.safetensors")
    pk.prune_checkpoint(tmp_path / "dense.safetensors", tmp_path / "small.safetensors", plan)
    assert sorted(TensorFile(tmp_path / "small.safetensors").tensors) == ["last.bias", "last.weight"]
    assert torch.equal(pk.load(other_weights(model), tmp_path / "small.safetensors")(x), small(x))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    model, x = residual_mlp()
    plan = planned(model, x, ["blocks.0.up"], 0)
    small = plan.apply(copy.deepcopy(model))
    pk.save(small, tmp_path / "small.safetensors", plan=plan)
    safetensors.torch.save_model(small, str(tmp_path / "plain.safetensors"))
    with pytest.raises(pk.CheckpointError, match=r"(?s)for another model.*blocks.1.down.bias is missing"):
        pk.prune_checkpoint(tmp_path / "plain.safetensors", tmp_path / "out.safetensors", plan)
    with pytest.raises(pk.CheckpointError, match=r"(?s)doesn't lead to this model.*blocks.1.norm.weight.*takes it out"):
        pk.save(model, tmp_path / "out.safetensors", plan=plan)
    with pytest.raises(pk.CheckpointError, match=r"(?s)for another model.*blocks"):
        pk.load(small, tmp_path / "small.safetensors")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    header = TensorFile(tmp_path / "small.safetensors").metadata
    safetensors.torch.save_file(state, tmp_path / "whole.safetensors", header)
    with pytest.raises(pk.CheckpointError, match=r"(?s)blocks.1.down.bias is not in the model"):
        pk.load(copy.deepcopy(model), tmp_path / "whole.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    safetensors.torch.save_file(state, tmp_path / "whole.safetensors")
    repaired = {"blocks.0.up.weight": torch.zeros(16, 8)}
    with pytest.raises(pk.CheckpointError, match=r"blocks.0.up.weight is missing"):
        pk.prune_checkpoint(tmp_path / "whole.safetensors", tmp_path / "out.safetensors", plan, repaired=repaired)


HOSTILE: list[tuple[Any, str]] = [
    (lambda part: part["modules"].update({"blocks.1": {"import": "os"}}), "not what a module returns"),
    (lambda part: part["modules"].update({"blocks.1": {"value": {"a": 1}}}), "not what a module returns"),
    (lambda part: part["modules"].update({"nothing.here": {"value": None}}), "no such module"),
    (lambda part: part["modules"].update({"blocks.1.up.weight": {"value": None}}), "no such module"),
    (lambda part: part["modules"].update({"__class__": {"value": None}}), "no such module"),
    (lambda part: part["modules"].update({"blocks.1": {"value": None}}), "blocks.1.norm.weight.*says that it stays"),
    (lambda part: part["parameters"].append("head.weight"), "head.weight.*says that it goes"),
    (lambda part: part["parameters"].remove("blocks.0.up.bias"), "blocks.0.up.bias.*says that it stays"),
    (lambda part: part["parameters"].append("blocks.7.bias"), "no such parameter"),
    (lambda part: part["parameters"].append(["a"]), "malformed"),
    (lambda part: part.update(parameters=None), "malformed"),
    (lambda part: part.update(modules=[]), "malformed"),
    (lambda part: part.pop("branches"), "malformed"),
    (lambda part: part.update(tied=[["head.bias", "head.weight", "head.bias"]]), "other names are not those"),
    (lambda part: part.update(tied=[["", "head.weight"]]), "goes with all of them"),
    (lambda part: part.update(tied=[["head.bias"]]), "malformed"),
    (lambda part: part.update(tied=[[]]), "malformed"),
    (lambda part: part.update(tied={"head.bias": 3}), "malformed"),
]


class Headed(nn.Module):
    """A head behind the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = residual_mlp()[0].blocks, nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x))  # type: ignore[operator]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_a_strangers_plan_changes_nothing(change: Any, message: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Headed().double(), torch.randn(2, 5, 8).double()
    plan = planned(model, x, ["blocks.0.up"], 0)
    small = plan.apply(copy.deepcopy(model))
    pk.save(small, tmp_path / "small.safetensors", plan=plan)
    data = json.loads(plan.to_json())
    change(data["absent"])
    text = json.dumps(data)
    before, out = copy.deepcopy(model.state_dict()), model(x)
    with pytest.raises(pk.PlanError, match=f"(?s){message}"):
        pk.Plan.from_json(text).apply(model, any_program=True)
    stored = TensorFile(tmp_path / "small.safetensors")
    values = {name: stored.read(name) for name in stored.tensors}
    safetensors.torch.save_file(values, tmp_path / "hostile.safetensors", {**stored.metadata, "plan": text})
    with pytest.raises(pk.CheckpointError, match=f"(?s){message}"):
        pk.load(model, tmp_path / "hostile.safetensors", any_program=True)
    assert not any(isinstance(module, Absent) for module in model.modules())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x), out)


def test_plans_that_contradict_themselves_are_refused() -> None:
    model, x = residual_mlp()
    plan = planned(model, x, ["blocks.0.up"])
    assert plan.cuts
    for wrong in (
        {"gone": (*plan.gone, "blocks.1.up.weight")},
        {"edits": (*plan.edits, attrs.evolve(plan.edits[0], module="blocks.0.up"))},
        {"rescales": (Rescale("blocks.0.up.weight", ((0, 1),), 2.0),)},
    ):
        with pytest.raises(pk.PlanError, match=r"(?s)malformed.*removed, and changed"):
            attrs.evolve(plan, **wrong)
