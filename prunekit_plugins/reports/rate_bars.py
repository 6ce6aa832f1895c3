"""Trade-offs as bars in the HTML page: one small picture for each row of their table."""

from __future__ import annotations

from prunekit_plugins.prune.tradeoffs import Tradeoffs
from prunekit_plugins.reports.segments import COLOURS, Bar, Scale, bars_of, edge_of

WIDTH = 160
"""Width of the longest bar."""

_PATCHES = "".join(f'<i style="background:{colour};margin:0"></i>' for colour in COLOURS)
RATES_LEGEND = (
    f'<p class="legend">{_PATCHES} a percent of the cost does little damage to much damage'
    '<i style="background:var(--ink);height:3px;vertical-align:middle"></i>taken</p>'
)
"""What the colours mean."""


def rate_bars(tradeoffs: Tradeoffs) -> list[str]:
    """Draws a bar for each trade-off, in their order: as long as what it could save, dark where that is expensive.

    Bars of an axis that saves far more than all others are cut off at the right edge.
    """
    bars = bars_of(tradeoffs, len(tradeoffs.items))
    drawn = {(bar.axis, bar.name): bar for bar in bars}
    most, scale = edge_of(bars), Scale.of(bars)
    found = [drawn.get((item.axis, item.name)) for item in tradeoffs.items]
    return ["" if bar is None else _svg(bar, most, scale) for bar in found]


def _svg(bar: Bar, most: float, scale: Scale) -> str:
    across = WIDTH / most
    pieces = "".join(
        f'<rect x="{across * one.start:.1f}" width="{across * (one.stop - one.start) + 0.1:.1f}" height="10" '
        f'fill="{scale.colour(one.rate)}"/>'
        for one in bar.segments
    )
    taken = f'<rect class="taken" y="11" width="{across * bar.taken:.1f}" height="3"/>' if bar.taken > 0 else ""
    label = f"could save {bar.segments[-1].stop:.1%}, {bar.taken:.1%} taken"
    return (
        f'<svg class="rates" viewBox="0 0 {WIDTH} 14" width="{WIDTH}" height="14" role="img" aria-label="{label}" '
        f'shape-rendering="crispEdges">{pieces}{taken}</svg>'
    )
