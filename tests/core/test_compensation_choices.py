"""What compensation chooses, reports and refuses, against what is worked out here; and data of every poor kind."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunekit as pk
from prunekit_plugins.calibration import demand
from prunekit_plugins.compensation.least_squares import RIDGES, LeastSquares

HELD = 5


def solved(x: Tensor, goal: Tensor, start: Tensor, ridge: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The minimum of ``E|goal - W x - b|^2 + ridge s |W - start|^2``, by NumPy."""
    features, targets, weight = (t.detach().numpy() for t in (x, goal, start))
    mean, wanted = features.mean(0), targets.mean(0)
    a, b = features - mean, targets - wanted
    square = a.T @ a / len(a)
    regular = square + ridge * np.diag(square).mean() * np.eye(len(square))
    found = weight + np.linalg.solve(regular, a.T @ b / len(a) - square @ weight.T).T
    return found, wanted - found @ mean


def off(x: Tensor, goal: Tensor, weight: Any, bias: Any) -> float:
    error: float = ((x.detach().numpy() @ weight.T + bias - goal.detach().numpy()) ** 2).sum()
    return error


def two_layers(seed: int, examples: int) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    return model, torch.randn(examples, 6).double()


@pytest.mark.parametrize(("seed", "examples"), [(0, 20), (1, 20), (2, 30), (3, 60)])
def test_the_ridge_is_the_best_one_on_examples_that_were_held_out(seed: int, examples: int) -> None:
    model, x = two_layers(seed, examples)
    original, methods = copy.deepcopy(model), [LeastSquares(shrink=False)]
    result = pk.prune(model, x, ratio=0.5, calibration=list(x.split(20)), importance="random", compensation=methods)
    kept = list(result.plan.cuts[0].kept)
    hidden, goal = original[:2](x)[:, kept], original(x)
    held = torch.arange(examples) % HELD == HELD - 1
    start = original[2].weight[:, kept]

    def error(ridge: float) -> float:
        return off(hidden[held], goal[held], *solved(hidden[~held], goal[~held], start, ridge))

    coarse = min(RIDGES, key=error)
    beside = [RIDGES[place] for place in range(len(RIDGES)) if abs(place - RIDGES.index(coarse)) == 1]
    best = min([coarse, *((coarse * other) ** 0.5 for other in beside)], key=error)
    assert result.compensation is not None
    (layer,) = result.compensation.layers
    assert layer.detail == f"ridge {best:.0e}"
    # it is then fitted to all examples
    weight, bias = solved(hidden, goal, start, best)
    np.testing.assert_allclose(model[2].weight.detach().numpy(), weight, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(model[2].bias.detach().numpy(), bias, rtol=1e-8, atol=1e-10)


def test_held_out_examples_choose_other_ridges_than_fitted_ones_would() -> None:
    """On what it is fitted to, the least ridge is always the best: the choice above is one."""
    chosen = []
    for seed, examples in ((0, 20), (1, 20), (2, 30), (3, 60)):
        model, x = two_layers(seed, examples)
        result = pk.prune(model, x, ratio=0.5, calibration=[x], importance="random")
        assert result.compensation is not None
        chosen.append(result.compensation.layers[0].detail)
    assert len(set(chosen)) > 1
    assert f"ridge {min(RIDGES):.0e}" not in chosen


def test_what_is_worse_on_held_out_examples_is_left_and_told() -> None:
    """Fitted examples lie where the units that stay are constant; held-out ones lie elsewhere."""
    model, x = two_layers(0, 40)
    methods = [LeastSquares([1e-5], shrink=False)]
    original, scale = copy.deepcopy(model), torch.where(torch.arange(40) % HELD == HELD - 1, 3.0, 1e-3)
    data = x * scale[:, None].double()
    found = pk.prune(model, x, ratio=0.5, calibration=[data], importance="random", compensation=methods)
    done = found.compensation
    assert done is not None
    cut = found.plan.apply(copy.deepcopy(original)).state_dict()
    errors = []
    for state in (cut, model.state_dict()):
        kept = list(found.plan.cuts[0].kept)
        held = scale == 3.0
        hidden, goal = original[:2](data)[held][:, kept], original(data)[held]
        errors.append(off(hidden, goal, state["2.weight"].numpy(), state["2.bias"].numpy()))
    assert done.layers == ()
    assert done.left["2.weight"].startswith("least_squares would make it worse (error ")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in cut.items())
    kept = list(found.plan.cuts[0].kept)
    wrong = solved(original[:2](data)[scale < 1][:, kept], original(data)[scale < 1], cut["2.weight"], 1e-5)
    hidden, goal = original[:2](data)[scale > 1][:, kept], original(data)[scale > 1]
    assert off(hidden, goal, *wrong) > errors[0] == errors[1]


