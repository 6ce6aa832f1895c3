"""Scores against values computed here from named weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.testing import check_criterion
from prunekit_plugins.importance import GroupMagnitudeImportance, MagnitudeImportance, RandomImportance
from prunekit_plugins.layers import (
    prune_batchnorm_out_channels,
    prune_conv_in_channels,
    prune_conv_out_channels,
    prune_linear_in_channels,
    prune_linear_out_channels,
)


def test_scores_are_of_the_weights_as_they_are_now() -> None:
    model = random_weights(Plain())
    group = the_group(model)
    criterion = GroupMagnitudeImportance(normalizer=None)
    before = criterion(group)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    same(criterion(group), 9 * before)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_count_like_linear_ones(kind: Callable[..., nn.Module]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(3, 4, batch_first=True)
            self.out = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.out(self.cell(x)[0])
            return result

    model = random_weights(Recurrent())
    found = GroupMagnitudeImportance(normalizer=None, group_reduction="sum")(
        the_group(model, torch.ones(2, 3, 3, dtype=torch.float64))
    )
    rows = power(model.cell.weight_ih_l0, 2, 0) + power(model.cell.weight_hh_l0, 2, 0)
    expected = rows.view(-1, 4).sum(0) + power(model.cell.weight_hh_l0, 2, 1) + power(model.out.weight, 2, 1)
    same(found, expected)


def random_weights(model: nn.Module) -> nn.Module:
    """Gives every parameter random double values, so that no two units are alike."""
    model.double()
    for seed, parameter in enumerate(model.parameters()):
        parameter.data = torch.randn(
            parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
    return model


class Plain(nn.Module):
    """``conv 3 -> 10``, batch norm, ``conv 10 -> 6``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 10, 3)
        self.norm = nn.BatchNorm2d(10)
        self.last = nn.Conv2d(10, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.norm(self.first(x)).relu())
        return result


PICTURE = torch.ones(2, 3, 7, 7, dtype=torch.float64)


def graph_of(model: nn.Module, inputs: Any = PICTURE) -> pk.DependencyGraph:
    return pk.DependencyGraph().build_dependency(model, inputs)


def the_group(model: nn.Module, inputs: Any = PICTURE, size: int | None = None, kind: str = "") -> pk.Group:
    """Finds the one group of a model (with this many units, of this kind)."""
    found = [
        group
        for group in graph_of(model, inputs).get_all_groups()
        if (size is None or group.size() == size) and kind in group.name
    ]
    assert len(found) == 1, [f"{group.name}: {group.size()}" for group in found]
    return found[0]


def power(weight: torch.Tensor, p: float, dim: int) -> torch.Tensor:
    """Sum of ``|w|^p`` over everything but one dim, element by element."""
    rows = weight.detach().transpose(0, dim).reshape(weight.shape[dim], -1).tolist()
    return torch.tensor([math.fsum(abs(value) ** p for value in row) for row in rows], dtype=torch.float64)


def plain_members(model: nn.Module, p: float = 2) -> list[torch.Tensor]:
    assert isinstance(model, Plain)
    return [power(model.first.weight, p, 0), power(model.norm.weight, p, 0), power(model.last.weight, p, 1)]


def same(found: torch.Tensor | None, expected: torch.Tensor) -> None:
    assert found is not None
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12), f"{found} is not {expected}"


raw: dict[str, Any] = {"normalizer": None}

REDUCTIONS: dict[str | None, Callable[[list[torch.Tensor]], torch.Tensor]] = {
    "mean": lambda members: (members[0] + members[1] + members[2]) / 3,
    "sum": lambda members: members[0] + members[1] + members[2],
    "max": lambda members: torch.maximum(torch.maximum(members[0], members[1]), members[2]),
    "prod": lambda members: members[0] * members[1] * members[2],
    "first": lambda members: members[0],
    "gate": lambda members: members[2],
    None: torch.stack,
}


@pytest.mark.parametrize("p", [1, 2, 3, 1.5])
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_reductions(reduction: str | None, p: float) -> None:
    model = random_weights(Plain())
    score = GroupMagnitudeImportance(p=p, group_reduction=reduction, **raw)(the_group(model))
    same(score, REDUCTIONS[reduction](plain_members(model, p)))


