"""Compensation, against gradients of the objective through the real layers, and against what must hold exactly."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.compensation import BatchNormStatistics, ConstantUnits, LeastSquares, MeanBias
from prunekit_plugins.importance import CalibratedImportance
from tests.models import Encoder

RIDGE = 1e-3


def cut(model: nn.Module, x: Any, ratio: float = 0.5, **options: Any) -> tuple[nn.Module, pk.PruneResult]:
    original = copy.deepcopy(model)
    return original, pk.prune(model, x, ratio=ratio, **options)


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2, padding=1))


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 3, padding=1, groups=2))


def transposed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, groups=2))


def flattened() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3))


def no_bias() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False))


class Product(nn.Module):
    """``x @ W`` and a gated unit, with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(3, 8))
        self.down, self.bias = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean((2, 3))
        return torch.addmm(self.bias, (x @ self.up) * F.silu(x @ self.gate), self.down)


KINDS = (conv, grouped, transposed, flattened, no_bias, Product)


@pytest.mark.parametrize("build", KINDS, ids=lambda build: build.__name__)
def test_least_squares_is_where_the_gradient_vanishes(build: Any) -> None:
    """The last layer's outputs are those of the model: autograd through it must find a minimum of the objective."""
    torch.manual_seed(0)
    model, x = build().double().eval(), torch.randn(40, 3, 9, 9).double()
    original, result = cut(model, x[:1], importance="random")
    name = list(dict(model.named_parameters()))[-2 if build is not no_bias else -1]
    name = "down" if build is Product else name
    weight = dict(model.named_parameters())[name]
    start = weight.detach().clone()
    found = pk.compensate(
        model, result.plan, [x], original=original, methods=[LeastSquares([RIDGE], shrink=False)], stages=1
    )
    (layer,) = found.layers
    assert layer.consumer == name
    fit = x
    goal = original(fit).detach()
    scale = penalty(model, fit, name, movable=build is not no_bias)
    bias = "bias" if build is Product else name.replace("weight", "bias")
    parameters = [p for n, p in model.named_parameters() if n in (name, bias)]

    def steepest() -> float:
        drift = (weight - start).square().reshape(len(scale), -1).sum(1)
        loss = (model(fit) - goal).square().sum() * goal.shape[1] / goal.numel()
        gradients = torch.autograd.grad(loss + RIDGE * (scale * drift).sum(), parameters)
        return max(float(gradient.abs().max()) for gradient in gradients)

    assert steepest() < 1e-9
    weight.data.add_(1e-4)
    assert steepest() > 1e-7


def penalty(model: nn.Module, fit: torch.Tensor, name: str, *, movable: bool) -> torch.Tensor:
    """Mean second moment of a feature, per group: the scale of the ridge, from columns made by PyTorch."""
    if isinstance(model, Product):
        x = fit.mean((2, 3))
        columns = ((x @ model.up) * F.silu(x @ model.gate))[None]
    else:
        layer, values = model[-1], model[:-1](fit)
        if isinstance(layer, nn.Linear):
            columns = values[None]
        elif isinstance(layer, nn.ConvTranspose2d):
            pieces = []
            for c in range(values.shape[1]):  # each tap's share of an output is the response to a kernel of one tap
                for tap in range(9):
                    kernel = torch.zeros(1, 1, 3, 3).double()
                    kernel.view(-1)[tap] = 1
                    one = F.conv_transpose2d(values[:, c : c + 1], kernel, stride=2, padding=1)
                    pieces.append(one.flatten())
            columns = torch.stack(pieces, 1).reshape(len(pieces[0]), 2, -1).transpose(0, 1)
        else:
            unfolded = F.unfold(values, 3, padding=layer.padding, stride=layer.stride)
            samples = unfolded.transpose(1, 2).flatten(0, 1)
            columns = samples.reshape(len(samples), layer.groups, -1).transpose(0, 1)
    centred = columns - columns.mean(1, keepdim=True) if movable else columns
    return centred.square().mean(1).mean(1).detach()


