"""Taylor scores against gradients written out, torch.func and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.testing import check_criterion
from prunekit_plugins.importance import GroupTaylorImportance, TaylorImportance
from prunekit_plugins.layers import prune_conv_in_channels, prune_conv_out_channels, prune_linear_in_channels
from tests.plugins.test_importance import (
    NORMALIZERS,
    PICTURE,
    REDUCTIONS,
    Chain,
    Grouped,
    Joined,
    Plain,
    Residual,
    graph_of,
    random_weights,
    same,
    the_group,
    weight,
)

raw: dict[str, Any] = {"normalizer": None}
MULTI = [False, True]


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


IMAGES = batch(4, 3, 7, 7)


def loss_of(outputs: torch.Tensor) -> torch.Tensor:
    return (outputs.flatten(1).tanh() ** 2).sum(1).mean()


def with_gradients(model: nn.Module, inputs: torch.Tensor = IMAGES) -> nn.Module:
    """Fills ``.grad`` with gradients that ``torch.func`` computed, so that no backward is needed here."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    gradients = torch.func.grad(
        lambda p: loss_of(torch.func.functional_call(model.eval(), {**p, **buffers}, (inputs,)))
    )(parameters)
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name]
    return model


def product(parameter: torch.Tensor, dim: int, multivariable: bool) -> torch.Tensor:
    """``sum |w g|``, or signed ``sum w g``, over everything but one dim, element by element."""
    assert parameter.grad is not None
    weights = parameter.detach().transpose(0, dim).flatten(1).tolist() if parameter.dim() > 1 else None
    gradients = parameter.grad.transpose(0, dim).flatten(1).tolist() if parameter.dim() > 1 else None
    if weights is None or gradients is None:
        values = [w * g for w, g in zip(parameter.tolist(), parameter.grad.tolist(), strict=True)]
        return torch.tensor([v if multivariable else abs(v) for v in values], dtype=torch.float64)
    rows = [[w * g for w, g in zip(ws, gs, strict=True)] for ws, gs in zip(weights, gradients, strict=True)]
    sums = [sum(row) if multivariable else sum(map(abs, row)) for row in rows]
    return torch.tensor(sums, dtype=torch.float64)


def plain_members(model: nn.Module, multivariable: bool) -> list[torch.Tensor]:
    assert isinstance(model, Plain)
    places = [(model.first.weight, 0), (model.norm.weight, 0), (model.last.weight, 1)]
    return [product(p, dim, multivariable).abs() for p, dim in places]


@pytest.mark.parametrize("multivariable", MULTI)
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_reductions_with_batch_norm_counted(reduction: str | None, multivariable: bool) -> None:
    model = with_gradients(random_weights(Plain()))
    criterion = GroupTaylorImportance(group_reduction=reduction, multivariable=multivariable, **raw)
    same(criterion(the_group(model)), REDUCTIONS[reduction](plain_members(model, multivariable)))


def test_batch_norm_counts() -> None:
    """Only the scale has a gradient other than 0."""
    model = with_gradients(random_weights(Plain()))
    assert isinstance(model, Plain)
    for layer in (model.first, model.last):
        assert layer.weight.grad is not None
        layer.weight.grad.zero_()
    scores = GroupTaylorImportance(group_reduction="sum", **raw)(the_group(model))
    assert scores is not None
    assert bool((scores > 0).all())
    assert model.norm.weight.grad is not None
    same(scores, (model.norm.weight * model.norm.weight.grad).detach().abs())


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=str)
def test_normalizers(normalizer: str | None) -> None:
    model = with_gradients(random_weights(Plain()))
    expected = NORMALIZERS[normalizer](REDUCTIONS["mean"](plain_members(model, False)))
    same(GroupTaylorImportance(normalizer=normalizer)(the_group(model)), expected)


def test_gradients_of_backward_are_those_of_torch_func() -> None:
    """The same scores from ``loss.backward()``, as users call it, over two batches that add up."""
    model = with_gradients(random_weights(Plain()))
    expected = GroupTaylorImportance()(the_group(model))
    for parameter in model.parameters():
        parameter.grad = None
    for part in IMAGES.split(2):
        (loss_of(model(part)) / 2).backward()
    assert expected is not None
    same(TaylorImportance()(the_group(model)), expected)
    assert TaylorImportance is GroupTaylorImportance


def test_multivariable_is_the_slope_of_the_loss_when_a_slice_shrinks() -> None:
    """``d/dt loss((1 + t) W_c)`` at 0, by central differences, for every unit of every member."""
    model = with_gradients(random_weights(Plain()))
    assert isinstance(model, Plain)
    members = []
    for parameter, dim in ((model.first.weight, 0), (model.norm.weight, 0), (model.last.weight, 1)):
        slopes = []
        for unit in range(10):
            losses = []
            for step in (1e-5, -1e-5):
                before = parameter.detach().clone()
                parameter.data.select(dim, unit).mul_(1 + step)
                losses.append(loss_of(model(IMAGES)).item())
                parameter.data = before
            slopes.append(abs(losses[0] - losses[1]) / 2e-5)
        members.append(torch.tensor(slopes, dtype=torch.float64))
    scores = GroupTaylorImportance(group_reduction=None, multivariable=True)(the_group(model))
    assert scores is not None
    assert torch.allclose(scores, torch.stack(members), rtol=1e-5, atol=1e-8)


