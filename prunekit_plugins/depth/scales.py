"""Damages of units and of branches on one scale: fitted to what was measured of choices that were carried out."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from prunekit_plugins.depth.items import Scales

_PRIOR = 1e-3
"""How much it counts that scales are as they were, against one measurement."""
_FAR = 100.0
"""Scales leave their first values by this factor at most."""


@attrs.frozen
class Measured:
    """A choice that was carried out.

    Attributes:
        width: The damage of its units, by their own scale.
        depth: The damage of its branches, by theirs.
        change: What the model lost.
    """

    width: float
    depth: float
    change: float


def fitted(points: Sequence[Measured], prior: Scales) -> Scales:
    """Returns the scales by which damages add up to what was measured.

    They minimise the squares of ``(a * width + b * depth - change) / change`` over what was measured, and, with a small
    weight, of their own relative differences from earlier ones, which decide where nothing else does.

    Args:
        points: What was measured.
        prior: The earlier scales.
    """
    rows = [(one.width / one.change, one.depth / one.change) for one in points if one.change > 0]
    if not rows:
        return prior
    ww = sum(w * w for w, _ in rows) + _PRIOR / prior.width**2
    dd = sum(d * d for _, d in rows) + _PRIOR / prior.depth**2
    wd = sum(w * d for w, d in rows)
    w1, d1 = (sum(row[place] for row in rows) for place in (0, 1))
    w1, d1 = w1 + _PRIOR / prior.width, d1 + _PRIOR / prior.depth
    space = ww * dd - wd * wd
    return Scales(_near((dd * w1 - wd * d1) / space, prior.width), _near((ww * d1 - wd * w1) / space, prior.depth))


def _near(value: float, before: float) -> float:
    return min(max(value, before / _FAR), before * _FAR)
