"""Proving a criterion: one score per unit, the same every time, and following the units when they change places."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from prunekit_core.graph.graph import Graph
from prunekit_core.graph.group import Group
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.testing.network import chosen_net

Criterion = Callable[[Group], "torch.Tensor | None"]


def check_criterion(
    make: Callable[[], Criterion],
    *,
    prepare: Callable[[nn.Module, torch.Tensor], None] | None = None,
    equivariant: bool = True,
    model: nn.Module | None = None,
    example: torch.Tensor | None = None,
    registry: Registry | None = None,
) -> None:
    """Proves a criterion on a small network.

    It must give one finite score for each unit of every group (or None), the same scores when made anew, scores in
    the order of the units asked for, and finite scores when all weights are equal or zero. With ``equivariant`` the
    scores must change places with the units.

    Args:
        make: Makes the criterion; called anew for every comparison, so that seeded ones start again.
        prepare: Called with the network and a batch before scoring, for criteria that need gradients or activations.
        equivariant: False for criteria that don't look at the weights (random scores).
        model: The network, for criteria that look at layers of one's own; it is not touched. It needs a layer that a
            group of more than three units can start from. None for one of convolutions, linear layers and norms.
        example: What the model is called with; goes with ``model``.
        registry: Where rules and layer types are found; None for the default registry.

    Raises:
        AssertionError: One of the above doesn't hold.
    """
    net, batch = chosen_net(model, example)
    scores = _scores(net, batch, make, prepare, registry)
    assert any(score is not None for score in scores.values()), "the criterion scores no group of the network"
    again = _scores(net, batch, make, prepare, registry)
    for name, score in scores.items():
        other = again[name]
        same = score is other if score is None or other is None else torch.equal(score, other)
        assert same, f"{name}: the criterion gives {score} and, made anew, {other}"
    for constant in (1.0, 0.0):
        plain = copy.deepcopy(net)
        for parameter in plain.parameters():
            nn.init.constant_(parameter, constant)
        _scores(plain, batch, make, prepare, registry)
    if equivariant:
        _check_order(net, batch, make, prepare, registry)
        _check_permutation(net, batch, make, prepare, registry, scores)


def _graph(net: nn.Module, batch: torch.Tensor, registry: Registry | None) -> Graph:
    return Graph.of(net, batch, registry=registry)


def _scores(
    net: nn.Module,
    batch: torch.Tensor,
    make: Callable[[], Criterion],
    prepare: Callable[[nn.Module, torch.Tensor], None] | None,
    registry: Registry | None,
) -> dict[str, torch.Tensor | None]:
    model = copy.deepcopy(net)
    if prepare is not None:
        prepare(model, batch)
    criterion = make()
    found = {}
    for group in _graph(model, batch, registry).get_all_groups():
        score = found[group.name] = criterion(group)
        if score is not None:
            assert score.shape == (group.size(),), f"{group.name}: {group.size()} units, scores {tuple(score.shape)}"
            assert bool(score.isfinite().all()), f"{group.name}: scores that are not finite: {score}"
    return found


def _check_order(
    net: nn.Module,
    batch: torch.Tensor,
    make: Callable[[], Criterion],
    prepare: Callable[[nn.Module, torch.Tensor], None] | None,
    registry: Registry | None,
) -> None:
    """Asks for some units in two orders; a normalised score depends on which units are asked for, not on the order."""
    model = copy.deepcopy(net)
    if prepare is not None:
        prepare(model, batch)
    graph = _graph(model, batch, registry)
    tried = False
    for whole in graph.get_all_groups():
        root, channels = whole[0]
        if root.pruning_fn is None or not 3 < len(channels) == whole.size():
            continue
        tried = True
        mixed, sorted_ = [channels[3], channels[0], channels[2]], [channels[0], channels[2], channels[3]]
        first = make()(graph.group_by(root.layer, root.pruning_fn, mixed))
        second = make()(graph.group_by(root.layer, root.pruning_fn, sorted_))
        assert (first is None) == (second is None), "the criterion scores units in one order, not in another"
        if first is not None and second is not None:
            assert torch.allclose(first, second[[2, 0, 1]]), "the scores don't follow the order of the units asked for"
    assert tried, "no group of more than three units starts at a layer whose type has a pruning function"


def _check_permutation(
    net: nn.Module,
    batch: torch.Tensor,
    make: Callable[[], Criterion],
    prepare: Callable[[nn.Module, torch.Tensor], None] | None,
    registry: Registry | None,
    scores: dict[str, torch.Tensor | None],
) -> None:
    """Permutes the units of each group in all members: the network computes the same, the scores move along."""
    for group in _graph(net, batch, registry).get_all_groups():
        score = scores[group.name]
        if score is None:
            continue
        order = torch.arange(group.size(), device="cpu").roll(2)
        moved = copy.deepcopy(net)
        for view in _graph(moved, batch, registry).views(group.name):
            by_unit = torch.stack([view.positions[view.units == unit] for unit in range(group.size())])
            source = torch.arange(view.tensor.shape[view.dim], device="cpu")
            source[by_unit.flatten()] = by_unit[order].flatten()
            view.tensor.data = view.tensor.data.index_select(view.dim, source.to(view.tensor.device))
        found = _scores(moved, batch, make, prepare, registry)[group.name]
        assert found is not None, f"{group.name}: no scores once units have changed places"
        assert torch.allclose(found, score[order]), (
            f"{group.name}: units that change places don't take their scores along: {score[order]}, not {found}"
        )