def test_without_multivariable_every_weight_is_a_finite_difference() -> None:
    model = with_gradients(random_weights(Plain()))
    assert isinstance(model, Plain)
    sums = torch.zeros(10, dtype=torch.float64)
    flat = model.last.weight.data.view(-1)
    for place in range(len(flat)):
        value = float(flat[place])
        losses = []
        for step in (1e-5, -1e-5):
            flat[place] = value + step
            losses.append(loss_of(model(IMAGES)).item())
        flat[place] = value
        sums[place % 10] += abs(value * (losses[0] - losses[1]) / 2e-5)
    scores = GroupTaylorImportance(group_reduction="gate", **raw)(the_group(model))
    assert scores is not None
    assert torch.allclose(scores, sums, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("multivariable", MULTI)
def test_biases_are_members(multivariable: bool) -> None:
    model = with_gradients(random_weights(Plain()))
    assert isinstance(model, Plain)
    assert model.first.bias is not None
    biases = [product(model.first.bias, 0, multivariable).abs(), product(model.norm.bias, 0, multivariable).abs()]
    members = [*plain_members(model, multivariable), *biases]
    criterion = GroupTaylorImportance(multivariable=multivariable, bias=True, **raw)
    same(criterion(the_group(model)), torch.stack(members).mean(0))


@pytest.mark.parametrize(
    ("types", "places"), [([nn.Conv2d], [0, 2]), ([nn.BatchNorm2d], [1]), ([nn.Conv2d, nn.BatchNorm2d], [0, 1, 2])]
)
def test_target_types(types: list[type[nn.Module]], places: list[int]) -> None:
    model = with_gradients(random_weights(Plain()))
    members = plain_members(model, False)
    score = GroupTaylorImportance(target_types=types, **raw)(the_group(model))
    same(score, torch.stack([members[place] for place in places]).mean(0))
    assert GroupTaylorImportance(target_types=[nn.Linear])(the_group(model)) is None


@pytest.mark.parametrize("chosen", [[2, 6, 9], [9, 2, 6], [6]], ids=str)
def test_some_units_in_the_order_asked_for(chosen: list[int]) -> None:
    model = with_gradients(random_weights(Plain()))
    expected = REDUCTIONS["mean"](plain_members(model, False))[chosen]
    for layer, function in (("first", prune_conv_out_channels), ("last", prune_conv_in_channels)):
        group = graph_of(model).get_pruning_group(model.get_submodule(layer), function, chosen)
        same(GroupTaylorImportance(**raw)(group), expected)


def test_occurrences_are_one_slice() -> None:
    """With ``multivariable`` the products of all occurrences are added up before the absolute value."""
    model = with_gradients(random_weights(Chain(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(245, 4))))
    for multivariable in MULTI:
        rows = product(weight(model, 0), 0, multivariable).abs()
        columns = product(weight(model, 2), 1, multivariable).reshape(5, 49).sum(1).abs()
        criterion = GroupTaylorImportance(multivariable=multivariable, **raw)
        same(criterion(the_group(model)), (rows + columns) / 2)
    columns = product(weight(model, 2), 1, True).reshape(5, 49).sum(1).abs()
    assert not torch.allclose(columns, product(weight(model, 2), 1, True).abs().reshape(5, 49).sum(1))


@pytest.mark.parametrize("multivariable", MULTI)
def test_occurrences_in_a_concat(multivariable: bool) -> None:
    model = with_gradients(random_weights(Joined()))
    assert isinstance(model, Joined)
    columns = product(model.last.weight, 1, multivariable)
    criterion = GroupTaylorImportance(multivariable=multivariable, **raw)
    left, right = (product(layer.weight, 0, multivariable).abs() for layer in (model.left, model.right))
    same(criterion(the_group(model, kind="left")), (left + (columns[:4] + columns[8:]).abs()) / 2)
    same(criterion(the_group(model, kind="right")), (right + columns[4:8].abs()) / 2)


@pytest.mark.parametrize("multivariable", MULTI)
@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolution(transposed: bool, multivariable: bool) -> None:
    model = with_gradients(random_weights(Grouped(transposed)))
    assert isinstance(model, Grouped)
    criterion = GroupTaylorImportance(multivariable=multivariable, **raw)
    first, rows = product(model.first.weight, 0, multivariable), product(model.middle.weight, 0, multivariable)
    columns, last = product(model.middle.weight, 1, multivariable), product(model.last.weight, 1, multivariable)

    def folded(values: torch.Tensor) -> torch.Tensor:
        return values.reshape(2, -1).sum(0).abs()

    inner = folded(rows) if transposed else columns.abs()
    outer = columns.abs() if transposed else folded(rows)
    same(criterion(the_group(model, size=4)), (folded(first) + inner) / 2)
    same(criterion(the_group(model, size=3)), (outer + folded(last)) / 2)


def test_depthwise_transposed_and_norms_without_weights() -> None:
    model = with_gradients(
        random_weights(
            Chain(
                nn.ConvTranspose2d(3, 6, 3),
                nn.BatchNorm2d(6, affine=False),
                nn.Conv2d(6, 6, 3, groups=6),
                nn.Conv2d(6, 4, 1),
            )
        )
    )
    members = [product(weight(model, place), dim, False) for place, dim in ((0, 1), (2, 0), (3, 1))]
    same(GroupTaylorImportance(**raw)(the_group(model)), torch.stack(members).mean(0))


def test_layer_norm_counts() -> None:
    inputs = batch(4, 3)
    model = with_gradients(random_weights(Chain(nn.Linear(3, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 4))), inputs)
    members = [product(weight(model, place), dim, False) for place, dim in ((0, 0), (1, 0), (3, 1))]
    same(GroupTaylorImportance(**raw)(the_group(model, inputs)), torch.stack(members).mean(0))


def test_a_layer_that_reads_and_writes_is_two_members() -> None:
    inputs = batch(4, 3)
    model = with_gradients(random_weights(Residual()), inputs)
    assert isinstance(model, Residual)
    places = [(model.stem, 0), (model.inner, 0), (model.inner, 1), (model.head, 1)]
    members = [product(layer.weight, dim, False) for layer, dim in places]
    same(GroupTaylorImportance(**raw)(the_group(model, inputs)), torch.stack(members).mean(0))
    group = graph_of(model, inputs).get_pruning_group(model.head, prune_linear_in_channels, [5, 1])
    same(GroupTaylorImportance(**raw)(group), torch.stack(members).mean(0)[[5, 1]])


def test_missing_gradients_are_named() -> None:
    model = random_weights(Plain())
    group = the_group(model)
    with pytest.raises(pk.ArgumentError, match="no gradient") as caught:
        GroupTaylorImportance()(group)
    for name in ("first.weight", "norm.weight", "last.weight"):
        assert name in caught.value.where
    assert "first.bias" not in caught.value.where
    assert "backward" in caught.value.hint
    with_gradients(model)
    model.get_submodule("norm").weight.grad = None
    with pytest.raises(pk.ArgumentError) as caught:
        GroupTaylorImportance()(group)
    assert caught.value.where == "norm.weight"
    assert caught.value.why == ""


def test_frozen_parameters_are_named() -> None:
    model = random_weights(Plain())
    model.get_submodule("last").requires_grad_(False)
    loss_of(model(IMAGES)).backward()
    with pytest.raises(pk.ArgumentError) as caught:
        GroupTaylorImportance()(the_group(model))
    assert caught.value.where == "last.weight"
    assert "frozen: last.weight" in caught.value.why
    assert "requires_grad_()" in caught.value.hint


def test_the_pruner_tells_what_is_missing_and_leaves_the_model_alone() -> None:
    model = random_weights(Plain())
    pruner = pk.BasePruner(model, PICTURE, importance="taylor")
    with pytest.raises(pk.ArgumentError, match="no gradient"):
        pruner.step()
    assert model.get_submodule("first").weight.shape == (10, 3, 3, 3)
    with_gradients(model)
    pruner.step()
    assert model.get_submodule("first").weight.shape == (5, 3, 3, 3)


def test_scoring_changes_nothing() -> None:
    model = with_gradients(random_weights(Plain()))
    before = {n: (p.detach().clone(), p.grad.clone()) for n, p in model.named_parameters() if p.grad is not None}
    GroupTaylorImportance(multivariable=True)(the_group(model))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, before[name][1])


def test_half_precision_is_widened() -> None:
    model = random_weights(Plain())
    model = with_gradients(model)
    expected = GroupTaylorImportance(**raw)(the_group(model))
    model.to(torch.bfloat16)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad = parameter.grad.to(torch.bfloat16)
    score = GroupTaylorImportance(**raw)(the_group(model, PICTURE.bfloat16()))
    assert score is not None
    assert score.dtype is torch.float32
    assert expected is not None
    assert torch.allclose(score.double(), expected, rtol=0.03)


def _backward(model: nn.Module, inputs: torch.Tensor) -> None:
    loss_of(model.eval()(inputs)).backward()


@pytest.mark.parametrize("multivariable", MULTI)
@pytest.mark.parametrize("normalizer", ["mean", "lamp", "gaussian", None])
def test_kit(multivariable: bool, normalizer: str | None) -> None:
    check_criterion(
        lambda: GroupTaylorImportance(multivariable=multivariable, normalizer=normalizer, bias=True), prepare=_backward
    )
