"""Hessian scores against per-sample gradients from torch.func and from finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.testing import check_criterion
from prunekit_plugins.importance import GroupHessianImportance, HessianImportance
from prunekit_plugins.layers import prune_conv_in_channels, prune_conv_out_channels
from tests.plugins.test_importance import (
    NORMALIZERS,
    REDUCTIONS,
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


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


IMAGES = batch(4, 3, 7, 7)
Squares = dict[str, torch.Tensor]


def losses_of(outputs: torch.Tensor) -> torch.Tensor:
    return (outputs.flatten(1).tanh() ** 2).sum(1)


def independent_squares(model: nn.Module, inputs: torch.Tensor = IMAGES) -> Squares:
    """Mean over samples of the squared gradient of each sample's loss, without any backward."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(p: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        outputs = torch.func.functional_call(model.eval(), {**p, **buffers}, (sample[None],))
        return losses_of(outputs)[0]

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, inputs)
    return {name: (gradient**2).mean(0) for name, gradient in gradients.items()}


def fill(criterion: GroupHessianImportance, model: nn.Module, inputs: torch.Tensor = IMAGES) -> GroupHessianImportance:
    """As users do it."""
    criterion.zero_grad()
    for loss in losses_of(model.eval()(inputs)):
        model.zero_grad()
        loss.backward(retain_graph=True)
        criterion.accumulate_grad(model)
    return criterion


def local(squares: Squares, model: nn.Module, name: str, dim: int) -> torch.Tensor:
    parameter = model.get_parameter(name).detach()
    values = (parameter**2 * squares[name]).transpose(0, dim).reshape(parameter.shape[dim], -1)
    return torch.stack([row.sum() for row in values])


def plain_members(model: nn.Module) -> list[torch.Tensor]:
    squares = independent_squares(model)
    return [local(squares, model, n, dim) for n, dim in (("first.weight", 0), ("norm.weight", 0), ("last.weight", 1))]


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_all_samples_count(reduction: str | None) -> None:
    model = random_weights(Plain())
    criterion = fill(GroupHessianImportance(group_reduction=reduction, **raw), model)
    same(criterion(the_group(model)), REDUCTIONS[reduction](plain_members(model)))


def test_not_only_the_last_sample() -> None:
    model = random_weights(Plain())
    found = fill(GroupHessianImportance(**raw), model)(the_group(model))
    last = fill(GroupHessianImportance(**raw), model, IMAGES[-1:])(the_group(model))
    first = fill(GroupHessianImportance(**raw), model, IMAGES[:-1])(the_group(model))
    assert found is not None
    assert first is not None
    assert last is not None
    assert not torch.allclose(found, last)
    same(found, (3 * first + last) / 4)


def test_the_order_of_samples_and_their_copies_change_nothing() -> None:
    model = random_weights(Plain())
    expected = fill(GroupHessianImportance(), model)(the_group(model))
    assert expected is not None
    same(fill(GroupHessianImportance(), model, IMAGES.flip(0))(the_group(model)), expected)
    same(fill(HessianImportance(), model, torch.cat([IMAGES, IMAGES]))(the_group(model)), expected)
    assert HessianImportance is GroupHessianImportance


def test_every_weight_by_finite_differences() -> None:
    model = random_weights(Plain()).eval()
    flat = model.get_parameter("last.weight").data.view(-1)
    sums = torch.zeros(10, dtype=torch.float64)
    with torch.no_grad():
        for place in range(len(flat)):
            value = float(flat[place])
            losses = []
            for step in (1e-5, -1e-5):
                flat[place] = value + step
                losses.append(losses_of(model(IMAGES)))
            flat[place] = value
            slopes = (losses[0] - losses[1]) / 2e-5
            sums[place % 10] += value**2 * (slopes**2).mean()
    scores = fill(GroupHessianImportance(group_reduction="gate", **raw), model)(the_group(model))
    assert scores is not None
    assert torch.allclose(scores, sums, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=str)
def test_normalizers(normalizer: str | None) -> None:
    model = random_weights(Plain())
    criterion = fill(GroupHessianImportance(normalizer=normalizer), model)
    same(criterion(the_group(model)), NORMALIZERS[normalizer](REDUCTIONS["mean"](plain_members(model))))


