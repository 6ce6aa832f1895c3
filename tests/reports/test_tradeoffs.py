"""Trade-offs of a target, compared with costs and damages that are computed here from the plan and the scores."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.depth.nesting import Offer
from prunekit_plugins.prune.tradeoffs import AxisShare, Solved, Tradeoff, Tradeoffs, tradeoffs_of
from prunekit_plugins.reports import inspection_data, plot_tradeoffs, report_data, save_plots, to_html, to_markdown
from prunekit_plugins.reports.segments import COLOURS, Bar, Scale, Segment, bars_of, segments_of


class Two(nn.Module):
    """A stream of 6 units, two branches of 8 and 4 neurons on it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.one = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.two = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.one(x)
        return self.head(x + self.two(x))


def macs(stream: int = 6, one: int = 8, two: int = 4) -> int:
    return 5 * stream + 2 * stream * one + 2 * stream * two + 3 * stream


WHOLE = macs()


@pytest.fixture(scope="module")
def pruned() -> pk.PruneResult:
    torch.manual_seed(0)
    batches = [torch.randn(32, 5) for _ in range(4)]
    return pk.prune(Two().eval(), batches[0], target={"macs": 0.6}, calibration=batches)


def sizes(result: pk.PruneResult) -> dict[str, int]:
    kept = {name.removesuffix("#stream"): after for name, (_, after) in result.report.pruned.items()}
    return {"stream": kept.get("stem", 6), "one": kept.get("one.0", 8), "two": kept.get("two.0", 4)}


def test_what_a_group_saves_alone_is_what_the_model_costs_less(pruned: pk.PruneResult) -> None:
    assert pruned.tradeoffs is not None
    items = {item.name: item for item in pruned.tradeoffs.items}
    assert [(item.name, item.axis) for item in pruned.tradeoffs.items] == [
        ("stem#stream", "stream"), ("one.0", "neurons"), ("two.0", "neurons"),
    ]  # fmt: skip
    expected = {
        "stem#stream": [1 - macs(stream=n) / WHOLE for n in range(6, 0, -1)],
        "one.0": [1 - macs(one=n) / WHOLE for n in range(8, 0, -1)],
        "two.0": [1 - macs(two=n) / WHOLE for n in range(4, 0, -1)],
    }
    for name, saved in expected.items():
        assert items[name].saved == pytest.approx(saved)
        assert items[name].damages[0] == 0
        assert list(items[name].damages) == sorted(items[name].damages)
    left = sizes(pruned)
    assert [items[n].taken for n in ("stem#stream", "one.0", "two.0")] == [
        6 - left["stream"], 8 - left["one"], 4 - left["two"],
    ]  # fmt: skip


def test_the_last_and_the_next_step_are_weighed_beside_all_else_that_goes(pruned: pk.PruneResult) -> None:
    assert pruned.tradeoffs is not None
    left, now = sizes(pruned), macs(**sizes(pruned))
    for item, key in zip(pruned.tradeoffs.items, ("stream", "one", "two"), strict=True):
        rates: dict[bool, list[float]] = {True: [], False: []}
        for option in range(len(item.damages)):
            other = {**left, key: {"stream": 6, "one": 8, "two": 4}[key] - option}
            percent = 100 * (now - macs(**other)) / WHOLE
            if option != item.taken:
                rates[option > item.taken].append((item.damages[option] - item.damages[item.taken]) / percent)
        assert item.last == (pytest.approx(max(rates[False])) if rates[False] else None)
        assert item.next == (pytest.approx(min(rates[True])) if rates[True] else None)


def test_what_axes_saved_adds_up_to_what_was_saved(pruned: pk.PruneResult) -> None:
    assert pruned.tradeoffs is not None
    axes = {axis.axis: axis for axis in pruned.tradeoffs.axes}
    before, after = pruned.preview.costs["macs"]
    assert sum(axis.saved for axis in axes.values()) == pytest.approx(1 - after / before)
    left = sizes(pruned)
    stream, neurons = {"stream": left["stream"]}, {"one": left["one"], "two": left["two"]}
    orders = [(WHOLE - macs(**stream)), macs(**neurons) - macs(**left)]  # the stream first, and last
    if "stream" in axes:
        assert axes["stream"].saved == pytest.approx(sum(orders) / 2 / WHOLE)
    own = [item for item in pruned.tradeoffs.items if item.axis == "neurons"]
    assert axes["neurons"].damage == pytest.approx(sum(item.damages[item.taken] for item in own))
    assert axes["neurons"].next == min(item.next for item in own if item.next is not None)


def group(name: str, kind: pk.Kind) -> Any:
    return plugin.UnitGroup(name, 4, kind, (), False, ())


