"""What regularizers add to gradients, against loops over named weights, for every kind of layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunekit as pk
from prunekit_plugins.regularizers import (
    BNScaleRegularizer,
    GroupLassoRegularizer,
    GroupMembers,
    GroupNormRegularizer,
    GrowingRegularizer,
)

Held = list[list[int]]
"""Positions along a dim, for every unit."""


def each(count: int, start: int = 0, run: int = 1) -> Held:
    """Unit ``c`` holds ``run`` positions in a row."""
    return [[start + c * run + k for k in range(run)] for c in range(count)]


def strided(count: int, repeats: int) -> Held:
    """Unit ``c`` holds the ``c``-th position of every block."""
    return [[block * count + c for block in range(repeats)] for c in range(count)]


class Net(nn.Module):
    """Any layers with any forward."""

    def __init__(self, run: Callable[..., torch.Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


@attrs.frozen(eq=False)
class Case:
    """A model, and the weights and biases of every unit of every group: (parameter, dim, positions per unit)."""

    build: Callable[[], nn.Module]
    inputs: torch.Tensor
    groups: dict[str, list[tuple[str, int, Held]]]


PICTURE = torch.ones(2, 3, 5, 5, dtype=torch.float64)
ROWS = torch.ones(2, 4, dtype=torch.float64)
TOKENS = torch.ones(2, 5, 4, dtype=torch.float64)


def attend(net: Any, x: torch.Tensor) -> torch.Tensor:
    q, k, v = net.qkv(x).reshape(2, 5, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
    out: torch.Tensor = net.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, -1))
    return out


def products(net: Any, x: torch.Tensor) -> torch.Tensor:
    x = net.a(x)
    out: torch.Tensor = net.b((x[:, :, None] * x[:, None, :]).flatten(1))
    return out


def block(net: Any, x: torch.Tensor) -> torch.Tensor:
    x = net.bn1(net.conv1(x)).relu()
    x = x + net.bn2(net.conv2(x))
    out: torch.Tensor = net.fc(x.mean((2, 3)))
    return out


def both(name: str, dim: int, held: Held) -> list[tuple[str, int, Held]]:
    """A layer's weight, and its bias along the same units."""
    return [(f"{name}.weight", dim, held), (f"{name}.bias", 0, held)]


