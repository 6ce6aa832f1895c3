"""Constants that follow a size: keeping an attention's temperature when its head dim shrinks.

``softmax(q k^T / sqrt(D))`` computes its scale from the size of an axis. When the axis shrinks to ``D'`` the scale
becomes ``1 / sqrt(D')``; the rows of the parameter that make ``q`` are multiplied by ``sqrt(D' / D)`` to make up for
it. Rows are proposed by walks back from where the smaller program computes something else (`Origins`), and taken only
if it computes nothing else any more (`Deviations`): whatever else reads these rows has to be made up for as well.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping

import attrs

from prunekit_core.algebra.layout import groups_of
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.recording import Recording
from prunekit_core.modules.edits import Rescale, runs_of
from prunekit_core.program.rules import RuleTable
from prunekit_core.rehearse.comparison import Unmet
from prunekit_core.rehearse.factors.deviations import Deviations, Stuck
from prunekit_core.rehearse.factors.sources import Origins, Rows, UnresolvedError
from prunekit_core.rehearse.ladder import Rehearsed

Place = tuple[int, int]
"""(Position of the recording, index of the operation.)"""

DEPTH = 2
"""How many further operations may be made up for where rows that are scaled are read elsewhere, too."""
CHOICES = 3
"""Products on the way at which all combinations of operands are tried."""


@attrs.frozen
class Constants:
    """What becomes of the constants that follow sizes.

    Attributes:
        rescales: Rows to scale, which make up for constants.
        unmet: Constants that could not be made up for.
        means: The place of each division of a sum over units by their number, which is a mean over fewer of both, to
            the groups that are summed over.
    """

    rescales: tuple[Rescale, ...] = ()
    unmet: tuple[Unmet, ...] = ()
    means: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)


def find_rescales(analysis: Analysis, rules: RuleTable, rehearsed: Rehearsed) -> Constants:
    """Finds the rows to scale for every constant that follows a size that shrinks.

    Args:
        analysis: The analysed model.
        rules: The op rules, which say how operations scale.
        rehearsed: The cut.
    """
    search = _Search(analysis, rules, rehearsed)
    unmet = search.run()
    found = []
    for parameter, rows in search.rows.items():
        for log in dict.fromkeys(rows.values()):
            runs = runs_of(sorted(row for row, value in rows.items() if value == log))
            found.append(Rescale(parameter, runs, math.exp(log)))
    return Constants(tuple(found), unmet, search.means)


def _sums_behind(deviations: Deviations, index: int, wholes: Collection[int]) -> Iterator[int]:
    """Yields the nearest operations behind one that depend on whole axes, or that one."""
    flow = deviations.flow
    if index in wholes:
        yield index
        return
    read = [flow.version(index, ref) for ref in flow.operations[index].references()]
    yield from (maker.index for maker in flow.nearest(read, lambda maker: maker.index in wholes))


class _Search:
    """Looks for rows, one operation after another that computes something else.

    Attributes:
        rows: What has been found.
        means: See `Constants`.
    """

    def __init__(self, analysis: Analysis, rules: RuleTable, rehearsed: Rehearsed) -> None:
        self.rows: Rows = {}
        self._programs: dict[int, tuple[Deviations, Origins]] = {}
        whole = {name for name, found in analysis.parameters.items() if not found.buffer and found.shape}
        self.means: dict[str, tuple[str, ...]] = {}
        for position, recording in enumerate(analysis.recordings):
            if not recording.replayed:
                continue
            own = [drift for drift in rehearsed.drifts if drift.recording == position]
            deviations = Deviations(recording, rules, rehearsed.kept, own)
            self._note_means(recording, deviations, rehearsed)
            dtypes, named = recording.trace.dtypes, recording.trace.parameters.items()
            scalable = {name for name, ref in named if dtypes[ref.index].is_floating_point} & whole
            self._programs[position] = (deviations, Origins(recording, rules, deviations, scalable))

    def _note_means(self, recording: Recording, deviations: Deviations, rehearsed: Rehearsed) -> None:
        for index in sorted(deviations.means):
            groups = dict.fromkeys(
                name
                for summed in _sums_behind(deviations, index, recording.wholes)
                for use in recording.wholes[summed].uses
                for name in groups_of(use.layout)
                if name in rehearsed.kept
            )
            self.means[deviations.flow.operations[index].site] = tuple(groups)

    def run(self) -> tuple[Unmet, ...]:
        """Finds rows; returns the constants that could not be made up for."""
        unmet: dict[Unmet, None] = {}
        for place in self._stuck():
            if place in self._stuck():
                tries = (self._mend(place, depth) for depth in range(DEPTH + 1))  # with the fewest rows
                whys = list(itertools.takewhile(bool, tries))
                if len(whys) > DEPTH:
                    stuck = self._stuck()[place]
                    deviations, _ = self._programs[place[0]]
                    for source in sorted(stuck.sources) or [min(place[1], deviations.flow.end - 1)]:
                        change, plain = deviations.change(source)
                        text = f"{change}: {whys[0]}" if plain else change
                        unmet[Unmet(place[0], source, deviations.flow.operations[source].site, text)] = None
        return tuple(unmet)

    def _stuck(self) -> dict[Place, Stuck]:
        return {
            (position, index): stuck
            for position, (deviations, _) in self._programs.items()
            for index, stuck in sorted(deviations.stuck.items())
        }

    def _mend(self, place: Place, depth: int) -> str:
        """Scales rows so that an operation computes what it did; returns why that can't be done, or nothing."""
        before = self._stuck()
        first = ""
        for rows, why in self._proposals(place, before[place]):
            if not rows:
                first = first or why
                continue
            marks = {position: deviations.scale(rows) for position, (deviations, _) in self._programs.items()}
            kept = {name: dict(known) for name, known in self.rows.items()}
            for name, factors in rows.items():
                self.rows.setdefault(name, {}).update(factors)
            why = self._settle(place, before, depth)
            if not why:
                return ""
            first = first or why
            self.rows = kept
            for position, mark in marks.items():
                self._programs[position][0].rewind(mark)
        return first or before[place].why

    def _settle(self, place: Place, before: dict[Place, Stuck], depth: int) -> str:
        """Makes up for what is stuck because of rows that were scaled; returns why that can't be done, or nothing."""
        now = self._stuck()
        if place in now:
            return now[place].why
        fresh = [other for other, stuck in now.items() if not stuck.same_as(before.get(other))]
        if not fresh:
            return ""
        index, (deviations, _) = fresh[0][1], self._programs[fresh[0][0]]
        output = index == deviations.flow.end
        why = now[fresh[0]].why if output else f"{deviations.flow.operations[index].name} reads the same elements"
        if depth == 0 or self._mend(fresh[0], depth - 1):
            return why
        return why if self._settle(place, before, depth - 1) else ""

    def _proposals(self, place: Place, stuck: Stuck) -> Iterator[tuple[Rows, str]]:
        """Yields rows to try, or why a walk found none; no rows twice, and none that are scaled already."""
        _, origins = self._programs[place[0]]
        tried: list[Rows] = []
        for way in stuck.ways:
            for choices, otherwise in _choices():
                try:
                    rows, chosen = origins.find(way, place[1], choices, otherwise)
                except UnresolvedError as error:
                    yield {}, str(error)
                    continue
                if len(choices) > chosen or rows in tried:
                    continue
                tried.append(rows)
                taken = next((n for n, factors in rows.items() if factors.keys() & self.rows.get(n, {}).keys()), "")
                yield ({}, f"{taken} is scaled otherwise for another constant") if taken else (rows, "")


def _choices() -> Iterator[tuple[tuple[int, ...], int]]:
    """Yields which operands of products to scale: all the first, all the second, both alike, then mixtures."""
    yield from (((), otherwise) for otherwise in (0, 1, 2))
    for count in range(2, CHOICES + 1):
        yield from ((choices, choices[-1]) for choices in itertools.product((0, 1), repeat=count))
