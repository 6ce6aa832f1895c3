"""Predictions corrected by what was measured: straight lines between measurements."""

from __future__ import annotations

import itertools


class Trials:
    """Measurements of one cost, each as a fraction of what is allowed, beside the predictions.

    Between two of them the cost is taken to lie on a straight line, and beyond them on the line through the nearest
    two: a part that stays whatever goes is found out that way, which a single factor would miss.
    """

    def __init__(self) -> None:
        self._points: dict[float, float] = {}

    def add(self, predicted: float, used: float) -> None:
        """Notes a measurement; one of the same prediction takes the place of an earlier one.

        Args:
            predicted: The prediction.
            used: What was measured, divided by what is allowed.
        """
        self._points[predicted] = used

    def expected(self, predicted: float) -> float:
        """Corrects a prediction; returns a fraction of what is allowed."""
        points = sorted(self._points.items())
        if len(points) == 1:
            (x, y) = points[0]
            return y * predicted / x
        after = next((number for number, (x, _) in enumerate(points) if x >= predicted), len(points) - 1)
        (x0, y0), (x1, y1) = points[max(0, after - 1) : max(0, after - 1) + 2]
        return y0 + (y1 - y0) * (predicted - x0) / (x1 - x0)

    def wanted(self) -> float:
        """Returns the prediction at which just what is allowed is expected; 0 or more."""
        points = sorted(self._points.items())
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            if y0 <= 1 < y1:
                return x0 + (1 - y0) / (y1 - y0) * (x1 - x0)
        if points[0][1] <= 1:
            return points[-1][0]
        (x0, y0), (x1, y1) = points[0], points[min(1, len(points) - 1)]
        nearer = x0 - (y0 - 1) * (x1 - x0) / (y1 - y0) if y1 > y0 else 0.0
        return nearer if nearer > 0 else x0 / y0
