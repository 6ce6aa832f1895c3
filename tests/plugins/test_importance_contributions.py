"""Criteria from statistics, against what removing a unit really does to the outputs of its consumers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.importance import (
    ActivationEnergyImportance,
    ActivationVarianceImportance,
    ReconstructionImportance,
    WandaImportance,
)


def group_of(model: nn.Module, inputs: torch.Tensor, name: str) -> pk.Group:
    graph = pk.DependencyGraph().build_dependency(model, inputs)
    return next(group for group in graph.get_all_groups() if group.name == name)


def mlp() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).double(), torch.randn(40, 4).double() + 0.5


def test_energy_and_variance_are_the_changes_of_the_output() -> None:
    model, x = mlp()
    statistics = pk.calibrate(model, x.split(7))
    group = group_of(model, x, "0")
    hidden = model[1](model[0](x)).detach()
    changes = torch.stack([hidden[:, [c]] * model[2].weight.detach()[:, c] for c in range(6)])  # [units, samples, out]
    energy = ActivationEnergyImportance(statistics, normalizer=None)(group)
    assert energy is not None
    assert torch.allclose(energy, changes.square().sum(2).mean(1))
    varies = (changes - changes.mean(1, keepdim=True)).square().sum(2).mean(1)
    variance = ActivationVarianceImportance(statistics, normalizer=None)(group)
    assert variance is not None
    assert torch.allclose(variance, varies)
    wanda = WandaImportance(statistics, normalizer=None)(group)
    assert wanda is not None
    assert torch.allclose(wanda, changes.square().mean(1).sqrt().sum(1))


def test_convolution_and_flatten_count_every_tap_and_column() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3)
    ).double()
    x = torch.randn(5, 2, 6, 6).double()
    statistics = pk.calibrate(model, [x])
    score = ActivationEnergyImportance(statistics, normalizer=None)
    first = model[1](model[0](x)).detach()
    second = model[3](model[2](first)).detach()
    columns = torch.nn.functional.unfold(first, 3, padding=1).transpose(1, 2).flatten(0, 1).square().mean(0)
    energies = (columns * model[2].weight.detach().flatten(1).square().sum(0)).reshape(4, 9).sum(1)
    found = score(group_of(model, x, "0"))
    assert found is not None
    assert torch.allclose(found, energies)
    flat = second.flatten(1).square().mean(0) * model[5].weight.detach().square().sum(0)
    found = score(group_of(model, x, "2"))
    assert found is not None
    assert torch.allclose(found, flat.reshape(6, 16).sum(1))


class GroupedQueries(nn.Module):
    """Two key-value heads, each shared by two query heads, of three dims."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(8, 12), nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(12, 8)

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (4, 3)).transpose(1, 2)
        k, v = (p(x).unflatten(-1, (2, 3)).transpose(1, 2) for p in (self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return y.transpose(1, 2).flatten(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.mixed(x))


def test_key_value_heads_add_up_the_queries_that_share_them() -> None:
    torch.manual_seed(0)
    model, x = GroupedQueries().double(), torch.randn(3, 5, 8).double()
    statistics = pk.calibrate(model, [x])
    graph = pk.DependencyGraph().build_dependency(model, x)
    heads = next(g for g in graph.groups() if g.kind is pk.Kind.HEADS)
    values = model.mixed(x).detach().flatten(0, 1).square().mean(0) * model.o.weight.detach().square().sum(0)
    found = ActivationEnergyImportance(statistics, normalizer=None)(graph.whole_group(heads.name))
    assert found is not None
    assert torch.allclose(found, values.reshape(2, 6).sum(1))


def test_packed_projections_add_up_their_parts() -> None:
    torch.manual_seed(0)
    multihead, x = nn.Sequential(nn.Linear(10, 16), Self(16)).double(), torch.randn(2, 6, 10).double()
    statistics = pk.calibrate(multihead, [x])
    assert [name for name in statistics.sites if "in_proj" in name] == [
        f"1.attention.in_proj_weight[{a}:{a + 16}]" for a in (0, 16, 32)
    ]
    graph = pk.DependencyGraph().build_dependency(multihead, x)
    stream = next(g for g in graph.groups() if any(m.parameter == "0.weight" for m in g.members))
    h = multihead[0](x).detach().flatten(0, 1)
    expected = h.square().mean(0) * multihead[1].attention.in_proj_weight.detach().square().sum(0)
    found = ActivationEnergyImportance(statistics, normalizer=None)(graph.whole_group(stream.name))
    assert found is not None
    assert torch.allclose(found, expected)


class Self(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def test_units_without_a_consumer_have_no_score() -> None:
    torch.manual_seed(0)
    model, x = GroupedQueries(), torch.randn(3, 5, 8)
    statistics = pk.calibrate(model, [x])
    graph = pk.DependencyGraph().build_dependency(model, x)
    inner = [g for g in graph.groups() if g.kind is pk.Kind.HEAD_DIM and all(m.module != "o" for m in g.members)]
    assert [ActivationEnergyImportance(statistics)(graph.whole_group(g.name)) for g in inner] == [None]


def best_without(weight: torch.Tensor, square: torch.Tensor, gone: list[int]) -> float:
    """The least of ``tr((V - W) H (V - W)^T)`` over all V without some columns, by solving for the others."""
    kept = [k for k in range(len(square)) if k not in gone]
    change = torch.linalg.solve(square[kept][:, kept], square[kept][:, gone] @ weight[:, gone].T).T
    update = torch.zeros_like(weight)
    update[:, kept], update[:, gone] = change, -weight[:, gone]
    return float(torch.einsum("of,fg,og->", update, square, update))


def regular(square: torch.Tensor, ridge: float) -> torch.Tensor:
    variances = square.diagonal()
    return square + (ridge * variances.clamp(max=variances.mean()) + 1e-6 * variances.mean()).diag()


def test_reconstruction_does_not_hang_on_the_scale_of_a_neuron() -> None:
    """A neuron whose input weights are multiplied and whose output weights are divided computes the same."""
    model, x = mlp()
    model[1] = nn.ReLU()
    other, factors = copy.deepcopy(model), torch.tensor([1, 1, 9, 1, 0.3, 1]).double()
    for part in (other[0].weight.data, other[0].bias.data):
        part.mul_(factors.reshape(-1, *[1] * (part.dim() - 1)))
    other[2].weight.data.div_(factors)
    torch.testing.assert_close(other(x), model(x))
    scores = []
    for one in (model, other):
        statistics = pk.calibrate(one, [x], parts=("covariances",))
        criterion = ReconstructionImportance(statistics, normalizer=None, rounds=6, shrink=False)
        scores.append(criterion(group_of(one, x, "0")))
    assert scores[0] is not None
    torch.testing.assert_close(scores[1], scores[0], rtol=0.02, atol=1e-3 * float(scores[0].max()))


def test_reconstruction_is_what_the_best_update_leaves() -> None:
    model, x = mlp()
    statistics = pk.calibrate(model, [x], parts=("covariances",))
    group = group_of(model, x, "0")
    found = ReconstructionImportance(statistics, normalizer=None, ridge=0.05, rounds=6, shrink=False)(group)
    assert found is not None
    hidden = model[1](model[0](x)).detach()
    square = torch.cov(hidden.T, correction=0)
    square = regular(square, 0.05)
    gone: list[int] = []
    total = floor = 0.0
    for _ in range(6):
        added = {
            u: best_without(model[2].weight.detach(), square, [*gone, u]) - total for u in range(6) if u not in gone
        }
        unit = min(added, key=lambda u: added[u])
        floor = max(floor, added[unit])
        assert found[unit].item() == pytest.approx(floor, rel=1e-6)
        gone.append(unit)
        total += added[unit]


def test_reconstruction_of_units_with_several_columns() -> None:
    """A channel is four columns of the flattened layer; one round scores each as if it went alone."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3)
    ).double()
    x = torch.randn(80, 2, 6, 6).double()
    statistics = pk.calibrate(model, [x], parts=("covariances",))
    found = ReconstructionImportance(statistics, normalizer=None, rounds=1, shrink=False)(group_of(model, x, "0"))
    assert found is not None
    square = torch.cov(model[:4](x).detach().T, correction=0)
    square = regular(square, 0.01)
    for unit in range(5):
        columns = list(range(4 * unit, 4 * unit + 4))
        assert found[unit].item() == pytest.approx(best_without(model[4].weight.detach(), square, columns), rel=1e-6)


def test_of_units_that_repeat_one_stays() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3)).double(), torch.randn(200, 4).double()
    for part in (model[0].weight.data, model[0].bias.data):
        part[6:] = part[:6]
    statistics = pk.calibrate(model, [x], parts=("covariances",))
    scores = ReconstructionImportance(statistics, rounds=12, ridge=1e-6, shrink=False)(group_of(model, x, "0"))
    assert scores is not None
    kept = scores.argsort()[6:]
    assert sorted((kept % 6).tolist()) == list(range(6))


def test_what_is_missing_is_told() -> None:
    model, x = mlp()
    group = group_of(model, x, "0")
    with pytest.raises(pk.ArgumentError, match="The criterion has no statistics"):
        ActivationEnergyImportance()(group)
    slopes = pk.calibrate(model, [x], parts=("gradients",), loss_fn=lambda outputs, batch: outputs.mean())
    with pytest.raises(pk.ArgumentError, match="The statistics have no moments"):
        WandaImportance(slopes)(group)
    statistics = pk.calibrate(model, [x])
    pruner = pk.BasePruner(model, x, importance=ActivationVarianceImportance(statistics), iterative_steps=2)
    pruner.step()
    with pytest.raises(pk.ArgumentError, match="The model was pruned since its statistics were gathered"):
        pruner.step()
