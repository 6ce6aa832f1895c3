"""Pictures of a report with matplotlib (extra ``plots``), made without pyplot, so that nothing global changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from prunekit.plugin import ArgumentError, nearest
from prunekit_plugins.reports.data import GroupRow, MemberRow, ReportData, runs_of

STAYS, GOES, INK = "#0b6e99", "#e3c9a8", "#3c4656"
MOST = 40
"""Bars in one picture; the largest are shown."""


def plot_macs(data: ReportData) -> Any:
    """Draws where the multiply-accumulates went: one bar per layer, those of the largest layers.

    Returns:
        A ``matplotlib.figure.Figure``; ``figure.savefig("macs.png")`` writes it.
    """
    layers = sorted((layer for layer in data.layers if layer.macs[0]), key=lambda layer: -layer.macs[0])
    bars = [(layer.name or "the model", *layer.macs) for layer in layers]
    return _bars(bars, "multiply-accumulates of one forward pass")


def plot_widths(data: ReportData) -> Any:
    """Draws the units of every group before and after, the widest groups.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    groups = sorted(data.groups, key=lambda group: -group.before)[:MOST]
    chosen = {group.name for group in groups}
    return _bars([(g.name, g.before, g.after) for g in data.groups if g.name in chosen], "units")


def plot_sensitivity(data: ReportData) -> Any:
    """Draws what is lost when units of one group alone go: a line per group, the most sensitive ones named.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ArgumentError: The report holds no sensitivity.
    """
    if not data.sensitivity:
        raise ArgumentError("The report holds no sensitivity.", hint="measure it, and pass it to report_data")
    figure = figure_of(7, 4.2)
    axis = figure.add_subplot()
    curves = sorted(data.sensitivity.items(), key=lambda item: -max(item[1].values(), default=0.0))
    for place, (name, curve) in enumerate(curves):
        named = place < 8
        x, y = zip(*sorted({0.0: 0.0, **curve}.items()), strict=True)
        axis.plot(
            [100 * fraction for fraction in x], y, marker=".", linewidth=1.6 if named else 0.8,
            color=f"C{place}" if named else "#b5bcc8", label=name if named else None, zorder=2 if named else 1,
        )  # fmt: skip
    axis.set_xlabel("units of the group removed (%)")
    axis.set_ylabel(data.metric)
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def draw_group(data: ReportData, name: str) -> Any:
    """Draws the members of one group: every parameter as a rectangle, and what leaves as stripes.

    Args:
        data: The report.
        name: Name of the group.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ArgumentError: The report has no such group.
    """
    groups = {group.name: group for group in data.groups}
    if name not in groups:
        raise ArgumentError("The report has no such group.", where=name, hint=nearest(name, groups))
    group = groups[name]
    shown = group.members[:12]
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = figure_of(2.9 * columns, 2.5 * rows + 0.5)
    more = f" and {len(group.members) - len(shown)} more" if len(shown) < len(group.members) else ""
    figure.suptitle(
        f"{group.name}: {group.before} {group.kind} \N{RIGHTWARDS ARROW} {group.after}, {len(shown)}{more} members",
        fontsize=11, color=INK,
    )  # fmt: skip
    for place, member in enumerate(shown):
        _member(figure.add_subplot(rows, columns, place + 1), member, group)
    return figure


def _member(axis: Any, member: MemberRow, group: GroupRow) -> None:
    """One parameter, its dim of units down or across; the other dims together are the other side."""
    from matplotlib.patches import Rectangle

    across = member.dim > 0
    long = math.log2(member.shape[member.dim] + 1)
    other = math.log2(math.prod(member.shape) / member.shape[member.dim] + 1)
    width, height = (long, other) if across else (other, long)
    axis.add_patch(Rectangle((0, 0), width, height, facecolor=STAYS, edgecolor="none"))
    gone = member.removed
    if gone is None:
        stay = set(group.kept) if group.kept else set(range(group.before))
        gone = tuple(runs_of(unit for unit in range(group.before) if unit not in stay))
    for start, stop in gone:
        low, high = (edge * long / member.shape[member.dim] for edge in (start, stop))
        corner, size = ((low, 0), (high - low, height)) if across else ((0, height - high), (width, high - low))
        axis.add_patch(Rectangle(corner, *size, facecolor=GOES, edgecolor="none"))
    sizes = " x ".join(map(str, member.shape))
    axis.set_title(f"{shortened(member.parameter)}[{member.dim}] {member.role}\n{sizes}", fontsize=8, color=INK)
    side = max(width, height)
    axis.set_xlim((width - side) / 2, (width + side) / 2)
    axis.set_ylim((height - side) / 2, (height + side) / 2)
    axis.set_aspect("equal")
    axis.axis("off")


def shortened(name: str, most: int = 34) -> str:
    """Leaves the start of a long name out."""
    return name if len(name) <= most else "\N{HORIZONTAL ELLIPSIS}" + name[-most:]


def _bars(bars: Sequence[tuple[str, float, float]], what: str) -> Any:
    from matplotlib.ticker import EngFormatter

    shown = bars[:MOST]
    figure = figure_of(8, 0.24 * len(shown) + 1.3)
    axis = figure.add_subplot()
    places = range(len(shown))
    axis.barh(places, [before for _, before, _ in shown], color=GOES, label="goes", height=0.72)
    axis.barh(places, [after for _, _, after in shown], color=STAYS, label="stays", height=0.72)
    axis.set_yticks(places, [shortened(name, 60) for name, _, _ in shown], fontsize=8)
    axis.set_ylim(len(shown) - 0.5, -0.5)
    rest = f" (the {len(shown)} largest of {len(bars)})" if len(shown) < len(bars) else ""
    axis.set_xlabel(what + rest)
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def figure_of(width: float, height: float) -> Any:
    """Makes an empty figure, of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")