def test_it_is_the_formula_with_removed_and_kept_units() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)).double(), torch.randn(50, 5).double()
    original, result = cut(model, x)
    kept = list(result.plan.cuts[0].kept)
    gone = [unit for unit in range(8) if unit not in kept]
    pk.compensate(model, result.plan, [x], original=original, methods=[LeastSquares([RIDGE], shrink=False)])
    hidden = original[1](original[0](x)).detach()
    mean = hidden.mean(0)
    covariance = torch.cov(hidden.T, correction=0)
    inner = covariance[kept][:, kept]
    inner = inner + RIDGE * inner.diagonal().mean() * torch.eye(len(kept)).double()
    b = torch.linalg.solve(inner, covariance[kept][:, gone])
    weight, bias = original[2].weight.detach(), original[2].bias.detach()
    assert torch.allclose(model[2].weight, weight[:, kept] + weight[:, gone] @ b.T)
    assert torch.allclose(model[2].bias, bias + weight[:, gone] @ (mean[gone] - b.T @ mean[kept]))


@pytest.mark.parametrize("stages", [1, 2, None])
def test_units_that_repeat_cost_nothing(stages: int | None) -> None:
    """Every unit has a twin, so half of them can do the work of all, in every layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    for layer in (model[0], model[2]):
        layer.weight.data[6:], layer.bias.data[6:] = layer.weight.data[:6] * 2, layer.bias.data[:6] * 2
    x = torch.randn(200, 4).double()
    original, result = cut(model, x, importance=lambda group: torch.arange(12.0).flip(0))
    assert not torch.allclose(model(x), original(x), atol=1e-3)
    methods = [LeastSquares([1e-9])]
    found = pk.compensate(model, result.plan, list(x.split(16)), original=original, methods=methods, stages=stages)
    assert torch.allclose(model(x), original(x), atol=1e-5)
    assert [layer.consumer for layer in found.layers] == ["2.weight", "4.weight"]
    assert found.output_error[1] < 1e-9 < found.output_error[0]


def test_later_layers_are_fitted_to_what_earlier_ones_now_produce() -> None:
    torch.manual_seed(0)
    layers = [module for _ in range(5) for module in (nn.Linear(16, 16), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(16, 4)).double()
    x = torch.randn(400, 16).double()
    original, result = cut(model, x)
    together, apart = copy.deepcopy(model), copy.deepcopy(model)
    once = pk.compensate(together, result.plan, [x], original=original, methods="least_squares", stages=1)
    each = pk.compensate(apart, result.plan, [x], original=original, methods="least_squares")
    assert each.output_error[1] < 0.9 * once.output_error[1]
    assert once.output_error[1] < once.output_error[0]


def test_dead_neurons_are_moved_into_the_bias_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    model[0].weight.data[4:] = 0
    x = torch.randn(20, 3, 9, 9).double()
    original, result = cut(model, x[:1], importance="magnitude", ignored_layers=[model[2]])
    unseen = torch.randn(7, 3, 9, 9).double()
    assert not torch.allclose(model(unseen), original(unseen))
    found = pk.compensate(model, result.plan, [x], original=original, methods=["constant_units"])
    assert torch.allclose(model(unseen), original(unseen), atol=1e-12)
    assert found.layers[0].detail == "36 of 36 removed inputs are constant"


def test_units_that_vary_are_not_called_constant() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2)), torch.randn(30, 4)
    original, result = cut(model, x)
    before = copy.deepcopy(model.state_dict())
    found = pk.compensate(model, result.plan, [x], original=original, methods=[ConstantUnits()])
    assert found.left == {"2.weight": "constant_units: no removed unit is constant"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bias_moves_the_mean_of_what_is_gone() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double(), torch.randn(35, 4).double()
    original, result = cut(model, x)
    gone = [unit for unit in range(6) if unit not in result.plan.cuts[0].kept]
    pk.compensate(model, result.plan, [x], original=original, methods=[MeanBias()])
    fit = x
    mean = original[1](original[0](fit)).detach().mean(0)
    expected = original[2].bias.detach() + original[2].weight.detach()[:, gone] @ mean[gone]
    assert torch.allclose(model[2].bias, expected)
    kept = list(result.plan.cuts[0].kept)
    assert torch.equal(model[2].weight, original[2].weight[:, kept])


class Normed(nn.Module):
    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, bias=False)
        self.norm, self.twice = nn.BatchNorm2d(4), twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.a(x).relu())
        return self.norm(y) + y if self.twice else self.norm(y).relu()


def test_without_a_bias_the_mean_of_the_next_norm_moves() -> None:
    torch.manual_seed(0)
    model, x = Normed(twice=False).double().eval(), torch.randn(30, 3, 7, 7).double()
    original, result = cut(model, x[:1])
    plain = copy.deepcopy(model)
    pk.compensate(model, result.plan, [x], original=original, methods=["bias"])
    assert not torch.equal(model.norm.running_mean, original.norm.running_mean)
    fit = x
    goal = original.b(original.a(fit).relu()).mean((0, 2, 3)) - original.norm.running_mean
    now = model.b(model.a(fit).relu()).mean((0, 2, 3)) - model.norm.running_mean
    assert torch.allclose(now, goal)
    assert torch.equal(model.b.weight, plain.b.weight)


def test_a_mean_that_is_not_all_that_reads_the_outputs_stays() -> None:
    torch.manual_seed(0)
    model, x = Normed(twice=True).double().eval(), torch.randn(30, 3, 7, 7).double()
    original, result = cut(model, x[:1])
    found = pk.compensate(model, result.plan, [x], original=original, methods=["bias"])
    assert found.left == {"b.weight": "bias: it has no bias, and no norm subtracts a mean from all that it puts out"}
    found = pk.compensate(model, result.plan, [x], original=original, methods=["least_squares"])
    assert [layer.consumer for layer in found.layers] == ["b.weight"]
    assert torch.equal(model.norm.running_mean, original.norm.running_mean)


def test_batch_norms_are_estimated_anew() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.Flatten(2)).double()
    x = torch.randn(64, 3, 7, 7).double()
    with torch.no_grad():
        for _ in range(60):
            model.train()(x)
    model.eval()
    original, result = cut(model, x[:1], max_pruning_ratio=0.4, ignored_layers=[model[2]])
    found = pk.compensate(model, result.plan, x.split(32), original=original, methods=["batchnorm"])
    values = model[2](model[1](model[0](x))).detach()
    halves = torch.stack([half.var((0, 2, 3)) for half in values.split(32)])
    old = original[3].running_mean, original[3].running_var
    parts = [0.25, 0.5, 0.75, 1.0]  # a part of the change, which the second batch chooses
    means = [torch.lerp(old[0], values.mean((0, 2, 3)), part) for part in parts]
    (part,) = [p for p, mean in zip(parts, means, strict=True) if torch.allclose(model[3].running_mean, mean)]
    assert torch.allclose(model[3].running_var, torch.lerp(old[1], halves.mean(0), part))
    assert int(model[3].num_batches_tracked) == 60
    assert found.layers[0].after < found.layers[0].before


def test_attention_is_compensated_with_its_temperature() -> None:
    """Rows of q are scaled when the head dim shrinks; the targets follow, so least squares doesn't undo it."""
    torch.manual_seed(0)
    model = Encoder().double().eval()
    x = torch.randn(80, 6, 10).double()
    original, result = cut(model, x[:2], ratio=0.25)
    assert result.plan.rescales
    before = copy.deepcopy(model)
    found = pk.compensate(model, result.plan, list(x.split(20)), original=original, methods=["least_squares"])
    assert found.output_error[1] < 0.2 * found.output_error[0]
    after = model.attention[0].qkv.weight.detach()
    rows = len(after) // 3
    grown = after[:rows].norm() / before.attention[0].qkv.weight.detach()[:rows].norm()
    assert 0.8 < float(grown) < 1.6


