"""Models whose lists lost entries go through every door: further cuts, optimizers, averages, files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import prunekit as pk
from prunekit_core.modules.transaction import Transaction
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


class Four(nn.Module):
    """Four blocks, each of which has a number."""

    class Block(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number, self.up, self.down = number, nn.Linear(8, 12), nn.Linear(12, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(self.up(x).relu())

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(self.Block(number) for number in range(4)), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)  # type: ignore[no-any-return]


def four() -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    return Four().double().eval(), torch.randn(2, 8).double()


def test_a_graph_names_layers_as_at_analysis_and_finds_them_under_their_new_numbers() -> None:
    model, x = four()
    graph, third = pk.DependencyGraph().build_dependency(model, x), model.layers[2]
    expected = str(graph.explain("layers.2.up"))
    graph.apply(graph.plan_without(["layers.1.up"]))
    assert model.layers[1] is third
    assert third.number == 1
    inside = {"layers.2", "layers.2.up", "layers.2.down"}
    assert graph.module_paths(["layers.2"]) == graph.module_paths([third]) == inside
    assert graph.module_paths(iter(["layers.1", "layers.1.up"])) == set()
    assert graph.module_paths([Four.Block]) == {
        f"layers.{number}{part}" for number in (0, 2, 3) for part in ("", ".up", ".down")
    }
    with pytest.raises(pk.ArgumentError, match=r"no module named 'layers\.4'"):
        graph.module_paths(["layers.4"])
    assert str(graph.explain("layers.2.up")) == str(graph.explain(third.up)) == expected
    assert graph.protected_groups([third.up]) == {"layers.2.up": "layers.2.up"}
    assert [(view.path, view.name, view.dim) for view in graph.views("layers.2.up")] == [
        ("layers.1.up", "weight", 0),
        ("layers.1.up", "bias", 0),
        ("layers.1.down", "weight", 1),
    ]
    assert [branch.name for branch in graph.branches()] == [f"layers.{number}.up" for number in range(4)]
    group = graph.group(third.up, "out", [3, 5])
    assert (group.name, group.root.name) == ("layers.2.up", "layers.1.up")
    graph.remove(group.units)
    assert third.up.out_features == 10
    history = graph.pruning_history()
    assert history == [("branch:layers.1.up", True, []), ("layers.2.up", True, [3, 5])]
    other, _ = four()
    pk.DependencyGraph().build_dependency(other, x).load_pruning_history(history)
    assert torch.equal(other.layers[1].up.weight, third.up.weight)
    assert len(other.layers) == 3
    report = graph.report()
    assert "layers.1 is gone; layers.2 to 3 are layers.1 to 2 now" in report.notes
    assert graph.costs_without(["layers.3.up"])["params"] == (
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in model.parameters()) - 12 * 8 * 2 - 12 - 8,
    )


def test_layers_that_a_pruner_leaves_alone_are_left_alone_under_their_new_numbers() -> None:
    model, x = four()
    alone, ratios = model.layers[2], {model.layers[3].up: 0.5}
    pruner = pk.BasePruner(
        model, x, pruning_ratio=0.25, iterative_steps=3, ignored_layers=["layers.2"], pruning_ratio_dict=ratios
    )
    pruner.step()
    pruner.graph.apply(pruner.graph.plan_without(["layers.0.up"]))
    pruner.step()
    pruner.step()
    assert (len(model.layers), alone.up.out_features) == (3, 12)
    assert [layer.up.out_features for layer in model.layers] == [9, 12, 6]
    assert "layers.0 is gone; layers.1 to 3 are layers.0 to 2 now" in pruner.report().notes
    original, _ = four()
    assert pk.check_exact(original, model, pruner.graph.applied, x)


def test_with_names_kept_entries_that_left_stay_away_and_no_other_one_leaves() -> None:
    model, x = four()
    original, graph = copy.deepcopy(model), pk.Graph.of(model, x)
    graph.apply(graph.plan_without(["layers.1.up"]))
    plan = graph.apply(graph.plan_without(["layers.2.up"], keep_names=True))
    assert [type(layer).__name__ for layer in model.layers] == ["Block", "Absent", "Block"]
    assert plan.entries.deletions[0].entries == (1,)
    plan = graph.apply(graph.plan_without(["layers.0.up"]))  # without the wish, the stand-in leaves as well
    assert [type(layer).__name__ for layer in model.layers] == ["Block"]
    assert plan.entries.deletions[0].entries == (0, 1, 2)
    assert pk.check_exact(original, model, plan, x)


def test_what_counts_layers_is_put_back_with_them_and_is_not_changed_for_others() -> None:
    class Settings:
        def __init__(self) -> None:
            self.depth, self.kinds = 4, ["a", "b", "c", "d"]

    settings = Settings()
    model, x = four()
    other, _ = four()
    model.settings, other.settings, model.head.settings = settings, settings, settings
    layers, graph = [*model.layers], pk.Graph.of(model, x)
    plan = graph.plan_without(["layers.1.up"])
    with Transaction() as transaction:
        plan.apply_within(transaction, model)
    assert model.settings is model.head.settings
    assert (model.settings.kinds, model.settings.depth) == (["a", "c", "d"], 4)
    assert (other.settings, settings.kinds) == (settings, ["a", "b", "c", "d"])
    assert [layer.number for layer in model.layers] == [0, 1, 2]
    transaction.undo()
    assert model.settings is model.head.settings is settings
    assert [*model.layers] == layers
    assert [layer.number for layer in model.layers] == [0, 1, 2, 3]
    assert torch.equal(model(x), other(x))
    other.settings.kinds[1] = "e"
    with pytest.raises(pk.PlanError, match=r"settings\.kinds.*\n.*isn't what the plan expects there"):
        plan.apply(other)


def test_a_file_of_a_model_that_has_lost_the_layers_already_is_refused(tmp_path: Path) -> None:
    """It has layers under all the names that the plan moves or removes, but for the last ones."""
    model, x = four()
    plan = pk.Graph.of(model, x).plan_without(["layers.1.up", "layers.3.up"])
    small = plan.apply(copy.deepcopy(model))
    safetensors.torch.save_model(small, str(tmp_path / "plain.safetensors"))
    with pytest.raises(pk.CheckpointError, match=r"(?s)for another model.*layers\.2\.down\.bias is missing"):
        pk.prune_checkpoint(tmp_path / "plain.safetensors", tmp_path / "out.safetensors", plan)
    safetensors.torch.save_model(model, str(tmp_path / "dense.safetensors"))
    for name in ("one", "two"):
        pk.prune_checkpoint(tmp_path / "dense.safetensors", tmp_path / f"{name}.safetensors", plan)
        plan = pk.Plan.from_json(plan.to_json())
    with pytest.raises(pk.PlanError, match=r"(?s)doesn't fit the model that the first one leaves"):
        pk.prune_checkpoint(tmp_path / "two.safetensors", tmp_path / "three.safetensors", plan)
