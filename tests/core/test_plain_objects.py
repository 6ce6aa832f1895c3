"""Parameters that objects hold which are no modules: they are cut, and their sizes are those of the smaller model."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def held(model: nn.Linear, form: str) -> Any:
    """A plain object, a list or a dict that holds the parameters of a layer."""
    if form == "object":
        return SimpleNamespace(weight=model.weight, bias=model.bias)
    return [model.weight, model.bias] if form == "list" else {"weight": model.weight, "bias": model.bias}


class Holding(nn.Module):
    def __init__(self, form: str, *, decides: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.decides = nn.Linear(8, 16), nn.Linear(16, 4), decides
        self.held = held(self.first, form)

    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        kept = self.held if isinstance(self.held, dict | list) else vars(self.held)
        weight, bias = kept.values() if isinstance(kept, dict) else kept
        return weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(x, *self.pair()).relu()
        y: torch.Tensor = self.last(hidden)
        return -y if self.decides and y.sum() > 0 else y


class Scaled(Holding):
    """Reads a size from what the object holds; the layer itself runs as usual."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.first(x).relu()) / math.sqrt(len(self.pair()[0]))
        return y


def zeroed(model: Holding, plan: pk.Plan) -> Holding:
    gone = [unit for unit in range(16) if unit not in plan.cuts[0].kept]
    with torch.no_grad():
        model.first.weight[gone] = 0
        model.first.bias[gone] = 0
    return model


@pytest.mark.parametrize("decides", [False, True])
@pytest.mark.parametrize("form", ["object", "list", "dict"])
@pytest.mark.parametrize("kind", [Holding, Scaled])
def test_what_plain_objects_hold_is_cut_and_its_size_followed(kind: type[Holding], form: str, decides: bool) -> None:
    torch.manual_seed(0)
    model = kind(form, decides=decides).eval()
    original = copy.deepcopy(model)
    result = pk.prune(model, X, verify="never")
    assert result.report.pruned == {"first": (16, 8)}
    assert model.pair()[0] is model.first.weight
    torch.testing.assert_close(model(X), zeroed(original, result.plan)(X))


class Deep:
    """An object that copies itself in its own way, so that nobody is told of what lies in it."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.inner = {"list": [(parameter,)]}

    def __deepcopy__(self, memo: dict[int, Any]) -> Deep:
        return Deep(memo[id(self.inner["list"][0][0])])


class Deeply(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.deep = Deep(self.first.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width = self.deep.inner["list"][0][0].shape[0]
        return self.last(self.first(x).view(-1, width).relu())


@pytest.mark.parametrize("many", [20_000, 1])
def test_sizes_that_lie_deep_in_an_object_are_followed(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunekit_core.modules.copying.MANY", many)
    model = Deeply()
    result = pk.prune(model, torch.randn(3, 4))
    assert result.report.pruned == {"first": (8, 4)}
    assert not result.plan.notes
    assert model(torch.randn(3, 4)).shape == (3, 4)