CASES = {
    "convolution, batch norm": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        PICTURE,
        {"0": [*both("0", 0, each(6)), *both("1", 0, each(6)), ("3.weight", 1, each(6))]},
    ),
    "a weight between two groups": Case(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)),
        ROWS,
        {
            "0": [*both("0", 0, each(5)), ("2.weight", 1, each(5))],
            "2": [*both("2", 0, each(3)), ("4.weight", 1, each(3))],
        },
    ),
    "residual stream with two batch norms": Case(
        lambda: Net(
            block,
            conv1=nn.Conv2d(3, 4, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(4),
            conv2=nn.Conv2d(4, 4, 1),
            bn2=nn.BatchNorm2d(4),
            fc=nn.Linear(4, 2),
        ),
        PICTURE,
        {
            "conv1#stream": [
                ("conv1.weight", 0, each(4)),
                *both("bn1", 0, each(4)),
                *both("conv2", 0, each(4)),
                ("conv2.weight", 1, each(4)),
                *both("bn2", 0, each(4)),
                ("fc.weight", 1, each(4)),
            ]
        },
    ),
    "flatten": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 2)),
        PICTURE,
        {"0": [*both("0", 0, each(4)), ("2.weight", 1, each(4, run=9))]},
    ),
    "concat, one part twice": Case(
        lambda: Net(
            lambda net, x: net.last(torch.cat([net.a(x), net.b(x), net.a(x)], 1)),
            a=nn.Conv2d(3, 2, 1),
            b=nn.Conv2d(3, 3, 1),
            last=nn.Conv2d(7, 4, 1),
        ),
        PICTURE,
        {
            "a": [*both("a", 0, each(2)), ("last.weight", 1, [[0, 5], [1, 6]])],
            "b": [*both("b", 0, each(3)), ("last.weight", 1, each(3, start=2))],
        },
    ),
    "transposed, instance norm, PReLU": Case(
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 4, 2), nn.InstanceNorm2d(4, affine=True), nn.PReLU(4), nn.ConvTranspose2d(4, 2, 1)
        ),
        PICTURE,
        {"0": [*both("0", 1, each(4)), *both("1", 0, each(4)), ("2.weight", 0, each(4)), ("3.weight", 0, each(4))]},
    ),
    "grouped convolution": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 2, 1)),
        PICTURE,
        {
            "0": [*both("0", 0, strided(2, 4)), ("1.weight", 1, each(2))],
            "1": [*both("1", 0, strided(3, 4)), ("2.weight", 1, strided(3, 4))],
            "0#conv_groups": [
                *both("0", 0, each(4, run=2)),
                *both("1", 0, each(4, run=3)),
                ("2.weight", 1, each(4, run=3)),
            ],
        },
    ),
    "depthwise convolution": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1)),
        PICTURE,
        {"0": [*both("0", 0, each(4)), *both("1", 0, each(4)), ("2.weight", 1, each(4))]},
    ),
    "layer norm": Case(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)),
        ROWS,
        {"0": [*both("0", 0, each(6)), *both("1", 0, each(6)), ("2.weight", 1, each(6))]},
    ),
    "group norm": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(2, 6), nn.Conv2d(6, 2, 1)),
        PICTURE,
        {
            "0": [*both("0", 0, strided(3, 2)), *both("1", 0, strided(3, 2)), ("2.weight", 1, strided(3, 2))],
            "0#norm_groups": [
                *both("0", 0, each(2, run=3)),
                *both("1", 0, each(2, run=3)),
                ("2.weight", 1, each(2, run=3)),
            ],
        },
    ),
    "embedding, position, RMS norm": Case(
        lambda: Net(
            lambda net, x: net.fc(net.norm(net.words(x) + net.places)),
            words=nn.Embedding(7, 4),
            places=nn.Parameter(torch.zeros(1, 5, 4)),
            norm=nn.RMSNorm(4),
            fc=nn.Linear(4, 2),
        ),
        torch.zeros(2, 5, dtype=torch.long),
        {
            "words": [
                ("words.weight", 1, each(4)),
                ("places", 2, each(4)),
                ("norm.weight", 0, each(4)),
                ("fc.weight", 1, each(4)),
            ]
        },
    ),
    "fused attention": Case(
        lambda: Net(attend, qkv=nn.Linear(4, 18), out=nn.Linear(6, 2)),
        TOKENS,
        {
            "qkv#head_dim": [*both("qkv", 0, strided(3, 6)), ("out.weight", 1, strided(3, 2))],
            "qkv#heads": [
                *both(
                    "qkv", 0, [[part * 6 + head * 3 + k for part in range(3) for k in range(3)] for head in range(2)]
                ),
                ("out.weight", 1, each(2, run=3)),
            ],
        },
    ),
    "a unit with itself": Case(
        lambda: Net(products, a=nn.Linear(4, 3), b=nn.Linear(9, 2)),
        ROWS,
        {
            "a": [
                *both("a", 0, each(3)),
                ("b.weight", 1, [[*range(3 * c, 3 * c + 3), *range(c, 9, 3)] for c in range(3)]),
            ]
        },
    ),
}


def prepared(case: Case) -> nn.Module:
    """The model of a case in double precision, with weights and gradients that differ everywhere."""
    model = case.build().double()
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        parameter.grad = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return model


def source(model: nn.Module, case: Case) -> Callable[[], Iterator[pk.Group]]:
    graph = pk.DependencyGraph().build_dependency(model, case.inputs)
    assert sorted(group.name for group in graph.groups()) == sorted(case.groups)
    return graph.get_all_groups


def slices(case: Case, group: str, unit: int, bias: bool) -> list[tuple[str, int, int]]:
    """All (parameter, dim, position) that a unit holds."""
    return [
        (name, dim, position)
        for name, dim, held in case.groups[group]
        for position in held[unit]
        if bias or not name.endswith("bias")
    ]


def units(case: Case, group: str) -> range:
    return range(len(case.groups[group][0][2]))


def norms(model: nn.Module, case: Case, group: str, bias: bool = False) -> list[float]:
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return [
        math.sqrt(
            math.fsum(
                value**2
                for name, dim, position in slices(case, group, unit, bias)
                for value in weights[name].select(dim, position).flatten().tolist()
            )
        )
        for unit in units(case, group)
    ]


