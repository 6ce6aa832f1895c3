"""Sizes that a program reads from an object that its modules share, such as a configuration."""

from __future__ import annotations

import copy
import types
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk

EXPERTS, WIDTH = 6, 12
TOKENS = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))


class Config:
    """What layers are made by, and read while they run."""

    def __init__(self) -> None:
        self.width, self.experts, self.layers = WIDTH, EXPERTS, 6


class Layer(nn.Module):
    """A mixture whose router has a class for none of the experts, which is a number of the configuration."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.count = config, config.experts
        self.router = nn.Linear(WIDTH, config.experts + 1)
        self.up = nn.Parameter(torch.randn(config.experts, WIDTH, 8) / 3)
        self.down = nn.Parameter(torch.randn(config.experts, 8, WIDTH) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2)
        none = chosen == self.config.experts
        weights, chosen = weights.masked_fill(none, 0), chosen.masked_fill(none, 0)
        hidden = torch.einsum("td,tkdh->tkh", x, self.up[chosen]).relu()
        each = torch.einsum("tkh,tkhd->tkd", hidden, self.down[chosen])
        return x + (each * weights[..., None]).sum(1)


class Net(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.stem, self.out = config, nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.ModuleList(Layer(config) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).reshape(-1, self.config.width)
        for layer in self.layers:
            x = layer(x)
        found: torch.Tensor = self.out(x)
        return found


def made(config: Any = None) -> Net:
    torch.manual_seed(0)
    return Net(config or Config()).eval()


def groups() -> list[str]:
    return ["layers.0.router#experts", "layers.1.router#experts"]


def test_numbers_of_a_configuration_follow_where_the_program_reads_them() -> None:
    model = made()
    result = pk.prune(model, TOKENS, 0.5, expert_pruning_ratio=0.34)
    assert result.report.pruned["stem#stream"] == (WIDTH, 6)
    assert [result.report.pruned[name] for name in groups()] == [(5, 3), (5, 3)]
    assert vars(model.config) == {"width": 6, "experts": 4, "layers": 6}
    assert all(layer.config is model.config for layer in model.layers)
    assert [layer.count for layer in model.layers] == [4, 4]
    assert pk.check_exact(made(), model, result.plan, TOKENS)


def test_the_result_is_the_original_whose_routers_cant_choose_what_left() -> None:
    original, model = made(), made()
    plan = pk.Graph.of(model, TOKENS).remove({name: [0, 3] for name in groups()})
    with torch.no_grad():
        for layer in original.layers:
            layer.router.bias[[1, 4]] = -torch.inf  # the first expert, which stands in for none, is no unit
        torch.testing.assert_close(model(TOKENS), original(TOKENS), rtol=0, atol=1e-6)
    edited = {(edit.module, edit.attribute): (edit.old, edit.new) for edit in plan.edits}
    assert edited["", "config.experts"] == (6, 4)


def test_another_model_that_is_made_by_the_same_configuration_stays_as_it_is() -> None:
    config = Config()
    model, other = made(config), made(config)
    before = other(TOKENS)
    pk.prune(model, TOKENS, 0.5, expert_pruning_ratio=0.34)
    assert vars(config) == vars(Config())
    assert other.config is config
    assert torch.equal(other(TOKENS), before)


def test_a_stored_plan_makes_a_fresh_model_the_same(tmp_path: Any) -> None:
    model = made()
    result = pk.prune(model, TOKENS, 0.5, expert_pruning_ratio=0.34)
    pk.save(model, tmp_path / "small.safetensors", plan=result.plan)
    again = pk.load(made(), tmp_path / "small.safetensors")
    assert torch.equal(again(TOKENS), model(TOKENS))
    assert vars(again.config) == vars(model.config)


def test_a_model_that_was_pruned_is_pruned_on() -> None:
    model = made()
    graph = pk.Graph.of(model, TOKENS)
    graph.remove({name: [0] for name in groups()})
    plan = graph.remove({name: [2] for name in groups()})
    assert model.config.experts == 4
    assert torch.equal(plan.apply(made())(TOKENS), model(TOKENS))


def test_layers_whose_number_is_one_keep_as_many_or_are_refused_with_the_number() -> None:
    graph = pk.Graph.of(made(), TOKENS)
    with pytest.raises(
        pk.RehearsalError, match=r"config\.experts says the size of layers\.0\.router#experts"
    ) as caught:
        graph.draft({groups()[0]: (0, 1, 2), groups()[1]: (0, 1, 2, 3)})
    assert "aten::eq.Scalar in layers.1" in caught.value.where


def test_layers_that_are_ranked_together_keep_as_many_experts_where_they_share_the_number() -> None:
    model = made()
    with torch.no_grad():
        model.layers[0].router.bias[1:5] -= 1  # few tokens are sent to these
    original = copy.deepcopy(model)
    options = {"expert_pruning_ratio": 0.4, "global_pruning": True, "expert_importance": "expert_frequency"}
    result = pk.prune(model, TOKENS, 0.0, calibration=[TOKENS], **options)
    sizes = [result.report.pruned[name] for name in groups()]
    assert sizes[0] == sizes[1]
    assert sizes[0][1] < 5
    assert pk.check_exact(original, model, result.plan, TOKENS)


def test_numbers_in_what_cant_be_copied_are_left_alone() -> None:
    class Locked(Config):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("this configuration can't be copied")

    model = made(Locked())
    result = pk.prune(model, TOKENS, 0.0, expert_pruning_ratio=0.34)
    assert all(name not in result.report.pruned for name in groups())
    assert vars(model.config) == vars(Config())


def test_a_simple_namespace_is_a_configuration_too() -> None:
    model = made(types.SimpleNamespace(width=WIDTH, experts=EXPERTS))
    pk.prune(model, TOKENS, 0.5)
    assert (model.config.width, model.config.experts) == (6, EXPERTS)
