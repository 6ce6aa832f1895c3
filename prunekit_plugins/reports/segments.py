"""Trade-offs as bars: what each part of a model saves, in pieces coloured by what a percent of it costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import attrs

from prunekit_plugins.prune.tradeoffs import Tradeoff, Tradeoffs

COLOURS = ("#fdedb8", "#fbcb7a", "#f59a52", "#e0603f", "#b02a45", "#6b1240")
"""From cheap to expensive."""
MOST = 48
"""Bars in one picture; those that save most are shown."""
_LONGER = 1.5
"""How many times as long as the longest bar of all other axes a bar is drawn."""
_LITTLE = 1e-9
"""A part of the cost that is none."""


@attrs.frozen
class Segment:
    """A piece of a bar.

    Attributes:
        start, stop: Which part of the cost is saved where it begins and ends.
        rate: Damage for each percent of the cost in it.
    """

    start: float
    stop: float
    rate: float


@attrs.frozen
class Bar:
    """A branch, or groups that shrink together.

    Attributes:
        name: Its name.
        axis: What goes.
        segments: From the cheapest to the most expensive.
        taken: Which part of the cost was saved by what was taken of it, alone.
    """

    name: str
    axis: str
    segments: tuple[Segment, ...]
    taken: float


def bars_of(tradeoffs: Tradeoffs, most: int = MOST) -> list[Bar]:
    """Makes the bars of a picture, in the order of the axes and of the model.

    Args:
        tradeoffs: The trade-offs.
        most: How many bars are made: of those that save most.
    """
    useful = [item for item in tradeoffs.items if item.saved[-1] > _LITTLE]
    chosen = set(sorted(range(len(useful)), key=lambda place: (-useful[place].saved[-1], place))[:most])
    return [
        Bar(item.name, item.axis, segments_of(item), item.saved[item.taken])
        for place, item in enumerate(useful)
        if place in chosen
    ]


def edge_of(bars: Sequence[Bar]) -> float:
    """Returns where bars end at the latest: one axis that saves much more than all others is cut off there."""
    longest: dict[str, float] = {}
    for bar in bars:
        longest[bar.axis] = max(longest.get(bar.axis, 0.0), bar.segments[-1].stop)
    first, *others = sorted(longest.values(), reverse=True) or [1.0]
    return min(first, _LONGER * others[0]) if others else first


def segments_of(item: Tradeoff) -> tuple[Segment, ...]:
    """Cuts a curve of damages over savings into pieces, along its lower convex hull.

    A step up costs the mean of its units there, so that no unit hides what comes after it.
    """
    hull: list[tuple[float, float]] = []
    for saved, damage in sorted(zip(item.saved, item.damages, strict=True)):
        if hull and saved - hull[-1][0] <= _LITTLE:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], (saved, damage)):
            hull.pop()
        hull.append((saved, damage))
    return tuple(Segment(a[0], b[0], _slope(a, b) / 100) for a, b in itertools.pairwise(hull))


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


@attrs.frozen
class Scale:
    """Which colour stands for which damage for each percent.

    Attributes:
        low, high: The rates of the first and of the last colour; between them the scale is logarithmic.
    """

    low: float
    high: float

    @classmethod
    def of(cls, bars: Sequence[Bar]) -> Scale:
        """Makes the scale of a picture: from the rate below which a twentieth of all pieces lie to the mirrored one."""
        rates = sorted(one.rate for bar in bars for one in bar.segments if one.rate > 0)
        if not rates:
            return cls(1.0, 1.0)
        edge = len(rates) // 20
        return cls(rates[edge], rates[-1 - edge])

    def place(self, rate: float) -> float:
        """Returns where a rate lies between the first colour (0) and the last one (1)."""
        if rate <= self.low or self.high <= self.low:
            return 0.0
        return min(1.0, math.log(rate / self.low) / math.log(self.high / self.low))

    def colour(self, rate: float) -> str:
        """Returns the colour of a rate, as ``"#rrggbb"``."""
        position = self.place(rate) * (len(COLOURS) - 1)
        first = min(int(position), len(COLOURS) - 2)
        pairs = zip(_channels(COLOURS[first]), _channels(COLOURS[first + 1]), strict=True)
        mixed = (round(a + (b - a) * (position - first)) for a, b in pairs)
        return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