def problem(absent: frozenset[int]) -> plugin.Problem:
    """Groups `a` in branch 0, `b` in branch 1, `c` outside; costs are products."""

    def spent(units: Mapping[str, int]) -> dict[str, float]:
        a, b = (0 if number in absent else units[name] for number, name in enumerate("ab"))
        return {"work": units["c"] * (10.0 * a + 20.0 * b) + 4 * units["c"]}

    def choice(name: str, damages: tuple[float, ...], gone: bool) -> plugin.Choice:
        options = tuple({name: 4 - n} for n in range(len(damages)))
        return plugin.Choice(options[:1], (0.0,)) if gone else plugin.Choice(options, damages)

    choices = (
        choice("a", (0.0, 1.0, 3.0), 0 in absent), choice("b", (0.0, 2.0, 6.0), 1 in absent),
        choice("c", (0.0, 9.0), False),
    )  # fmt: skip
    return plugin.Problem(choices, spent, {"work": 200.0})


def test_an_axis_that_saves_nothing_of_a_cost_is_not_said_to_be_exhausted() -> None:
    idle = Tradeoff("a", "neurons", (0.0, 0.0), (0.0, 1.0))
    gone = Tradeoff("b", "heads", (0.0, 0.5), (0.0, 1.0), taken=1, last=0.02)
    axes = (AxisShare("neurons", 1, 0, 0.0, 0.0, None, None), AxisShare("heads", 1, 0, 0.0, 0.0, None, None))
    text = str(Tradeoffs("kv_cache", "loss", (idle, gone), axes))
    assert "neurons (0 of 1): nothing was taken; it saves nothing of this cost" in text
    assert "heads (0 of 1): nothing was taken; no more can go" in text


def test_branches_are_an_axis_beside_units() -> None:
    offers = [Offer(("left",), 5.0), Offer(("right",), 40.0)]
    groups = {"a": group("a", pk.Kind.NEURONS), "b": group("b", pk.Kind.NEURONS), "c": group("c", pk.Kind.STREAM)}
    solved = Solved(problem, {"b": 2}, offers, frozenset([0]), frozenset)
    found = tradeoffs_of(solved, groups, "error")
    assert found is not None
    items = {item.name: item for item in found.items}
    whole = 4 * (40 + 80 + 4)
    assert items["left"].saved == pytest.approx((0, 160 / whole))
    assert (items["left"].taken, items["left"].next) == (1, None)
    assert items["left"].last == pytest.approx(5 / (100 * 160 / whole))
    assert (items["right"].taken, items["right"].last) == (0, None)
    assert items["right"].next == pytest.approx((40 - 6) / (100 * 160 / whole))  # the damage of its units goes with it
    assert "a" not in items  # in a branch that goes
    assert items["b"].last == pytest.approx(max((6 - 2) / (100 * 80 / whole), 6 / (100 * 160 / whole)))
    assert items["c"].next == pytest.approx(9 / (100 * (4 * 44 - 3 * 44) / whole))
    assert [(a.axis, a.items, a.used) for a in found.axes] == [("branches", 2, 1), ("stream", 1, 0), ("neurons", 1, 1)]
    assert [a.saved for a in found.axes] == pytest.approx([160 / whole, 0, 160 / whole])
    assert [a.damage for a in found.axes] == [5, 0, 6]
    assert str(found) == (
        "what each axis gave, by estimate (of work; damage: error):\n"
        "  branches (1 of 2): saved 32.3% for a damage of 5; for each percent: last 0.16, next 1.1\n"
        "  stream (0 of 1): nothing was taken; for each percent: next 1\n"
        "  neurons (1 of 1): saved 32.3% for a damage of 6; for each percent: last 0.25"
    )


def test_parts_of_axes_whose_costs_multiply_are_means_over_orders() -> None:
    groups = {"a": group("a", pk.Kind.HEADS), "b": group("b", pk.Kind.NEURONS), "c": group("c", pk.Kind.STREAM)}
    found = tradeoffs_of(Solved(problem, {"a": 3, "b": 3, "c": 3}), groups, "error")
    assert found is not None

    def cost(cut: frozenset[str]) -> float:
        units = {name: 3 if name in cut else 4 for name in "abc"}
        return problem(frozenset()).spent(units)["work"]

    whole = cost(frozenset())
    expected = dict.fromkeys("abc", 0.0)
    for order in itertools.permutations("abc"):
        for place, name in enumerate(order):
            expected[name] += (cost(frozenset(order[:place])) - cost(frozenset(order[: place + 1]))) / 6 / whole
    saved = {axis.axis: axis.saved for axis in found.axes}
    assert saved == pytest.approx({"heads": expected["a"], "neurons": expected["b"], "stream": expected["c"]})


def test_a_model_that_meets_its_target_has_no_tradeoffs() -> None:
    easy = plugin.Problem(problem(frozenset()).choices, problem(frozenset()).spent, {"work": 1e9})
    assert tradeoffs_of(Solved(lambda absent: easy, {}), {}, "error") is None
    torch.manual_seed(0)
    assert pk.prune(Two().eval(), torch.randn(2, 5), 0.5).tradeoffs is None


def test_depth_and_width_weigh_branches_too() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(16, 5) for _ in range(4)]
    result = pk.prune(Two().eval(), batches[0], target={"macs": 0.5}, calibration=batches, by="both")
    assert result.tradeoffs is not None
    items = {item.name: item for item in result.tradeoffs.items if item.axis == "branches"}
    assert items["one"].saved == pytest.approx((0, 1 - (macs(one=0)) / WHOLE))
    assert items["two"].saved == pytest.approx((0, 1 - (macs(two=0)) / WHOLE))
    assert {name for name, item in items.items() if item.taken} == set(result.report.absent)
    before, after = result.preview.costs["macs"]
    assert sum(axis.saved for axis in result.tradeoffs.axes) == pytest.approx(1 - after / before)
    assert str(result.tradeoffs) in str(result)


