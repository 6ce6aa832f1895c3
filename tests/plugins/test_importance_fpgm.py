"""FPGM scores against distances between named weights, pair by pair."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.testing import check_criterion
from prunekit_plugins.importance import FPGMImportance
from prunekit_plugins.layers import prune_conv_in_channels, prune_conv_out_channels
from tests.plugins.test_importance import (
    NORMALIZERS,
    Chain,
    Grouped,
    Joined,
    Plain,
    graph_of,
    random_weights,
    same,
    the_group,
    weight,
)

raw: dict[str, Any] = {"normalizer": None}


def distances(slices: list[torch.Tensor], p: float = 2) -> torch.Tensor:
    """Adds up, for each slice, the distances to all slices, element by element."""
    rows = [s.detach().flatten().tolist() for s in slices]
    sums = [
        math.fsum(math.fsum(abs(a - b) ** p for a, b in zip(x, y, strict=True)) ** (1 / p) for y in rows) for x in rows
    ]
    return torch.tensor(sums, dtype=torch.float64)


def plain_members(model: nn.Module, p: float = 2) -> list[torch.Tensor]:
    assert isinstance(model, Plain)
    return [distances(list(model.first.weight), p), distances(list(model.last.weight.unbind(1)), p)]


@pytest.mark.parametrize("p", [1, 2, 3])
def test_distances(p: float) -> None:
    model = random_weights(Plain())
    score = FPGMImportance(p=p, group_reduction=None)(the_group(model))
    same(score, torch.stack(plain_members(model, p)))


def test_signs_count() -> None:
    """Filters ``v, v, -v``: the two alike are near each other. On ``|w|^p`` all three would be the same filter."""
    model = random_weights(Chain(nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 4, 1)))
    filters = weight(model, 0)
    filters.data[1] = filters.data[0]
    filters.data[2] = -filters.data[0]
    length = filters.detach()[0].norm()
    score = FPGMImportance(group_reduction="first", **raw)(the_group(model))
    same(score, torch.stack([2 * length, 2 * length, 4 * length]))


def test_the_middle_goes_first_not_the_smallest() -> None:
    model = random_weights(Chain(nn.Linear(1, 5, bias=False), nn.Linear(5, 2)))
    inputs = torch.ones(1, 1, dtype=torch.float64)
    weight(model, 0).data = torch.tensor([[0.0], [9.0], [10.0], [11.0], [20.0]], dtype=torch.float64)
    score = FPGMImportance(group_reduction="first", **raw)(the_group(model, inputs))
    same(score, torch.tensor([50.0, 23.0, 22.0, 23.0, 50.0], dtype=torch.float64))


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "prod", "first", "gate"])
def test_reductions(reduction: str) -> None:
    model = random_weights(Plain())
    first, last = plain_members(model)
    expected = {
        "mean": (first + last) / 2,
        "sum": first + last,
        "max": torch.maximum(first, last),
        "prod": first * last,
        "first": first,
        "gate": last,
    }
    same(FPGMImportance(group_reduction=reduction, **raw)(the_group(model)), expected[reduction])


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=str)
def test_normalizers(normalizer: str | None) -> None:
    model = random_weights(Plain())
    expected = NORMALIZERS[normalizer](torch.stack(plain_members(model)).mean(0))
    same(FPGMImportance(normalizer=normalizer)(the_group(model)), expected)


def test_biases_and_norms_count_when_asked_for() -> None:
    model = random_weights(Plain())
    assert isinstance(model, Plain)
    assert model.first.bias is not None
    members = plain_members(model)
    named = FPGMImportance(target_types=[nn.Conv2d, nn.BatchNorm2d], **raw)
    norm = distances(list(model.norm.weight))
    same(named(the_group(model)), torch.stack([*members, norm]).mean(0))
    same(
        FPGMImportance(bias=True, **raw)(the_group(model)),
        torch.stack([*members, distances(list(model.first.bias))]).mean(0),
    )
    assert FPGMImportance(target_types=[nn.Linear])(the_group(model)) is None


@pytest.mark.parametrize("chosen", [[2, 6, 9], [9, 2, 6], [6]], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "first"])
def test_some_units_are_compared_with_all(chosen: list[int], reduction: str) -> None:
    model = random_weights(Plain())
    first, last = plain_members(model)
    for layer, function in (("first", prune_conv_out_channels), ("last", prune_conv_in_channels)):
        group = graph_of(model).get_pruning_group(model.get_submodule(layer), function, chosen)
        expected = first if reduction == "first" else (first + last) / 2
        same(FPGMImportance(group_reduction=reduction, **raw)(group), expected[chosen])
        same(FPGMImportance(group_reduction=reduction)(group), NORMALIZERS["mean"](expected[chosen]))


def test_after_pruning_units_are_compared_with_those_that_are_left() -> None:
    model = random_weights(Plain())
    graph = graph_of(model)
    graph.get_pruning_group(model.get_submodule("first"), prune_conv_out_channels, [0, 4, 7]).prune()
    first, last = plain_members(model)
    assert first.shape == (7,)
    group = graph.get_pruning_group(model.get_submodule("first"), prune_conv_out_channels, [5, 1])
    same(FPGMImportance(**raw)(group), ((first + last) / 2)[[5, 1]])


def test_occurrences_are_one_slice() -> None:
    model = random_weights(Chain(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(245, 4)))
    columns = distances(list(weight(model, 2).reshape(4, 5, 49).unbind(1)))
    same(FPGMImportance(group_reduction="gate", **raw)(the_group(model)), columns)

    joined = random_weights(Joined())
    assert isinstance(joined, Joined)
    pieces = [torch.stack([joined.last.weight[:, c], joined.last.weight[:, c + 8]]) for c in range(4)]
    expected = (distances(list(joined.left.weight)) + distances(pieces)) / 2
    same(FPGMImportance(**raw)(the_group(joined, kind="left")), expected)
    # units of two groups, chosen by a layer that reads both
    group = graph_of(joined).get_pruning_group(joined.last, prune_conv_in_channels, [1, 9, 4, 7])
    right = distances(list(joined.right.weight)) + distances(list(joined.last.weight[:, 4:8].unbind(1)))
    found = FPGMImportance(group_reduction="sum", **raw)(group)
    same(found, torch.stack([2 * expected[1], right[0], right[3]]))


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolution(transposed: bool) -> None:
    model = random_weights(Grouped(transposed))
    assert isinstance(model, Grouped)
    middle, last = model.middle.weight, model.last.weight
    rows = list(middle.reshape(2, -1, *middle.shape[1:]).unbind(1))
    columns = list(middle.unbind(1))
    firsts = list(model.first.weight.reshape(2, 4, 3).unbind(1))
    lasts = list(last.reshape(5, 2, 3).unbind(2))
    inner, outer = (rows, columns) if transposed else (columns, rows)
    same(FPGMImportance(**raw)(the_group(model, size=4)), (distances(firsts) + distances(inner)) / 2)
    same(FPGMImportance(**raw)(the_group(model, size=3)), (distances(outer) + distances(lasts)) / 2)


def test_depthwise_and_transposed_convolution() -> None:
    model = random_weights(Chain(nn.ConvTranspose2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1)))
    members = [list(weight(model, 0).unbind(1)), list(weight(model, 1)), list(weight(model, 2).unbind(1))]
    same(FPGMImportance(**raw)(the_group(model)), torch.stack([distances(m) for m in members]).mean(0))


@pytest.mark.parametrize("normalizer", [n for n in NORMALIZERS if n is not None])
def test_equal_filters_stay_numbers(normalizer: str) -> None:
    model = random_weights(Plain())
    for parameter in model.parameters():
        nn.init.constant_(parameter, 2)
    score = FPGMImportance(normalizer=normalizer)(the_group(model))
    assert score is not None
    assert torch.equal(score, torch.zeros(10, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_precision_with_many_close_filters(dtype: torch.dtype) -> None:
    """Forty filters far from 0 and close to each other, where a matrix product in float32 would have no digit left."""
    model = random_weights(Chain(nn.Conv2d(3, 40, 3), nn.Conv2d(40, 2, 1)))
    filters = 8 + weight(model, 0).detach() / 16
    weight(model, 0).data = filters
    model.to(dtype)
    score = FPGMImportance(group_reduction="first", **raw)(the_group(model, torch.ones(1, 3, 4, 4, dtype=dtype)))
    assert score is not None
    assert score.dtype is torch.float32
    assert torch.allclose(score.double(), distances(list(weight(model, 0).double())), rtol=1e-6)


def test_wrong_degree() -> None:
    with pytest.raises(pk.ArgumentError, match="degree"):
        FPGMImportance(p=0)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"p": 1}, {"normalizer": "lamp"}, {"bias": True, "group_reduction": "prod"}])
def test_kit(options: dict[str, Any]) -> None:
    check_criterion(lambda: FPGMImportance(**options))
