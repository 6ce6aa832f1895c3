"""Damages of kinds of units that scores put on different scales are measured, and put on one."""

from __future__ import annotations

import copy
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit_core.graph.graph import Graph
from prunekit_core.program.op_call import Kind
from prunekit_plugins.budgets.knapsack import Choice, Problem
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.importance import CalibratedImportance
from prunekit_plugins.prune.allotment import Allotment
from prunekit_plugins.prune.kind_scales import Agreed, KindScales, _weight
from prunekit_plugins.prune.masked_cut import RIDGE, masked_copy
from tests.core.test_heads_in_both import Attend, Feed

BATCHES = [torch.randn(8, 10, 32, generator=torch.Generator().manual_seed(number)) for number in range(8)]
UNSEEN = torch.randn(64, 10, 32, generator=torch.Generator().manual_seed(99))
PARTS = ("covariances", "curvatures")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Attend(), Feed(), Attend(), Feed(), nn.Linear(32, 8)).eval()


class Optimistic(CalibratedImportance):
    """Takes dims of heads to be worth next to nothing."""

    def __call__(self, group: pk.Group) -> Tensor | None:
        scores = super().__call__(group)
        kinds = {self.kinds[name] for name in group.units}
        return scores if scores is None or kinds != {"head_dim"} else 1e-4 * scores

    def __init__(self, kinds: dict[str, str]) -> None:
        super().__init__()
        self.kinds = kinds


def kinds_of(model: nn.Module) -> dict[str, str]:
    graph = pk.DependencyGraph().build_dependency(model, BATCHES[0])
    return {group.name: group.kind.value for group in graph.groups()}


def dims(model: nn.Sequential) -> list[int]:
    return [model[0].q.out_features, model[0].v.out_features, model[2].q.out_features, model[2].v.out_features]


def error(small: nn.Module, whole: nn.Module) -> float:
    with torch.no_grad():
        return float((small(UNSEEN) - whole(UNSEEN)).square().mean() / whole(UNSEEN).square().mean())


def test_what_reads_removed_units_is_fitted_to_all_samples() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).double().eval()
    data = [batch[0, :, :6].double() for batch in BATCHES] * 2
    statistics = pk.calibrate(model, data, parts=PARTS)
    graph: Graph = pk.DependencyGraph().build_dependency(model, data[0])
    (group,) = (group.name for group in graph.groups())
    kept = [0, 2, 3, 4, 7, 8, 9]
    masked = masked_copy(graph, statistics, {group: kept})

    hidden = model[:2](torch.cat(data)).detach()
    (seen,) = statistics.of("2.weight")
    mean, spread = hidden.mean(0), torch.cov(hidden.T, correction=0)
    spread = (1 - seen.moments.caution) * spread + seen.moments.caution * torch.diag(spread.diagonal())
    second = spread + torch.outer(mean, mean)
    second += RIDGE * second.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    lost = [unit for unit in range(12) if unit not in kept]
    added = torch.linalg.solve(second[kept][:, kept], second[kept][:, lost]) @ model[2].weight[:, lost].T
    expected = torch.zeros(3, 12, dtype=torch.float64)
    expected[:, kept] = model[2].weight[:, kept].detach() + added.T.detach()
    torch.testing.assert_close(masked.get_parameter("2.weight").detach(), expected)
    torch.testing.assert_close(masked.get_parameter("0.weight"), model[0].weight)


def test_dims_that_no_layer_reads_are_zero_where_they_are_put_out() -> None:
    model = network()
    statistics = pk.calibrate(model, BATCHES, parts=PARTS)
    graph: Graph = pk.DependencyGraph().build_dependency(model, BATCHES[0])
    masked = masked_copy(graph, statistics, {"0.q#head_dim": [0, 2, 3]})
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (expected[0].q, expected[0].k):
            layer.weight[1::4] = 0
            layer.bias[1::4] = 0
    torch.testing.assert_close(masked(UNSEEN), expected(UNSEEN))
    assert not torch.allclose(masked(UNSEEN), model(UNSEEN))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.feed, self.head = nn.Embedding(40, 12), nn.Linear(12, 12), nn.Linear(12, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.feed(x).relu())


