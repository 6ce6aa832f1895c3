"""The kit on criteria for branches that are wrong: each is found."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit.plugin import BranchGroup, BranchNeed, MeanOverRows
from prunekit.testing import check_criterion
from prunekit_plugins.testing.network import branch_net


def make(branch: Any) -> Any:
    class Own:
        greedy = True

        def __call__(self, group: pk.Group) -> None:
            return None

        def branch(self, group: BranchGroup) -> Any:
            return branch(group)

    return Own


def test_a_right_one_passes() -> None:
    check_criterion(make(lambda group: MeanOverRows(lambda one: one.added.square().sum(1))))
    check_criterion(make(lambda group: len(group.parameters())))


def test_the_network_has_branches_that_go_alone_and_one_that_is_added_twice() -> None:
    net, batch = branch_net()
    found = {branch.name: len(branch.sums) for branch in pk.Graph.of(net.eval(), batch, modes=(False,)).branches()}
    assert found == {"mixers.0": 1, "feeds.0": 1, "mixers.1": 1, "feeds.1": 1, "twice": 2}


COUNT = itertools.count()


class Writes(MeanOverRows):
    def __init__(self, group: BranchGroup) -> None:
        super().__init__(lambda one: one.added.sum(1))
        self.model = group.graph.model

    def add(self, seen: Any) -> None:
        super().add(seen)
        next(iter(self.model.parameters())).requires_grad_(False)


class Sloped:
    needs = BranchNeed.GRADIENTS

    def add(self, seen: Any) -> None:
        assert all(one.gradient is not None for one in seen.sums)

    def score(self) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("branch", "message"),
    [
        (lambda group: None, "scores no branch of the network"),
        (lambda group: float(next(COUNT)), "made anew"),
        (lambda group: MeanOverRows(lambda one: 1 / (one.added.sum(1) * 0 + 1 / 0)), "ZeroDivisionError"),
        (lambda group: MeanOverRows(lambda one: 1 / one.added.norm(dim=1)), "not finite"),
        (lambda group: float(torch.rand(())), "made anew|random numbers"),
        (Writes, "the model|requires_grad"),
        (lambda group: [1.0], "one score per branch"),
        (lambda group: Sloped(), "Derivatives can't be gathered with branches switched off"),
    ],
)
def test_wrong_ones_are_found(branch: Any, message: str) -> None:
    with pytest.raises((AssertionError, pk.PrunekitError), match=message):
        check_criterion(make(branch))