def test_biases_and_target_types() -> None:
    model = random_weights(Plain())
    squares = independent_squares(model)
    members = plain_members(model)
    biases = [local(squares, model, name, 0) for name in ("first.bias", "norm.bias")]
    both = fill(GroupHessianImportance(bias=True, **raw), model)
    same(both(the_group(model)), torch.stack([*members, *biases]).mean(0))
    same(fill(GroupHessianImportance(target_types=[nn.BatchNorm2d], **raw), model)(the_group(model)), members[1])
    assert fill(GroupHessianImportance(target_types=[nn.Linear]), model)(the_group(model)) is None


@pytest.mark.parametrize("chosen", [[2, 6, 9], [9, 2, 6], [6]], ids=str)
def test_some_units_in_the_order_asked_for(chosen: list[int]) -> None:
    model = random_weights(Plain())
    criterion = fill(GroupHessianImportance(**raw), model)
    for layer, function in (("first", prune_conv_out_channels), ("last", prune_conv_in_channels)):
        group = graph_of(model).get_pruning_group(model.get_submodule(layer), function, chosen)
        same(criterion(group), REDUCTIONS["mean"](plain_members(model))[chosen])


def test_flatten_concat_and_norms_without_weights() -> None:
    model = random_weights(
        Chain(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5, affine=False), nn.Flatten(), nn.Linear(245, 4))
    )
    squares = independent_squares(model)
    columns = local(squares, model, "layers.3.weight", 1).reshape(5, 49).sum(1)
    rows = local(squares, model, "layers.0.weight", 0)
    same(fill(GroupHessianImportance(**raw), model)(the_group(model)), (rows + columns) / 2)

    joined = random_weights(Joined())
    squares = independent_squares(joined)
    columns, left = local(squares, joined, "last.weight", 1), local(squares, joined, "left.weight", 0)
    criterion = fill(GroupHessianImportance(**raw), joined)
    same(criterion(the_group(joined, kind="left")), (left + columns[:4] + columns[8:]) / 2)


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolution(transposed: bool) -> None:
    model = random_weights(Grouped(transposed))
    squares = independent_squares(model)
    criterion = fill(GroupHessianImportance(**raw), model)
    first, rows = local(squares, model, "first.weight", 0), local(squares, model, "middle.weight", 0)
    columns, last = local(squares, model, "middle.weight", 1), local(squares, model, "last.weight", 1)
    inner, outer = (rows[:4] + rows[4:], columns) if transposed else (columns, rows[:3] + rows[3:])
    same(criterion(the_group(model, size=4)), (first[:4] + first[4:] + inner) / 2)
    same(criterion(the_group(model, size=3)), (outer + last[:3] + last[3:]) / 2)


def test_depthwise_convolution() -> None:
    model = random_weights(Chain(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1)))
    squares = independent_squares(model)
    places = [("layers.0.weight", 0), ("layers.1.weight", 0), ("layers.2.weight", 1)]
    members = [local(squares, model, name, dim) for name, dim in places]
    same(fill(GroupHessianImportance(**raw), model)(the_group(model)), torch.stack(members).mean(0))


def test_gradients_of_the_model_are_left_alone() -> None:
    model = random_weights(Plain())
    losses_of(model(IMAGES)).mean().backward()
    before = {name: p.grad for name, p in model.named_parameters()}
    copies = {name: g.clone() for name, g in before.items() if g is not None}
    criterion = GroupHessianImportance()
    criterion.zero_grad()
    for _ in range(3):
        criterion.accumulate_grad(model)
    criterion(the_group(model))
    criterion.zero_grad()
    for name, parameter in model.named_parameters():
        assert parameter.grad is before[name]
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, copies[name])


def test_zero_grad_forgets() -> None:
    model = random_weights(Plain())
    criterion = fill(GroupHessianImportance(**raw), model, 5 * IMAGES)
    same(fill(criterion, model)(the_group(model)), REDUCTIONS["mean"](plain_members(model)))
    criterion.zero_grad()
    with pytest.raises(pk.ArgumentError, match="No gradients were taken in"):
        criterion(the_group(model))


