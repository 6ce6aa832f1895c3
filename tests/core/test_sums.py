"""Sums that outputs go into: which are found, and that what is fitted is what is missing in them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.calibration.observation import Watched
from prunekit_plugins.compensation import LeastSquares
from prunekit_plugins.compensation.uses import find_consumers

RIDGE = 1e-2


class Joined(nn.Module):
    """Two linear layers after another, and some way in which the second one's output is used."""

    def __init__(self, use: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.drop, self.use = nn.Linear(6, 12), nn.Linear(12, 6), nn.Dropout(0.5), use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = x * 2
        return self.use(stream, self.drop(self.down(self.up(stream).relu())))


def added_in_place(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x += y
    return x.tanh()


def added_to_itself_in_place(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    y += x
    return y.tanh()


USES: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], bool]] = {
    "sum": (lambda x, y: (x + y).tanh(), True),
    "other way round": (lambda x, y: (y + x).tanh(), True),
    "through views": (lambda x, y: (x.flatten() + y.view(-1)).view_as(x), True),
    "in place": (added_in_place, True),
    "in place the other way round": (added_to_itself_in_place, True),
    "in the answer": (lambda x, y: x + y, True),
    "activated before": (lambda x, y: x + y.relu(), False),
    "activated in place before": (lambda x, y: x + y.relu_(), False),
    "with a factor": (lambda x, y: torch.add(x, y, alpha=2), False),
    "to itself": (lambda x, y: y + y, False),
    "to something made of it": (lambda x, y: y + y.relu(), False),
    "to a number": (lambda x, y: (y + 1).tanh(), False),
    "broadcast": (lambda x, y: (x[:1] + y).tanh(), False),
    "read twice": (lambda x, y: (x + y) * y, False),
    "added twice": (lambda x, y: (x + y) * (x + y), False),
    "given out as well": (lambda x, y: ((x + y).tanh(), y), False),
    "given out": (lambda x, y: y, False),
    "transposed": (lambda x, y: x.T + y.T, False),
}


@pytest.mark.parametrize("name", USES)
def test_which_sums_are_found(name: str) -> None:
    use, expected = USES[name]
    model = Joined(use).eval()
    watched = Watched(model, pk.default_registry())
    batch = next(iter(Batches.of([torch.randn(6, 6)]).read(None)))
    up, down = find_consumers(watched, batch)
    assert (up.site.name, up.summed) == ("up.weight", False)
    assert (down.site.name, down.summed) == ("down.weight", expected)


class Branches(nn.Module):
    """Both branches of a sum read the same tensor: neither is settled before the other."""

    def __init__(self, *, after: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.after = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.a(x)
        return first + (self.c(self.b(x).relu()) if self.after else self.b(x))


@pytest.mark.parametrize("after", [False, True])
def test_what_is_added_must_be_settled_before(after: bool) -> None:
    watched = Watched(Branches(after=after).eval(), pk.default_registry())
    batch = next(iter(Batches.of([torch.randn(6, 6)]).read(None)))
    found = {consumer.site.name: consumer.summed for consumer in find_consumers(watched, batch)}
    # a runs before c, and its output is there when c runs; c's isn't when a runs
    assert found == {"a.weight": False, "b.weight": False} | ({"c.weight": True} if after else {})


class Blocks(nn.Module):
    """Two blocks on a residual stream."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.ups = nn.ModuleList(nn.Linear(5, 12) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(12, 5) for _ in range(2))
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 1
        for up, down in zip(self.ups, self.downs, strict=True):
            if self.in_place:
                x += down(up(x).tanh())
            else:
                x = x + down(up(x).tanh())
        return x


@pytest.mark.parametrize("in_place", [False, True])
def test_a_block_is_fitted_to_what_is_missing_in_the_stream(in_place: bool) -> None:
    """The normal equations of both sets of samples, from plain forwards: what the second block reads now and what is
    missing in the stream then; what it read in the original and put out there."""
    torch.manual_seed(0)
    original = Blocks(in_place=in_place).double().eval()
    model, x = copy.deepcopy(original), torch.randn(60, 5).double()
    plan = pk.prune(model, x[:1], ratio=0.5).plan
    kept = [list(cut.kept) for cut in sorted(plan.cuts, key=lambda cut: cut.group)]
    plain = copy.deepcopy(model)
    batches = list(x.split(15))
    found = pk.compensate(model, plan, batches, original=original, methods=[LeastSquares([RIDGE])])
    assert [layer.consumer for layer in found.layers] == ["downs.0.weight", "downs.1.weight"]
    with torch.no_grad():
        stream = [x]
        for up, down in zip(original.ups, original.downs, strict=True):
            stream.append(stream[-1] + down(up(stream[-1]).tanh()))
        now = x + model.downs[0](model.ups[0](x).tanh())  # with the first block as repaired
        assert not torch.allclose(now, stream[1], atol=1e-3)
        features = torch.cat([model.ups[1](now).tanh(), original.ups[1](stream[1]).tanh()[:, kept[1]]])
        targets = torch.cat([stream[2] - now, stream[2] - stream[1]])
        centred, goal = features - features.mean(0), targets - targets.mean(0)
        square, cross = centred.T @ centred / len(features), centred.T @ goal / len(features)
        start = plain.downs[1].weight
        regular = square + RIDGE * square.diagonal().mean() * torch.eye(len(square)).double()
        weight = start + torch.linalg.solve(regular, cross - square @ start.T).T
        assert torch.allclose(model.downs[1].weight, weight)
        assert torch.allclose(model.downs[1].bias, targets.mean(0) - weight @ features.mean(0))
        # the first one had nothing to make up for but its own units
        hidden = original.ups[0](x).tanh()
        own = hidden[:, kept[0]]
        centred, goal = own - own.mean(0), original.downs[0](hidden) - original.downs[0](hidden).mean(0)
        square = centred.T @ centred / len(x)
        regular = square + RIDGE * square.diagonal().mean() * torch.eye(len(square)).double()
        start = plain.downs[0].weight
        weight = start + torch.linalg.solve(regular, centred.T @ goal / len(x) - square @ start.T).T
        assert torch.allclose(model.downs[0].weight, weight)


def test_the_bias_takes_up_what_the_stream_lacks() -> None:
    torch.manual_seed(0)
    original, x = Blocks(in_place=False).double().eval(), torch.randn(2000, 5).double() + 1
    model = copy.deepcopy(original)
    plan = pk.prune(model, x[:1], ratio=0.5).plan
    found = pk.compensate(model, plan, list(x.split(500)), original=original, methods=["bias"])
    assert len(found.layers) == 2, found
    assert torch.allclose(model(x).mean(0), original(x).mean(0))


class Moody(nn.Module):
    """Adds to its stream for even batches only."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = x * 1
        y = self.down(self.up(stream).tanh())
        return stream + y if len(x) % 2 == 0 else stream * y


def test_another_program_for_another_batch_is_an_error() -> None:
    torch.manual_seed(0)
    original, x = Moody().eval(), torch.randn(10, 5)
    model = copy.deepcopy(original)
    plan = pk.prune(model, x[:2], ratio=0.5).plan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pk.PlanError, match="doesn't run the program of the original") as error:
        pk.compensate(model, plan, [x[:4], x[:5]], original=original)
    assert "down.weight" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