def by_lamp(scores: torch.Tensor) -> torch.Tensor:
    values = scores.tolist()
    return torch.tensor([s / math.fsum(t for t in values if t >= s) for s in values], dtype=torch.float64)


def by_gauss(scores: torch.Tensor) -> torch.Tensor:
    values = scores.tolist()
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return torch.tensor([(v - mean) / (deviation + 1e-8) for v in values], dtype=torch.float64)


def by_range(scores: torch.Tensor) -> torch.Tensor:
    low, high = min(scores.tolist()), max(scores.tolist())
    return torch.tensor([(v - low) / (high - low + 1e-8) for v in scores.tolist()], dtype=torch.float64)


NORMALIZERS: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda scores: scores,
    "mean": lambda scores: scores * len(scores) / math.fsum(scores.tolist()),
    "sum": lambda scores: scores / math.fsum(scores.tolist()),
    "max": lambda scores: scores / max(scores.tolist()),
    "standarization": by_range,
    "standardization": by_range,
    "gaussian": by_gauss,
    "sentinel_0.5": lambda scores: scores / (sorted(scores.tolist())[5] + 1e-8),
    "sentinel_0": lambda scores: scores / (min(scores.tolist()) + 1e-8),
    "sentinel_0.25": lambda scores: scores / (sorted(scores.tolist())[2] + 1e-8),
    "sentinel_1": lambda scores: scores / (max(scores.tolist()) + 1e-8),
    "lamp": by_lamp,
}


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_normalizers(normalizer: str | None, reduction: str) -> None:
    model = random_weights(Plain())
    score = GroupMagnitudeImportance(group_reduction=reduction, normalizer=normalizer)(the_group(model))
    same(score, NORMALIZERS[normalizer](REDUCTIONS[reduction](plain_members(model))))


def test_normalizer_that_is_a_function() -> None:
    model = random_weights(Plain())
    score = GroupMagnitudeImportance(normalizer=lambda scores: scores.sqrt() + 1)(the_group(model))
    same(score, REDUCTIONS["mean"](plain_members(model)).sqrt() + 1)


def test_defaults() -> None:
    model = random_weights(Plain())
    same(GroupMagnitudeImportance()(the_group(model)), NORMALIZERS["mean"](REDUCTIONS["mean"](plain_members(model))))
    assert MagnitudeImportance is GroupMagnitudeImportance


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", [n for n in NORMALIZERS if n is not None])
@pytest.mark.parametrize("reduction", [r for r in REDUCTIONS if r is not None])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_scores_stay_numbers(normalizer: str, reduction: str, value: float) -> None:
    model = random_weights(Plain())
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    score = GroupMagnitudeImportance(group_reduction=reduction, normalizer=normalizer)(the_group(model))
    assert score is not None
    assert bool(score.isfinite().all())
    if normalizer != "lamp":
        assert torch.equal(score, score[:1].expand(10))


@pytest.mark.parametrize("normalizer", [n for n in NORMALIZERS if n is not None])
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_one_unit_stays_a_number(normalizer: str, value: float) -> None:
    model = random_weights(Plain())
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    group = graph_of(model).get_pruning_group(model.get_submodule("first"), prune_conv_out_channels, [4])
    score = GroupMagnitudeImportance(normalizer=normalizer)(group)
    assert score is not None
    assert score.shape == (1,)
    assert bool(score.isfinite().all())


def test_lamp_of_equal_scores_follows_their_order() -> None:
    model = random_weights(Plain())
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    score = GroupMagnitudeImportance(normalizer="lamp")(the_group(model))
    same(score, torch.tensor([1 / (10 - rank) for rank in range(10)], dtype=torch.float64))


@pytest.mark.parametrize("chosen", [[2, 6, 9], [9, 2, 6], [6], [0, 1, 2, 3, 4, 5, 6, 7, 8]], ids=str)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_some_units_in_the_order_asked_for(chosen: list[int], as_tensor: bool) -> None:
    model = random_weights(Plain())
    members = plain_members(model)
    asked = torch.tensor(chosen) if as_tensor else chosen
    for layer, function in (
        ("first", prune_conv_out_channels),
        ("norm", prune_batchnorm_out_channels),
        ("last", prune_conv_in_channels),
    ):
        group = graph_of(model).get_pruning_group(model.get_submodule(layer), function, asked)
        expected = REDUCTIONS["mean"](members)[chosen]
        same(GroupMagnitudeImportance(**raw)(group), expected)
        same(GroupMagnitudeImportance()(group), NORMALIZERS["mean"](expected))
        same(GroupMagnitudeImportance(group_reduction=None)(group), torch.stack(members)[:, chosen])


