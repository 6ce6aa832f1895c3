"""What stands in the place of a module whose results have another shape than what it was given, or differ by call."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.modules.absent import Absent, Given, Handed, Several, Zeros, from_json, to_json
from tests.core.residual import applied_as_json

TOKENS = torch.linspace(-1, 1, 2 * 5 * 8).view(2, 5, 8)


class Tokens(nn.Module):
    """Computes on a list of tokens, as mixtures of experts do, and returns one with its scores."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.up(x.reshape(-1, x.shape[-1]))
        return self.down(scores.relu()), scores


class Layered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.experts, self.head = nn.Linear(8, 8), Tokens(), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        out, _ = self.experts(x)
        return self.head(x + out.view(x.shape))


def test_a_list_of_tokens_stands_for_one_whatever_the_batch() -> None:
    torch.manual_seed(0)
    model = Layered().double().eval()
    x = TOKENS.double()
    plan = pk.Graph.of(model, x).plan_without(["experts"])
    (stub,) = plan.stubs
    assert stub.module == "experts"
    assert stub.result == Several((Zeros(Given("x", 0), 2), Handed(Given("x", 0))))
    small = applied_as_json(plan, model)
    for given in (x, x[:1, :3], x.repeat(3, 2, 1)):
        assert torch.equal(small(given), model.head(model.first(given)))
    assert pk.check_exact(model, small, plan, x)


def test_widths_of_the_stream_go_together_with_it() -> None:
    """What is made in the place of the tokens is as wide as what the module is given then."""
    torch.manual_seed(0)
    model = Layered().double().eval()
    graph = pk.Graph.of(model, TOKENS.double())
    (stream,) = (group.name for group in graph.groups() if group.size == 8)
    plan = graph.plan_without(["experts"], {stream: (0, 2, 5, 7)})
    small = applied_as_json(plan, model)
    assert small.first.out_features == 4
    assert small.experts(torch.ones(2, 3, 4).double())[0].shape == (6, 4)
    assert pk.check_exact(model, small, plan, TOKENS.double())


def test_joined_dims_are_data() -> None:
    result = Zeros(Given("x", 0), 2)
    assert from_json(json.loads(json.dumps(to_json(result)))) == result
    made = Absent(result)(torch.ones(2, 3, 4, dtype=torch.float16))
    assert torch.equal(made, torch.zeros(6, 4, dtype=torch.float16))
    assert str(Absent(result)) == "Absent(zeros like x with 2 dims joined)"


@pytest.mark.parametrize("joined", [1, 0, -2, True, "2", None])
def test_joined_dims_of_strangers_are_checked(joined: object) -> None:
    with pytest.raises(pk.PlanError, match="The plan is malformed"):
        from_json({"zeros": ["x", 0, joined]})


class ReadsInTraining(nn.Module):
    """Nothing but a dropout reads what the layer makes; in training that is no function of single elements."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.dropout, self.outer = nn.LayerNorm(8), nn.Linear(8, 8), nn.Dropout(0.5), Doubled()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(self.dropout(self.inner(self.norm(x))))


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x if self.training else x


def test_what_may_be_anything_in_one_mode_is_zero_in_both() -> None:
    torch.manual_seed(0)
    model, x = ReadsInTraining().double().eval(), TOKENS.double()
    plan = pk.Graph.of(model, x).plan_without(["inner"])
    small = applied_as_json(plan, model)
    assert torch.equal(small(x), x)
    assert torch.equal(small.train()(x), x)
    for training in (False, True):
        assert pk.check_exact(model, small, plan, x, training=training)


class Scaled(nn.Module):
    """A block multiplies a branch by numbers of its own, which it gives another shape first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.other = nn.GroupNorm(1, 6), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.scale.unsqueeze(-1).unsqueeze(-1) * self.conv(self.norm(x))
        return x + self.other(x)


def test_views_of_numbers_that_a_block_holds_may_be_made_for_nothing() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 6, 1), Scaled()).double().eval(), torch.randn(2, 3, 5, 5).double()
    graph = pk.Graph.of(model, x)
    (name,) = (branch.name for branch in graph.branches() if "1.norm.weight" in branch.parameters)
    plan = graph.plan_without([name])
    small = applied_as_json(plan, model)
    stream = model[0](x)
    assert torch.equal(small(x), stream + model[1].other(stream))
    assert pk.check_exact(model, small, plan, x)
