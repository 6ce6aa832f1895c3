"""Forwards on calibration batches that go on from the first operation that has to run again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.calibration.observation import Watched
from prunekit_plugins.calibration.products import made
from prunekit_plugins.compensation import forwards
from prunekit_plugins.compensation.forwards import Forwards, Room


class Counted(nn.Module):
    """Counts how often its copies run on real tensors."""

    runs = 0

    def count(self, x: Tensor) -> None:
        if type(x) is Tensor:
            type(self).runs += 1


class Deep(Counted):
    """Residual blocks that work in place, with a norm whose mean a layer without a bias moves."""

    runs = 0

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True),
                nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8),
            )
            for _ in range(depth)
        )  # fmt: skip
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.count(x)
        x = self.stem(x)
        for block in self.blocks:
            x = x.relu_()
            x = block(x) + x
        return self.head(x.mean((2, 3)))


class Deciding(Counted):
    """Decides by what its first layer computes."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.count(x)
        x = self.second(self.first(x).relu()).relu()
        return self.third(x if bool(x.sum() > 1e9) else x * 2)


class Drawing(Deciding):
    """Adds noise."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count(x)
        x = self.second(self.first(x).relu()).relu()
        return self.third(x + 0.1 * torch.randn_like(x))


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(16, 3 * 8 * 8, generator=generator)
    return [(torch.randn(10, 16, generator=generator) @ mix).reshape(10, 3, 8, 8) for _ in range(6)]


def vectors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(20, 6, generator=generator) for _ in range(6)]


def pruned(
    model: Counted, batches: list[Tensor], *, compensation: tuple[str, ...] = ("least_squares",)
) -> tuple[nn.Module, pk.Compensation, int]:
    """Prunes a copy; returns it with what compensation did and how often a copy of the model ran."""
    small = copy.deepcopy(model).eval()
    type(model).runs = 0
    torch.manual_seed(1)  # what a forward draws decides as well
    result = pk.prune(small, batches[0][:1], ratio=0.4, calibration=batches, compensation=compensation, verify="never")
    assert result.compensation is not None
    return small, result.compensation, type(model).runs


def both_ways(
    monkeypatch: pytest.MonkeyPatch, model: Counted, batches: list[Tensor], **options: tuple[str, ...]
) -> tuple[int, int]:
    """Compares pruning with and without what is kept of forwards, and returns how often the model ran in each."""
    with_it, done, few = pruned(model, batches, **options)
    monkeypatch.setattr(Room, "beside", staticmethod(lambda watched: None))
    without, expected, many = pruned(model, batches, **options)
    assert str(done) == str(expected)
    for name, tensor in without.state_dict().items():
        torch.testing.assert_close(with_it.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)
    return few, many


@pytest.mark.parametrize("compensation", [("least_squares",), ("bias", "least_squares")])
def test_nothing_changes_but_the_number_of_runs(monkeypatch: pytest.MonkeyPatch, compensation: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    batches = images()
    few, many = both_ways(monkeypatch, Deep(), batches, compensation=compensation)
    assert many - few >= 10 * len(batches)


def test_runs_do_not_grow_with_stages() -> None:
    torch.manual_seed(0)
    counts = [pruned(Deep(depth), images())[2] for depth in (2, 6)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("make", [Deciding, Drawing])
def test_programs_that_may_run_otherwise_run_whole(monkeypatch: pytest.MonkeyPatch, make: type[Counted]) -> None:
    """The original of one that decides by values is the same every time; a forward that draws never goes on."""
    torch.manual_seed(0)
    few, many = both_ways(monkeypatch, make(), vectors())
    assert few < many if make is Deciding else few == many


def test_what_there_is_no_room_for_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, batches = Deep(), images()
    monkeypatch.setattr(forwards, "STEP_BYTES", 1)
    monkeypatch.setattr(Room, "beside", staticmethod(lambda watched: Room(40_000)))  # of two batches or so
    few, many = both_ways(monkeypatch, model, batches)
    assert few < many


def test_another_batch_under_the_same_number_is_not_taken_for_the_first() -> None:
    """A loader may come in another order every time."""
    torch.manual_seed(0)
    model, batches = Deep().eval(), images()
    registry = pk.default_registry()
    watched = Watched(model, registry)
    found = Forwards(watched, Room.beside(watched))
    for given in (batches[0], batches[1], batches[0].clone()):
        (batch,) = Batches([given]).read(None)
        ((_, outputs),) = found.outputs(0, batch)
        torch.testing.assert_close(made(outputs), model(given).detach())


def test_batches_of_one_form_run_what_was_written_down_for_the_first() -> None:
    """The model itself runs once for each form, outputs are its own, and values that decide keep each batch apart."""
    torch.manual_seed(0)
    batches = [*images(), torch.randn(4, 3, 8, 8), torch.randn(10, 3, 8, 8).to(memory_format=torch.channels_last)]
    assert runs_of(Deep().eval(), batches) == 3
    deciding = [torch.randn(20, 6) for _ in range(4)]
    assert runs_of(Deciding().eval(), deciding) == len(deciding)


def runs_of(model: Counted, batches: list[Tensor]) -> int:
    """Compares the outputs of forwards with the model's own; returns how often a copy of the model ran."""
    registry = pk.default_registry()
    watched = Watched(model, registry)
    runs = Forwards(watched, Room.beside(watched))
    type(model).runs = 0
    found = [made(runs.outputs(n, batch)[0][1]).clone() for n, batch in enumerate(Batches.of(batches).read(None))]
    count = type(model).runs
    for batch, output in zip(batches, found, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(output, model(batch.clone()))
    return count
