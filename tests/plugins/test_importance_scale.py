"""BNScale, LAMP, and the names under which all criteria are registered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.testing import check_criterion
from prunekit_plugins import importance
from prunekit_plugins.importance import BNScaleImportance, LAMPImportance, RandomImportance
from prunekit_plugins.layers import prune_conv_out_channels
from tests.plugins.test_importance import (
    NORMALIZERS,
    PICTURE,
    Chain,
    Plain,
    by_lamp,
    graph_of,
    plain_members,
    power,
    random_weights,
    same,
    the_group,
    weight,
)

CRITERIA = {
    "activation": importance.ActivationImportance,
    "bn_scale": importance.BNScaleImportance,
    "fpgm": importance.FPGMImportance,
    "hessian": importance.GroupHessianImportance,
    "lamp": importance.LAMPImportance,
    "magnitude": importance.GroupMagnitudeImportance,
    "obdc": importance.OBDCImportance,
    "random": importance.RandomImportance,
    "taylor": importance.GroupTaylorImportance,
}


NAMED = CRITERIA | {
    "activation_energy": importance.ActivationEnergyImportance,
    "activation_variance": importance.ActivationVarianceImportance,
    "calibrated": importance.CalibratedImportance,
    "reconstruction": importance.ReconstructionImportance,
    "wanda": importance.WandaImportance,
}


OF_BRANCHES = (
    "block_influence", "branch_residual", "gate_fisher", "gate_taylor", "output_change", "relative_energy",
)  # fmt: skip
"""Criteria that have nothing to say about units."""

OF_EXPERTS = ("expert_frequency", "expert_reconstruction", "reap", "rerouting")
"""Criteria that have nothing to say about other units."""


def test_registered_names() -> None:
    entries = pk.default_registry().entries("prunekit_importance")
    of_units = {name: entry.value for name, entry in entries.items() if name not in (*OF_BRANCHES, *OF_EXPERTS)}
    assert {name: value for name, value in of_units.items() if entries[name].owner.rank == 0} == NAMED
    others = {entries[name].value for name in (*OF_BRANCHES, *OF_EXPERTS)}
    assert others <= {getattr(importance, name) for name in importance.__all__}
    aliases = {importance.Members, importance.HessianImportance, importance.MagnitudeImportance}
    aliases.add(importance.EffectImportance)  # a part of "calibrated", without a name of its own
    aliases |= others
    assert {getattr(importance, name) for name in importance.__all__} - aliases <= set(NAMED.values())


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "random"])
def test_all_tell_the_accepted_names(name: str) -> None:
    with pytest.raises(pk.ArgumentError, match="Unknown group reduction 'meen'") as caught:
        CRITERIA[name](group_reduction="meen")
    assert "did you mean 'mean'" in caught.value.hint
    with pytest.raises(pk.ArgumentError, match="Unknown normalizer 'lump'") as caught:
        CRITERIA[name](normalizer="lump")
    assert "lamp" in caught.value.hint


@pytest.mark.parametrize("name", ["bn_scale", "fpgm", "lamp", "magnitude", "random"])
def test_all_that_need_no_data_prune_by_name(name: str) -> None:
    model = random_weights(Plain())
    pk.BasePruner(model, PICTURE, importance=name, pruning_ratio=0.5).step()
    assert model.get_parameter("first.weight").shape == (5, 3, 3, 3)


class TwoNorms(nn.Module):
    """Two convolutions with a norm each, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
        self.left_norm, self.right_norm = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.left_norm(self.left(x)) + self.right_norm(self.right(x)))
        return result


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "prod"])
def test_bn_scale(reduction: str) -> None:
    model = random_weights(TwoNorms())
    assert isinstance(model, TwoNorms)
    left, right = model.left_norm.weight.detach().abs(), model.right_norm.weight.detach().abs()
    expected = {"mean": (left + right) / 2, "sum": left + right, "max": left.maximum(right), "prod": left * right}
    same(BNScaleImportance(group_reduction=reduction, normalizer=None)(the_group(model)), expected[reduction])


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=str)
def test_bn_scale_normalizers(normalizer: str | None) -> None:
    model = random_weights(Plain())
    gamma = model.get_parameter("norm.weight").detach().abs()
    same(BNScaleImportance(normalizer=normalizer)(the_group(model)), NORMALIZERS[normalizer](gamma))


def test_bn_scale_of_some_units() -> None:
    model = random_weights(Plain())
    group = graph_of(model).get_pruning_group(model.get_submodule("first"), prune_conv_out_channels, [9, 2, 6])
    gamma = model.get_parameter("norm.weight").detach().abs()
    same(BNScaleImportance(normalizer=None)(group), gamma[[9, 2, 6]])


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(6, affine=False), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True), nn.ReLU()], ids=str
)
def test_bn_scale_counts_batch_norm_with_a_scale_only(norm: nn.Module) -> None:
    model = random_weights(Chain(nn.Conv2d(3, 6, 1), norm, nn.Conv2d(6, 4, 1)))
    assert all(BNScaleImportance()(group) is None for group in graph_of(model).get_all_groups())


@pytest.mark.parametrize("p", [1, 2])
def test_lamp(p: float) -> None:
    model = random_weights(Plain())
    joined = torch.stack(plain_members(model, p)).mean(0)
    score = LAMPImportance(p=p)(the_group(model))
    same(score, by_lamp(joined))
    assert score is not None
    assert float(score.max()) == 1
    assert torch.equal(score.argsort(), joined.argsort())


def test_lamp_options() -> None:
    model = random_weights(Plain())
    members = plain_members(model)
    bias = [power(model.get_parameter(name), 2, 0) for name in ("first.bias", "norm.bias")]
    group = the_group(model)
    same(LAMPImportance(normalizer=None)(group), torch.stack(members).mean(0))
    same(LAMPImportance(bias=True)(group), by_lamp(torch.stack([*members, *bias]).mean(0)))
    same(LAMPImportance(target_types=[nn.BatchNorm2d], group_reduction="max")(group), by_lamp(members[1]))
    with pytest.raises(pk.ArgumentError, match="degree"):
        LAMPImportance(p=-1)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30])
def test_lamp_of_equal_scores_is_never_nan(value: float) -> None:
    model = Plain()
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    score = LAMPImportance()(the_group(model, PICTURE.float()))
    assert score is not None
    assert bool(score.isfinite().all())


def test_norms_without_a_scale_are_skipped() -> None:
    model = random_weights(Chain(nn.Linear(3, 6), nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 4)))
    group = the_group(model, torch.ones(2, 3, dtype=torch.float64))
    expected = (power(weight(model, 0), 2, 0) + power(weight(model, 2), 2, 1)) / 2
    same(LAMPImportance()(group), by_lamp(expected))


def test_random_takes_a_generator_by_name() -> None:
    group = the_group(random_weights(Plain()))
    generator = torch.Generator().manual_seed(5)
    found = RandomImportance(generator=generator)(group)
    assert torch.equal(found, RandomImportance(5)(group))
    assert not torch.equal(found, RandomImportance(generator=generator)(group))


@pytest.mark.parametrize(
    "make", [BNScaleImportance, LAMPImportance, lambda: LAMPImportance(p=1, group_reduction="prod")]
)
def test_kit(make: Any) -> None:
    check_criterion(make)
