"""The picture of trade-offs with matplotlib: one bar for each part of a model that could go."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from prunekit.plugin import ArgumentError
from prunekit_plugins.reports.data import ReportData
from prunekit_plugins.reports.plots import INK, figure_of, shortened
from prunekit_plugins.reports.segments import COLOURS, MOST, Bar, Scale, bars_of, edge_of

_TAKEN = "#10243a"


def plot_tradeoffs(data: ReportData) -> Any:
    """Draws what each part of a model could save and what each percent of it would cost.

    A bar is as long as what its branch, or its groups, save alone when all goes that may; it is cut into pieces, light
    where a percent of the cost does little damage, dark where it does much. A line under it shows what was taken. Light
    bars without a line are what could go next; a line under a dark piece is what hurt most.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ArgumentError: The report holds no trade-offs.
    """
    if data.tradeoffs is None or not bars_of(data.tradeoffs):
        raise ArgumentError(
            "The report holds no trade-offs.",
            hint="prune to a target with calibration data, or pass a measured sensitivity to report_data",
        )
    bars, every = bars_of(data.tradeoffs), len(data.tradeoffs.items)
    parts = [(axis, list(own)) for axis, own in itertools.groupby(bars, key=lambda bar: bar.axis)]
    figure = figure_of(8.6, 0.23 * len(bars) + 0.34 * len(parts) + 1.5)
    axes = figure.subplots(
        len(parts), 1, sharex=True, squeeze=False, height_ratios=[len(own) + 0.4 for _, own in parts]
    )
    scale, edge = Scale.of(bars), edge_of(bars)
    for axis, (name, own) in zip(axes[:, 0], parts, strict=True):
        _panel(axis, name, own, scale, edge)
    last = axes[-1, 0]
    last.set_xlim(0, 104 * edge)
    last.tick_params(axis="x", labelsize=8)
    rest = f" (the {len(bars)} of {every} that save most)" if len(bars) < every and len(bars) == MOST else ""
    last.set_xlabel(f"saved alone (% of {data.tradeoffs.cost}){rest}", color=INK)
    _legend(figure, list(axes[:, 0]), scale, data)
    return figure


def _panel(axis: Any, name: str, bars: Sequence[Bar], scale: Scale, edge: float) -> None:
    """The bars of one axis, the first on top."""
    axis.set_title(name, loc="left", fontsize=9, fontweight="bold", color=INK, pad=3)
    for place, bar in enumerate(bars):
        for one in bar.segments:
            if one.start >= edge:
                break
            axis.barh(
                place, 100 * (min(one.stop, edge) - one.start), left=100 * one.start, height=0.62,
                color=scale.colour(one.rate),
            )  # fmt: skip
        if bar.segments[-1].stop > edge:
            more = f"\N{RIGHTWARDS ARROW} {bar.segments[-1].stop:.0%}"
            axis.text(99 * edge, place, more, ha="right", va="center", fontsize=8, color="white", fontweight="bold")
        if bar.taken > 0:
            axis.plot(
                [0, 100 * min(bar.taken, edge)], [place + 0.36] * 2, color=_TAKEN, linewidth=2.4, solid_capstyle="butt"
            )
    axis.set_yticks(range(len(bars)), [shortened(bar.name, 46) for bar in bars], fontsize=7.5)
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", color="#e4e8ee", linewidth=0.8)
    axis.set_axisbelow(True)


def _legend(figure: Any, axes: Sequence[Any], scale: Scale, data: ReportData) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm
    from matplotlib.lines import Line2D

    assert data.tradeoffs is not None
    if scale.high > scale.low:
        colours = ScalarMappable(LogNorm(scale.low, scale.high), LinearSegmentedColormap.from_list("rates", COLOURS))
        beside = figure.colorbar(colours, ax=axes, fraction=0.03, pad=0.02, aspect=30)
        beside.set_label(f"damage for each percent: {data.tradeoffs.metric}", fontsize=8, color=INK)
        beside.ax.tick_params(labelsize=7)
        beside.outline.set_visible(False)
    if any(item.taken for item in data.tradeoffs.items):
        line = Line2D([], [], color=_TAKEN, linewidth=2.4)
        figure.legend([line], ["taken"], loc="outside upper right", frameon=False, fontsize=8)
