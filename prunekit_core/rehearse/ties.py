"""Ties: groups whose sizes the program computes from each other, or knows by one number, so that they stay in step.

The evidence for a tie is a replay with all of its groups smaller by the same fraction that gets further than the replay
in which they had sizes of their own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import nn

from prunekit_core.algebra.layout import Kept
from prunekit_core.groups.analysis import Analysis
from prunekit_core.rehearse.comparison import Mismatch
from prunekit_core.rehearse.knowledge import Knowledge
from prunekit_core.rehearse.places import Sites, ancestors, groups_at, groups_near
from prunekit_core.rehearse.rehearsal import Stage
from prunekit_core.rehearse.size_attributes import AttributeSearch, Place, Recipe, further, replay

Reselect = Callable[[str, int], "tuple[int, ...] | None"]
"""Chooses the units of a group to keep, given how many; None when the group has to keep all."""

Sizes = dict[str, tuple[int, ...]]
"""Kept units per group that shrinks."""

_WIDTHS = 16
"""Groups that are tried together as those of one width."""

_NEAR = 3
"""Modules around a mismatch in which the other group of a tie is looked for."""


class TieSearch:
    """Looks for groups that have to be in step.

    Args:
        analysis: The analysed model.
        knowledge: What is known; ties that are found are added.
        sites: Where layouts show.
        search: The search for attributes, which starts afresh when a tie is found.
        stage: Makes a stage of kept units.
        reselect: Chooses units anew when a group must keep another number.
    """

    def __init__(
        self,
        analysis: Analysis,
        knowledge: Knowledge,
        sites: Sites,
        search: AttributeSearch,
        stage: Callable[[Kept], Stage],
        reselect: Reselect,
    ) -> None:
        self._analysis, self._knowledge, self._sites, self._search = analysis, knowledge, sites, search
        self._stage, self._reselect = stage, reselect
        # by class of module and operation in it: where groups of one size were found to be no tie
        self._apart: set[tuple[type[nn.Module], int]] = set()

    def found(
        self,
        kept: Sizes,
        stage: Stage,
        recipes: Mapping[Place, Recipe],
        mismatch: Mismatch,
        shared: Mapping[Place, frozenset[str]],
    ) -> Sizes | None:
        """Looks for a tie at a mismatch.

        Args:
            kept: Kept units per group that shrinks.
            stage: What stopped at the mismatch.
            recipes: Attributes that follow sizes.
            mismatch: Where the replay stopped.
            shared: Groups whose size an attribute says, which could follow one of them only.

        Returns:
            The kept units with the groups of the tie in step; None if there is none.
        """
        tie = self._of_two(kept, recipes, mismatch, shared) or self._of_one_width(kept, stage, recipes, mismatch)
        if tie is None:
            return None
        self._knowledge.add_tie(tie)
        self._search.forget()
        return self._in_step(kept, tie, shrinking=False)

    def choosable(self, kept: Kept, names: Iterable[str]) -> list[str]:
        """Those groups that may take any size: scored, not outer, not given back."""
        groups = self._analysis.groups
        free = [n for n in names if not groups[n].outer and n not in self._knowledge.restored]
        return [name for name in free if name in kept or self._reselect(name, groups[name].size) is not None]

    def _of_two(
        self,
        kept: Sizes,
        recipes: Mapping[Place, Recipe],
        mismatch: Mismatch,
        shared: Mapping[Place, frozenset[str]],
    ) -> frozenset[str] | None:
        """Looks for two groups whose sizes the program computes from each other, or knows by one number."""
        for some, names in self._candidates(kept, mismatch, shared):
            for group, other in itertools.product(some, self.choosable(kept, names)):
                pair = self._knowledge.tied(group) | self._knowledge.tied(other)
                if other in self._knowledge.tied(group) or not pair & kept.keys():
                    continue
                tie = self._with_siblings(kept, pair, recipes, mismatch)
                if tie is not None:
                    return tie
        return None

    def _candidates(
        self, kept: Sizes, mismatch: Mismatch, shared: Mapping[Place, frozenset[str]]
    ) -> Iterator[tuple[list[str], list[str]]]:
        """Yields groups at a mismatch, and groups that may be tied to them: the likeliest first."""
        record = self._analysis.recordings[mismatch.recording]
        near = self.choosable(kept, groups_near(self._analysis, record, mismatch.operation, kept)) if shared else []
        yield from ((near, sorted(groups)) for groups in shared.values())
        here = self.choosable(kept, groups_at(record, [mismatch.operation]))
        for path in ancestors(record.trace.operations[mismatch.operation].module)[:_NEAR]:
            indices = [operation.index for operation in self._sites.operations(mismatch.recording, path)]
            yield here, groups_at(record, indices)

    def _with_siblings(
        self, kept: Sizes, tie: frozenset[str], recipes: Mapping[Place, Recipe], mismatch: Mismatch
    ) -> frozenset[str] | None:
        """Returns a tie with which a replay gets further, None if it doesn't.

        A group that runs through many blocks (the stream) may be tied to one of each. With one of these alone the
        replay stops sooner, at the same operation of another block, and the group there goes in step, too.
        """
        found = self._stop(kept, tie, recipes, mismatch)
        while found is not None and not further(found, mismatch):
            if not self._is_alike(found, mismatch):
                return None
            record = self._analysis.recordings[found.recording]
            for name in self.choosable(kept, groups_at(record, [found.operation])):
                wider = tie | self._knowledge.tied(name)
                then = self._stop(kept, wider, recipes, found) if wider != tie else found
                if further(then, found):
                    tie, found = wider, then
                    break
            else:
                return None
        return tie

    def _stop(
        self, kept: Sizes, tie: frozenset[str], recipes: Mapping[Place, Recipe], before: Mismatch
    ) -> Mismatch | None:
        """Tells where a replay with tied groups in step stops; where it did before if they can't be."""
        trial = self._in_step(kept, tie, shrinking=True)
        return before if trial == kept else replay(self._stage(trial), recipes)[0]

    def _is_alike(self, found: Mismatch, mismatch: Mismatch) -> bool:
        """Tells whether two mismatches are at the same operation of modules of one class that aren't one module."""
        if found.recording != mismatch.recording:
            return False
        trace, modules = self._analysis.recordings[found.recording].trace, self._analysis.shadow.modules
        ours, theirs = (ancestors(trace.operations[one.operation].module)[:_NEAR] for one in (mismatch, found))
        return any(
            path != other
            and type(modules[path]) is type(modules[other])
            and self._ordinal(mismatch, path) == self._ordinal(found, other)
            for path, other in zip(ours, theirs, strict=False)
        )

    def _ordinal(self, mismatch: Mismatch, path: str) -> int:
        operations = self._sites.operations(mismatch.recording, path)
        return [operation.index for operation in operations].index(mismatch.operation)

    def _of_one_width(
        self, kept: Sizes, stage: Stage, recipes: Mapping[Place, Recipe], mismatch: Mismatch
    ) -> frozenset[str] | None:
        """Looks for groups of one size that the program knows by one attribute (``self.width``), found with them.

        The evidence is a replay with all of them smaller by the same fraction, and with that attribute, that gets
        further; those without which it does so as well aren't tied.
        """
        record = self._analysis.recordings[mismatch.recording]
        groups = self._analysis.groups
        here = self.choosable(kept, groups_near(self._analysis, record, mismatch.operation, kept))
        sizes = {groups[name].size for name in here}
        for path in ancestors(record.trace.operations[mismatch.operation].module)[:_NEAR]:
            indices = [operation.index for operation in self._sites.operations(mismatch.recording, path)]
            place = (type(stage.modules[path]), indices.index(mismatch.operation))
            names = [n for n in self.choosable(kept, groups_at(record, indices)) if groups[n].size in sizes]
            widths = frozenset[str]().union(*map(self._knowledge.tied, names))
            known = any(widths <= tie for tie in self._knowledge.ties) or place in self._apart
            if known or not 1 < len(widths) <= _WIDTHS:
                continue
            if self._go_in_step(kept, widths, recipes, mismatch):
                return self._needed(kept, names, widths, recipes, mismatch)
            self._apart.add(place)
        return None

    def _needed(
        self,
        kept: Sizes,
        names: Sequence[str],
        widths: frozenset[str],
        recipes: Mapping[Place, Recipe],
        mismatch: Mismatch,
    ) -> frozenset[str]:
        """Leaves out the groups of a tie without which a replay gets further as well."""
        for name in names:
            fewer = widths - self._knowledge.tied(name)
            new = len(fewer) > 1 and fewer not in self._knowledge.ties
            if new and self._go_in_step(kept, fewer, recipes, mismatch):
                widths = fewer
        return widths

    def _go_in_step(
        self, kept: Sizes, widths: frozenset[str], recipes: Mapping[Place, Recipe], mismatch: Mismatch
    ) -> bool:
        """Tells whether a replay with tied groups gets further, with attributes that follow them if need be."""
        trial = self._in_step(kept, widths, shrinking=True)
        if trial == kept:
            return False
        stage = self._stage(trial)
        found, _ = replay(stage, recipes)
        while found is not None and found.values is None and not further(found, mismatch):
            improved = self._search.improve(stage, dict(recipes), found)
            if improved is None:
                break
            recipes, found, _ = improved
        self._search.forget()
        return further(found, mismatch)

    def _in_step(self, kept: Sizes, tie: frozenset[str], *, shrinking: bool) -> Sizes:
        """Gives tied groups the same fraction, the possible one nearest to what they have together."""
        groups = [self._analysis.groups[name] for name in sorted(tie)]
        fraction = sum(len(kept.get(g.name, range(g.size))) for g in groups) / sum(g.size for g in groups)
        counts = counts_in_step([group.size for group in groups], fraction, shrinking=shrinking)
        changed = dict(kept)
        for group, count in zip(groups, counts, strict=True):
            changed.pop(group.name, None)
            if count < group.size:
                chosen = self._reselect(group.name, count)
                if chosen is None or len(chosen) != count:
                    return kept
                changed[group.name] = chosen
        return changed


def counts_in_step(sizes: list[int], fraction: float, *, shrinking: bool = False) -> list[int]:
    """Returns how many units each group keeps so that all keep the same fraction, the possible one nearest to it.

    Args:
        sizes: Units per group.
        fraction: The fraction asked for.
        shrinking: True asks for a fraction below one, if there is one.
    """
    steps = math.gcd(*sizes)
    most = max(1, steps - 1) if shrinking else steps
    chosen = min(most, max(1, math.floor(fraction * steps + 0.5)))
    return [size * chosen // steps for size in sizes]
