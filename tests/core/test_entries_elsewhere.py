"""Models whose lists lost entries go through every door: further cuts, optimizers, averages, files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import prunekit as pk
from prunekit_core.rehearse.removals import draft_without
from prunekit_plugins.checkpoints.tensorfile import TensorFile
from tests.core.residual import close, other_weights, residual_mlp, small_vit, switched_off

CASES: list[tuple[Any, tuple[str, ...], tuple[str, ...], str]] = [
    (residual_mlp, ("blocks.0.up",), ("blocks.0.down",), "blocks.1.up"),
    (small_vit, ("layers.1.attn", "layers.1.mlp"), ("layers.1.attn", "layers.1.mlp"), "layers.2.mlp.0"),
]


def shortened(graph: pk.Graph, names: Any) -> pk.Plan:
    plan = draft_without(graph.model, graph.drafts, names)
    assert plan.entries
    return plan


@pytest.mark.parametrize(("make", "names", "paths", "group"), CASES)
def test_files_hold_the_new_numbers(make: Any, names: Any, paths: Any, group: str, tmp_path: Path) -> None:
    model, x = make()
    safetensors.torch.save_model(model, str(tmp_path / "dense.safetensors"))
    plan = shortened(pk.Graph.of(model, x), names)
    small = plan.apply(copy.deepcopy(model))
    assert close(small(x), switched_off(model, *paths)(x))
    pk.save(small, tmp_path / "expected.safetensors", plan=plan)
    assert sorted(TensorFile(tmp_path / "expected.safetensors").tensors) == sorted(small.state_dict())
    pk.prune_checkpoint(tmp_path / "dense.safetensors", tmp_path / "small.safetensors", plan)
    assert (tmp_path / "small.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    loaded = pk.load(other_weights(model), tmp_path / "small.safetensors")
    assert torch.equal(loaded(x), small(x))
    assert str(loaded) == str(small)
    with pytest.raises(pk.CheckpointError, match="doesn't lead to this model"):
        pk.save(model, tmp_path / "wrong.safetensors", plan=plan)
    # on from there: what is numbered anew is cut under its new name
    later = pk.Graph.of(small, x).draft({renumbered(group): (1, 4, 6)})
    pk.prune_checkpoint(tmp_path / "small.safetensors", tmp_path / "smaller.safetensors", later)
    both = pk.read_plan(tmp_path / "smaller.safetensors")
    assert both.kept == {group: (1, 4, 6)}
    smaller = later.apply(copy.deepcopy(small))
    assert torch.equal(pk.load(other_weights(model), tmp_path / "smaller.safetensors")(x), smaller(x))
    assert pk.check_exact(model, smaller, both, x)
    assert both.since(plan).kept == {renumbered(group): (1, 4, 6)}


def renumbered(group: str) -> str:
    head, number, rest = group.split(".", 2)
    return f"{head}.{int(number) - 1}.{rest}"


@pytest.mark.parametrize(("make", "names", "paths", "group"), CASES)
def test_a_graph_goes_on_with_the_names_of_the_whole_model(make: Any, names: Any, paths: Any, group: str) -> None:
    model, x = make()
    original, average = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    whole = copy.deepcopy(model)
    graph = pk.Graph.of(model, x)
    graph.apply(shortened(graph, names), optimizer=optimizer, copies=[average])
    assert close(model(x), switched_off(whole, *paths)(x))
    assert close(average(x), switched_off(original, *paths)(x))
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    assert set(optimizer.state) == set(model.parameters())
    graph.current.check()
    assert [view.tensor.shape[view.dim] for view in graph.views(group)] == [16, 16, 16]
    plan = graph.apply(graph.draft({group: (0, 3, 5, 9)}), optimizer=optimizer, copies=[average])
    assert plan.entries
    assert pk.check_exact(whole, model, plan, x)
    assert average.state_dict().keys() == model.state_dict().keys()
    assert [value.shape for value in average.state_dict().values()] == [v.shape for v in model.state_dict().values()]
    assert model.state_dict()[renumbered(f"{group}.weight")].shape[0] == 4
    model(x).sum().backward()
    optimizer.step()
