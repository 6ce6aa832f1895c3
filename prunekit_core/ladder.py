"""Making a cut come true: the ladder from attribute edits to giving units back.

Layer types state the attributes of layers they know. Where the replay still disagrees, in this order: attribute edits
proven by getting further, sizes tied to each other, units given back. What is learnt is kept in `Knowledge` for later
plans of the same model, and tried on sibling modules at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs
from torch import nn

from prunekit_core import layout as layouts
from prunekit_core.analysis import Analysis, Recording, UnitGroup
from prunekit_core.edits import AttributeEdit, is_size, normal_size
from prunekit_core.errors import RehearsalError
from prunekit_core.layout import Concat, Layout, Product, Units
from prunekit_core.registry import Registry
from prunekit_core.rehearsal import Drift, Mismatch, Stage
from prunekit_core.shadow import collection_paused
from prunekit_core.trace import tensor_refs

Recipe = Layout | tuple[Layout | int, ...]
"""What a size attribute means: the size of a layout, or a tuple of such sizes and constants."""

Place = tuple[str, str]
"""Where an attribute lives: module path and attribute name."""

PieceKey = tuple[int, int, int, int]
"""Where a piece of a layout shows in a module: operation within the module, tensor, dim, piece."""

Reselect = Callable[[str, int], "tuple[int, ...] | None"]
"""Chooses the units of a group to keep, given how many; None when the group has to keep all."""


@attrs.define
class Knowledge:
    """What rehearsals have learnt about a model.

    Attributes:
        recipes: Attributes that follow sizes.
        ties: Groups that must keep the same fraction of their units.
        given_back: Groups that can't shrink in this program, with the reason.
    """

    recipes: dict[Place, Recipe] = attrs.field(factory=dict)
    ties: list[frozenset[str]] = attrs.field(factory=list)
    given_back: dict[str, str] = attrs.field(factory=dict)

    def tied(self, group: str) -> frozenset[str]:
        """Returns the groups that must keep the same fraction as a group (itself included)."""
        return next((tie for tie in self.ties if group in tie), frozenset({group}))

    def add_tie(self, groups: frozenset[str]) -> None:
        """Adds a tie, merging those that overlap."""
        merged = groups.union(*(tie for tie in self.ties if tie & groups))
        self.ties = [tie for tie in self.ties if not tie & groups] + [merged]


@attrs.frozen
class Rehearsed:
    """A cut that has been proven.

    Attributes:
        kept: Kept units per group that shrinks.
        edits: Every attribute that changes.
        drifts: Numbers in the program that changed with a size.
        replays: How many forwards it took.
    """

    kept: dict[str, tuple[int, ...]]
    edits: tuple[AttributeEdit, ...]
    drifts: tuple[Drift, ...]
    replays: int


def rehearse(
    analysis: Analysis,
    registry: Registry,
    knowledge: Knowledge,
    kept: Mapping[str, tuple[int, ...]],
    reselect: Reselect | None,
) -> Rehearsed:
    """Proves a cut on the shadow, changing it where the program can't express it.

    Args:
        analysis: The analysed model.
        registry: Where op rules and layer types are found.
        knowledge: What is known from earlier rehearsals; what is learnt is added.
        kept: Kept units per group that shrinks.
        reselect: Chooses units anew when a group must keep another number; None if the choice is fixed.

    Raises:
        RehearsalError: The choice is fixed and can't be expressed, or the program isn't the same twice.
    """
    with collection_paused():
        return _Ladder(analysis, registry, knowledge, dict(kept), reselect).climb()


class _Ladder:
    def __init__(
        self,
        analysis: Analysis,
        registry: Registry,
        knowledge: Knowledge,
        kept: dict[str, tuple[int, ...]],
        reselect: Reselect | None,
    ) -> None:
        self._analysis, self._registry, self._knowledge = analysis, registry, knowledge
        self._kept, self._reselect = kept, reselect
        self._replays = 0
        self._conceded: dict[tuple[type[nn.Module], int], int] = {}
        self._pieces_cache: dict[tuple[int, str], dict[PieceKey, Layout]] = {}

    def climb(self) -> Rehearsed:
        while True:
            stage = Stage(self._analysis, self._registry, self._kept)
            recipes = dict(self._knowledge.recipes)
            mismatch, drifts = self._replay(stage, recipes)
            while mismatch is not None:
                improved = self._improve(stage, recipes, mismatch)
                if improved is None:
                    break
                recipes, mismatch, drifts = improved
            if mismatch is None:
                self._knowledge.recipes.update(recipes)
                return self._proven(stage, recipes, drifts)
            self._concede(stage, recipes, mismatch)

    def _proven(self, stage: Stage, recipes: Mapping[Place, Recipe], drifts: list[Drift]) -> Rehearsed:
        edits = {(edit.module, edit.attribute): edit for edit in stage.layer_edits}
        for (path, attribute), value in self._values(recipes).items():
            old = normal_size(vars(stage.modules[path])[attribute])
            if old != value:
                edits[path, attribute] = AttributeEdit(path, attribute, old, value)
        return Rehearsed(dict(self._kept), tuple(edits.values()), tuple(drifts), self._replays)

    def _values(self, recipes: Mapping[Place, Recipe]) -> dict[Place, Any]:
        return {place: self._value(recipe) for place, recipe in recipes.items()}

    def _value(self, recipe: Recipe) -> Any:
        if isinstance(recipe, tuple):
            return tuple(part if isinstance(part, int) else layouts.new_size(part, self._kept) for part in recipe)
        return layouts.new_size(recipe, self._kept)

    def _replay(self, stage: Stage, recipes: Mapping[Place, Recipe]) -> tuple[Mismatch | None, list[Drift]]:
        self._replays += 1
        edits = {}
        for (path, attribute), value in self._values(recipes).items():
            old = vars(stage.modules[path])[attribute]
            edits[path, attribute] = value if isinstance(value, int) else type(old)(value)
        return stage.replay(edits)

    # -- first rung: attributes

    def _improve(
        self, stage: Stage, recipes: dict[Place, Recipe], mismatch: Mismatch
    ) -> tuple[dict[Place, Recipe], Mismatch | None, list[Drift]] | None:
        for path in _ancestors(self._module_of(mismatch)):
            options = self._options(stage, path, recipes, mismatch.recording)
            best: tuple[dict[Place, Recipe], Mismatch | None, list[Drift]] | None = None
            for place, key, recipe in options:
                alone = {place: recipe}
                for change in (alone | self._siblings(stage, place, key, recipe, mismatch.recording), alone):
                    found, drifts = self._replay(stage, recipes | change)
                    if _further(found, mismatch):
                        if best is None or _further(found, best[1]):
                            best = (recipes | change, found, drifts)
                        break
            if best is None and len({place for place, _, _ in options}) > 1:
                best = self._together(stage, recipes, options, mismatch)
            if best is not None:
                return best
        return None

    def _together(
        self,
        stage: Stage,
        recipes: dict[Place, Recipe],
        options: list[tuple[Place, tuple[PieceKey, ...], Recipe]],
        mismatch: Mismatch,
    ) -> tuple[dict[Place, Recipe], Mismatch | None, list[Drift]] | None:
        """Tries all attributes of a module at once, then leaves out those that aren't needed."""
        changes: dict[Place, dict[Place, Recipe]] = {}
        for place, key, recipe in options:
            if place not in changes:
                changes[place] = {place: recipe} | self._siblings(stage, place, key, recipe, mismatch.recording)
        combined = {p: r for change in changes.values() for p, r in change.items()}
        found, drifts = self._replay(stage, recipes | combined)
        if not _further(found, mismatch):
            return None
        for place in list(changes):
            fewer = {p: r for other, change in changes.items() if other != place for p, r in change.items()}
            trial, trial_drifts = self._replay(stage, recipes | fewer)
            if not _further(found, trial):
                found, drifts = trial, trial_drifts
                del changes[place]
        combined = {p: r for change in changes.values() for p, r in change.items()}
        return recipes | combined, found, drifts

    def _options(
        self, stage: Stage, path: str, recipes: Mapping[Place, Recipe], recording: int
    ) -> list[tuple[Place, tuple[PieceKey, ...], Recipe]]:
        """Lists hypotheses: attributes of a module whose value is the old size of something that shrinks there."""
        module = stage.modules[path]
        if self._registry.layer_type(module) is not None and any(True for _ in module.parameters(recurse=False)):
            return []
        by_size: dict[int, dict[int, PieceKey]] = {}
        pieces = self._pieces(recording, path)
        for key, piece in pieces.items():
            new = layouts.new_size(piece, self._kept)
            if new != piece.size:
                by_size.setdefault(piece.size, {}).setdefault(new, key)
        found: list[tuple[Place, tuple[PieceKey, ...], Recipe]] = []
        for attribute, value in sorted(vars(module).items()):
            place = (path, attribute)
            if place in recipes or not is_size(value):
                continue
            if isinstance(value, int):
                found.extend((place, (key,), pieces[key]) for key in by_size.get(value, {}).values())
            elif any(item in by_size for item in value):
                keys = tuple(next(iter(by_size[item].values())) for item in value if item in by_size)
                recipe = tuple(pieces[next(iter(by_size[i].values()))] if i in by_size else i for i in value)
                found.append((place, keys, recipe))
        return found

    def _pieces(self, recording: int, path: str) -> dict[PieceKey, Layout]:
        """Lists every piece of every layout that shows in the operations of a module, by place."""
        cached = self._pieces_cache.get((recording, path))
        if cached is not None:
            return cached
        pieces: dict[PieceKey, Layout] = {}
        record = self._analysis.recordings[recording]
        for ordinal, operation in enumerate(_operations(record, path)):
            for slot, index in enumerate(_tensors(record, operation.index)):
                for dim, layout in enumerate(record.live.get(index, ())):
                    for number, piece in enumerate(_runs(layout)):
                        pieces[ordinal, slot, dim, number] = piece
        self._pieces_cache[recording, path] = pieces
        return pieces

    def _siblings(
        self, stage: Stage, place: Place, keys: tuple[PieceKey, ...], recipe: Recipe, recording: int
    ) -> dict[Place, Recipe]:
        """Finds the same attribute with the same meaning in all modules of the same class and structure."""
        path, attribute = place
        found: dict[Place, Recipe] = {}
        for twin in self._twins(stage, path, recording):
            pieces = self._pieces(recording, twin)
            if any(key not in pieces for key in keys):
                continue
            theirs = vars(stage.modules[twin]).get(attribute)
            if isinstance(theirs, int):
                if not isinstance(recipe, tuple) and pieces[keys[0]].size == theirs:
                    found[twin, attribute] = pieces[keys[0]]
            elif isinstance(recipe, tuple) and theirs is not None and is_size(theirs) and len(theirs) == len(recipe):
                rest = iter(keys)
                made = tuple(
                    item if isinstance(part, int) else pieces[next(rest)]
                    for part, item in zip(recipe, theirs, strict=True)
                )
                if tuple(part if isinstance(part, int) else part.size for part in made) == tuple(theirs):
                    found[twin, attribute] = made
        return found

    def _twins(self, stage: Stage, path: str, recording: int) -> list[str]:
        record = self._analysis.recordings[recording]
        names = [operation.name for operation in _operations(record, path)]
        cls = type(stage.modules[path])
        return [
            other
            for other, module in stage.modules.items()
            if other != path
            and type(module) is cls
            and [operation.name for operation in _operations(record, other)] == names
        ]

    # -- second and third rung: ties, giving back

    def _module_of(self, mismatch: Mismatch) -> str:
        return self._analysis.recordings[mismatch.recording].trace.operations[mismatch.operation].module

    def _concede(self, stage: Stage, recipes: Mapping[Place, Recipe], mismatch: Mismatch) -> None:
        record = self._analysis.recordings[mismatch.recording]
        operation = record.trace.operations[mismatch.operation]
        here = self._groups_near(record, mismatch.operation)
        site = f"{operation.name} in {operation.module or 'the model'}: {mismatch.why}"
        if not here:
            raise RehearsalError(
                "The program doesn't run the same way twice, so no cut of it can be proven.",
                where=site,
                hint="make the forward pass deterministic (no random control flow), or pass a forward_fn that is",
            )
        if self._reselect is None:
            raise RehearsalError(
                "The program can't express this cut.",
                where=site,
                why="the groups " + ", ".join(group.name for group in here) + " meet there",
                hint="prune the whole model with BasePruner, which keeps such sizes in step, or leave these units",
            )
        if self._tie(recipes, mismatch):
            return
        self._give_back(stage, mismatch, here[0], site)

    def _groups_near(self, record: Recording, index: int) -> list[UnitGroup]:
        """Lists the shrinking groups that an operation (or the nearest one before it) touches, cheapest first."""
        for position in range(index, -1, -1):
            names = [
                name
                for tensor in _tensors(record, position)
                for layout in record.live.get(tensor, ())
                for name in layouts.groups_of(layout)
                if name in self._kept
            ]
            if names:
                groups = [self._analysis.groups[name] for name in dict.fromkeys(names)]
                return sorted(groups, key=lambda g: (not g.outer, len(g.members), g.name))
        return [self._analysis.groups[name] for name in self._kept]

    def _tie(self, recipes: Mapping[Place, Recipe], mismatch: Mismatch) -> bool:
        """Looks for two groups whose sizes the program computes from each other.

        The evidence is a replay with both of them smaller by the same fraction that gets further.
        """
        record = self._analysis.recordings[mismatch.recording]
        here = self._choosable(self._names_at(record, [mismatch.operation]))
        frame = _ancestors(record.trace.operations[mismatch.operation].module)[:3]
        for path in frame:
            indices = [operation.index for operation in _operations(record, path)]
            for group, other in itertools.product(here, self._choosable(self._names_at(record, indices))):
                pair = self._knowledge.tied(group) | self._knowledge.tied(other)
                if other in self._knowledge.tied(group) or not pair & self._kept.keys():
                    continue
                before = self._kept
                self._kept = self._in_step(pair, shrinking=True)
                if self._kept != before:
                    stage = Stage(self._analysis, self._registry, self._kept)
                    found, _ = self._replay(stage, recipes)
                    if _further(found, mismatch):
                        self._knowledge.add_tie(pair)
                        self._kept = before
                        self._kept = self._in_step(pair, shrinking=False)
                        return True
                self._kept = before
        return False

    def _names_at(self, record: Recording, indices: Iterable[int]) -> list[str]:
        """Names the groups that some operations touch, in order."""
        names: dict[str, None] = {}
        for index in indices:
            for tensor in _tensors(record, index):
                for layout in record.live.get(tensor, ()):
                    names.update(dict.fromkeys(layouts.groups_of(layout)))
        return list(names)

    def _choosable(self, names: Iterable[str]) -> list[str]:
        """Those groups that may take any size: scored, not outer, not given back."""
        assert self._reselect is not None
        groups = self._analysis.groups
        free = [n for n in names if not groups[n].outer and n not in self._knowledge.given_back]
        return [name for name in free if name in self._kept or self._reselect(name, groups[name].size) is not None]

    def _in_step(self, tie: frozenset[str], *, shrinking: bool) -> dict[str, tuple[int, ...]]:
        """Gives tied groups the same fraction, the possible one nearest to what they have together."""
        assert self._reselect is not None
        groups = [self._analysis.groups[name] for name in sorted(tie)]
        fraction = sum(len(self._kept.get(g.name, range(g.size))) for g in groups) / sum(g.size for g in groups)
        counts = counts_in_step([group.size for group in groups], fraction, shrinking=shrinking)
        kept = dict(self._kept)
        for group, count in zip(groups, counts, strict=True):
            kept.pop(group.name, None)
            if count < group.size:
                chosen = self._reselect(group.name, count)
                if chosen is None or len(chosen) != count:
                    return self._kept
                kept[group.name] = chosen
        return kept

    def _give_back(self, stage: Stage, mismatch: Mismatch, group: UnitGroup, site: str) -> None:
        lost = {group.name}
        record = self._analysis.recordings[mismatch.recording]
        path = self._frame(stage, record, mismatch)
        operations = _operations(record, path)
        ordinal = next((i for i, op in enumerate(operations) if op.index == mismatch.operation), -1)
        key = (type(stage.modules[path]), ordinal)
        self._conceded[key] = self._conceded.get(key, 0) + 1
        if self._conceded[key] > 1 and path:
            lost |= self._twin_groups(stage, path, group.name, mismatch.recording)
        for name in sorted(lost):
            for tied in self._knowledge.tied(name):
                if self._kept.pop(tied, None) is not None:
                    self._knowledge.given_back[tied] = site

    def _frame(self, stage: Stage, record: Recording, mismatch: Mismatch) -> str:
        """Finds the innermost module around an operation that is more than a single layer."""
        paths = _ancestors(record.trace.operations[mismatch.operation].module)
        for path in paths:
            if len(_operations(record, path)) > 1 and self._registry.layer_type(stage.modules[path]) is None:
                return path
        return ""

    def _twin_groups(self, stage: Stage, path: str, group: str, recording: int) -> set[str]:
        places = [
            key
            for key, piece in self._pieces(recording, path).items()
            if isinstance(piece, Units) and piece.group == group
        ]
        found: set[str] = set()
        for twin in self._twins(stage, path, recording):
            pieces = self._pieces(recording, twin)
            for key in places[:1]:
                piece = pieces.get(key)
                if isinstance(piece, Units):
                    found.add(piece.group)
        return found


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


