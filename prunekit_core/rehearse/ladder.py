"""Proving a cut: the ladder from attribute edits over ties to restored units.

A cut is replayed until the smaller program is the recorded one. At the first mismatch, in this order (each step is
believed only if a replay with it gets further):

1. *attributes*: a size that the program reads from a module (``self.num_heads``) gets its new value;
2. *multiples*: where a kernel raises, groups take the nearest size of which it takes multiples only;
3. *ties*: groups whose sizes the program computes from each other (``out = 4 * self.width``) keep the same fraction;
4. *units are restored*: a group whose size is written into the program (``x.view(-1, 8)``) stays whole.

What is learnt is kept in `Knowledge` for later plans of the same model, and tried on sibling modules at once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NoReturn

import attrs
from torch import nn

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Kept, Units
from prunekit_core.errors import RehearsalError
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.recording import Recording
from prunekit_core.modules.edits import AttributeEdit, normal_size
from prunekit_core.modules.entries import place_of
from prunekit_core.plugins.registry import Registry
from prunekit_core.rehearse.comparison import Drift, Mismatch, Unmet
from prunekit_core.rehearse.knowledge import Knowledge, Multiple, causes, least_multiple, rounded_size
from prunekit_core.rehearse.places import Sites, ancestors, groups_at, groups_before, groups_near
from prunekit_core.rehearse.rehearsal import Stage
from prunekit_core.rehearse.size_attributes import AttributeSearch, Place, Recipe, further, replay, value_of
from prunekit_core.rehearse.ties import Reselect, TieSearch


@attrs.frozen
class Rehearsed:
    """A cut that has been proven.

    Attributes:
        kept: Kept units per group that shrinks.
        edits: Every attribute that changes.
        drifts: Numbers in the program that changed with a size.
    """

    kept: dict[str, tuple[int, ...]]
    edits: tuple[AttributeEdit, ...]
    drifts: tuple[Drift, ...]


Judge = Callable[[Rehearsed], Sequence[Unmet]]
"""Tells which constants of a cut the weights can't make up for."""


def rehearse(
    analysis: Analysis,
    registry: Registry,
    knowledge: Knowledge,
    kept: Mapping[str, tuple[int, ...]],
    reselect: Reselect | None,
    judge: Judge,
) -> Rehearsed:
    """Proves a cut on the shadow, changing it where the program can't express it.

    Args:
        analysis: The analysed model.
        registry: Where op rules and layer types are found.
        knowledge: What is known from earlier rehearsals; what is learnt is added.
        kept: Kept units per group that shrinks.
        reselect: Chooses units anew when a group must keep another number; None if the choice is fixed.
        judge: Tells which constants can't be made up for: the units that they follow stay, too.

    Raises:
        RehearsalError: The choice is fixed and can't be expressed, or the program isn't the same twice.
    """
    return _Ladder(analysis, registry, knowledge, dict(kept), reselect, judge).climb()


