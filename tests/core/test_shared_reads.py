"""Consumers that read one tensor: what is known of it is there once, and their errors count together."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit_plugins.calibration.moments import Gatherer
from prunekit_plugins.importance import ReconstructionImportance


class Fork(nn.Module):
    """Two layers read the same tensor; a third one reads it after the program has written into it."""

    def __init__(self, *, writes: bool = True) -> None:
        super().__init__()
        self.writes, self.stem = writes, nn.Linear(6, 8)
        self.first, self.second, self.third = (nn.Linear(8, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        found = self.first(h) + self.second(h)
        h = h.mul_(2) if self.writes else 2 * h
        return found + self.third(h)


def fork(*, writes: bool = True) -> tuple[Fork, list[Tensor]]:
    torch.manual_seed(0)
    return Fork(writes=writes).eval(), [torch.randn(9, 6) for _ in range(4)]


def test_equal_moments_are_one_object_and_those_of_changed_values_are_not() -> None:
    model, batches = fork()
    sites = pk.calibrate(model, batches, parts=("covariances",)).sites
    first, second, third = (sites[f"{name}.weight"].moments for name in ("first", "second", "third"))
    assert first is second
    hidden = model.stem(torch.cat(batches)).detach().double()
    for moments, read in ((first, hidden), (third, 2 * hidden)):
        assert moments.covariance is not None
        torch.testing.assert_close(moments.mean[0], read.mean(0), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(moments.covariance[0], read.T.cov(correction=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [6, 600])
def test_what_is_repeated_is_what_would_be_added(width: int) -> None:
    torch.manual_seed(0)
    lots = [torch.randn(1, 20, width) + 3 for _ in range(3)]
    examples = torch.arange(20) // 5
    one, other, alone = (Gatherer(covariance=True) for _ in range(3))
    for lot in lots:
        added = one.add(lot, examples=examples)
        assert added is not None
        assert other.repeat(added)
        alone.add(lot, examples=examples)
    found, expected = other.moments(), alone.moments()
    assert found is not None
    assert expected is not None
    assert (other.examples, other.total, other.largest, other.size) == (
        alone.examples,
        alone.total,
        alone.largest,
        alone.size,
    )
    for part in ("count", "uncertainty"):
        assert getattr(found, part) == getattr(expected, part)
    for part in ("mean", "variance", "covariance"):
        assert torch.equal(getattr(found, part), getattr(expected, part))


def test_a_gatherer_with_another_history_takes_nothing_over() -> None:
    torch.manual_seed(0)
    one, other = Gatherer(covariance=True), Gatherer(covariance=True)
    one.add(torch.randn(1, 5, 3))
    other.add(torch.randn(1, 5, 3))
    before = other.count
    added = one.add(torch.randn(1, 5, 3))
    assert added is not None
    assert not other.repeat(added)
    assert not Gatherer(covariance=True).repeat(added)
    assert other.count == before


def test_what_is_not_finite_is_never_taken_over() -> None:
    values = torch.randn(1, 5, 3)
    values[0, 2, 1] = torch.nan
    gatherer = Gatherer(covariance=True)
    assert gatherer.add(values) is None
    assert (gatherer.count, gatherer.dropped) == (4, 1)


@pytest.mark.parametrize("curvatures", [True, False])
def test_errors_of_consumers_that_share_are_those_of_consumers_that_do_not(curvatures: bool) -> None:
    model, batches = fork(writes=False)  # which has gradients
    statistics = pk.calibrate(model, batches, parts=("moments", "covariances", "curvatures"))
    apart = attrs.evolve(
        statistics,
        sites={name: attrs.evolve(seen, moments=attrs.evolve(seen.moments)) for name, seen in statistics.sites.items()},
    )
    graph = pk.DependencyGraph().build_dependency(model, batches[0])
    group = next(group for group in graph.get_all_groups() if group.name == "stem")
    found, expected = (
        ReconstructionImportance(known, normalizer=None, curvatures=curvatures)(group) for known in (statistics, apart)
    )
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert len(found.unique()) > 1


def test_a_file_has_the_moments_of_each_and_they_are_one_object_again(tmp_path: object) -> None:
    model, batches = fork()
    statistics = pk.calibrate(model, batches, parts=("covariances",))
    statistics.save(f"{tmp_path}/statistics.safetensors")
    sites = pk.Statistics.load(f"{tmp_path}/statistics.safetensors").sites
    assert sites["first.weight"].moments is sites["second.weight"].moments
    assert sites["first.weight"].moments is not sites["third.weight"].moments
    for name, seen in statistics.sites.items():
        assert seen.moments.covariance is not None
        assert torch.equal(seen.moments.covariance, sites[name].moments.covariance)