class Net(nn.Module):
    """A convolution in groups, a flatten, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 12, 3, groups=2, padding=1)
        self.pool, self.c, self.d = nn.AdaptiveAvgPool2d(2), nn.Linear(48, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.relu(self.norm(self.a(x))))
        result: Tensor = self.d(F.relu(self.c(self.pool(F.relu(x)).flatten(1))))
        return result


def read_and_put_out(model: nn.Module, x: Tensor, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, given, result, name=name: found.update({name: (given[0], result)})
        )
        for name in names
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def trained(make: Any, x: Tensor) -> Any:
    torch.manual_seed(1)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def test_errors_of_every_layer_are_those_that_hooks_see() -> None:
    """What a layer reads now and what it put out then: with its weights as cut, and with those that it was given."""
    torch.manual_seed(0)
    x = torch.randn(60, 3, 8, 8).double()
    model = trained(lambda: Net().double(), x)
    original = copy.deepcopy(model)
    result = pk.prune(model, x[:1], ratio=0.5, calibration=list(x.split(20)), reestimate_batchnorm=False)
    done = result.compensation
    assert done is not None
    names = [layer.consumer.removesuffix(".weight") for layer in done.layers]
    assert set(names) | {name.removesuffix(".weight") for name in done.left} == {"b", "c", "d"}
    assert len(names) >= 2
    cut = result.plan.apply(copy.deepcopy(original))
    kept = {entry.parameter: result.plan.positions(entry).get(0) for entry in result.plan.parameters}
    now, then = read_and_put_out(model, x, names), read_and_put_out(original, x, names)
    for layer, name in zip(done.layers, names, strict=True):
        goal, rows = then[name][1], kept[layer.consumer]
        goal = goal if rows is None else goal[:, rows]
        errors = []
        for state in (cut, model):
            wrong = (state.get_submodule(name)(now[name][0]) - goal).detach()
            dims = [d for d in range(goal.dim()) if d != 1]
            errors.append(float(wrong.square().sum() / (goal - goal.mean(dims, keepdim=True)).square().sum()))
        assert (layer.before, layer.after) == pytest.approx(errors, rel=0.1)  # theirs is a mean over two parts
        assert errors[1] <= errors[0]


def test_every_default_has_a_switch_of_its_own() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 3, 8, 8)
    model = trained(Net, x)

    def pruned(**options: Any) -> tuple[pk.PruneResult, dict[str, Tensor]]:
        small = copy.deepcopy(model)
        return pk.prune(small, x[:1], target={"macs": 0.5}, calibration=[x], **options), small.state_dict()

    def cut_of(result: pk.PruneResult) -> dict[str, Tensor]:
        return result.plan.apply(copy.deepcopy(model)).state_dict()

    def changed(result: pk.PruneResult, state: dict[str, Tensor]) -> set[str]:
        return {name for name, tensor in cut_of(result).items() if not torch.equal(tensor, state[name])}

    statistics = {"norm.running_mean", "norm.running_var"}
    both = changed(*pruned(compensation="bias"))
    assert both - statistics
    assert not changed(*pruned(compensation="bias", reestimate_batchnorm=False)) & statistics
    assert changed(*pruned(compensation=None)) <= statistics
    assert not changed(*pruned(compensation=None, reestimate_batchnorm=False))


def test_criterion_and_allocation_have_switches() -> None:
    """Half of the inputs are nothing but a mean, so that data and weights say different things."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 3))
    x = torch.randn(60, 8) * torch.tensor([1.0] * 4 + [0.0] * 4) + 2 * torch.randn(8)

    def kept(**options: Any) -> Any:
        return pk.prune(copy.deepcopy(model), x[:1], target={"macs": 0.5}, **options).plan.kept

    data: dict[str, Any] = {"calibration": [x], "compensation": None, "reestimate_batchnorm": False}
    assert kept(importance="magnitude", allocation="uniform", **data) == kept()
    assert kept(importance="magnitude", **data) == kept(allocation="global")
    assert kept(allocation="uniform", **data) == kept(importance="calibrated", allocation="uniform", **data)
    plans = [kept(), kept(allocation="global"), kept(**data), kept(allocation="uniform", **data)]
    assert all(plans[i] != plans[j] for i in range(4) for j in range(i))


