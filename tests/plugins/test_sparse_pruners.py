"""Pruners that train sparse: the reference's faults, changes between calls, wrappers, what bad calls get, digits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit_plugins.cli.commands.demo import data, training
from prunekit_plugins.pruners import BNScalePruner, GroupNormPruner, GrowingRegPruner
from prunekit_plugins.regularizers import GroupLassoRegularizer, GroupMembers, GroupNormRegularizer
from tests.models import Encoder

IMAGE = torch.ones(1, 3, 6, 6, dtype=torch.float64)
MAKERS: dict[str, Callable[..., Any]] = {
    "group_norm": GroupNormPruner,
    "growing_reg": GrowingRegPruner,
    "bn_scale": BNScalePruner,
}
every_pruner = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


class Small(nn.Module):
    """``conv 3 -> 8``, batch norm, ``conv 8 -> 6``, layer norm over the channels, ``linear 6 -> 2``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3)
        self.ln = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.bn(self.conv1(x)).relu())
        result: torch.Tensor = self.fc(self.ln(x.mean((2, 3))))
        return result


def small() -> Small:
    """Weights that differ everywhere, and gradients of zero."""
    model = Small().double()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return with_gradients(model)


def with_gradients(model: Any) -> Any:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def coefficients(model: nn.Module, name: str, dim: int) -> list[float]:
    """What a parameter got per unit, as a multiple of itself; the same all over each slice."""
    parameter = model.get_parameter(name)
    assert parameter.grad is not None
    found = []
    for unit in range(parameter.shape[dim]):
        ratios = parameter.grad.select(dim, unit) / parameter.detach().select(dim, unit)
        assert torch.allclose(ratios, ratios.flatten()[0], rtol=1e-8)
        found.append(float(ratios.flatten()[0]))
    return found


def first_group_norms(model: Small) -> torch.Tensor:
    with torch.no_grad():
        columns = model.conv2.weight.transpose(0, 1).flatten(1).square().sum(1)
        return (model.conv1.weight.flatten(1).square().sum(1) + model.bn.weight.square() + columns).sqrt()


# -- faults of the reference


def test_growing_reaches_batch_norms() -> None:
    """The reference changes a copy of the gradient there."""
    model = small()
    GrowingRegPruner(model, IMAGE, reg=0.01).regularize(model)
    assert coefficients(model, "bn.weight", 0) == pytest.approx([0.01] * 8)


def test_in_slices_and_layer_norms_are_shrunk() -> None:
    model = small()
    GroupNormPruner(model, IMAGE, reg=0.01).regularize(model)
    norms = (
        model.conv2.weight.detach().flatten(1).square().sum(1)
        + model.ln.weight.detach().square()
        + model.fc.weight.detach().square().sum(0)
    ).sqrt()
    gamma = 2 ** (4 * (norms.max() - norms) / (norms.max() - norms.min()))
    expected = (0.01 * gamma).tolist()
    assert coefficients(model, "ln.weight", 0) == pytest.approx(expected)
    assert coefficients(model, "fc.weight", 1) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_equal_units_all_have_gamma_one(value: float) -> None:
    """The reference divides zero by zero."""
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    for dtype in (torch.float64, torch.float32):
        model = with_gradients(model.to(dtype))
        pruner = GroupNormPruner(model, IMAGE.to(dtype), reg=0.01)
        pruner.regularize(model)
        assert {float(g) for gamma in pruner.regularizer.gamma().values() for g in gamma} == {1.0}
        assert model.bn.weight.grad.tolist() == pytest.approx([0.01 * value] * 8)


def test_equal_units_grow_nothing() -> None:
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    pruner = GrowingRegPruner(model, IMAGE, reg=0.01, delta_reg=0.5)
    pruner.update_reg()
    assert {float(value) for values in pruner.regularizer.group_reg.values() for value in values} == {0.01}


def test_alpha_of_the_constructor_is_used_and_that_of_the_call_overrides_it() -> None:
    for made, called, largest in ((None, None, 16.0), (2.0, None, 4.0), (2.0, 5.0, 32.0), (7.0, 0.0, 1.0)):
        model = small()
        pruner = GroupNormPruner(model, IMAGE, reg=1.0, **({} if made is None else {"alpha": made}))
        pruner.regularize(model, alpha=called)
        found = coefficients(model, "bn.weight", 0)
        assert max(found) == pytest.approx(largest)
        assert min(found) == pytest.approx(1.0)


