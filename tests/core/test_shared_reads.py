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


class Turns(nn.Module):
    """Two layers read the same tensor, but for batches whose first value is negative."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(width, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        other = x if x[0, 0] > 0 else -2 * x
        return self.first(x) + self.second(other) + self.third(x)


@pytest.mark.parametrize("width", [6, 600, 1100])
@pytest.mark.parametrize("turn", [None, 0, 2, 3])
def test_layers_have_what_they_read_whether_or_not_they_read_the_same_before(width: int, turn: int | None) -> None:
    torch.manual_seed(0)
    model, batches = Turns(width), [torch.randn(20, width) + 3 for _ in range(4)]
    for number, batch in enumerate(batches):
        batch[0, 0] = batch[0, 0].abs() * (-1 if number == turn else 1)
    sites = pk.calibrate(model, batches, parts=("covariances",)).sites
    lots = {
        "first": batches,
        "second": [-2 * batch if number == turn else batch for number, batch in enumerate(batches)],
        "third": batches,
    }
    for name, read in lots.items():
        alone = Gatherer(covariance=True)
        for batch in read:
            alone.add(batch[None], examples=torch.arange(20))
        found, expected = sites[f"{name}.weight"].moments, alone.moments()
        assert expected is not None
        expected = expected.kept(alone.kept_in)
        assert (found.count, found.uncertainty) == (expected.count, expected.uncertainty)
        for part in ("mean", "variance", "covariance"):
            assert torch.equal(getattr(found, part), getattr(expected, part))
    first, second, third = (sites[f"{name}.weight"].moments for name in lots)
    assert first is third
    assert (first is second) == (turn is None)


def test_a_layer_that_stands_still_for_a_batch_has_nothing_of_it() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.first(x)
            return found + self.second(x) if len(x) == 5 else found

    torch.manual_seed(0)
    batches = [torch.randn(5, 3), torch.randn(7, 3), torch.randn(5, 3)]
    sites = pk.calibrate(Sometimes(), batches, parts=("covariances",)).sites
    for name, read in (("first", batches), ("second", batches[::2])):
        moments, samples = sites[f"{name}.weight"].moments, torch.cat(read).double()
        assert moments.count == len(samples)
        torch.testing.assert_close(moments.mean[0], samples.mean(0), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(moments.covariance[0], samples.T.cov(correction=0), rtol=1e-6, atol=1e-7)


def test_layers_that_read_nothing_together_read_other_things_later() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(3, 2) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            if bool(x[0, 0, 0] < 0):
                return self.first(x[:, :0]).sum() + self.second(x[:, :0]).sum() + x.sum()
            found: Tensor = self.first(x) + self.third(x) + self.second(2 * x)
            return found

    torch.manual_seed(0)
    x = torch.randn(4, 5, 3).abs()
    sites = pk.calibrate(Empty(), [-x, x], parts=("covariances",)).sites
    for name, factor in (("first", 1), ("second", 2), ("third", 1)):
        moments = sites[f"{name}.weight"].moments
        assert moments.count == 20
        torch.testing.assert_close(moments.mean[0], factor * x.double().mean((0, 1)), rtol=1e-6, atol=1e-7)


def test_samples_that_are_not_finite_are_left_out_of_what_is_shared() -> None:
    torch.manual_seed(0)
    model, batches = Turns(6), [torch.randn(20, 6) + 3 for _ in range(2)]
    for batch in batches:
        batch[0, 0] = 1.0
    batches[1][4, 2] = torch.nan
    statistics = pk.calibrate(model, batches, parts=("covariances",))
    moments = [statistics.sites[f"{name}.weight"].moments for name in ("first", "second", "third")]
    assert {id(one) for one in moments} == {id(moments[0])}
    assert moments[0].count == 39
    assert [note for note in statistics.notes if "1 of 40 samples not finite" in note]


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
