"""What rehearsals learn about a program: attributes that follow sizes, sizes in step, and sizes that it can't have."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import attrs

from prunekit_core.rehearse.comparison import Argument
from prunekit_core.rehearse.size_attributes import Place, Recipe

FEW_REPLAYS = 10
"""Replays up to which the report doesn't say what they were for."""


@attrs.frozen
class Multiple:
    """What the size of a group has to be a multiple of.

    Attributes:
        step: The number.
        site: The operation that takes no other sizes, and what it raised where it isn't PyTorch's.
    """

    step: int
    site: str


@attrs.define
class Knowledge:
    """What rehearsals have learnt about a model.

    Attributes:
        recipes: Attributes that follow sizes.
        ties: Groups that must keep the same fraction of their units.
        restored: Groups that can't shrink in this program, with the reason.
        multiples: Groups whose sizes have to be multiples of something in this program.
        means: Groups over which the program takes a mean by dividing a sum, with the place.
        unsteady: Arguments that are tensors of other values each time the program runs.
        skipped_costs: Cost models of plugins that previews leave out, with a note of why.
        effort: What replays were made for, beyond one per plan, to how many and where the first one was.
        uncut: Whether a replay with all units has shown the recorded program, without a number that drifted.
    """

    recipes: dict[Place, Recipe] = attrs.field(factory=dict)
    ties: list[frozenset[str]] = attrs.field(factory=list)
    restored: dict[str, str] = attrs.field(factory=dict)
    multiples: dict[str, Multiple] = attrs.field(factory=dict)
    means: dict[str, str] = attrs.field(factory=dict)
    unsteady: set[Argument] = attrs.field(factory=set)
    skipped_costs: dict[str, str] = attrs.field(factory=dict)
    effort: dict[str, tuple[int, str]] = attrs.field(factory=dict)
    uncut: bool = False

    def tied(self, group: str) -> frozenset[str]:
        """Returns the groups that must keep the same fraction as a group (itself included)."""
        return next((tie for tie in self.ties if group in tie), frozenset({group}))

    def add_tie(self, groups: frozenset[str]) -> None:
        """Adds a tie, merging those that overlap."""
        merged = groups.union(*(tie for tie in self.ties if tie & groups))
        self.ties = [tie for tie in self.ties if not tie & groups] + [merged]

    @property
    def limits(self) -> tuple[list[frozenset[str]], list[str], dict[str, int]]:
        """What is known of sizes that groups can't have, to tell whether more is known later."""
        steps = {group: multiple.step for group, multiple in self.multiples.items()}
        return list(self.ties), list(self.restored), steps

    def note_effort(self, what: str, replays: int, where: str) -> None:
        """Adds replays that were made for something."""
        count, first = self.effort.get(what, (0, where))
        if replays:
            self.effort[what] = (count + replays, first)

    def notes(self) -> list[str]:
        """Tells which costs previews leave out, which sizes are multiples, and what many replays were for."""
        told = [*self.skipped_costs.values(), *self._multiples()]
        total = sum(count for count, _ in self.effort.values())
        if total <= FEW_REPLAYS:
            return told
        parts = [f"{count} {what} (first: {where})" for what, (count, where) in self.effort.items()]
        effort = f"planning took longer: the model ran {total} more times without data, {', '.join(parts)}"
        return [*told, effort]

    def _multiples(self) -> Iterator[str]:
        """Tells which groups keep multiples, those of the same multiple together, with the place of the first one."""
        alike: dict[int, list[str]] = {}
        for group, multiple in self.multiples.items():
            alike.setdefault(multiple.step, []).append(group)
        for step, groups in sorted(alike.items()):
            more = f" and {len(groups) - 1} more" if len(groups) > 1 else ""
            yield f"sizes of {groups[0]}{more} are multiples of {step}: {self.multiples[groups[0]].site}"


FEW = 6
"""Names up to which all that aren't needed are left out one by one."""


def causes(names: Sequence[str], mends: Callable[[Collection[str]], bool]) -> list[str]:
    """Finds names that mend something together, as few as it takes, the first ones where there is a choice.

    Args:
        names: The likeliest first.
        mends: Tells whether all is well with some of them; with more of them it stays well.

    Returns:
        The names; of more than a few, the last one that it takes. Empty if all of them don't mend it.
    """
    low, high = 0, 1  # by doubling, then by halving
    while high < len(names) and not mends(names[:high]):
        low, high = high, 2 * high
    high = min(high, len(names))
    if high == len(names) and not mends(names):
        return []
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if mends(names[:middle]) else (middle, high)
    if high > FEW:
        return [names[high - 1]]
    needed = list(names[:high])
    for name in names[: high - 1]:
        fewer = [other for other in needed if other != name]
        if mends(fewer):
            needed = fewer
    return needed


STEPS = (2, 4, 8, 16)
"""Multiples that kernels ask for, in bytes or in numbers."""


def least_multiple(
    sizes: Mapping[str, tuple[int, int]], mends: Callable[[Mapping[str, int]], bool]
) -> tuple[int, list[str]] | None:
    """Finds the least multiple that mends something if groups have sizes that are multiples of it.

    It is tried with odd multiples, which are multiples of no larger step.

    Args:
        sizes: Group to the size that it should have, and to the size of the whole group.
        mends: Tells whether all is well with other sizes for some of the groups.

    Returns:
        The multiple, and the groups that need it, as few as it takes; None if no multiple helps.
    """
    for step in STEPS:
        rounded = {name: rounded_size(size, whole, step, odd=True) for name, (size, whole) in sizes.items()}
        fitting = {name: size for name, size in rounded.items() if size}
        if not fitting or not mends(fitting):
            continue
        for name in list(fitting):
            fewer = {other: size for other, size in fitting.items() if other != name}
            if fewer and mends(fewer):
                fitting = fewer
        return step, list(fitting)
    return None


def rounded_size(size: int, whole: int, step: int, *, odd: bool = False) -> int:
    """Returns the multiple of a step nearest to a size that is smaller than the whole; 0 where there is none.

    Args:
        size: The size; of two multiples that are as near the larger one is taken.
        whole: What it has to be smaller than.
        step: The step.
        odd: Whether only odd multiples count.
    """
    apart, first = (2 * step, step) if odd else (step, step)
    fitting = range(first, whole, apart)
    return min(fitting, key=lambda multiple: (abs(multiple - size), -multiple), default=0)