# -- what each pruner does


def test_growing_follows_the_criterion_of_the_pruner() -> None:
    def backwards(group: pk.Group) -> torch.Tensor | None:
        return torch.arange(group.size(), 0, -1) if group.name == "conv1" else None

    model = small()
    pruner = GrowingRegPruner(model, IMAGE, backwards, reg=0.5, delta_reg=0.7)
    pruner.update_reg()
    pruner.update_reg()
    pruner.regularize(model)
    assert coefficients(model, "bn.weight", 0) == pytest.approx([0.5 + 1.4 * unit / 7 for unit in range(8)])
    assert coefficients(model, "ln.weight", 0) == pytest.approx([0.5] * 6)


def test_growing_by_magnitude_looks_at_the_weights_anew() -> None:
    model = small()
    pruner = GrowingRegPruner(model, IMAGE, reg=0.0, delta_reg=1.0)
    expected = torch.zeros(8, dtype=torch.float64)
    for _ in range(2):
        squares = first_group_norms(model) ** 2
        expected += (squares.max() - squares) / (squares.max() - squares.min())
        pruner.update_reg()
        assert pruner.regularizer.group_reg["conv1"].tolist() == pytest.approx(expected.tolist())
        with torch.no_grad():
            model.conv1.weight.copy_(model.conv1.weight.flip(0))
    pruner.update_regularizer()
    assert set(pruner.regularizer.group_reg["conv1"].tolist()) == {0.0}


def test_batch_norm_scales_and_an_override() -> None:
    model = small()
    pruner = BNScalePruner(model, IMAGE, reg=0.25)
    pruner.regularize(model)
    assert torch.equal(model.bn.weight.grad, 0.25 * model.bn.weight.detach().sign())
    pruner.regularize(model, reg=0.5)
    assert torch.equal(model.bn.weight.grad, 0.75 * model.bn.weight.detach().sign())
    assert float(model.bn.bias.grad.abs().sum()) == 0
    others = {name for name, grad in gradients(model).items() if bool(grad.any())}
    assert others == {"bn.weight"}
    model = small()
    BNScalePruner(model, IMAGE, reg=0.25, group_lasso=True).regularize(model, bias=True)
    length = (model.bn.weight.detach() ** 2 + model.bn.bias.detach() ** 2).sqrt()
    assert torch.allclose(model.bn.weight.grad, 0.25 * model.bn.weight.detach() / length)
    assert torch.allclose(model.bn.bias.grad, 0.25 * model.bn.bias.detach() / length)


def test_groups_that_lose_nothing_are_left_alone() -> None:
    for options in ({"ignored_layers": ["conv2"]}, {"pruning_ratio_dict": {"conv2": 0.0}}):
        model = small()
        GroupNormPruner(model, IMAGE, reg=0.01, **options).regularize(model)
        assert not bool(model.ln.weight.grad.any())
        assert not bool(model.fc.weight.grad.any())
        assert bool(model.bn.weight.grad.all())
    with pytest.raises(pk.ArgumentError, match=r"There is nothing to regularize\."):
        GroupNormPruner(small(), IMAGE, pruning_ratio=0.0)


def test_whole_heads_are_shrunk_where_they_may_go() -> None:
    found = []
    for options in ({}, {"prune_num_heads": True, "head_pruning_ratio": 0.5}):
        pruner = GroupNormPruner(Encoder(), torch.randn(2, 6, 10), **options)
        found.append({name for name in pruner.regularizer.gamma() if name.endswith("#heads")})
    assert found == [set(), {"attention.0.qkv#heads", "attention.1.qkv#heads"}]


def test_pruners_are_registered() -> None:
    table = pk.default_registry().entries("prunekit_pruners")
    assert {name: entry.value for name, entry in table.items()} == {
        "base": pk.BasePruner,
        "magnitude": pk.BasePruner,
        "meta": pk.BasePruner,
        **MAKERS,
    }


def test_regularizers_are_registered_and_made_from_groups() -> None:
    model = small()
    graph = pk.DependencyGraph().build_dependency(model, IMAGE)
    registry = pk.default_registry()
    assert sorted(registry.entries("prunekit_regularizers")) == ["bn_scale", "group_lasso", "group_norm", "growing"]
    for name in registry.entries("prunekit_regularizers"):
        before = gradients(model)
        registry.named("prunekit_regularizers", name)(graph.get_all_groups, reg=0.1).regularize()
        assert not torch.equal(before["bn.weight"], gradients(model)["bn.weight"])