def added(
    model: nn.Module, case: Case, coefficients: dict[str, list[float]], bias: bool = False
) -> dict[str, torch.Tensor]:
    """The gradients once every unit has got its coefficient times its weights."""
    result = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        result[name] = parameter.grad.clone()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for group, values in coefficients.items():
        for unit, value in enumerate(values):
            for name, dim, position in slices(case, group, unit, bias):
                result[name].select(dim, position).add_(value * weights[name].select(dim, position))
    return result


def same_gradients(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-12, msg=f"gradient of {name}")


def deficits(scores: list[float]) -> list[float]:
    return [(max(scores) - score) / (max(scores) - min(scores)) for score in scores]


every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
with_and_without_bias = pytest.mark.parametrize("bias", [False, True], ids=["weights", "biases too"])


@every_case
@with_and_without_bias
def test_group_norm(case: Case, bias: bool) -> None:
    model = prepared(case)
    regularizer = GroupNormRegularizer(source(model, case), reg=0.01, alpha=3)
    gammas = {group: [2 ** (3 * d) for d in deficits(norms(model, case, group))] for group in case.groups}
    for group, found in regularizer.gamma().items():
        assert found.tolist() == pytest.approx(gammas[group], rel=1e-10)
    expected = added(model, case, {group: [0.01 * g for g in values] for group, values in gammas.items()}, bias)
    regularizer.regularize(bias=bias)
    same_gradients(model, expected)


@every_case
@with_and_without_bias
def test_growing(case: Case, bias: bool) -> None:
    model = prepared(case)
    regularizer = GrowingRegularizer(source(model, case), reg=0.01, delta_reg=0.1)
    expected = added(model, case, {group: [0.01] * len(units(case, group)) for group in case.groups}, bias)
    regularizer.regularize(bias=bias)
    same_gradients(model, expected)

    grown = {group: [0.01 + 0.1 * d for d in deficits(norms(model, case, group))] for group in case.groups}
    regularizer.grow()
    expected = added(model, case, grown, bias)
    regularizer.regularize(bias=bias)
    same_gradients(model, expected)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    for group, values in grown.items():
        deficit = deficits(norms(model, case, group))
        grown[group] = [value + 0.1 * d for value, d in zip(values, deficit, strict=True)]
    regularizer.grow()
    for group, found in regularizer.group_reg.items():
        assert found.tolist() == pytest.approx(grown[group], rel=1e-10)


@every_case
@with_and_without_bias
def test_group_lasso_gradient(case: Case, bias: bool) -> None:
    model = prepared(case)
    coefficients = {group: [0.3 / n for n in norms(model, case, group, bias)] for group in case.groups}
    expected = added(model, case, coefficients, bias)
    GroupLassoRegularizer(source(model, case), reg=0.3).regularize(bias=bias)
    same_gradients(model, expected)


@every_case
@with_and_without_bias
def test_group_lasso_proximal_step(case: Case, bias: bool) -> None:
    model = prepared(case)
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    middle = sorted(norms(model, case, next(iter(case.groups)), bias))[1]
    for group in case.groups:
        for unit, norm in enumerate(norms(model, case, group, bias)):
            for name, dim, position in slices(case, group, unit, bias):
                expected[name].select(dim, position).mul_(max(0.0, 1 - 0.5 * (2 * middle) / norm))
    GroupLassoRegularizer(source(model, case), reg=2 * middle).proximal_step(lr=0.5, bias=bias)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["convolution, batch norm", "residual stream with two batch norms"])
@pytest.mark.parametrize("group_lasso", [False, True])
@with_and_without_bias
def test_batch_norm_scales(name: str, group_lasso: bool, bias: bool) -> None:
    case = CASES[name]
    model = prepared(case)
    (members,) = case.groups.values()
    counted = [entry for entry in members if "bn" in entry[0] or entry[0].startswith("1.")]
    assert len(counted) in (2, 4)
    part = Case(case.build, case.inputs, {next(iter(case.groups)): counted})
    (group,) = part.groups
    if group_lasso:
        expected = added(model, part, {group: [0.2 / n for n in norms(model, part, group, bias)]}, bias)
    else:
        expected = added(model, part, {})
        for entry, _, _ in counted:
            if bias or not entry.endswith("bias"):
                for position, value in enumerate(model.get_parameter(entry).tolist()):
                    expected[entry][position] += math.copysign(0.2, value)
    BNScaleRegularizer(source(model, case), reg=0.2, group_lasso=group_lasso).regularize(bias=bias)
    same_gradients(model, expected)


