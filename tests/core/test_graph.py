"""The core's own way: a graph that is whole when it is made, groups by layer and side, a pruner with its settings."""

from __future__ import annotations

import copy
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.plugin import Pruner, Settings
from prunekit_plugins.layers import prune_linear_in_channels, prune_linear_out_channels

EXAMPLE = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("layer", "side", "function", "expected"),
    [
        (0, "out", prune_linear_out_channels, [(6, 4), (6,), (6, 6), (6,), (3, 6), (3,)]),
        (2, "in", prune_linear_in_channels, [(6, 4), (6,), (6, 6), (6,), (3, 6), (3,)]),
        (2, "out", prune_linear_out_channels, [(8, 4), (8,), (4, 8), (4,), (3, 4), (3,)]),
    ],
)
def test_groups_by_layer_and_side(layer: int, side: str, function: Any, expected: list[tuple[int, ...]]) -> None:
    model, other = net(), net()
    by_hand = copy.deepcopy(model)
    plan = pk.Graph.of(model, EXAMPLE).group(model[layer], side, [1, 3]).prune()
    graph = pk.DependencyGraph().build_dependency(other, EXAMPLE)
    graph.get_pruning_group(other[layer], function, [1, 3]).prune()
    assert shapes(model) == shapes(other) == expected
    torch.testing.assert_close(model(EXAMPLE), other(EXAMPLE), rtol=0, atol=0)
    lost = 2 * (layer if side == "out" else layer - 2) // 2
    with torch.no_grad():
        by_hand[lost].weight[[1, 3]] = 0
        by_hand[lost].bias[[1, 3]] = 0
    torch.testing.assert_close(model(EXAMPLE), by_hand(EXAMPLE))
    assert plan.kept[str(lost)] == tuple(unit for unit in range(plan.cuts[0].size) if unit not in (1, 3))


def test_what_has_no_such_channels_is_refused() -> None:
    model = net()
    graph = pk.Graph.of(model, EXAMPLE)
    with pytest.raises(pk.ArgumentError, match="no channels on the side 'left'"):
        graph.group(model[0], "left", [0])
    with pytest.raises(pk.ArgumentError, match=r"no channels on the side 'out'(?s:.*)no layer type is registered"):
        graph.group(model[1], "out", [0])
    with pytest.raises(pk.ArgumentError, match="not part of the model"):
        graph.group(nn.Linear(4, 8), "out", [0])
    with pytest.raises(pk.UnitsError, match="an output of the model"):
        graph.group(model[4], "out", [0])
    assert shapes(model) == shapes(net())


def test_a_graph_that_was_not_built_says_so_whatever_it_is_asked() -> None:
    graph = pk.DependencyGraph()
    for name in ("analysis", "model", "applied", "standing_of_nothing"):
        with pytest.raises(pk.ArgumentError, match=r"The graph is empty\.(?s:.*)build_dependency"):
            getattr(graph, name)
    graph.build_dependency(net(), EXAMPLE)
    with pytest.raises(AttributeError, match="'DependencyGraph' object has no attribute 'standing_of_nothing'"):
        graph.standing_of_nothing  # noqa: B018


@pytest.mark.parametrize("options", [{}, {"pruning_ratio": 0.25}, {"global_pruning": True}, {"ignored_layers": ["2"]}])
def test_a_pruner_of_a_graph_does_what_one_of_a_model_does(options: dict[str, Any]) -> None:
    model, other = net(), net()
    pruner = Pruner(pk.Graph.of(model, EXAMPLE), Settings(**options))
    expected = pk.BasePruner(other, EXAMPLE, **options)
    assert pruner.plan() == expected.plan()
    pruner.step()
    expected.step()
    assert shapes(model) == shapes(other) != shapes(net())
    assert str(pruner.report()) == str(expected.report())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruning_ratio": 1.0}, r"pruning_ratio must lie in \[0, 1\)"),
        ({"max_pruning_ratio": 2}, r"max_pruning_ratio must lie in \[0, 1\]"),
        ({"iterative_steps": 0}, "iterative_steps must be a positive integer"),
        ({"isomorphic": True}, "isomorphic needs global_pruning=True"),
        ({"head_pruning_ratio_dict": {"0": -1}}, "a ratio in head_pruning_ratio_dict"),
        ({"ignored_layers": "0"}, "ignored_layers is a list of layers"),
        ({"ignored_layers": nn.Linear}, "ignored_layers is a list of layers"),
        ({"root_module_types": nn.Linear}, "root_module_types is a list of module types"),
        ({"root_module_types": [3]}, "root_module_types is a list of module types"),
    ],
)
def test_wrong_settings_are_refused_where_they_are_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(pk.ArgumentError, match=message):
        Settings(**options)


def test_settings_are_a_value() -> None:
    settings = Settings()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        settings.pruning_ratio = 0.3  # type: ignore[misc]
    pruner = Pruner(pk.Graph.of(net(), EXAMPLE), settings)
    assert settings.importance == "magnitude"
    assert callable(pruner.settings.importance)
    assert (pruner.pruning_ratio, pruner.iterative_steps, pruner.global_pruning) == (0.5, 1, False)
