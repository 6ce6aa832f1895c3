"""The doctor, on models that were built to have one disease each. Work and sizes are real, times are made up."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import attrs
import pytest
import torch
import torchvision
from torch import nn

import prunekit as pk
from prunekit_plugins.doctor import Disease, Facts, Finding, diagnose, examine, find
from prunekit_plugins.doctor.examination import _branches, _go_together
from tests.core.test_branch_reasons import Written
from tests.core.test_entries import made


def facts_of(model: nn.Module, x: torch.Tensor, **options: object) -> Facts:
    plan = pk.BasePruner(model, x, "magnitude", **options).plan()
    small = plan.apply(copy.deepcopy(model))
    found = examine(model, small, plan, x, rounds=1)
    return attrs.evolve(found, multiple=8, why="made up", balance=2.0, overhead=1e-6)


def with_times(facts: Facts, times: Mapping[str, tuple[float, float]]) -> list[Finding]:
    """What is found when some layers take some milliseconds, and all others none."""
    layers = {
        path: attrs.evolve(layer, seconds=tuple(1e-3 * t for t in times.get(path, (0.0, 0.0))))
        for path, layer in facts.layers.items()
    }
    return find(attrs.evolve(facts, layers=layers))


def chain(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[index], sizes[index + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


X = torch.randn(64, 16)


def test_work_traffic_and_sizes_are_those_of_the_layers() -> None:
    facts = facts_of(chain(16, 64, 64, 8), X)
    hidden = facts.layers["2"]
    assert hidden.macs == (64 * 64 * 64, 64 * 32 * 32)
    # input, weight, bias and output, four bytes each
    assert hidden.traffic == (4 * (64 * 64 + 64 * 64 + 64 + 64 * 64), 4 * (64 * 32 + 32 * 32 + 32 + 64 * 32))
    assert hidden.sizes == {"weight[0]": 32, "weight[1]": 32}
    assert hidden.pinned == {}
    assert facts.layers["0"].pinned == {"weight[1]": "an input of the model"}
    assert facts.layers["4"].pinned == {"weight[0]": "an output of the model"}
    assert facts.layers["1"].macs == (0.0, 0.0)
    assert facts.layers["1"].kind == "ReLU"
    dense = 64 * (16 * 64 + 64 * 64 + 64 * 8)
    assert facts.macs == (dense, 64 * (16 * 32 + 32 * 32 + 32 * 8))
    assert all(layer.seconds[0] > 0 for layer in facts.layers.values())


def test_a_model_that_got_as_fast_as_it_should_is_well() -> None:
    facts = facts_of(chain(16, 64, 64, 8), X)
    assert with_times(facts, {"2": (100.0, 26.0)}) == []
    assert facts.hoped_for == pytest.approx(5632 / 1792)


def test_pinned_layers_name_what_pins_them() -> None:
    ignored = facts_of(chain(16, 64, 64, 8), X, ignored_layers=["0"])
    (first,) = [f for f in with_times(ignored, {"0": (50.0, 50.0), "2": (50.0, 25.0)}) if f.layer == "0"][:1]
    assert first.disease is Disease.PINNED
    assert "100% of its work is left" in first.text
    assert "weight[0]: the group 0 was left whole" in first.text
    assert first.share == (0.5, pytest.approx(2 / 3))


def test_odd_sizes() -> None:
    facts = facts_of(chain(16, 64, 64, 8), X, pruning_ratio=0.45)
    found = with_times(facts, {"2": (100.0, 80.0)})
    assert found[0].disease is Disease.UNALIGNED
    assert found[0].text == "weight[0] = 35, weight[1] = 35: no multiples of 8 (made up)"
    assert "align" in found[0].advice
    even = facts_of(chain(16, 64, 64, 8), X, pruning_ratio=0.5)
    assert all(f.disease is not Disease.UNALIGNED for f in with_times(even, {"2": (100.0, 80.0)}))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(3, 32, 1)
        self.depth = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.down = nn.Conv2d(32, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.depth(self.up(x)))


def test_depthwise_convolutions() -> None:
    facts = facts_of(Depthwise(), torch.randn(1, 3, 8, 8))
    depth = facts.layers["depth"]
    assert depth.depthwise
    assert depth.macs == (32 * 9 * 64, 16 * 9 * 64)
    assert not facts.layers["down"].depthwise
    found = with_times(facts, {"depth": (95.0, 90.0), "down": (5.0, 2.0)})
    assert [(f.layer, f.disease) for f in found] == [("depth", Disease.DEPTHWISE)]
    assert "45.0% of the MACs take 97.8% of the time" in found[0].text


def test_fixed_costs() -> None:
    facts = attrs.evolve(facts_of(chain(16, 64, 64, 8), X), overhead=1e-2)
    (finding,) = with_times(facts, {"2": (30.0, 29.0)})
    assert finding.disease is Disease.FIXED
    assert finding.text == "takes 29000 us, an empty call 10000 us"


def test_memory_bound_layers() -> None:
    facts = facts_of(chain(16, 64, 64, 8), torch.randn(1, 16))
    (finding,) = with_times(facts, {"2": (30.0, 24.0)})
    assert finding.disease is Disease.MEMORY
    assert finding.text.startswith("0.23 MACs per byte, this device does 2.0 in the time of one; 2")
    busy = facts_of(chain(16, 64, 64, 8), torch.randn(512, 16))
    assert with_times(busy, {"2": (30.0, 24.0)}) == []
    (norm,) = with_times(facts, {"1": (30.0, 29.0)})
    assert norm.disease is Disease.MEMORY


def cut_by_depth(
    model: nn.Module, x: torch.Tensor, **options: object
) -> tuple[Facts, Mapping[str, tuple[float, float]]]:
    """Facts about a model that lost branches, and its costs as `prune` counts them."""
    small = copy.deepcopy(model)
    result = pk.prune(small, x, verify="never", **options)
    found = examine(model, small, result.plan, x, rounds=1)
    return attrs.evolve(found, multiple=8, why="made up", balance=2.0, overhead=1e-6), result.preview.costs


class Stack(nn.Sequential):
    """Blocks, which the model calls in turn: the list runs no operation itself."""


def transformer() -> nn.Module:
    block = torchvision.models.vision_transformer.EncoderBlock
    return Stack(*(block(2, 16, 32, 0.0, 0.0) for _ in range(3))).eval()


TOKENS = torch.randn(2, 6, 16)


def test_what_a_cut_by_depth_leaves_is_not_called_pinned() -> None:
    facts, costs = cut_by_depth(transformer(), TOKENS, branches=["1.mlp", "2.mlp"])
    assert facts.macs == costs["macs"]  # the attention's last layer is never called, and counts all the same
    assert facts.layers["0.self_attention"].pinned
    assert (facts.layers["1.mlp.0"].gone, facts.layers["0.self_attention"].gone) == (True, False)
    assert (facts.shallower, facts.narrowed) == (True, 1.0)
    left = 1 / facts.hoped_for
    times = {"0.self_attention": (10.0, 10.0), "0.mlp.0": (80.0, 80.0 * left), "": (10.0, 10.0 * left)}
    assert with_times(facts, times) == []


def test_where_much_time_stays_after_a_cut_by_depth_the_layers_are_named() -> None:
    facts, _ = cut_by_depth(transformer(), TOKENS, branches=["1.mlp", "2.mlp"])
    assert 0.65 < 1 / facts.hoped_for < 0.75
    (finding,) = with_times(facts, {"0.self_attention": (10.0, 10.0), "0.ln_1": (75.0, 75.0), "1.mlp.0": (15.0, 0.0)})
    assert finding.disease is Disease.STAYS
    assert "of the MACs are left, and 85% of the time; of that take 0.ln_1 88%," in finding.text


def test_units_that_went_besides_are_compared_among_the_layers_that_stay() -> None:
    facts, _ = cut_by_depth(transformer(), TOKENS, branches=["1.mlp", "2.mlp"], ratio=0.5, ignored_layers=["0.mlp.0"])
    assert facts.narrowed < 0.8
    found = with_times(facts, {"0.mlp.0": (50.0, 50.0), "0.self_attention": (50.0, 25.0)})
    pinned = [one for one in found if one.disease is Disease.PINNED]
    assert [one.layer for one in pinned] == ["0.mlp.0"]
    assert f"where the layers that stay have {facts.narrowed:.0%}" in pinned[0].text


def test_a_module_that_only_calls_others_is_not_memory_bound() -> None:
    facts = facts_of(nn.Sequential(chain(16, 64, 64, 8)), X)
    assert facts.layers["0"].traffic == (0.0, 0.0)
    (finding,) = with_times(facts, {"0": (30.0, 30.0), "0.2": (10.0, 3.0)})
    assert (finding.layer, finding.disease) == ("0", Disease.FIXED)
    assert finding.text == "takes 30000 us, and runs no operation itself"


def test_only_branches_that_a_plan_takes_out_can_go() -> None:
    model, x, _ = made("twice", "plain", "twice", "plain")  # the cache is measured by the first layer
    graph = pk.Graph.of(model, x)
    names = [branch.name for branch in graph.branches()]
    assert names == [f"layers.{number}.key" for number in range(4)]
    assert _go_together(graph, names) == names[1:]
    written = pk.Graph.of(Written().eval(), torch.randn(2, 5, 8))
    assert [one.name for one in _branches(written, {})] == ["up"]


def test_layers_that_take_no_time_are_not_mentioned() -> None:
    facts = facts_of(Depthwise(), torch.randn(1, 3, 8, 8))
    assert with_times(facts, {"depth": (1.0, 1.0), "down": (100.0, 50.0)}) == []


def test_a_diagnosis_from_end_to_end() -> None:
    model, x = Depthwise(), torch.randn(1, 3, 8, 8)
    plan = pk.BasePruner(model, x, "magnitude").plan()
    rounds: list[int] = []
    facts, found = diagnose(
        model, plan.apply(copy.deepcopy(model)), plan, x, rounds=2, after_round=lambda: rounds.append(1)
    )
    assert facts.balance > 0
    assert facts.overhead > 0
    assert facts.speed_up == pytest.approx(facts.seconds[0] / facts.seconds[1])
    assert all(finding.layer in facts.layers for finding in found)
    assert len(rounds) == 4
