"""The package's own tests: everything it brings is proven with prunekit's kit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from prunekit_example import Net, ScaledSwish, SoftClip, model_plugin, pruning_plugin
from prunekit_example.layer_types import prune_clip, prune_swish_out
from prunekit_example.operations import swish
from prunekit_example.scoring import LargestRow, Shrink, int8_bytes

import prunekit as pk
from prunekit import plugin
from prunekit.testing import (
    Outcome,
    check_cost,
    check_criterion,
    check_layer_type,
    check_plugin,
    check_regularizer,
    check_rule,
    sample,
)


@pytest.fixture
def registry(prunekit_registry: Callable[..., pk.Registry]) -> pk.Registry:
    return prunekit_registry("prunekit-example")


def test_rule(registry: pk.Registry) -> None:
    assert str(check_rule(lambda x: swish(x, 1.5), [sample(3, 4)], registry=registry)) == "a3 b4 -> a3 b4"


@pytest.mark.parametrize("layer", [ScaledSwish(5, 6), SoftClip(6)], ids=["swish", "clip"])
def test_layer_types(registry: pk.Registry, layer: torch.nn.Module) -> None:
    inputs = torch.randn(4, 5 if isinstance(layer, ScaledSwish) else 6)
    assert check_layer_type(layer, inputs, registry=registry)


def test_the_recording_does_not_look_into_the_clip(registry: pk.Registry) -> None:
    graph = pk.DependencyGraph(registry).build_dependency(Net(4), torch.randn(2, 8))
    names = [operation.name for operation in graph.analysis.recordings[0].trace.operations]
    assert "opaque::prunekit_example.layers.SoftClip" in names
    assert graph.report().not_understood == ()


def test_gradients() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: swish(x, 1.5), [x])


def test_criterion(registry: pk.Registry) -> None:
    check_criterion(LargestRow, registry=registry)
    model = Net(4)
    with torch.no_grad():
        model.first.weight.zero_()
        model.first.weight[:, 0] = torch.tensor([1.0, -4.0, 2.0, 0.1])
    graph = pk.DependencyGraph(registry).build_dependency(model, torch.randn(2, 8))
    (group,) = graph.get_all_groups()
    assert LargestRow(floor=0.5)(group).tolist() == [1.0, 4.0, 2.0, 0.0]
    with pytest.raises(pk.ArgumentError, match="floor"):
        LargestRow(floor=-1.0)


def test_the_cost_model(registry: pk.Registry) -> None:
    check_cost(int8_bytes, registry=registry)


def test_a_project_says_how_weights_are_stored() -> None:
    costs = []
    for size in (4, 2):
        config = plugin.Config.of({"plugin": {"int8_bytes": {"scale_bytes": size}}}, Path("prunekit.toml"))
        result = pk.prune(Net(4), torch.randn(2, 8), registry=pk.Registry(config=config))
        costs.append(result.preview.costs["int8_bytes"][0])
    rows = sum(len(tensor) for tensor in Net(4).parameters() if tensor.dim() > 1)
    assert costs[0] - costs[1] == 2 * rows


def test_the_regularizer_adds_to_the_gradients(registry: pk.Registry) -> None:
    check_regularizer(Shrink, registry=registry)
    model = Net(4)
    graph = pk.DependencyGraph(registry).build_dependency(model, torch.randn(2, 8))
    shrink = Shrink(graph.get_all_groups, strength=0.25)
    (model(torch.randn(2, 8)).sum() * 0).backward()
    shrink.regularize()
    for parameter in (model.first.weight, model.first.gain, model.clip.limit, model.last.weight):
        assert torch.equal(parameter.grad, 0.25 * parameter)


def test_either_layer_may_be_where_a_group_starts(registry: pk.Registry) -> None:
    for layer, prune in (("first", prune_swish_out), ("clip", prune_clip)):
        model = Net(8)
        kept = model.clip.limit[[0, 2, 4, 5, 6, 7]].clone()
        graph = pk.DependencyGraph(registry).build_dependency(model, torch.randn(2, 8))
        graph.get_pruning_group(model.get_submodule(layer), prune, [1, 3]).prune()
        assert (model.first.width, model.last.in_features) == (6, 6)
        assert torch.equal(model.clip.limit, kept)


def test_without_the_plugin_nothing_can_be_pruned(prunekit_registry: Callable[..., pk.Registry]) -> None:
    with pytest.raises(pk.NothingToPruneError, match="prunekit_example::swish"):
        pk.prune(Net(), torch.randn(2, 8), registry=prunekit_registry())
    pk.prune(Net(), torch.randn(2, 8), registry=prunekit_registry(model_plugin, pruning_plugin))


def test_everything_that_both_plugins_register_passes_the_kit(registry: pk.Registry) -> None:
    found = check_plugin("prunekit-example", registry=registry)
    assert {checked.outcome for checked in found} == {Outcome.PASSED}
    assert {checked.hook for checked in found} == {*plugin.HOOKS} - {"prunekit_checks", "prunekit_serving_profiles"}