class _Ladder:
    def __init__(
        self,
        analysis: Analysis,
        registry: Registry,
        knowledge: Knowledge,
        kept: dict[str, tuple[int, ...]],
        reselect: Reselect | None,
        judge: Judge,
    ) -> None:
        self._analysis, self._registry, self._knowledge = analysis, registry, knowledge
        self._kept, self._reselect, self._judge = kept, reselect, judge
        # by class of module and operation in it, which stand for all blocks of a model
        self._conceded: dict[tuple[type[nn.Module], int], int] = {}  # how often units were restored there
        self._sites = Sites(analysis)
        self._search = AttributeSearch(analysis, registry, self._sites)
        self._ties = (
            None
            if reselect is None
            else TieSearch(analysis, knowledge, self._sites, self._search, self._stage, reselect)
        )

    def climb(self) -> Rehearsed:
        """Replays and changes the cut until it is proven.

        It ends, since every round restores units, ties groups, or learns which values vary.
        """
        site = ""  # where the cut had to be changed last
        while True:
            self._enlarge()
            stage = self._stage(self._kept)
            recipes = dict(self._knowledge.recipes)
            with self._counted("to prove a cut anew", site) if site else contextlib.nullcontext():
                known = self._knowledge.uncut and not self._kept and not recipes
                mismatch, drifts = (None, list[Drift]()) if known else replay(stage, recipes)
            while mismatch is not None and mismatch.values is None:  # first step of the ladder: attributes
                with self._counted("to find attributes that follow sizes", self._site(mismatch)):
                    improved = self._search.improve(stage, recipes, mismatch)
                if improved is None:
                    break
                recipes, mismatch, drifts = improved
            if mismatch is not None:  # the other steps; then the next round
                site = self._site(mismatch)
                if not self._is_unsteady(mismatch):
                    with self._counted("to find what has to keep its size, or to be in step", site):
                        self._concede(stage, recipes, mismatch)
                continue
            with self._counted("to set attributes that count experts", "the modules that hold them"):
                recipes = self._search.with_unread(stage, recipes)
            self._knowledge.recipes.update(recipes)  # the program is the same; now its constants
            rehearsed = self._proven(stage, recipes, drifts)
            site = "a constant that follows a size"
            with self._counted("to find what it follows", site):
                unmet = self._has_unmet(stage, recipes, rehearsed)
            if not unmet:
                return rehearsed

    @contextlib.contextmanager
    def _counted(self, what: str, where: str) -> Iterator[None]:
        """Counts the replays of a block as made for something."""
        before = self._analysis.shadow.replays
        try:
            yield
        finally:
            self._knowledge.note_effort(what, self._analysis.shadow.replays - before, where)

    def _site(self, mismatch: Mismatch) -> str:
        return self._analysis.recordings[mismatch.recording].trace.operations[mismatch.operation].site

    def _enlarge(self) -> None:
        """Restores units where fewer would stay than an operation needs to have a value (``var`` of one element)."""
        for recording in self._analysis.recordings:
            for index, needs in recording.least.items():
                for needed in needs:
                    names = [name for layout in needed.layouts for name in layouts.groups_of(layout)]
                    while not needed.is_met(self._kept):
                        operation = recording.trace.operations[index]
                        site = f"{operation.site}: {needed.text}"
                        cut = [name for name in names if name in self._kept]
                        if not cut:
                            break  # not even the whole model has enough
                        if self._reselect is None:
                            raise RehearsalError(
                                "So few units have no value in the program.",
                                where=site,
                                why=f"too few units of {', '.join(cut)} would stay",
                                hint="keep more of them",
                            )
                        for tied in self._knowledge.tied(cut[-1]):
                            if self._kept.pop(tied, None) is not None:
                                self._knowledge.restored[tied] = site

    def _stage(self, kept: Kept) -> Stage:
        return Stage(self._analysis, self._registry, kept, self._knowledge.unsteady)

    def _is_unsteady(self, mismatch: Mismatch) -> bool:
        """Tells whether a tensor has other values than recorded even if nothing is cut, which is then remembered."""
        if mismatch.values is None:
            return False
        found, _ = self._stage({}).replay({})
        if found is not None and found.values == mismatch.values:
            self._knowledge.unsteady.add(mismatch.values)
        return mismatch.values in self._knowledge.unsteady

    def _has_unmet(self, stage: Stage, recipes: Mapping[Place, Recipe], rehearsed: Rehearsed) -> bool:
        """Restores units where a constant follows them that the weights can't make up for; tells whether there was one.

        Where the constant meets the very units that it follows, and the result depends on their number anyway, it only
        is one more such use: a hand-written norm's.
        """
        for unmet in self._judge(rehearsed):
            record = self._analysis.recordings[unmet.recording]

            def met(kept: Kept, unmet: Unmet = unmet) -> bool:  # with these units kept, is this constant no problem?
                trial = self._stage(kept)
                found, drifts = replay(trial, recipes)
                left = () if found is not None else self._judge(self._proven(trial, recipes, drifts))
                places = [(other.recording, other.operation) for other in left]
                return found is None and (unmet.recording, unmet.operation) not in places

            site = f"{unmet.site}: a constant {unmet.why}"
            found = self._causes(self._before(record, unmet.operation), met)
            if not found:
                self._refuse_undecided(site)
            here = groups_at(record, [unmet.operation])
            if all(name in here and self._analysis.groups[name].mixes for name in found):
                continue
            self._refuse_fixed(site, found)
            self._restore(stage, Mismatch(unmet.recording, unmet.operation, site), found, site)
            return True
        return False

    def _causes(self, names: Sequence[str], mended: Callable[[Kept], bool]) -> list[str]:
        """Finds the groups, of some, that have to stay whole (with those tied to them) for a condition to hold."""

        def mends(names: Collection[str]) -> bool:
            back = set().union(*map(self._knowledge.tied, names))
            return mended({name: units for name, units in self._kept.items() if name not in back})

        return causes(names, mends) if names else []

    def _proven(self, stage: Stage, recipes: Mapping[Place, Recipe], drifts: list[Drift]) -> Rehearsed:
        edits = {(edit.module, edit.attribute): edit for edit in stage.layer_edits}
        for (path, attribute), recipe in recipes.items():
            value = value_of(recipe, stage.kept)
            table, name = place_of(stage.modules[path], attribute)
            old = normal_size(table[name])
            if old != value:
                edits[path, attribute] = AttributeEdit(path, attribute, old, value)
        return Rehearsed(
            {name: tuple(units) for name, units in stage.kept.items()}, tuple(edits.values()), tuple(drifts)
        )

    def _concede(self, stage: Stage, recipes: Mapping[Place, Recipe], mismatch: Mismatch) -> None:
        """Changes the cut where no attribute helps: ties groups, or else restores the units of some."""
        record = self._analysis.recordings[mismatch.recording]
        here = groups_near(self._analysis, record, mismatch.operation, self._kept)
        site = f"{self._site(mismatch)}: {mismatch.why}"
        if not here:
            self._refuse_undecided(site)
        shared = self._search.shared(stage, recipes, mismatch)
        self._refuse_fixed(site, here, shared)
        if mismatch.raised and self._take_multiples(stage, recipes, mismatch, site):
            return
        assert self._ties is not None  # else it was refused
        in_step = self._ties.found(self._kept, stage, recipes, mismatch, shared)
        if in_step is not None:
            self._kept = in_step
            return

        def gets_further(kept: Kept) -> bool:
            return further(replay(self._stage(kept), recipes)[0], mismatch)

        if mismatch.number:  # it may follow the size of any group: tried from the nearest to the first operation
            found = self._causes(self._before(record, mismatch.operation), gets_further)
            if not found:
                self._refuse_undecided(site)
        else:
            found = self._causes(here, gets_further) or here[:1]
        self._restore(stage, mismatch, found, site)

    def _take_multiples(self, stage: Stage, recipes: Mapping[Place, Recipe], mismatch: Mismatch, site: str) -> bool:
        """Looks for sizes of which a kernel takes multiples only; those of groups at its place in siblings are alike.

        The evidence is a replay with other sizes of these groups alone that gets further.
        """
        assert self._reselect is not None
        assert self._ties is not None
        record, groups = self._analysis.recordings[mismatch.recording], self._analysis.groups
        if record.trace.is_view(mismatch.operation):
            return False  # a size that is written into the program, or follows others
        known, reselect = self._knowledge, self._reselect
        free = [
            name
            for name in self._ties.choosable(self._kept, groups_at(record, [mismatch.operation]))
            if name in self._kept
        ]
        sizes = {
            name: (len(self._kept[name]), groups[name].size)
            for name in free
            if all(groups[other].size == groups[name].size for other in known.tied(name))  # they stay alike
        }

        def rounded(counts: Mapping[str, int]) -> dict[str, tuple[int, ...]] | None:
            counts = {other: count for name, count in counts.items() for other in known.tied(name) & self._kept.keys()}
            chosen = {name: reselect(name, count) for name, count in counts.items()}
            changed = {name: units for name, units in chosen.items() if units is not None}
            return {**self._kept, **changed} if len(changed) == len(counts) else None

        def gets_further(counts: Mapping[str, int]) -> bool:
            kept = rounded(counts)
            return kept is not None and kept != self._kept and further(replay(self._stage(kept), recipes)[0], mismatch)

        found = least_multiple(sizes, gets_further)
        if found is None:
            return False
        taken = f"{self._site(mismatch)} takes no other ones" if mismatch.kernel else site
        path = self._frame(stage, record, mismatch)
        for name in found[1]:
            siblings = self._groups_of_siblings(stage, path, name, mismatch.recording)
            for sibling in (name, *sorted((siblings | known.tied(name)) - {name})):
                earlier = known.multiples.get(sibling)
                step = found[0] if earlier is None else math.lcm(found[0], earlier.step)
                known.multiples[sibling] = Multiple(step, taken)
        steps = {name: known.multiples[name].step for name in known.multiples if name in self._kept}
        nearest = {name: rounded_size(len(self._kept[name]), groups[name].size, step) for name, step in steps.items()}
        before, self._kept = self._kept, rounded({n: size for n, size in nearest.items() if size}) or self._kept
        return self._kept != before

    def _refuse_undecided(self, site: str) -> NoReturn:
        raise RehearsalError(
            "The program doesn't run the same way twice, so no cut of it can be proven.",
            where=site,
            hint="make the forward pass deterministic (no random control flow), or pass a forward_fn that is",
        )

    def _refuse_fixed(
        self, site: str, groups: Sequence[str], shared: Mapping[Place, frozenset[str]] | None = None
    ) -> None:
        if self._reselect is None:
            said = (f"{name} says the size of {', '.join(sorted(of))}" for (_, name), of in (shared or {}).items())
            raise RehearsalError(
                "The program can't express this cut.",
                where=site,
                why="; ".join([f"the groups {', '.join(groups)} meet there", *said]),
                hint="prune the whole model with BasePruner, which keeps such sizes in step, or leave these units",
            )

    def _before(self, record: Recording, index: int) -> list[str]:
        """Names all shrinking groups: those that an operation touches, those of operations before it, the others."""
        before = [name for names in groups_before(record, index, self._kept) for name in names]
        return list(dict.fromkeys([*before, *self._kept]))

    def _restore(self, stage: Stage, mismatch: Mismatch, groups: Sequence[str], site: str) -> None:
        lost = set(groups)
        record = self._analysis.recordings[mismatch.recording]
        path = self._frame(stage, record, mismatch)
        operations = self._sites.operations(mismatch.recording, path)
        ordinal = next((i for i, op in enumerate(operations) if op.index == mismatch.operation), -1)
        key = (type(stage.modules[path]), ordinal)
        self._conceded[key] = self._conceded.get(key, 0) + 1
        if self._conceded[key] > 1 and path:
            lost.update(*(self._groups_of_siblings(stage, path, group, mismatch.recording) for group in groups))
        for name in sorted(lost):
            for tied in self._knowledge.tied(name):
                if self._kept.pop(tied, None) is not None:
                    self._knowledge.restored[tied] = site

    def _frame(self, stage: Stage, record: Recording, mismatch: Mismatch) -> str:
        """Finds the innermost module around an operation that is more than a single layer."""
        paths = ancestors(record.trace.operations[mismatch.operation].module)
        for path in paths:
            several = len(self._sites.operations(mismatch.recording, path)) > 1
            if several and self._registry.layer_type(stage.modules[path]) is None:
                return path
        return ""

    def _groups_of_siblings(self, stage: Stage, path: str, group: str, recording: int) -> set[str]:
        pieces = self._sites.pieces(recording, path)
        place = next((key for key, piece in pieces if isinstance(piece, Units) and piece.group == group), None)
        found: set[str] = set()
        if place is None:
            return found
        for sibling in self._sites.siblings(stage.modules, path, recording):
            piece = self._sites.piece(recording, sibling, place)
            if isinstance(piece, Units):
                found.add(piece.group)
        return found
