"""Proving a criterion: one score per unit, the same every time, and following the units when they change places."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.choose.branch_group import BranchCriterion
from prunekit_core.errors import nearest
from prunekit_core.graph.graph import Graph
from prunekit_core.graph.group import Group
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.calls import tensors_of
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.calibration.demand import (
    LACKS,
    SET_IT,
    DemandingCriterion,
    FrugalCriterion,
    NeedyCriterion,
    StatisticalCriterion,
)
from prunekit_plugins.calibration.statistics import CURVATURES, FISHER, GRADIENTS, PARTS
from prunekit_plugins.calibration.stream import calibrate
from prunekit_plugins.depth.scoring import BranchScorer
from prunekit_plugins.testing.failure import UnseenError, failing, made, require
from prunekit_plugins.testing.network import branch_net, chosen_net, random_batches
from prunekit_plugins.testing.state import State

Criterion = Callable[[Group], "torch.Tensor | None"]
Prepare = Callable[[nn.Module, torch.Tensor], None]
BATCHES = 4
"""Batches that statistics are gathered from."""


def check_criterion(
    make: Callable[[], Criterion],
    *,
    prepare: Prepare | None = None,
    equivariant: bool = True,
    model: nn.Module | None = None,
    example: torch.Tensor | None = None,
    registry: Registry | None = None,
) -> None:
    """Proves a criterion on a small network.

    It must give one finite score for each unit of every group (or None), the same scores when made anew, scores in
    the order of the units asked for, and finite scores when all weights are equal or zero; and change nothing in the
    model: values, gradients, ``requires_grad``, modes, and PyTorch's random numbers. With ``equivariant`` the scores
    must change places with the units.

    What it says about branches, if it has a method ``branch``, is proven as well, on another network and random
    batches: it must score some branch, each by one finite number, by the same one when it is made anew, and by a finite
    one (or by None) when all weights are zero, with and without some of them switched off; and change nothing in the
    model. Such a criterion may have nothing to say about any group.

    A criterion that has ``needs`` and no statistics gets those that it names, from a few random batches: what it
    ``needs``; with its ``wishes`` as well; and what it reads ``otherwise``.

    Args:
        make: Makes the criterion; called anew for every comparison, so that seeded ones start again.
        prepare: Called with the network and a batch before scoring, for criteria that need gradients or activations.
        equivariant: False for criteria that don't look at the weights (random scores).
        model: The network, for criteria that look at layers of one's own; it is not touched. It needs a layer that a
            group of more than three units can start from. None for one of convolutions, linear layers and norms.
        example: What the model is called with; goes with ``model``.
        registry: Where rules and layer types are found; None for the default registry.

    Raises:
        AssertionError: One of the above doesn't hold, or the criterion raises.
        PrunekitError: The criterion raises one.
    """
    net, batch = chosen_net(model, example)
    criterion = made(make, "check_criterion", "criterion")
    require(callable(criterion), "check_criterion", "what makes a criterion, a callable on groups", criterion)
    if isinstance(criterion, BranchCriterion):
        _check_branches(make, prepare, registry)
    for parts in _parts(criterion):
        trial = _Trial(make, prepare, parts, net, batch, registry)
        scores = trial.scores(net)
        if all(score is None for score in scores.values()):
            if isinstance(criterion, BranchCriterion):
                return
            raise UnseenError("the criterion scores no group of the network")
        again = trial.scores(net)
        for name, score in scores.items():
            other = again[name]
            same = score is other if score is None or other is None else torch.equal(score, other)
            assert same, f"{name}: the criterion gives {score} and, made anew, {other}"
        for constant in (1.0, 0.0):
            plain = copy.deepcopy(net)
            for parameter in plain.parameters():
                nn.init.constant_(parameter, constant)
            trial.scores(plain)
        if equivariant:
            _check_order(trial)
            _check_permutation(trial, scores)


def _parts(criterion: Any) -> list[tuple[str, ...]]:
    """Lists the parts of statistics that a criterion is tried with; none for one that takes no statistics."""
    if not isinstance(criterion, NeedyCriterion):
        return [()]
    assert isinstance(criterion, StatisticalCriterion), f"{type(criterion).__name__}: {LACKS}: {SET_IT}"
    assert not isinstance(criterion.needs, str), f"needs is {criterion.needs!r}, not a list of names"
    found = [tuple(criterion.needs)]
    if isinstance(criterion, DemandingCriterion) and criterion.wishes:
        found.append((*criterion.needs, *criterion.wishes))
    if isinstance(criterion, FrugalCriterion):
        found.append(tuple(criterion.otherwise))
    for part in (part for parts in found for part in parts):
        assert part in PARTS, f"{type(criterion).__name__} needs {part!r}, which is no part of statistics: " + nearest(
            str(part), PARTS
        )
    return found


@attrs.frozen(eq=False)
class _Trial:
    """How a criterion is made and prepared, and the network that it is tried on.

    Attributes:
        make: Makes the criterion.
        prepare: Prepares it; None where nothing is to be done.
        parts: Parts of statistics that it gets.
        net: The network.
        batch: Its input.
        registry: Where rules are found.
    """

    make: Callable[[], Criterion]
    prepare: Prepare | None
    parts: tuple[str, ...]
    net: nn.Module
    batch: torch.Tensor
    registry: Registry | None

    def model(self, net: nn.Module) -> nn.Module:
        """Returns a copy of a network, prepared."""
        model = copy.deepcopy(net)
        if self.prepare is not None:
            with failing("preparing the network", self.prepare):
                self.prepare(model, self.batch)
        return model

    def criterion(self, model: nn.Module) -> Criterion:
        """Makes the criterion, and gives it statistics of a prepared network."""
        criterion = self.make()
        if self.parts and isinstance(criterion, StatisticalCriterion) and criterion.statistics is None:
            sloped = not {GRADIENTS, FISHER, CURVATURES}.isdisjoint(self.parts)
            criterion.statistics = calibrate(
                model,
                _batches(self.batch),
                parts=self.parts,
                loss_fn=_loss if sloped else None,
                registry=self.registry,
            )
        return criterion

    def scores(self, net: nn.Module) -> dict[str, torch.Tensor | None]:
        """Scores every group of a network, and looks at the scores and at the network."""
        model = self.model(net)
        criterion = self.criterion(model)
        graph = Graph.of(model, self.batch, registry=self.registry)
        found = {}
        before = State.of(model)
        for group in graph.get_all_groups():
            found[group.name] = _score(criterion, group, group.name)
        changed = before.changed(model, random=True)
        assert not changed, f"the criterion changes {changed}"
        return found


def _batches(batch: torch.Tensor) -> list[torch.Tensor]:
    """Makes batches of the same shape: the given one, and random ones if its numbers are real."""
    if not batch.is_floating_point():
        return [batch]
    return [batch, *random_batches(batch, BATCHES - 1, seed=0)]


def _loss(outputs: Any, batch: Any) -> torch.Tensor:
    return torch.stack([output.square().mean() for output in tensors_of(outputs)]).sum()


def _score(criterion: Criterion, group: Group, name: str) -> torch.Tensor | None:
    with failing(f"{name}: scoring the group", criterion):
        score: Any = criterion(group)
    if score is None:
        return None
    assert isinstance(score, torch.Tensor), f"{name}: the criterion returns {type(score).__name__}, not a tensor"
    assert score.shape == (group.size(),), f"{name}: {group.size()} units, scores {tuple(score.shape)}"
    assert score.is_floating_point(), f"{name}: scores must be floating-point numbers, not {score.dtype}"
    assert bool(score.isfinite().all()), f"{name}: scores that are not finite: {score}"
    return score


def _check_order(trial: _Trial) -> None:
    """Asks for some units in two orders; a normalised score depends on which units are asked for, not on the order."""
    model = trial.model(trial.net)
    graph = Graph.of(model, trial.batch, registry=trial.registry)
    tried = False
    for whole in graph.get_all_groups():
        root, channels = whole[0]
        if root.pruning_fn is None or not 3 < len(channels) == whole.size():
            continue
        tried = True
        mixed, sorted_ = [channels[3], channels[0], channels[2]], [channels[0], channels[2], channels[3]]
        first, second = (
            _score(trial.criterion(model), graph.group_by(root.layer, root.pruning_fn, units), whole.name)
            for units in (mixed, sorted_)
        )
        assert (first is None) == (second is None), "the criterion scores units in one order, not in another"
        if first is not None and second is not None:
            assert torch.allclose(first, second[[2, 0, 1]]), "the scores don't follow the order of the units asked for"
    assert tried, "no group of more than three units starts at a layer whose type has a pruning function"


def _check_permutation(trial: _Trial, scores: dict[str, torch.Tensor | None]) -> None:
    """Permutes the units of each group in all members: the network computes the same, the scores move along."""
    for group in Graph.of(trial.net, trial.batch, registry=trial.registry).get_all_groups():
        score = scores[group.name]
        if score is None:
            continue
        order = torch.arange(group.size(), device="cpu").roll(2)
        moved = copy.deepcopy(trial.net)
        for view in Graph.of(moved, trial.batch, registry=trial.registry).views(group.name):
            by_unit = torch.stack([view.positions[view.units == unit] for unit in range(group.size())])
            source = torch.arange(view.tensor.shape[view.dim], device="cpu")
            source[by_unit.flatten()] = by_unit[order].flatten()
            view.tensor.data = view.tensor.data.index_select(view.dim, source.to(view.tensor.device))
        found = trial.scores(moved)[group.name]
        assert found is not None, f"{group.name}: no scores once units have changed places"
        assert torch.allclose(found, score[order]), (
            f"{group.name}: units that change places don't take their scores along: {score[order]}, not {found}"
        )


def _check_branches(make: Callable[[], object], prepare: Prepare | None, registry: Registry | None) -> None:
    """Proves what a criterion says about branches, with and without some of them switched off."""
    net, batch = branch_net()
    scores = _branch_scores(make, prepare, net, batch, registry)
    if all(score is None for score in scores.values()):
        raise UnseenError("the criterion scores no branch of the network")
    for name, again in _branch_scores(make, prepare, net, batch, registry).items():
        assert again == scores[name], f"{name}: the criterion gives {scores[name]} and, made anew, {again}"
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    _branch_scores(make, prepare, net, batch, registry)


def _branch_scores(
    make: Callable[[], object], prepare: Prepare | None, net: nn.Module, batch: torch.Tensor, registry: Registry | None
) -> dict[str, float | None]:
    """Scores all branches that can go, and once more without the first one, for a greedy criterion."""
    model, criterion = copy.deepcopy(net), make()
    assert isinstance(criterion, BranchCriterion), f"{criterion!r} has no method branch(group)"
    if prepare is not None:
        prepare(model, batch)
    graph = Graph.of(model, batch, registry=registry)
    names = [branch.name for branch in graph.branches() if branch.removable]
    if not names:
        raise UnseenError("no branch of the network can go")
    before, scorer = State.of(model), BranchScorer(graph, criterion, Batches.of(_batches(batch)))
    scores = scorer.scores(names)
    if scorer.greedy:
        scorer.scores(names[1:], names[:1])
    changed = before.changed(model, random=True)
    assert not changed, f"the criterion changes {changed}"
    return scores