# -- changes between calls


@every_pruner
@pytest.mark.parametrize("interactive", [False, True])
def test_after_a_step_the_groups_are_taken_anew(make: Callable[..., Any], interactive: bool) -> None:
    model = small()
    pruner = make(model, IMAGE, iterative_steps=2)
    pruner.regularize(model)
    if interactive:
        for group in pruner.step(interactive=True):
            group.prune()
    else:
        pruner.step()
    assert model.conv1.weight.shape[0] == 6
    twin = with_gradients(copy.deepcopy(model))
    with_gradients(model)
    pruner.regularize(model)
    make(twin, IMAGE).regularize(twin)
    for name, gradient in gradients(twin).items():
        torch.testing.assert_close(gradients(model)[name], gradient, msg=name)
    again = gradients(model)
    pruner.update_regularizer()
    with_gradients(model)
    pruner.regularize(model)
    assert all(torch.equal(gradients(model)[name], gradient) for name, gradient in again.items())


def test_growth_starts_over_after_a_step() -> None:
    model = small()
    pruner = GrowingRegPruner(model, IMAGE, reg=0.5, delta_reg=0.25)
    pruner.update_reg()
    assert float(pruner.regularizer.group_reg["conv1"].max()) == 0.75
    pruner.step()
    assert pruner.regularizer.group_reg["conv1"].tolist() == [0.5] * 4
    pruner.update_reg()
    assert sorted(pruner.regularizer.group_reg["conv1"].tolist())[-1] == 0.75


def test_a_model_pruned_behind_the_back_is_told() -> None:
    model = small()
    pruner = GroupNormPruner(model, IMAGE)
    pk.prune(model, IMAGE)
    with pytest.raises(pk.PlanError, match="changed since it was analysed"):
        pruner.regularize(with_gradients(model))


def test_the_proximal_step_follows_a_pruned_model() -> None:
    model = small()
    pruner = pk.BasePruner(model, IMAGE)
    regularizer = GroupLassoRegularizer(pruner.graph.get_all_groups, reg=1.0)
    pruner.step()
    norm = first_group_norms(model)
    before = model.bn.weight.detach().clone()
    regularizer.proximal_step(0.5)
    assert torch.allclose(model.bn.weight, before * (1 - 0.5 / norm).clamp(min=0))


def test_the_whole_unit_goes_at_once() -> None:
    model = small()
    regularizer = GroupLassoRegularizer(pk.DependencyGraph().build_dependency(model, IMAGE).get_all_groups, reg=1.0)
    norms = first_group_norms(model)
    middle = float(norms.sort().values[3:5].mean())
    weak = norms < middle
    regularizer.proximal_step(lr=middle)
    assert weak.tolist() == (model.bn.weight == 0).tolist()
    assert weak.tolist() == (model.conv1.weight.flatten(1) == 0).all(1).tolist()
    assert not bool(model.conv2.weight[:, weak].any())
    regularizer.regularize()
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(model).values())


# -- gradients and models


@every_pruner
def test_without_any_gradient_it_says_when_to_call(make: Callable[..., Any]) -> None:
    model = small()
    model.zero_grad(set_to_none=True)
    pruner = make(model, IMAGE)
    with pytest.raises(pk.ArgumentError) as caught:
        pruner.regularize(model)
    assert caught.value.headline == "No parameter of the groups has a gradient."
    assert caught.value.hint == "call regularize after loss.backward() and before optimizer.step()"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_parameters_are_left_out_but_count_in_the_norm() -> None:
    model, free = small(), small()
    model.conv1.weight.requires_grad_(False)
    model.conv1.weight.grad = None
    for each in (model, free):
        GroupNormPruner(each, IMAGE, reg=0.01).regularize(each)
    assert model.conv1.weight.grad is None
    assert torch.equal(model.bn.weight.grad, free.bn.weight.grad)
    assert torch.equal(model.conv2.weight.grad, free.conv2.weight.grad)
    before = model.conv1.weight.detach().clone()
    graph = pk.DependencyGraph().build_dependency(model, IMAGE)
    GroupLassoRegularizer(graph.get_all_groups, reg=1.0).proximal_step(1.0)
    assert torch.equal(model.conv1.weight, before)


