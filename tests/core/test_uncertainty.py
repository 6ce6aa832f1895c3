"""How far covariances may be off, what is shrunk by it, and what few data may change."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit_plugins.calibration.moments import Gatherer, Moments, merge
from prunekit_plugins.compensation.held_out import HeldOut
from prunekit_plugins.importance import ReconstructionImportance


def moments(x: Tensor, examples: Tensor | None = None) -> Moments:
    gatherer = Gatherer(covariance=True)
    gatherer.add(x[None], examples=examples)
    found = gatherer.moments()
    assert found is not None
    return found


def chain(features: int, correlation: float = 0.7) -> Tensor:
    """A covariance in which neighbours resemble each other."""
    places = torch.arange(features).double()
    return correlation ** (places[:, None] - places[None]).abs()


def normal(count: int, covariance: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(count, len(covariance), dtype=torch.float64, generator=generator)
    return draws @ torch.linalg.cholesky(covariance).T


@pytest.mark.parametrize(("count", "features"), [(6, 4), (12, 30), (50, 8)])
def test_the_shrinkage_is_the_closed_form_of_schaefer_and_strimmer(count: int, features: int) -> None:
    x = normal(count, chain(features), 0)
    y = x.numpy() - x.numpy().mean(0)
    products = np.stack([np.outer(row, row) for row in y])
    covariance = products.mean(0)
    variances = ((products - covariance) ** 2).sum(0) / (count * (count - 1))
    beside = ~np.eye(features, dtype=bool)
    rho = min(1.0, variances[beside].sum() / (covariance[beside] ** 2).sum())
    found = moments(x)
    assert found.shrinkage == pytest.approx(rho, rel=1e-4)
    expected = covariance * (1 - rho) + np.diag(np.diag(covariance)) * rho
    assert np.allclose(found.shrunk(found.shrinkage)[0].numpy(), expected, atol=1e-4)


def test_samples_of_an_example_count_together() -> None:
    """Twenty images whose positions are all the same say as much as twenty samples."""
    x = normal(20, chain(10), 1)
    alone = moments(x)
    together = moments(x.repeat_interleave(50, 0), torch.arange(20).repeat_interleave(50))
    apart = moments(x.repeat_interleave(50, 0))
    assert together.count == 1000
    assert together.shrinkage == pytest.approx(alone.shrinkage, rel=1e-4)
    assert together.independent == pytest.approx(alone.independent, rel=1e-4)
    assert apart.independent > 30 * alone.independent


def test_unequal_examples_count_by_their_samples() -> None:
    x, sizes = normal(60, chain(5), 2), torch.tensor([1, 9, 20, 10, 4, 16])
    examples = torch.arange(6).repeat_interleave(sizes)
    found = moments(x, examples)
    y = x - x.mean(0)
    second = y.T @ y / 60
    sums = [part.T @ part for part in y.split(sizes.tolist())]
    whole = sum(float(total.square().sum()) for total in sums)
    whole -= float(sizes.double().square().sum() * second.square().sum())
    assert found.uncertainty is not None
    assert found.uncertainty.whole == pytest.approx(whole * 6 / 5 / 60**2, rel=1e-4)


@pytest.mark.parametrize("features", [2, 20])
def test_normal_samples_count_as_what_they_are(features: int) -> None:
    found = [moments(normal(100, chain(features), seed)).independent for seed in range(8)]
    assert 80 < sum(found) / len(found) <= 100


def test_a_single_example_is_shrunk_altogether() -> None:
    found = moments(normal(500, chain(4), 3), torch.zeros(500, dtype=torch.long))
    assert found.shrinkage == 1
    assert found.independent == 1


def test_lots_of_samples_are_joined() -> None:
    x = normal(200, chain(6), 4)
    whole, parts = moments(x), merge(moments(x[:120]), moments(x[120:]))
    assert parts.uncertainty is not None
    assert whole.uncertainty is not None
    assert parts.uncertainty.examples == 200
    assert parts.uncertainty.whole == pytest.approx(whole.uncertainty.whole, rel=0.05)
    twice = merge(moments(x), moments(x), apart=False)
    assert twice.uncertainty is not None
    assert twice.uncertainty.whole == pytest.approx(whole.uncertainty.whole, rel=1e-6)


def test_a_shrunk_covariance_is_nearer_to_that_of_the_population() -> None:
    population, errors = chain(40), np.zeros(3)
    for seed in range(20):
        found = moments(normal(20, population, seed))
        assert found.covariance is not None
        grid = [(found.shrunk(part)[0] - population).square().sum() for part in np.linspace(0, 1, 21)]
        chosen = (found.shrunk(found.shrinkage)[0] - population).square().sum()
        errors += [float(grid[0]), float(chosen), float(min(grid))]
    assert errors[1] < 0.6 * errors[0]
    assert errors[1] < 1.1 * errors[2]


def test_statistics_keep_their_uncertainty(tmp_path: Any) -> None:
    model = nn.Linear(6, 3)
    found = pk.calibrate(model, [torch.randn(9, 6)], parts=("covariances",))
    found.save(tmp_path / "statistics.safetensors")
    again = pk.Statistics.load(tmp_path / "statistics.safetensors")
    one, two = (statistics.sites["weight"].moments for statistics in (found, again))
    assert one.uncertainty is not None
    assert one.uncertainty == two.uncertainty
    assert one.shrinkage == two.shrinkage > 0


# -- damages


def damages(samples: int, features: int = 96, outputs: int = 24) -> tuple[float, float, float]:
    """What it costs to take three quarters of the units away: as scored, as the samples say, and in the population."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(features, features, bias=False), nn.Linear(features, outputs)).double()
    nn.init.eye_(model[0].weight)
    population = chain(features)
    x = normal(samples, population, 5)
    statistics = pk.calibrate(model, [x], parts=("covariances",))
    groups = pk.DependencyGraph().build_dependency(model, x[:1]).get_all_groups()
    (group,) = [group for group in groups if group.name == "0"]
    scores = ReconstructionImportance(statistics, normalizer=None)(group)
    assert scores is not None
    gone = scores.argsort()[: features * 3 // 4]
    stays = torch.ones(features, dtype=torch.bool).index_fill(0, gone, False)
    weight = model[1].weight.detach()[:, gone]

    def cost(covariance: Tensor) -> float:
        inner = covariance[stays][:, stays] + 1e-2 * torch.eye(int(stays.sum())).double()
        across = covariance[gone][:, stays]
        rest = covariance[gone][:, gone] - across @ torch.linalg.solve(inner, across.T)
        return float((weight @ rest @ weight.T).trace())

    return float(scores[gone].sum()), cost(torch.cov(x.T, correction=0)), cost(population)


def test_damages_from_fewer_samples_than_features_do_not_look_like_nothing() -> None:
    scored, sampled, true = damages(24)
    assert sampled < 0.1 * true  # what the samples alone say
    assert 0.3 * true < scored < 2 * true


def test_damages_from_many_samples_are_what_they_say() -> None:
    scored, sampled, true = damages(20_000)
    assert scored == pytest.approx(true, rel=0.1)
    assert scored == pytest.approx(sampled, rel=0.1)


# -- what is kept


class Regression(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(features, features), nn.Linear(features, 5)
        nn.init.eye_(self.first.weight)
        nn.init.zeros_(self.first.bias)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x))
        return result


