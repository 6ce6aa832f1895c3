"""Whole heads in one knapsack with neurons and branches."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunekit as pk
from prunekit_plugins.prune.serving import ServingProfile

BATCHES = [torch.randn(8, 10, 32, generator=torch.Generator().manual_seed(number)) for number in range(6)]
UNSEEN = torch.randn(8, 10, 32, generator=torch.Generator().manual_seed(9))


class Attend(nn.Module):
    def __init__(self, width: int = 32, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (layer(x).view(batch, tokens, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Feed(nn.Module):
    def __init__(self, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def with_idle_heads() -> nn.Sequential:
    """Four of the eight heads of each attention add nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(Attend(), Feed(), Attend(), Feed(), nn.Linear(32, 8)).eval()
    with torch.no_grad():
        for attend in (model[0], model[2]):
            attend.out.weight[:, :16] = 0
    return model


def heads(model: nn.Sequential) -> list[int]:
    return [model[0].heads, model[2].heads]


def test_idle_heads_go_and_neurons_stay() -> None:
    model = with_idle_heads()
    whole = copy.deepcopy(model)
    result = pk.prune(model, BATCHES[0], target={"params": 0.8}, by="both", calibration=BATCHES)
    assert sorted(heads(model)) == [4, 5]
    assert [model[1].up.out_features, model[3].up.out_features] == [64, 64]
    assert not result.plan.absent
    torch.testing.assert_close(model(UNSEEN), whole(UNSEEN), rtol=1e-4, atol=1e-4)


def test_heads_stay_where_the_call_says_so_and_by_width() -> None:
    for options in ({"by": "both", "prune_num_heads": False}, {"by": "width"}):
        model = with_idle_heads()
        pk.prune(model, BATCHES[0], target={"params": 0.8}, calibration=BATCHES, **options)
        assert heads(model) == [8, 8], options


def about_heads(model: nn.Sequential, **options: object) -> list[str]:
    result = pk.prune(model, BATCHES[0], target={"params": 0.8}, calibration=BATCHES, **options)
    return [note for note in result.report.notes if note.startswith("whole heads stay")]


def test_a_report_says_what_whole_heads_would_be_worth_where_nobody_spoke_of_them() -> None:
    found = "whole heads stay by default: with prune_num_heads=True the same target is expected to do 0% of the damage"
    model = with_idle_heads()
    assert about_heads(model) == [found]
    assert heads(model) == [8, 8]
    assert about_heads(with_idle_heads(), prune_num_heads=False) == []
    assert about_heads(with_idle_heads(), prune_num_heads=True) == []
    assert about_heads(with_idle_heads(), importance="magnitude") == []


def test_a_report_says_nothing_of_heads_that_are_all_needed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Attend(), Feed(hidden=256), Attend(), Feed(hidden=256), nn.Linear(32, 8)).eval()
    with torch.no_grad():
        for feed in (model[1], model[3]):
            feed.down.weight[:, 64:] = 0
    assert about_heads(model) == []


def test_what_heads_would_be_worth_counts_the_numbers_that_a_profile_allows() -> None:
    def all_stay() -> dict[str, tuple[int, ...]]:
        return {"0.q#heads": (8,), "2.q#heads": (8,)}

    def fails() -> dict[str, tuple[int, ...]]:
        raise pk.ArgumentError("The configuration can't be read.")

    def served(counts: Callable[[], dict[str, tuple[int, ...]]]) -> Callable[..., ServingProfile]:
        return lambda model, inputs, registry: ServingProfile(counts=counts)

    names = {group.name for group in pk.DependencyGraph().build_dependency(with_idle_heads(), BATCHES[0]).groups()}
    assert all_stay().keys() <= names
    assert about_heads(with_idle_heads(), serve=served(all_stay)) == []
    assert about_heads(with_idle_heads(), serve=served(fails)) == [
        "whole heads stay by default; what they would be worth isn't known: The configuration can't be read."
    ]