def test_sparse_gradients_are_told_before_anything_changes() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 2))
    pruner = GroupNormPruner(model, torch.zeros(1, 3, dtype=torch.long))
    model(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    before = gradients(model)["1.weight"]
    with pytest.raises(pk.ArgumentError, match=r"A sparse gradient can't be regularized\.\n  where: 0\.weight"):
        pruner.regularize(model)
    assert torch.equal(gradients(model)["1.weight"], before)


@every_pruner
def test_only_the_own_model_is_taken(make: Callable[..., Any]) -> None:
    model = small()
    pruner = make(model, IMAGE)
    for other in (with_gradients(copy.deepcopy(model)), model.bn, nn.Sequential(model), None):
        with pytest.raises(pk.ArgumentError, match=r"The model is not the one that the pruner was made for\."):
            pruner.regularize(other)
    assert not any(bool(gradient.any()) for gradient in gradients(model).values())


@every_pruner
def test_wrappers_of_the_own_model_are_taken(make: Callable[..., Any]) -> None:
    model = small()
    expected = small()
    make(expected, IMAGE).regularize(expected)
    wrappers: list[Callable[[nn.Module], Any]] = [
        torch.compile,
        nn.DataParallel,
        lambda inner: nn.DataParallel(torch.compile(inner)),  # type: ignore[arg-type]
    ]
    for wrap in wrappers:
        with_gradients(model)
        make(model, IMAGE).regularize(wrap(model))
        assert all(torch.equal(g, gradients(expected)[name]) for name, g in gradients(model).items())
    with_gradients(model)
    make(nn.DataParallel(model), IMAGE).regularize(model)
    assert all(torch.equal(g, gradients(expected)[name]) for name, g in gradients(model).items())


@pytest.mark.parametrize("value", [-1e-4, float("nan"), float("inf"), True, "much", None])
def test_strengths_are_checked_before_anything_is_traced(value: Any) -> None:
    class Untouched(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    wrong = [(GroupNormPruner, "alpha"), (GrowingRegPruner, "delta_reg"), *((make, "reg") for make in MAKERS.values())]
    for make, name in wrong:
        with pytest.raises(pk.ArgumentError) as caught:
            make(Untouched(), IMAGE, **{name: value})
        assert caught.value.headline == f"{name} must be a finite number, at least 0."
        assert caught.value.why == f"got {value!r}"


def test_a_group_given_twice_is_told() -> None:
    graph = pk.DependencyGraph().build_dependency(small(), IMAGE)
    with pytest.raises(pk.ArgumentError, match=r"A group was given twice\.\n  where: conv1"):
        GroupNormRegularizer(lambda: [*graph.get_all_groups(), *graph.get_all_groups()])


def test_half_precision_gradients_stay_what_they_are() -> None:
    model = with_gradients(small().to(torch.bfloat16))
    pruner = GroupNormPruner(model, IMAGE.bfloat16(), reg=0.5)
    assert {gamma.dtype for gamma in pruner.regularizer.gamma().values()} == {torch.float32}
    pruner.regularize(model)
    norms = first_group_norms(model.double())
    gamma = 2 ** (4 * (norms.max() - norms) / (norms.max() - norms.min()))
    assert torch.allclose(model.bn.weight.grad, 0.5 * gamma * model.bn.weight.detach(), rtol=0.02)


# -- digits


@pytest.mark.slow
def test_on_digits_the_weaker_half_fades_and_can_be_cut() -> None:
    digits = data.load(0)
    torch.manual_seed(0)
    fresh = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(96, 10)),
    )
    faded, accuracy = [], []
    for sparse in (False, True):
        model = copy.deepcopy(fresh)
        pruner = GroupNormPruner(model, digits.images[:1], reg=0.01)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            for batch in torch.randperm(len(digits.images), generator=generator).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(digits.images[batch]), digits.labels[batch]).backward()
                if sparse:
                    pruner.regularize(model)
                optimizer.step()
        members = GroupMembers(pruner.graph.get_all_groups)
        norms = [values.sort().values for values in members.by_group(members.norms()).values()]
        faded.append([float(values[: len(values) // 2].mean()) for values in norms])
        assert training.accuracy(model, digits) > 0.95
        pruner.step()
        accuracy.append(training.accuracy(model, digits))
    assert len(faded[0]) == 2
    assert all(without >= 5 * with_it for without, with_it in zip(*faded, strict=True)), faded
    assert accuracy[1] > accuracy[0] + 0.1, accuracy
