"""Branches that may go, which of them contain which, and which groups leave with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from prunekit_core.graph.graph import Graph
from prunekit_plugins.budgets.options import Options

Absent = frozenset[int]
"""Numbers of the offers that are taken."""


@attrs.frozen
class Offer:
    """Branches that may go, together.

    Attributes:
        branches: Their names.
        damage: What the model loses without them.
    """

    branches: tuple[str, ...]
    damage: float


class Nesting:
    """Which offers contain which, and which groups each contains.

    Args:
        graph: The analysed model.
        offers: The offers.
        choices: Sizes of everything whose size is up for choice.
    """

    def __init__(self, graph: Graph, offers: Sequence[Offer], choices: Sequence[Options]) -> None:
        branches, groups = {one.name: one for one in graph.branches()}, graph.analysis.groups
        self._reads = {
            name: {member.parameter for member in groups[name].members} for options in choices for name in options[0]
        }
        self._gone = [{p for name in offer.branches for p in branches[name].parameters} for offer in offers]
        self._dead: dict[Absent, frozenset[str]] = {}
        self._outer = {
            number: [
                place
                for place, other in enumerate(offers)
                if place != number
                and all(
                    name in other.branches or any(branches[name].is_part_of(branches[one]) for one in other.branches)
                    for name in offer.branches
                )
                and not (set(other.branches) == set(offer.branches) and place > number)
            ]
            for number, offer in enumerate(offers)
        }
        self._parent = {
            number: max(outer, key=lambda one: len(self._outer[one]), default=None)
            for number, outer in self._outer.items()
        }
        self._homes = [self._home(options) for options in choices]
        self._partly = [
            [
                place
                for place, options in enumerate(choices)
                if self._homes[place] is None and self._touches(number, options)
            ]
            for number in range(len(offers))
        ]

    @property
    def roots(self) -> list[int]:
        """Offers that no other one contains."""
        return [number for number, parent in self._parent.items() if parent is None]

    def children(self, number: int) -> list[int]:
        """Offers directly in an offer."""
        return [other for other, parent in self._parent.items() if parent == number]

    def choices(self, home: int | None) -> list[int]:
        """Choices whose groups are all in an offer and in none that it contains; None: those in no offer."""
        return [place for place, found in enumerate(self._homes) if found == home]

    def outside(self, number: int) -> list[int]:
        """Choices in no offer that have groups in this one."""
        return self._partly[number]

    def outermost(self, absent: Iterable[int]) -> Absent:
        """Leaves offers out that others contain."""
        every = frozenset(absent)
        return frozenset(number for number in every if every.isdisjoint(self._outer[number]))

    def dead(self, absent: Absent) -> frozenset[str]:
        """Returns the groups that go with some offers: all that holds their units does."""
        if absent not in self._dead:
            gone: set[str] = set().union(*(self._gone[number] for number in absent))
            self._dead[absent] = frozenset(name for name, reads in self._reads.items() if reads <= gone)
        return self._dead[absent]

    def _home(self, options: Options) -> int | None:
        able = [number for number in self._outer if self.dead(frozenset([number])).issuperset(options[0])]
        return max(able, key=lambda one: len(self._outer[one]), default=None)

    def _touches(self, number: int, options: Options) -> bool:
        return not self.dead(frozenset([number])).isdisjoint(options[0])