def _further(found: Mismatch | None, than: Mismatch | None) -> bool:
    if than is None:
        return False
    return found is None or found.progress > than.progress


def _ancestors(path: str) -> list[str]:
    result = [path]
    while result[-1]:
        result.append(result[-1].rpartition(".")[0])
    return result


def _operations(record: Recording, path: str) -> list[Any]:
    inside = path + "."
    return [op for op in record.trace.operations if not path or op.module == path or op.module.startswith(inside)]


def _tensors(record: Recording, index: int) -> list[int]:
    operation = record.trace.operations[index]
    refs = [*operation.outputs, *(ref for value in operation.arguments.values() for ref in tensor_refs(value))]
    return [ref.index for ref in refs]


def _runs(layout: Layout) -> Iterator[Layout]:
    """Yields the parts of a layout whose size an attribute may hold: segments, and runs of neighbouring factors."""
    yield layout
    if isinstance(layout, Concat):
        for part in layout.parts:
            yield from _runs(part)
    elif isinstance(layout, Product):
        for start in range(len(layout.parts)):
            for stop in range(start + 1, len(layout.parts) + 1):
                run = layout.parts[start:stop]
                if len(run) < len(layout.parts):
                    yield run[0] if len(run) == 1 else Product(run)
                if len(run) == 1 and isinstance(run[0], Concat):
                    yield from _runs(run[0])
