"""The sizes that a model reaches by losing branches, each with the choice that does least damage: a 0-1 knapsack."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import attrs

STEPS = 2000
"""Into so many steps the cost of the model is divided: of removals that save alike the least damaging counts."""


@attrs.frozen
class Removal:
    """Some of what can leave, together.

    Attributes:
        names: What leaves.
        saved: What it saves, as a part of what the model costs.
        damage: What the model loses by it: the sum of the damages of each alone.
    """

    names: tuple[str, ...] = ()
    saved: float = 0.0
    damage: float = 0.0

    def beside(self, other: Removal) -> Removal:
        """Returns both together."""
        return Removal((*self.names, *other.names), self.saved + other.saved, self.damage + other.damage)


Front = dict[int, Removal]


class Reachable:
    """All sizes that a model reaches.

    Args:
        saved: Name of what can leave to what it saves alone, as a part of what the model costs.
        damages: What the model loses without it.
        inside: Tells of two whether the first is a part of the second, so that it leaves with it.
        most: How many may leave.
    """

    def __init__(
        self,
        saved: Mapping[str, float],
        damages: Mapping[str, float],
        inside: Callable[[str, str], bool],
        most: int,
    ) -> None:
        self._saved, self._damages = saved, damages
        outer = {name: [other for other in saved if other != name and inside(name, other)] for name in saved}
        self._parents = {
            name: max(found, key=lambda one: len(outer[one]), default=None) for name, found in outer.items()
        }
        self._removals = [one for one in self._joined(None).values() if len(one.names) <= most]

    def least(self, needed: float) -> Removal | None:
        """Returns the removal that does least damage of those that save enough; of equals the one that saves least."""
        enough = (one for one in self._removals if one.saved >= needed)
        return min(enough, key=lambda one: (one.damage, one.saved), default=None)

    def nearest(self, needed: float) -> tuple[Removal | None, Removal | None]:
        """Returns the removal that saves least of those that save enough, and the one that saves most of the others."""
        enough = [one for one in self._removals if one.saved >= needed]
        little = [one for one in self._removals if one.saved < needed]
        return (
            min(enough, key=lambda one: one.saved, default=None),
            max(little, key=lambda one: one.saved, default=None),
        )

    def _joined(self, parent: str | None) -> Front:
        """The removals of what is directly in something, or of what is in nothing."""
        found: Front = {0: Removal()}
        for name in (name for name, outer in self._parents.items() if outer == parent):
            whole = Removal((name,), self._saved[name], self._damages[name])
            inner = [*self._joined(name).values(), whole]
            found = _best(one.beside(other) for one in found.values() for other in inner)
        return found


def _best(removals: Iterable[Removal]) -> Front:
    found: Front = {}
    for one in removals:
        place = math.floor(one.saved * STEPS)
        known = found.get(place)
        if known is None or (one.damage, -one.saved) < (known.damage, -known.saved):
            found[place] = one
    return found