def population_errors(samples: int, seed: int, compensation: Any = "least_squares") -> tuple[float, float]:
    """The error on the whole population after the plain cut, and after a repair on a few samples."""
    torch.manual_seed(seed)
    features = 24
    model = Regression(features).double()
    population, mean = chain(features, 0.8), torch.randn(features).double() / 2
    original = copy.deepcopy(model)
    x = normal(samples, population, seed) + mean
    result = pk.prune(model, x[:1], ratio=0.5, importance="random", calibration=[x], compensation=compensation)
    cut = result.plan.apply(copy.deepcopy(original))
    goal, offset = original.second.weight.detach(), original.second.bias.detach()

    def error(net: nn.Module) -> float:
        with torch.no_grad():
            zero = net(torch.zeros(1, features).double())[0]
            gap = (net(torch.eye(features).double()) - zero).T - goal
            shift = gap @ mean + zero - offset
        return float((gap @ population @ gap.T).trace() + shift.square().sum())

    return error(cut), error(model)


def test_few_samples_make_nothing_much_worse_and_more_of_them_make_it_better() -> None:
    found = {count: np.array([population_errors(count, seed) for seed in range(12)]) for count in (2, 6, 12, 48, 400)}
    means = {count: errors[:, 1].sum() / errors[:, 0].sum() for count, errors in found.items()}
    assert means[2] < 1.1
    assert means[6] < 1
    assert means[12] < 0.9
    assert means[48] < 0.6
    assert means[400] < means[48] < means[12] < means[6]