def test_a_head_that_is_tied_to_an_embedding_reads_removed_dims_no_more() -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    data = [torch.randint(40, (4, 9), generator=torch.Generator().manual_seed(number)) for number in range(6)]
    statistics = pk.calibrate(model, data, parts=PARTS)
    graph: Graph = pk.DependencyGraph().build_dependency(model, data[0])
    (stream,) = (group.name for group in graph.groups() if group.size == 12)
    masked = masked_copy(graph, statistics, {stream: list(range(11))})
    assert bool((masked.get_parameter("embed.weight")[:, 11] == 0).all())
    changed = copy.deepcopy(masked)
    with torch.no_grad():
        changed.get_parameter("feed.weight")[11] = 7.0
    torch.testing.assert_close(masked(data[0]), changed(data[0]))


def test_the_model_itself_is_untouched_by_a_masked_copy() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    statistics = pk.calibrate(model, BATCHES, parts=PARTS)
    graph: Graph = pk.DependencyGraph().build_dependency(model, BATCHES[0])
    masked_copy(graph, statistics, {group.name: [0] for group in graph.groups() if group.kind.value != "heads"})
    for name, values in model.state_dict().items():
        torch.testing.assert_close(values, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("by", ["width", "both"])
def test_a_kind_that_scores_take_to_be_worth_nothing_is_found_out(by: str) -> None:
    whole = network()
    options: dict[str, Any] = {"target": {"macs": 0.6}, "calibration": BATCHES, "prune_num_heads": False, "by": by}
    honest, misled = copy.deepcopy(whole), copy.deepcopy(whole)
    pk.prune(honest, BATCHES[0], **options)
    result = pk.prune(misled, BATCHES[0], **options, importance=Optimistic(kinds_of(whole)))
    told = [note for note in result.report.notes if note.startswith("damages were scaled")]
    assert len(told) == 1
    assert "head_dim" in told[0]
    assert "neurons" in told[0]
    if by == "width":
        assert sum(dims(misled)) > 4 * 8, "scores alone would leave every head one dim"
    assert error(misled, whole) < 1.3 * error(honest, whole)


def test_a_kind_that_only_scaled_damages_take_from_is_measured_against_its_own_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the first plan no dims of heads go; scaled by what neurons and the stream are worth, they do."""
    model = network()
    statistics = pk.calibrate(model, BATCHES, parts=PARTS)
    graph: Graph = pk.DependencyGraph().build_dependency(model, BATCHES[0])
    pruner = pk.BasePruner(model, BATCHES[0], CalibratedImportance(statistics), pruning_ratio=0.5)
    scales = KindScales(pruner, statistics, Batches.of(BATCHES), lambda allotment: pytest.fail("nothing is planned"))
    monkeypatch.setattr(scales, "_change", lambda plan, groups: 6.0)
    names = {group.kind: group.name for group in graph.groups()}
    known = {frozenset({Kind.NEURONS}): 2.0, frozenset({Kind.STREAM}): 5.0}
    plan = graph.draft({names[kind]: (0, 1) for kind in (Kind.NEURONS, Kind.HEAD_DIM)})
    weigh = _weight(pruner, known)
    choices = [
        Choice(({name: 3}, {name: 2}, {name: 1}), tuple(weigh([name]) * one for one in (0.0, 3.0, 9.0)))
        for name in (names[Kind.NEURONS], names[Kind.HEAD_DIM])
    ]
    problem = Problem(tuple(choices), lambda units: {}, {}, {})
    found = dict(scales._scales(Agreed(plan, problem, Allotment(None)), known))
    assert found == {frozenset({Kind.NEURONS}): 2.0, frozenset({Kind.HEAD_DIM}): 2.0}


def test_a_model_without_numbers_to_compare_is_planned_by_scores_alone() -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).argmax(-1)

    model = Decides().eval()
    statistics = pk.calibrate(network(), BATCHES, parts=PARTS)
    sites = {f"body.{n}": attrs.evolve(s, site=_inside(s.site)) for n, s in statistics.sites.items()}
    shapes = {f"body.{n}": shape for n, shape in statistics.shapes.items()}
    moved = attrs.evolve(statistics, sites=sites, shapes=shapes)
    result = pk.prune(
        model,
        BATCHES[0],
        target={"macs": 0.6},
        calibration=BATCHES,
        importance=CalibratedImportance(moved),
        compensation=None,
    )
    assert [note for note in result.report.notes if "weren't held against each other" in note]
    assert not [note for note in result.report.notes if note.startswith("damages were scaled")]


def _inside(site: Any) -> Any:
    return attrs.evolve(site, parameter=f"body.{site.parameter}")