class Self(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(5, 12), nn.MultiheadAttention(12, 3, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def test_rows_that_are_rescaled_are_rescaled_once() -> None:
    """The weights that are scaled in place lie in memory that the model and its twin share."""
    torch.manual_seed(3)
    model = Encoder().eval()
    original, data = copy.deepcopy(model), [torch.randn(8, 6, 10)]
    # nothing is constant, so that compensation changes nothing, and the plain cut is left
    result = pk.prune(
        model, data[0][:1], ratio=0.5, calibration=data, compensation="constant_units", reestimate_batchnorm=False
    )
    assert result.plan.rescales
    assert result.compensation is not None
    assert result.compensation.layers == ()
    cut = result.plan.apply(copy.deepcopy(original)).state_dict()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in cut.items())
    # the error that is told is that of the plain cut to the original
    with torch.no_grad():
        expected = original(data[0])
        error = (model(data[0]) - expected).square().sum() / expected.square().sum()
    assert result.compensation.output_error == pytest.approx((error.item(), error.item()), rel=1e-5)


def test_packed_projections_of_multihead_attention() -> None:
    torch.manual_seed(0)
    model, x = Self().eval(), torch.randn(60, 7, 5)
    original, result = cut(model, x[:2], ratio=0.34)
    found = pk.compensate(model, result.plan, [x], original=original)
    assert len([layer for layer in found.layers if "in_proj_weight[" in layer.consumer]) == 3
    assert {"attention.out_proj.weight", "head.weight"} <= {layer.consumer for layer in found.layers}
    assert found.output_error[1] < 0.2 * found.output_error[0]
    assert all(layer.after <= layer.before for layer in found.layers)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(20, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        return self.head(x + self.down(self.up(x).relu()))


def test_tied_weights_are_left_alone() -> None:
    torch.manual_seed(0)
    model, ids = Tied(), torch.randint(20, (40, 6))
    original, result = cut(model, ids[:2])
    assert any(c.parameter == "embed.weight" for c in result.plan.parameters)
    before = model.embed.weight.detach().clone()
    found = pk.compensate(model, result.plan, [ids], original=original)
    assert found.left["embed.weight"].startswith("its weight has other uses: aten::embedding")
    assert torch.equal(model.embed.weight, before)
    assert model.head.weight is model.embed.weight
    assert {"up.weight", "down.weight"} == {layer.consumer for layer in found.layers}


def test_shared_layers_are_fitted_to_all_their_uses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(6, 12), nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.a(x[:, :4]).relu()) + self.c(self.b(x[:, 4:]).tanh())

    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(90, 10).double()
    original, result = cut(model, x)
    found = pk.compensate(model, result.plan, [x], original=original, methods=[LeastSquares([1e-6])])
    assert [layer.consumer for layer in found.layers] == ["c.weight"]
    assert found.layers[0].after < found.layers[0].before
    fit = x
    both = [model.a(fit[:, :4]).relu(), model.b(fit[:, 4:]).tanh()]
    kept = [original.a(fit[:, :4]).relu(), original.b(fit[:, 4:]).tanh()]
    source = torch.cat([torch.cat(both), torch.ones(len(fit) * 2, 1)], 1).detach()
    goal = original.c(torch.cat(kept)).detach()
    best = torch.linalg.lstsq(source, goal).solution.T
    assert torch.allclose(model.c.weight, best[:, :-1], atol=1e-3)


def test_nothing_is_made_worse() -> None:
    """A compensator that gives nonsense is refused layer by layer, and the model stays as it was cut."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(40, 4)
    original, result = cut(model, x)
    before = copy.deepcopy(model.state_dict())

    def nonsense(repair: plugin.Repair) -> None:
        for problem in repair.layers():
            assert not repair.settle(problem, problem.weight * 9, problem.offset)
            assert not repair.settle(problem, problem.weight * float("nan"), problem.offset)

    found = pk.compensate(model, result.plan, [x], original=original, methods=[nonsense])
    assert not found.layers
    assert found.left == {"2.weight": "function: the solution is not finite"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_compensated_model_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Normed(twice=False).eval(), torch.randn(30, 3, 7, 7)
    fresh = copy.deepcopy(model)
    result = pk.prune(model, x[:1], ratio=0.5, calibration=[x])
    pk.save(model, tmp_path / "m.safetensors", plan=result.plan)
    loaded = pk.load(fresh, tmp_path / "m.safetensors")
    assert torch.equal(loaded(x), model(x))


# -- prune(..., calibration=...)


@pytest.mark.slow
def test_prune_with_calibration_does_all_of_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 4),
    ).eval()
    x = torch.randn(60, 3, 7, 7)
    goal = model(x).detach()
    errors = {}
    for name, options in {
        "plain": {},
        "all": {"calibration": [x], "allocation": "uniform"},
        "default": {"calibration": [x]},
        "no compensation": {"calibration": [x], "compensation": None, "reestimate_batchnorm": False},
        "magnitude": {"calibration": [x], "importance": "magnitude"},
    }.items():
        pruned = copy.deepcopy(model)
        result = pk.prune(pruned, x[:1], target={"macs": 0.5}, **options)
        errors[name] = float((pruned(x) - goal).detach().square().mean())
        assert (result.compensation is not None) == (name in ("all", "default", "magnitude"))
    assert errors["default"] < errors["plain"]
    assert errors["all"] < 0.5 * errors["plain"]
    assert errors["magnitude"] < errors["plain"]
    assert errors["no compensation"] != errors["plain"]


def test_the_report_tells_what_compensation_did() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(400, 4)
    result = pk.prune(model, x, ratio=0.5, calibration=[x], compensation=["bias", "least_squares"])
    text = str(result)
    assert result.compensation is not None
    assert "compensated: 2 layers, output error" in text
    assert "2.weight: bias, error" in text
    assert "2.weight: least_squares, error" in text


def test_a_forward_fn_and_targets_in_batches() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(40, 4)
    batches = [{"x": part, "y": part.sum(1)} for part in x.split(10)]
    result = pk.prune(
        model, batches[0], ratio=0.5, forward_fn=lambda model, batch: model(batch["x"]), calibration=batches
    )
    assert result.compensation is not None
    assert len(result.compensation.layers) == 1


# -- bad input


def test_one_sample_is_told_and_gives_no_nan() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(1, 4)
    result = pk.prune(model, x, ratio=0.5, calibration=[x])
    assert all(bool(t.isfinite().all()) for t in model.state_dict().values())
    assert result.compensation is not None
    assert result.compensation.layers == ()
    left = result.compensation.left
    assert left.keys() == {"3.weight", "batch norms"}
    assert all("one alone says nothing about others" in why for why in left.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype), torch.randn(90, 6).to(dtype)
    original, result = cut(model, x)
    found = pk.compensate(model, result.plan, [x], original=original)
    assert model[2].weight.dtype is dtype
    assert found.layers[0].after < 0.7 * found.layers[0].before
    assert found.output_error[1] < found.output_error[0]


def skewed() -> torch.Tensor:
    x = torch.zeros(30, 4)
    x[7] = 1e4
    return x


@pytest.mark.parametrize(
    "batches",
    [
        [torch.ones(30, 4)],
        [skewed()],
        [torch.cat([torch.randn(20, 4), torch.full((3, 4), float("nan"))])],
        [torch.cat([torch.randn(20, 4), torch.full((1, 4), float("inf"))])],
        [torch.randn(1, 4) for _ in range(9)],
    ],
    ids=["one point", "skewed", "nan", "inf", "batches of one"],
)
def test_poor_data_give_no_nan(batches: Sequence[torch.Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    result = pk.prune(model, torch.randn(2, 4), ratio=0.5, calibration=batches)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert result.compensation is not None
    for layer in result.compensation.layers:
        assert layer.after <= layer.before
    assert all(math.isfinite(error) for error in result.compensation.output_error)
    assert result.compensation.output_error[1] <= result.compensation.output_error[0]


def test_doubtful_estimates_are_told() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
    batches = [torch.cat([torch.randn(20, 4), torch.full((3, 4), float("nan"))])]
    result = pk.prune(model, torch.randn(2, 4), ratio=0.5, calibration=batches)
    assert result.compensation is not None
    assert result.compensation.notes == (
        "2.weight: 3 of 23 samples not finite",
        "2.weight: 20 samples for a covariance of 6 features: a poor estimate; 4 more examples would do",
    )
    assert "poor data: 2.weight: 20 samples" in str(result)
    assert "2.weight: 3 of 23 samples not finite" in result.report.notes


def test_good_data_raise_no_doubts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
    result = pk.prune(model, torch.randn(2, 4), ratio=0.5, calibration=[torch.randn(24, 4)])
    assert result.compensation is not None
    assert result.compensation.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("allocation", ["dp", "greedy", "global", "uniform", "estimated"])
def test_what_is_not_finite_spoils_no_allocation(allocation: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    good, small = torch.randn(40, 4), copy.deepcopy(model)
    bad = torch.cat([good, torch.full((1, 4), float("nan"))])
    options: dict[str, Any] = {"target": {"macs": 0.5}, "allocation": allocation}
    found = pk.prune(small, good, calibration=[bad], **options)
    told = "all layers count alike, for want of gradients: the gradients are not finite"
    assert any(told in note for note in found.report.notes)
    clean = pk.prune(model, good, calibration=[good], importance=CalibratedImportance(curvatures=False), **options)
    assert found.plan == clean.plan
    assert torch.allclose(small(good), model(good), atol=1e-4)


@pytest.mark.parametrize(
    ("batches", "options", "headline"),
    [
        ([], {}, "There are no calibration batches."),
        ([torch.randn(3, 5)], {}, "The model's forward pass raised on a calibration batch."),
        ([torch.full((3, 4), float("nan"))], {}, "Calibration data hold NaN or infinity."),
        ([torch.randn(3, 4)], {"compensation": ["least_square"]}, "No compensator is registered as 'least_square'."),
        (
            [torch.randn(3, 4)],
            {"compensation": [3]},
            "A compensator must be callable, or the name of a registered one.",
        ),
        ([torch.randn(3, 4)], {"stages": 0}, "stages must be a positive integer."),
        (torch.randn(3, 4), {}, "Calibration batches must be an iterable of batches."),
    ],
)
def test_bad_input_is_told_and_the_model_untouched(batches: Any, options: dict[str, Any], headline: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(pk.ArgumentError) as caught:
        pk.prune(model, torch.randn(2, 4), ratio=0.5, calibration=batches, **options)
    assert caught.value.headline == headline
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_original_is_told() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(40, 4)
    original, result = cut(model, x)
    with pytest.raises(pk.PlanError, match="The plan was made for another model"):
        pk.compensate(model, result.plan, [x], original=model)
    other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Linear(3, 3))
    with pytest.raises(pk.PlanError, match="doesn't run the program of the original"):
        pk.compensate(model, result.plan, [x], original=other)
    with pytest.raises(pk.ArgumentError, match="Ridges must be positive numbers"):
        LeastSquares([0.0])
    assert isinstance(original, nn.Sequential)
    assert BatchNormStatistics()


@pytest.mark.parametrize("importance", ["calibrated", "magnitude"])
def test_layers_whose_places_were_cut_as_well_are_left_alone(importance: str) -> None:
    """MLP-Mixer: what mixes tokens works at every channel, and fewer channels are left than the original has."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up, self.down, self.out = (nn.Linear(*n) for n in ((6, 12), (5, 20), (20, 5), (12, 3)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            x = x + self.down(self.up(x.mT).relu()).mT
            return self.out(x.mean(1))

    torch.manual_seed(0)
    model = Mixer()
    data = [torch.randn(32, 5, 6) for _ in range(3)]
    found = pk.prune(model, data[0], calibration=data, importance=importance).compensation
    assert found is not None
    assert list(found.left) == ["down.weight"]
    assert "the places at which it works were cut as well" in found.left["down.weight"]
    assert found.output_error[1] < found.output_error[0]