def test_a_scale_that_is_a_unit_of_two_groups_is_penalised_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.BatchNorm2d(12), nn.Conv2d(12, 2, 1))
    model.double()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    graph = pk.DependencyGraph().build_dependency(model, PICTURE)
    BNScaleRegularizer(graph.get_all_groups, reg=0.2).regularize()
    assert model.get_parameter("2.weight").grad.tolist() == [0.2] * 12  # type: ignore[union-attr]


def test_scales_of_zero_get_no_gradient() -> None:
    case = CASES["convolution, batch norm"]
    for group_lasso in (False, True):
        model = prepared(case)
        scale = model.get_parameter("1.weight")
        with torch.no_grad():
            scale[2] = 0
        assert scale.grad is not None
        before = scale.grad.clone()
        BNScaleRegularizer(source(model, case), reg=0.2, group_lasso=group_lasso).regularize()
        assert [position for position in range(6) if scale.grad[position] == before[position]] == [2]


def test_other_norms_count_where_they_are_asked_for() -> None:
    case = CASES["layer norm"]
    model = prepared(case)
    with pytest.raises(pk.ArgumentError, match=r"There is nothing to regularize\."):
        BNScaleRegularizer(source(model, case))
    expected = added(model, case, {})
    expected["1.weight"] += 0.2 * torch.sign(model.get_parameter("1.weight").detach())
    BNScaleRegularizer(source(model, case), reg=0.2, target_types=(nn.LayerNorm,)).regularize()
    same_gradients(model, expected)


def test_the_proximal_step_minimises_what_it_should() -> None:
    """For one unit: ``argmin_w 0.5 * ||w - v||^2 + lr * reg * ||w||``, found here by gradient descent."""
    case = CASES["convolution, batch norm"]
    model = prepared(case)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    regularizer = GroupLassoRegularizer(source(model, case), reg=0.8)
    regularizer.proximal_step(lr=2.0)
    for unit in units(case, "0"):
        held = slices(case, "0", unit, False)
        given = torch.cat([start[name].select(dim, position).flatten() for name, dim, position in held])
        found = torch.cat(
            [model.get_parameter(name).detach().select(dim, position).flatten() for name, dim, position in held]
        )
        best = given.clone().requires_grad_()
        for _ in range(300):
            (gradient,) = torch.autograd.grad(0.5 * (best - given).square().sum() + 1.6 * best.norm(), best)
            best = (best - 0.2 * gradient).detach().requires_grad_()
        torch.testing.assert_close(found, best.detach(), rtol=1e-8, atol=1e-10)


def test_the_gradient_of_group_lasso_is_that_of_its_penalty() -> None:
    case = CASES["fused attention"]
    model = prepared(case)
    expected = added(model, case, {})
    total = torch.zeros((), dtype=torch.float64)
    for group in case.groups:
        for unit in units(case, group):
            parts = [model.get_parameter(n).select(dim, p).flatten() for n, dim, p in slices(case, group, unit, True)]
            total = total + 0.3 * torch.cat(parts).norm()
    parameters = dict(model.named_parameters())
    for name, gradient in zip(
        parameters, torch.autograd.grad(total, list(parameters.values()), allow_unused=True), strict=True
    ):
        if gradient is not None:
            expected[name] += gradient
    GroupLassoRegularizer(source(model, case), reg=0.3).regularize(bias=True)
    same_gradients(model, expected)


def test_large_weights_are_squared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["residual stream with two batch norms"]
    model = prepared(case)
    members = GroupMembers(source(model, case))
    whole = members.norms()
    monkeypatch.setattr("prunekit_plugins.regularizers.blocks._ELEMENTS", 30)
    torch.testing.assert_close(members.norms(), whole, rtol=1e-14, atol=0)
    assert whole.tolist() == pytest.approx(norms(model, case, "conv1#stream"))


@pytest.mark.parametrize("name", CASES)
def test_large_weights_are_changed_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    found = []
    for elements in (2**17, 7):
        monkeypatch.setattr("prunekit_plugins.regularizers.blocks._ELEMENTS", elements)
        model = prepared(case)
        regularizer = GroupLassoRegularizer(source(model, case), reg=0.3)
        regularizer.regularize(bias=True)
        regularizer.proximal_step(lr=0.5, bias=True)
        found.append({n: (p.detach(), p.grad) for n, p in model.named_parameters()})
    whole, parts = found
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-15)