@pytest.mark.parametrize("method", ["least_squares", "bias", "constant_units"])
def test_one_sample_changes_nothing(method: str) -> None:
    for seed in range(3):
        before, after = population_errors(1, seed, method)
        assert after == before
    model = Regression(8)
    result = pk.prune(model, torch.randn(1, 8), ratio=0.5, calibration=[torch.randn(1, 8)], compensation=method)
    assert result.compensation is not None
    assert "one alone says nothing about others" in result.compensation.left["second.weight"]


def test_the_report_says_how_many_more_examples_would_help() -> None:
    torch.manual_seed(0)
    model = Regression(24)
    result = pk.prune(model, torch.randn(1, 24), ratio=0.5, calibration=[torch.randn(10, 24)])
    assert result.compensation is not None
    (note,) = result.compensation.notes
    few = "second.weight: 10 samples for a covariance of 12 features: a poor estimate"
    assert note == f"{few}; 38 more examples would do"


def test_batch_norms_go_a_part_of_the_way() -> None:
    """Two batches of other data: what one of them says is half right for the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    batches = [torch.randn(64, 4) + 1.5, torch.randn(64, 4) + 0.5]
    original = copy.deepcopy(model)
    result = pk.prune(model, batches[0][:1], ratio=0.25, calibration=batches, compensation=None)
    assert result.compensation is not None
    cut = result.plan.apply(copy.deepcopy(original))
    old = (cut[1].running_mean.clone(), cut[1].running_var.clone())

    def estimate(data: list[Tensor]) -> tuple[Tensor, Tensor]:
        hidden = [cut[0](part).detach() for part in data]
        return torch.stack([h.mean(0) for h in hidden]).mean(0), torch.stack([h.var(0) for h in hidden]).mean(0)

    def write(new: tuple[Tensor, Tensor], part: float) -> nn.Module:
        cut[1].running_mean = torch.lerp(old[0], new[0], part)
        cut[1].running_var = torch.lerp(old[1], new[1], part)
        return cut

    def error(part: float) -> float:
        net = write(estimate(batches[:1]), part)
        return float((net(batches[1]) - original(batches[1])).detach().square().sum())

    best = min((0.0, 0.25, 0.5, 0.75, 1.0), key=error)
    net = write(estimate(batches), best)
    assert torch.allclose(net[1].running_mean, model[1].running_mean, atol=1e-5)
    assert torch.allclose(net[1].running_var, model[1].running_var, atol=1e-5)


# -- what is held out


def held(held_out: HeldOut, sizes: list[int]) -> list[list[bool]]:
    starts = np.cumsum([0, *sizes]).tolist()
    return [held_out.places(n, starts[n], size).tolist() for n, size in enumerate(sizes)]


def test_whole_batches_are_held_out_where_there_are_several() -> None:
    assert held(HeldOut(6, 12), [2] * 6) == [[False] * 2] * 4 + [[True] * 2, [False] * 2]


def test_single_examples_are_held_out_of_few_batches() -> None:
    found = held(HeldOut(2, 10), [5, 5])
    assert found == [[False] * 4 + [True]] * 2


def test_of_few_examples_the_last_one_is_held_out_and_of_one_none() -> None:
    assert held(HeldOut(2, 3), [2, 1]) == [[False, False], [True]]
    assert held(HeldOut(1, 1), [1]) == [[False]]


@pytest.mark.parametrize(("count", "least"), [(3, 1 - 3 / 12), (6, 1 - 6 / 12), (400, 0.0)])
def test_caution_grows_with_the_directions_that_samples_say_nothing_of(count: int, least: float) -> None:
    found = [moments(normal(count, chain(12), seed)) for seed in range(20)]
    for one in found:
        assert one.caution == pytest.approx(max(one.shrinkage, 1 - one.independent / 12))
    assert np.median([one.caution for one in found]) >= least - 0.15
    if count == 400:
        assert all(one.caution == one.shrinkage for one in found)
