"""Sensitivity: what a model loses when units of one group alone go, as a value that is kept and used again."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from prunekit_core.errors import ArgumentError, CheckpointError
from prunekit_core.groups.analysis import Analysis
from prunekit_core.plans.plan import FORMAT as PLAN_FORMAT
from prunekit_plugins.checkpoints.tensorfile import CHECK_PATH, NO_FILE

FORMAT = 1


@attrs.frozen
class Curve:
    """Damage of groups that shrink together.

    Attributes:
        groups: Names of the groups.
        removed: Fractions of their units that were removed, ascending.
        damages: What the model lost at each.
    """

    groups: tuple[str, ...]
    removed: tuple[float, ...]
    damages: tuple[float, ...]

    def at(self, removed: float) -> float:
        """Returns the damage at a fraction, between the measured ones in a straight line; it never falls.

        Nothing removed does no damage. Beyond the last measured fraction the last stretch goes on.
        """
        points = [(0.0, 0.0)]
        for fraction, damage in zip(self.removed, self.damages, strict=True):
            if fraction > points[-1][0]:
                points.append((fraction, max(damage, points[-1][1])))
        (x0, y0), (x1, y1) = next(
            (pair for pair in itertools.pairwise(points) if removed <= pair[1][0]),
            (points[-2], points[-1]) if len(points) > 1 else ((0.0, 0.0), (1.0, 0.0)),
        )
        return y0 + (y1 - y0) * (removed - x0) / (x1 - x0)

    def ratio(self, at_most: float) -> float:
        """Returns the largest fraction, up to the last measured one, whose damage is at most this."""
        low, high = 0.0, self.removed[-1] if self.removed else 0.0
        if self.at(high) <= at_most:
            return high
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.at(middle) <= at_most else (low, middle)
        return low


@attrs.frozen
class Sensitivity:
    """What a model loses when units of one group alone go.

    Attributes:
        curves: One per group, or per set of groups that shrink together.
        metric: What the damage is: ``"output error"``, or the name of the metric that falls.
        sizes: Units of every group of the model.
        examples: Number of calibration examples that it was measured on.
        left: Groups with cuts that couldn't be measured, with the reason. Those without a curve stay whole in an
            allocation.
    """

    curves: tuple[Curve, ...]
    metric: str
    sizes: Mapping[str, int]
    examples: int
    left: Mapping[str, str] = attrs.field(factory=dict)

    def covers(self, groups: Iterable[str]) -> bool:
        """Tells whether the damages of some groups were measured."""
        measured = {name for curve in self.curves for name in curve.groups}
        return set(groups) <= measured

    def damage(self, units: Mapping[str, int]) -> float:
        """Returns the sum of the damages of some groups.

        Args:
            units: Group to the number of units that it keeps. Where groups shrink together that were measured apart,
                their damages are added up.

        Raises:
            ArgumentError: A group was not measured, or can't keep so many units.
        """
        total, missing = 0.0, set(units)
        for name in missing & self.sizes.keys():
            if not 0 <= units[name] <= self.sizes[name]:
                raise ArgumentError(
                    "A group can't keep so many units.", where=name, why=f"{units[name]} of {self.sizes[name]}"
                )
        for curve in self.curves:
            inside = [name for name in curve.groups if name in missing]
            if inside:
                total += curve.at(max(1 - units[name] / self.sizes[name] for name in inside))
                missing -= set(inside)
        if missing:
            raise ArgumentError(
                "The sensitivity of a group was not measured.", where=min(missing), hint="measure it with these options"
            )
        return total

    def ratios(self, at_most: float) -> dict[str, float]:
        """Returns, per group, the largest ratio that does at most this damage when it is the only one to shrink."""
        return {name: curve.ratio(at_most) for curve in self.curves for name in curve.groups}

    def check(self, analysis: Analysis) -> None:
        """Raises `ArgumentError` unless it was measured on a model with these groups."""
        found = {name: group.size for name, group in analysis.groups.items()}
        other = sorted(name for name in {*found, *self.sizes} if found.get(name) != self.sizes.get(name))
        if other:
            raise ArgumentError(
                "The sensitivity is that of another model.",
                where=other[0],
                why=f"measured: {self.sizes.get(other[0], 'no')} units; here: {found.get(other[0], 'no')} units",
                hint="measure it anew",
            )

    def __str__(self) -> str:
        head, *rows = self._rows()
        widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
        lines = [f"damage ({self.metric}) by fraction of a group's units that go"]
        for row in (head, *rows):
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  ".join(cells).rstrip())
        lines.extend(f"{group}: {reason}" for group, reason in self.left.items())
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Writes it as a Markdown table."""
        head, *rows = self._rows()
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in lines)

    def _rows(self) -> list[list[str]]:
        """The table: what was measured, or where groups were measured at different fractions, what `Curve.at` says."""
        shares = {tuple(f"{value:.0%}" for value in curve.removed) for curve in self.curves}
        eighths = tuple(share / 8 for share in range(1, 8))
        rows = [["group", *(next(iter(shares)) if len(shares) == 1 else (f"{share:.0%}" for share in eighths))]]
        for curve in self.curves:
            damages = curve.damages if len(shares) == 1 else map(curve.at, eighths)
            rows.append([" + ".join(curve.groups), *(f"{damage:.3g}" for damage in damages)])
        return rows

    def to_json(self) -> str:
        """Writes it as JSON."""
        data = {"format": FORMAT, "plan_format": PLAN_FORMAT, "metric": self.metric, "examples": self.examples}
        curves = [[list(c.groups), list(c.removed), list(c.damages)] for c in self.curves]
        return json.dumps({**data, "sizes": dict(self.sizes), "curves": curves, "left": dict(self.left)})

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """Reads what `to_json` wrote.

        Raises:
            CheckpointError: The text is no sensitivity, or that of another version.
        """
        try:
            data: Any = json.loads(text)
            if (data["format"], data["plan_format"]) != (FORMAT, PLAN_FORMAT):
                raise CheckpointError("The sensitivity is of another version.", hint="measure it anew")
            curves = tuple(
                Curve(tuple(map(str, groups)), _numbers(removed), _numbers(damages))
                for groups, removed, damages in data["curves"]
            )
            if any(len(curve.removed) != len(curve.damages) for curve in curves):
                raise ValueError("a curve has more fractions than damages")
            sizes = {str(name): int(size) for name, size in data["sizes"].items()}
            left = {str(name): str(reason) for name, reason in data["left"].items()}
            return cls(curves, str(data["metric"]), sizes, int(data["examples"]), left)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError("The text is no sensitivity.", why=f"{type(error).__name__}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to a file, as JSON."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: There is no such file, or it holds no sensitivity.
        """
        file = Path(path)
        if not file.is_file():
            raise CheckpointError(NO_FILE, where=str(file), hint=CHECK_PATH)
        return cls.from_json(file.read_text(encoding="utf-8"))


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