@pytest.mark.parametrize("p", [1, 2, 3])
def test_biases_are_members(p: float) -> None:
    model = random_weights(Plain())
    assert isinstance(model, Plain)
    assert model.first.bias is not None
    biases = [power(model.first.bias, p, 0), power(model.norm.bias, p, 0)]
    members = [*plain_members(model, p), *biases]
    group = the_group(model)
    same(GroupMagnitudeImportance(p=p, bias=True, **raw)(group), torch.stack(members).sum(0) / 5)
    same(GroupMagnitudeImportance(p=p, bias=True, group_reduction="sum", **raw)(group), torch.stack(members).sum(0))
    same(GroupMagnitudeImportance(p=p, bias=True, group_reduction="prod", **raw)(group), torch.stack(members).prod(0))
    same(GroupMagnitudeImportance(p=p, bias=True, group_reduction="first", **raw)(group), members[0])


@pytest.mark.parametrize(
    ("types", "places"),
    [
        ([nn.Conv2d], [0, 2]),
        ([nn.BatchNorm2d], [1]),
        ([nn.modules.batchnorm._BatchNorm], [1]),
        ([nn.modules.conv._ConvNd, nn.Linear], [0, 2]),
        ([nn.Conv2d, nn.BatchNorm2d], [0, 1, 2]),
    ],
)
def test_target_types(types: list[type[nn.Module]], places: list[int]) -> None:
    model = random_weights(Plain())
    members = plain_members(model)
    score = GroupMagnitudeImportance(target_types=types, **raw)(the_group(model))
    same(score, torch.stack([members[place] for place in places]).mean(0))


@pytest.mark.parametrize("types", [[nn.Linear], [], [nn.GroupNorm]])
@pytest.mark.parametrize("bias", [False, True])
def test_no_member_counts(types: list[type[nn.Module]], bias: bool) -> None:
    assert GroupMagnitudeImportance(target_types=types, bias=bias)(the_group(random_weights(Plain()))) is None


class Grouped(nn.Module):
    """``conv 3 -> 8``, a grouped ``conv 8 -> 6`` in 2 groups, ``conv 6 -> 5``."""

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.first = nn.Conv2d(3, 8, 1)
        self.middle = kind(8, 6, 3, groups=2)
        self.last = nn.Conv2d(6, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.middle(self.first(x)))
        return result


@pytest.mark.parametrize("p", [1, 2])
def test_grouped_convolution(p: float) -> None:
    model = random_weights(Grouped())
    assert isinstance(model, Grouped)
    criterion = GroupMagnitudeImportance(p=p, **raw)
    first, rows = power(model.first.weight, p, 0), power(model.middle.weight, p, 0)
    columns, last = power(model.middle.weight, p, 1), power(model.last.weight, p, 1)
    # a position inside the groups of the input is one unit in both groups
    same(criterion(the_group(model, size=4)), (first[:4] + first[4:] + columns) / 2)
    same(criterion(the_group(model, size=3)), (rows[:3] + rows[3:] + last[:3] + last[3:]) / 2)
    # whole groups: the middle layer holds each group's rows
    whole = [torch.stack([m.chunk(2)[g].sum() for g in range(2)]) for m in (first, rows, last)]
    same(criterion(the_group(model, kind="conv_groups")), torch.stack(whole).sum(0) / 3)


@pytest.mark.parametrize("p", [1, 2])
def test_grouped_transposed_convolution(p: float) -> None:
    model = random_weights(Grouped(transposed=True))
    assert isinstance(model, Grouped)
    criterion = GroupMagnitudeImportance(p=p, **raw)
    first, rows = power(model.first.weight, p, 0), power(model.middle.weight, p, 0)
    columns, last = power(model.middle.weight, p, 1), power(model.last.weight, p, 1)
    same(criterion(the_group(model, size=4)), (first[:4] + first[4:] + rows[:4] + rows[4:]) / 2)
    same(criterion(the_group(model, size=3)), (columns + last[:3] + last[3:]) / 2)