def test_a_parameter_that_some_samples_dont_use() -> None:
    """Its gradient is 0 for those samples: they count in the mean."""
    model = random_weights(Plain())
    criterion = GroupHessianImportance(**raw)
    for number, loss in enumerate(losses_of(model.eval()(IMAGES))):
        model.zero_grad()
        loss.backward(retain_graph=True)
        if number % 2:
            model.get_submodule("norm").weight.grad = None
        criterion.accumulate_grad(model)
    squares = independent_squares(model, IMAGES[::2])
    norm = local(squares, model, "norm.weight", 0) / 2
    members = plain_members(model)
    same(criterion(the_group(model)), (members[0] + norm + members[2]) / 3)


def test_what_is_missing_is_named() -> None:
    model = random_weights(Plain())
    criterion = GroupHessianImportance()
    with pytest.raises(pk.ArgumentError, match="No parameter of the model has a gradient") as caught:
        criterion.accumulate_grad(model)
    assert "backward" in caught.value.hint
    with pytest.raises(pk.ArgumentError) as caught:
        criterion(the_group(model))
    assert caught.value.where == "first.weight, norm.weight, last.weight"
    assert "accumulate_grad" in caught.value.hint
    model.get_submodule("last").requires_grad_(False)
    fill(criterion, model)
    with pytest.raises(pk.ArgumentError) as caught:
        criterion(the_group(model))
    assert caught.value.where == "last.weight"


def test_gradients_from_before_pruning_are_refused() -> None:
    model = random_weights(Plain())
    criterion = fill(GroupHessianImportance(), model)
    group = the_group(model)
    graph_of(model).get_pruning_group(model.get_submodule("first"), prune_conv_out_channels, [1, 3]).prune()
    with pytest.raises(pk.PlanError, match="changed since it was analysed"):
        criterion(group)
    with pytest.raises(pk.ArgumentError, match="pruned since"):
        criterion(the_group(model))
    losses_of(model(IMAGES)).sum().backward()
    with pytest.raises(pk.ArgumentError, match="pruned since"):
        criterion.accumulate_grad(model)
    squares = plain_members(model)
    same(fill(GroupHessianImportance(group_reduction=None), model)(the_group(model)), torch.stack(squares))


def test_through_the_pruner() -> None:
    model = random_weights(Plain())
    criterion = GroupHessianImportance()
    pruner = pk.BasePruner(model, IMAGES, importance=criterion)
    fill(criterion, model)
    expected = REDUCTIONS["mean"](plain_members(model)).argsort(descending=True)[:5].sort().values
    kept = model.get_parameter("first.weight").detach()[expected]
    pruner.step()
    assert torch.equal(model.get_parameter("first.weight"), kept)


def test_half_precision_is_widened() -> None:
    model = random_weights(Plain()).half()
    criterion = GroupHessianImportance(**raw)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 300)
    criterion.accumulate_grad(model)
    score = criterion(the_group(model, IMAGES.half()))
    assert score is not None
    assert score.dtype is torch.float32
    members = [
        model.get_parameter(name).detach().double().square().transpose(0, dim).flatten(1).sum(1) * 300**2
        for name, dim in (("first.weight", 0), ("last.weight", 1))
    ]
    norm = model.get_parameter("norm.weight").detach().double().square() * 300**2
    assert torch.allclose(score.double(), (members[0] + norm + members[1]) / 3, rtol=1e-5)


def test_linear_layers_by_torch_func() -> None:
    inputs = batch(5, 3)
    model = random_weights(Chain(nn.Linear(3, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 4)))
    squares = independent_squares(model, inputs)
    places = [("layers.0.weight", 0), ("layers.1.weight", 0), ("layers.3.weight", 1)]
    members = [local(squares, model, name, dim) for name, dim in places]
    criterion = fill(GroupHessianImportance(**raw), model, inputs)
    same(criterion(the_group(model, inputs)), torch.stack(members).mean(0))
    assert weight(model, 0).grad is not None


class Prepared:
    """A criterion that takes its samples in from the network that the kit hands to ``prepare``."""

    def __init__(self, **options: Any) -> None:
        self.criterion = GroupHessianImportance(**options)

    def prepare(self, model: nn.Module, inputs: torch.Tensor) -> None:
        fill(self.criterion, model, inputs)


@pytest.mark.parametrize("normalizer", ["mean", "lamp", None])
def test_kit(normalizer: str | None) -> None:
    prepared = Prepared(normalizer=normalizer, bias=True)
    check_criterion(lambda: prepared.criterion, prepare=prepared.prepare)