class Queries(nn.Module):
    """Grouped-query attention, a norm and a feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.q, self.k, self.v = nn.Linear(16, 16, bias=False), nn.Linear(16, 8), nn.Linear(16, 8, bias=False)
        self.o, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q = self.q(x).unflatten(-1, (4, 4)).transpose(1, 2)
        k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        x = self.norm(x + self.o(y.transpose(1, 2).flatten(2)))
        result: Tensor = self.head(x + self.down(F.gelu(self.up(x))))
        return result


def poor(kind: str, x: Tensor) -> list[Tensor]:
    made = x.clone()
    if kind == "one sample":
        return [made[:1]]
    if kind == "constant":
        return [torch.full_like(made, 0.5)]
    if kind == "singular":
        return [made[:1] * torch.linspace(-1, 1, len(x)).reshape(-1, *[1] * (x.dim() - 1))]
    made[3] = {"skewed": 1e3, "not a number": float("nan"), "infinite": float("inf")}[kind]
    if kind == "skewed":
        made[:3] *= 0.01
        made[4:] *= 0.01
    return [made]


TOLD = {
    "one sample": "a poor estimate",
    "constant": "a poor estimate",
    "singular": "",
    "skewed": "one example makes up",
    "not a number": "not finite",
    "infinite": "not finite",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOLD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [Net, Queries])
def test_poor_data_in_every_precision(make: type[nn.Module], dtype: torch.dtype, kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(24, 3, 8, 8) if make is Net else torch.randn(24, 5, 6)
    model = make().eval().to(dtype)
    batches = [batch.to(dtype) for batch in poor(kind, x)]
    result = pk.prune(
        model, x[:1].to(dtype), ratio=0.5, calibration=batches, prune_num_heads=True, head_pruning_ratio=0.5
    )
    done = result.compensation
    assert done is not None
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    assert {tensor.dtype for tensor in model.parameters()} == {dtype}
    assert all(layer.after <= layer.before for layer in done.layers)
    assert bool(model(x.to(dtype)).isfinite().all())
    if TOLD[kind]:
        assert any(TOLD[kind] in note for note in done.notes)
        assert any(TOLD[kind] in note for note in result.report.notes)
        assert "poor data: " in str(result)


def test_not_a_number_that_arises_inside_is_told() -> None:
    class Logs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.c(F.relu(self.b(torch.log(4 + self.a(x)))))
            return result

    torch.manual_seed(0)
    model, x = Logs(), torch.randn(200, 4)
    x[7] *= 100
    assert not bool(model(x).isfinite().all())
    result = pk.prune(model, x[:1], ratio=0.5, calibration=[x], importance="activation_variance")
    assert result.compensation is not None
    assert "b.weight: 1 of 200 samples not finite" in result.compensation.notes
    told = {*(layer.consumer for layer in result.compensation.layers), *result.compensation.left}
    assert told == {"b.weight", "c.weight"}
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def twice() -> nn.Module:
    """Units 0 and 1 are the same and vary most: by variance both stay, for least squares one is enough."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight[:2] = 1.0
        model[0].bias[:2] = 0.0
    return model


@pytest.mark.parametrize(("short", "kept"), [(0, 1), (1, 2)])
def test_covariances_that_do_not_fit_are_left_out_and_told(
    short: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that read 4 and 6 features have 16 and 36 covariances of 8 bytes."""
    monkeypatch.setattr(demand, "ROOM", 8 * (16 + 36) - short)
    x = torch.randn(6000, 4)
    result = pk.prune(twice(), x[:1], 0.5, calibration=[x], compensation=None)
    assert len({0, 1} & set(result.plan.kept["0"])) == kept
    told = [note for note in result.report.notes if note.startswith("units are chosen by variances: ")]
    assert len(told) == short