class Chain(nn.Module):
    """Layers one after another."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x)
        return result


def weight(model: nn.Module, place: int) -> torch.Tensor:
    found = model.get_submodule(f"layers.{place}").weight
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("p", [1, 2, 3])
def test_depthwise_convolution(p: float) -> None:
    model = random_weights(Chain(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1)))
    members = [power(weight(model, 0), p, 0), power(weight(model, 1), p, 0), power(weight(model, 2), p, 1)]
    same(GroupMagnitudeImportance(p=p, **raw)(the_group(model)), torch.stack(members).mean(0))


@pytest.mark.parametrize("p", [1, 2, 3])
def test_transposed_convolution(p: float) -> None:
    model = random_weights(Chain(nn.ConvTranspose2d(3, 6, 3), nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 4, 3)))
    members = [power(weight(model, 0), p, 1), power(weight(model, 1), p, 0), power(weight(model, 2), p, 0)]
    same(GroupMagnitudeImportance(p=p, **raw)(the_group(model)), torch.stack(members).mean(0))
    same(GroupMagnitudeImportance(p=p, group_reduction="first", **raw)(the_group(model)), members[0])


@pytest.mark.parametrize("p", [1, 2])
def test_flatten_before_linear(p: float) -> None:
    model = random_weights(Chain(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 7 * 7, 4)))
    columns = power(weight(model, 2), p, 1).reshape(5, 49).sum(1)
    same(GroupMagnitudeImportance(p=p, **raw)(the_group(model)), (power(weight(model, 0), p, 0) + columns) / 2)


@pytest.mark.parametrize("p", [1, 2])
def test_layer_norm(p: float) -> None:
    model = random_weights(Chain(nn.Linear(3, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 4)))
    inputs = torch.ones(2, 3, dtype=torch.float64)
    members = [power(weight(model, 0), p, 0), power(weight(model, 1), p, 0), power(weight(model, 3), p, 1)]
    same(GroupMagnitudeImportance(p=p, **raw)(the_group(model, inputs)), torch.stack(members).mean(0))
    only_linear = GroupMagnitudeImportance(p=p, target_types=[nn.Linear], **raw)(the_group(model, inputs))
    same(only_linear, (members[0] + members[2]) / 2)


def test_norms_without_weights_are_skipped() -> None:
    model = random_weights(Chain(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, affine=False), nn.Conv2d(6, 4, 1)))
    members = [power(weight(model, 0), 2, 0), power(weight(model, 2), 2, 1)]
    same(GroupMagnitudeImportance(**raw)(the_group(model)), torch.stack(members).mean(0))


@pytest.mark.parametrize(
    ("make", "counted"),
    [
        (lambda: nn.GroupNorm(1, 6), nn.GroupNorm),
        (lambda: nn.InstanceNorm2d(6, affine=True), nn.InstanceNorm2d),
        (lambda: nn.PReLU(6), nn.PReLU),
    ],
)
def test_other_layers_count_when_named(make: Callable[[], nn.Module], counted: type[nn.Module]) -> None:
    model = random_weights(Chain(nn.Conv2d(3, 6, 1), make(), nn.Conv2d(6, 4, 1)))
    members = [power(weight(model, 0), 2, 0), power(weight(model, 1), 2, 0), power(weight(model, 2), 2, 1)]
    same(GroupMagnitudeImportance(**raw)(the_group(model)), (members[0] + members[2]) / 2)
    named = GroupMagnitudeImportance(target_types=[nn.Conv2d, counted], **raw)(the_group(model))
    same(named, torch.stack(members).mean(0))


class Joined(nn.Module):
    """Two branches of 4 channels, joined; one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(12, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.left(x), self.right(x)
        result: torch.Tensor = self.last(torch.cat([left, right, left], 1))
        return result


@pytest.mark.parametrize("p", [1, 2])
def test_occurrences_in_a_concat_add_up(p: float) -> None:
    model = random_weights(Joined())
    assert isinstance(model, Joined)
    columns = power(model.last.weight, p, 1)
    criterion = GroupMagnitudeImportance(p=p, **raw)
    left, right = power(model.left.weight, p, 0), power(model.right.weight, p, 0)
    same(criterion(the_group(model, kind="left")), (left + columns[:4] + columns[8:]) / 2)
    same(criterion(the_group(model, kind="right")), (right + columns[4:8]) / 2)


@pytest.mark.parametrize("reduction", [r for r in REDUCTIONS if r not in ("first", "gate")], ids=str)
def test_members_that_hold_some_of_the_units(reduction: str | None) -> None:
    model = random_weights(Joined())
    assert isinstance(model, Joined)
    columns = power(model.last.weight, 2, 1)
    left, right = power(model.left.weight, 2, 0), power(model.right.weight, 2, 0)
    group = graph_of(model).get_pruning_group(model.last, prune_conv_in_channels, [1, 9, 4, 7])
    score = GroupMagnitudeImportance(group_reduction=reduction, **raw)(group)
    producer = torch.stack([left[1], right[0], right[3]])
    consumer = torch.stack([columns[1] + columns[9], columns[4], columns[7]])
    if reduction is None:
        assert score is not None
        assert score.shape[1] == 3
        same(score.sum(0), producer + consumer)
        return
    expected = {
        "mean": (producer + consumer) / 2,
        "sum": producer + consumer,
        "max": torch.maximum(producer, consumer),
        "prod": producer * consumer,
    }
    same(score, expected[reduction])


class Residual(nn.Module):
    """A stream that two layers write to and one reads; the second is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.inner(x).relu()
        x = x + self.inner(x).relu()
        result: torch.Tensor = self.head(x)
        return result


def test_a_layer_that_reads_and_writes_is_two_members() -> None:
    model = random_weights(Residual())
    assert isinstance(model, Residual)
    members = [
        power(model.stem.weight, 2, 0),
        power(model.inner.weight, 2, 0),
        power(model.inner.weight, 2, 1),
        power(model.head.weight, 2, 1),
    ]
    group = the_group(model, torch.ones(2, 3, dtype=torch.float64))
    same(GroupMagnitudeImportance(**raw)(group), torch.stack(members).mean(0))
    same(GroupMagnitudeImportance(group_reduction="prod", **raw)(group), torch.stack(members).prod(0))
    same(GroupMagnitudeImportance(group_reduction="first", **raw)(group), members[0])
    same(GroupMagnitudeImportance(group_reduction="gate", **raw)(group), members[3])


def test_first_is_the_layer_that_the_group_starts_at() -> None:
    model = random_weights(Residual())
    assert isinstance(model, Residual)
    graph = graph_of(model, torch.ones(2, 3, dtype=torch.float64))
    first = GroupMagnitudeImportance(group_reduction="first", **raw)
    group = graph.get_pruning_group(model.inner, prune_linear_out_channels, [5, 1])
    same(first(group), power(model.inner.weight, 2, 0)[[5, 1]])
    group = graph.get_pruning_group(model.stem, prune_linear_out_channels, [5, 1])
    same(first(group), power(model.stem.weight, 2, 0)[[5, 1]])
    group = graph.get_pruning_group(model.head, prune_linear_in_channels, [5, 1])
    same(
        GroupMagnitudeImportance(**raw)(group),
        GroupMagnitudeImportance(**raw)(graph.whole_group(next(iter(group.units))))[[5, 1]],
    )


@pytest.mark.parametrize("shared", [False, True])
def test_scores_after_pruning(shared: bool) -> None:
    """Scores follow the weights that are there now, also within one round over all groups."""
    model = random_weights(Chain(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 4, 1)))
    graph = graph_of(model)
    criterion = GroupMagnitudeImportance(**raw)
    sizes = [6, 8]
    rounds = graph.get_all_groups() if shared else (graph.whole_group(group.name) for group in graph.groups())
    for place, group in enumerate(rounds):
        assert group.size() == sizes[place]
        members = [power(weight(model, place), 2, 0), power(weight(model, place + 1), 2, 1)]
        same(criterion(group), torch.stack(members).mean(0))
        group.prune([0, 3])
    assert weight(model, 1).shape[:2] == (6, 4)
    last = graph.whole_group(graph.groups()[1].name)
    same(criterion(last), (power(weight(model, 1), 2, 0) + power(weight(model, 2), 2, 1)) / 2)


def test_scoring_changes_nothing() -> None:
    model = random_weights(Plain())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    GroupMagnitudeImportance()(the_group(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_precision(dtype: torch.dtype) -> None:
    model = random_weights(Plain()).to(dtype)
    score = GroupMagnitudeImportance(**raw)(the_group(model, PICTURE.to(dtype)))
    assert score is not None
    assert score.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    expected = REDUCTIONS["mean"](plain_members(model.double()))
    assert torch.allclose(score.double(), expected, rtol=1e-5)


def test_frozen_weights_count() -> None:
    model = random_weights(Plain()).requires_grad_(False)
    same(GroupMagnitudeImportance(**raw)(the_group(model)), REDUCTIONS["mean"](plain_members(model)))


def test_attention_counts_as_linear() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(3, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            result: torch.Tensor = self.head(self.attention(x, x, x)[0])
            return result

    model = random_weights(Attention())
    assert isinstance(model, Attention)
    group = graph_of(model, torch.ones(2, 5, 3, dtype=torch.float64)).whole_group("stem")
    columns = power(model.attention.in_proj_weight, 2, 1)
    same(GroupMagnitudeImportance(**raw)(group), (power(model.stem.weight, 2, 0) + columns) / 2)
    only_norms = GroupMagnitudeImportance(target_types=[nn.LayerNorm])
    assert only_norms(group) is None


@pytest.mark.parametrize(
    ("name", "hint"), [("maen", "did you mean 'mean'"), ("", "known: "), ("lamp", "known: ")], ids=str
)
def test_unknown_reduction(name: str, hint: str) -> None:
    with pytest.raises(pk.ArgumentError, match="Unknown group reduction") as caught:
        GroupMagnitudeImportance(group_reduction=name)
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", ["maen", "sentinel", "sentinel_2", "sentinel_-1", "sentinel_x", ""])
def test_unknown_normalizer(name: str) -> None:
    with pytest.raises(pk.ArgumentError, match="Unknown normalizer") as caught:
        GroupMagnitudeImportance(normalizer=name)
    assert "lamp" in str(caught.value)


@pytest.mark.parametrize("p", [0, -1, math.nan, math.inf])
def test_wrong_degree(p: float) -> None:
    with pytest.raises(pk.ArgumentError):
        GroupMagnitudeImportance(p=p)


# -- through the kit, and by chance


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=str)
def test_kit(normalizer: str | None) -> None:
    check_criterion(lambda: GroupMagnitudeImportance(normalizer=normalizer))


@pytest.mark.parametrize("reduction", [r for r in REDUCTIONS if r is not None])
def test_kit_reductions(reduction: str) -> None:
    check_criterion(lambda: GroupMagnitudeImportance(group_reduction=reduction, bias=True))


def test_random_scores() -> None:
    group = the_group(random_weights(Plain()))
    first = RandomImportance(seed=3)
    scores = [first(group), first(group)]
    again = RandomImportance(seed=3)
    assert torch.equal(scores[0], again(group))
    assert torch.equal(scores[1], again(group))
    assert not torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], RandomImportance(seed=4)(group))
    assert torch.equal(RandomImportance()(group), RandomImportance(seed=0)(group))
    assert scores[0].shape == (10,)
    assert bool(((scores[0] >= 0) & (scores[0] < 1)).all())


def test_random_scores_from_a_generator() -> None:
    group = the_group(random_weights(Plain()))
    expected = torch.rand(10, generator=torch.Generator().manual_seed(7))
    assert torch.equal(RandomImportance(generator=torch.Generator().manual_seed(7))(group), expected)
    state = torch.get_rng_state()
    RandomImportance()(group)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_scores_of_some_units() -> None:
    model = random_weights(Plain())
    group = graph_of(model).get_pruning_group(model.get_submodule("first"), prune_conv_out_channels, [2, 6, 9])
    assert RandomImportance()(group).shape == (3,)
    check_criterion(RandomImportance, equivariant=False)