def test_a_measured_sensitivity_has_tradeoffs() -> None:
    torch.manual_seed(0)
    model, x = Two().eval(), torch.randn(8, 5)
    measured = pk.sensitivity(model, x, [x], ratios=(0.5,))
    graph = pk.BasePruner(model, x).graph
    data = inspection_data(graph, sensitivity=measured)
    assert data.tradeoffs is not None
    items = {item.name: item for item in data.tradeoffs.items}
    assert items["one.0"].saved == pytest.approx((0, 1 - macs(one=4) / WHOLE))
    assert items["one.0"].damages == (0.0, *next(c.damages for c in measured.curves if c.groups == ("one.0",)))
    assert (data.tradeoffs.cost, data.tradeoffs.metric, data.tradeoffs.axes) == ("macs", "output error", ())
    assert all(item.taken == 0 for item in data.tradeoffs.items)
    titles = to_markdown(data)
    assert "## Damage against saving" in titles
    assert "## What each axis gave" not in titles


ITEM = Tradeoff("a", "neurons", (0.0, 0.1, 0.2, 0.4), (0.0, 3.0, 4.0, 12.0), 2)


def test_pieces_of_a_bar_lie_on_the_lower_hull() -> None:
    assert segments_of(ITEM) == (Segment(0.0, 0.2, pytest.approx(0.2)), Segment(0.2, 0.4, pytest.approx(0.4)))


def test_colours_are_logarithmic() -> None:
    bars = [Bar("a", "neurons", (Segment(0, 0.1, 1.0), Segment(0.1, 0.2, 10.0), Segment(0.2, 0.3, 100.0)), 0.0)]
    scale = Scale.of(bars)
    assert (scale.low, scale.high) == (1.0, 100.0)
    assert [scale.place(rate) for rate in (0.0, 1.0, 10.0, 1000.0)] == [0.0, 0.0, pytest.approx(0.5), 1.0]
    assert (scale.colour(0.0), scale.colour(1e9)) == (COLOURS[0], COLOURS[-1])
    assert Scale.of([]).colour(3.0) == COLOURS[0]


def test_of_many_bars_those_are_drawn_that_save_most() -> None:
    items = tuple(Tradeoff(f"{n}", "neurons", (0.0, n / 10), (0.0, 1.0)) for n in range(5))
    assert [bar.name for bar in bars_of(Tradeoffs("macs", "error", items), 2)] == ["3", "4"]
    assert [bar.name for bar in bars_of(Tradeoffs("macs", "error", items))] == ["1", "2", "3", "4"]  # 0 saves nothing


def test_the_picture_shows_what_could_be_saved_and_what_was(pruned: pk.PruneResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs prunekit[plots]")
    data = report_data(pruned)
    assert data.tradeoffs is not None
    figure = plot_tradeoffs(data)
    panels = [axis for axis in figure.axes if axis.get_title(loc="left")]
    assert [axis.get_title(loc="left") for axis in panels] == ["stream", "neurons"]
    assert [label.get_text() for label in panels[1].get_yticklabels()] == ["one.0", "two.0"]
    ends = [max(bar.get_x() + bar.get_width() for bars in axis.containers for bar in bars) for axis in panels]
    stream, neurons = 100 * (1 - macs(stream=1) / WHOLE), 100 * (1 - macs(one=1) / WHOLE)
    assert ends == pytest.approx([min(stream, 1.5 * neurons), neurons])  # much longer ones are cut off
    taken = [item for item in data.tradeoffs.items if item.taken]
    lines = [line for axis in panels for line in axis.lines]
    assert [line.get_xdata()[1] for line in lines] == pytest.approx([100 * item.saved[item.taken] for item in taken])
    assert [path.name for path in save_plots(data, tmp_path)] == ["macs.png", "widths.png", "tradeoffs.png"]
    torch.manual_seed(0)
    with pytest.raises(pk.ArgumentError, match="no trade-offs"):
        plot_tradeoffs(report_data(pk.prune(Two().eval(), torch.randn(2, 5), 0.5)))


def test_every_form_of_a_report_has_them(pruned: pk.PruneResult) -> None:
    data = report_data(pruned)
    page, text = to_html(data), to_markdown(data)
    for title in ("What each axis gave", "Damage against saving"):
        assert title in page
        assert f"## {title}" in text
    assert page.count('<svg class="rates"') == 3
    assert pruned.tradeoffs is not None
    taken = sum(item.taken > 0 for item in pruned.tradeoffs.items)
    assert page.count('<rect class="taken"') == taken > 0
    loaded = json.loads(json.dumps(data.to_dict()))["tradeoffs"]
    assert loaded["cost"] == "macs"
    assert [item["name"] for item in loaded["items"]] == ["stem#stream", "one.0", "two.0"]
