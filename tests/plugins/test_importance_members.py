"""What criteria share: joining members, adding up positions, choosing members."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunekit import Group, Role
from prunekit.plugin import MemberView
from prunekit.testing import check_criterion
from prunekit_plugins.importance import Members
from prunekit_plugins.importance.members import unit_sums
from prunekit_plugins.importance.reductions import reduce_members
from prunekit_plugins.layers import prune_conv_in_channels
from tests.plugins.test_importance import Joined, Plain, graph_of, random_weights, same, the_group

SCORES = [torch.tensor([-3.0, 2.0, 0.0, 0.0]), torch.tensor([5.0, 0.0, -4.0, 0.0])]
COVERED = [torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])]


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("mean", [1.0, 2.0, -4.0, 0.0]),
        ("sum", [2.0, 2.0, -4.0, 0.0]),
        ("max", [5.0, 2.0, -4.0, 0.0]),
        ("prod", [-15.0, 2.0, -4.0, 1.0]),
        ("first", [-3.0, 2.0, 0.0, 0.0]),
        ("gate", [5.0, 0.0, -4.0, 0.0]),
    ],
)
def test_members_that_dont_hold_a_unit_have_no_say(reduction: str, expected: list[float]) -> None:
    """Also with negative scores, and for a unit that no member holds."""
    assert torch.equal(reduce_members(SCORES, COVERED, reduction), torch.tensor(expected))
    everywhere = [torch.ones(4, dtype=torch.bool)] * 2
    assert torch.equal(reduce_members(SCORES, None, reduction), reduce_members(SCORES, everywhere, reduction))


def view_of(units: list[int], positions: list[int]) -> MemberView:
    layer = nn.Linear(2, 4)
    at = (torch.tensor(positions), torch.tensor(units))
    return MemberView("layer", layer, "weight", layer.weight, 0, Role.OUT, *at)


@pytest.mark.parametrize(
    ("units", "positions", "count", "expected"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], 4, [1.0, 2.0, 4.0, 8.0]),
        ([3, 1, 2, 0], [0, 1, 2, 3], 4, [8.0, 2.0, 4.0, 1.0]),
        ([0, 1, 0, 1], [0, 1, 2, 3], 2, [5.0, 10.0]),
        ([1, 0], [1, 3], 2, [8.0, 2.0]),
        ([2, 0], [0, 2], 4, [4.0, 0.0, 1.0, 0.0]),
    ],
)
def test_positions_add_up_by_unit(units: list[int], positions: list[int], count: int, expected: list[float]) -> None:
    found = unit_sums(view_of(units, positions), torch.tensor([1.0, 2.0, 4.0, 8.0]), count)
    assert torch.equal(found, torch.tensor(expected))


class Largest:
    """Scores a unit by the largest number of its slice, with the shared rules."""

    def __init__(self, **options: Any) -> None:
        self.members = Members(**{"group_reduction": "mean", "normalizer": "mean", **options})
        self.seen: list[str] = []

    def __call__(self, group: Group) -> torch.Tensor | None:
        return self.members.score(group, self.local, "largest")

    def local(self, view: MemberView) -> torch.Tensor | None:
        self.seen.append(f"{view.path}.{view.name}")
        return view.slices(view.tensor.detach()).abs().amax(1)


def test_a_criterion_of_ones_own() -> None:
    check_criterion(Largest)
    model = random_weights(Plain())
    assert isinstance(model, Plain)
    members = [model.first.weight.flatten(1), model.norm.weight[:, None], model.last.weight[:, :, 0, 0].T]
    expected = [torch.tensor([max(map(abs, row)) for row in m.tolist()], dtype=torch.float64) for m in members]
    same(Largest(group_reduction=None)(the_group(model)), torch.stack(expected))
    same(Largest(group_reduction="sum", normalizer=None)(the_group(model)), torch.stack(expected).sum(0))


def test_members_without_a_score_dont_count() -> None:
    class OnlyNorm(Largest):
        def local(self, view: MemberView) -> torch.Tensor | None:
            return super().local(view) if isinstance(view.module, nn.BatchNorm2d) else None

    model = random_weights(Plain())
    gamma = model.get_parameter("norm.weight").detach().abs()
    same(OnlyNorm(normalizer=None)(the_group(model)), gamma)
    same(OnlyNorm(group_reduction=None)(the_group(model)), gamma[None])
    assert OnlyNorm(target_types=[nn.Conv2d])(the_group(model)) is None


def test_which_members_count_and_in_which_order() -> None:
    model = random_weights(Plain())
    for options, names in (
        ({"group_reduction": None}, ["first.weight", "norm.weight", "last.weight"]),
        ({"group_reduction": "gate", "target_types": [nn.BatchNorm2d]}, ["norm.weight"]),
        (
            {"group_reduction": None, "bias": True},
            ["first.weight", "first.bias", "norm.weight", "norm.bias", "last.weight"],
        ),
    ):
        criterion = Largest(**options)
        criterion(the_group(model))
        assert criterion.seen == names


def test_a_parameter_dim_is_scored_once_in_a_pass() -> None:
    """The consumer of two groups is looked at once when both are scored in one pass."""
    model = random_weights(Joined())
    graph = graph_of(model)
    criterion, shared = Largest(), {}
    for group in graph.groups():
        criterion(graph.whole_group(group.name, shared))
    assert sorted(criterion.seen) == ["last.weight", "left.weight", "right.weight"]


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "prod", None])
def test_scores_of_several_dtypes_are_joined_in_that_of_the_first(reduction: str | None) -> None:
    class Mixed(Largest):
        def local(self, view: MemberView) -> torch.Tensor | None:
            found = super().local(view)
            return found if found is None or view.role is Role.OUT else found.half()

    model = random_weights(Plain())
    mixed, plain = (kind(group_reduction=reduction, normalizer=None)(the_group(model)) for kind in (Mixed, Largest))
    assert mixed is not None
    assert plain is not None
    assert mixed.dtype is torch.float64
    assert torch.allclose(mixed, plain, rtol=2e-3)
    assert not torch.equal(mixed, plain)


def test_selections_from_several_groups() -> None:
    model = random_weights(Joined())
    assert isinstance(model, Joined)
    graph = graph_of(model)
    group = graph.get_pruning_group(model.last, prune_conv_in_channels, [1, 9, 4])
    expected = torch.stack([model.left.weight[1].abs().max(), model.right.weight[0].abs().max()]).detach()
    columns = model.last.weight.detach().abs().amax((0, 2, 3))
    readers = torch.stack([columns[1] + columns[9], columns[4]])
    same(Largest(group_reduction="max", normalizer=None)(group), torch.maximum(expected, readers))
    same(Largest(group_reduction="mean", normalizer=None)(group), (expected + readers) / 2)
