"""Recipes: what the size attributes of modules mean, found by trying which hypothesis gets a replay further."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit_core import layout as layouts
from prunekit_core.analysis import Analysis
from prunekit_core.comparison import Drift, Mismatch
from prunekit_core.edits import is_size
from prunekit_core.layout import Kept, Layout
from prunekit_core.registry import Registry
from prunekit_core.rehearsal import Stage
from prunekit_core.sites import PieceKey, Sites, ancestors

Recipe = Layout | tuple[Layout | int, ...]
"""What a size attribute means: the size of a layout, or a tuple of such sizes and constants."""

Place = tuple[str, str]
"""Where an attribute lives: module path and attribute name."""


def value_of(recipe: Recipe, kept: Kept) -> Any:
    """Returns the value that an attribute has when only the kept units stay."""
    if isinstance(recipe, tuple):
        return tuple(part if isinstance(part, int) else layouts.new_size(part, kept) for part in recipe)
    return layouts.new_size(recipe, kept)


def replay(stage: Stage, recipes: Mapping[Place, Recipe]) -> tuple[Mismatch | None, list[Drift]]:
    """Replays a cut with some attributes as their recipes say."""
    edits = {}
    for (path, attribute), recipe in recipes.items():
        value, old = value_of(recipe, stage.kept), vars(stage.modules[path])[attribute]
        edits[path, attribute] = value if isinstance(value, int) else type(old)(value)
    return stage.replay(edits)


def further(found: Mismatch | None, than: Mismatch | None) -> bool:
    """Tells whether a replay got further than another one."""
    if than is None:
        return False
    return found is None or found.progress > than.progress


class AttributeSearch:
    """Finds attributes that have to change with a cut.

    Args:
        analysis: The analysed model.
        registry: Where layer types are found; their attributes are stated, not searched.
        sites: Where layouts show.
    """

    def __init__(self, analysis: Analysis, registry: Registry, sites: Sites) -> None:
        self._analysis, self._registry, self._sites = analysis, registry, sites

    def improve(
        self, stage: Stage, recipes: dict[Place, Recipe], mismatch: Mismatch
    ) -> tuple[dict[Place, Recipe], Mismatch | None, list[Drift]] | None:
        """Looks for attributes whose change gets the replay further than its first mismatch, near to it first.

        Returns:
            All recipes with the new ones, and what the replay with them found; None when nothing helps.
        """
        record = self._analysis.recordings[mismatch.recording]
        for path in ancestors(record.trace.operations[mismatch.operation].module):
            options = self._options(stage, path, recipes, mismatch.recording)
            best: tuple[dict[Place, Recipe], Mismatch | None, list[Drift]] | None = None
            for place, key, recipe in options:
                alone = {place: recipe}
                for change in (alone | self._siblings(stage, place, key, recipe, mismatch.recording), alone):
                    found, drifts = replay(stage, recipes | change)
                    if further(found, mismatch):
                        if best is None or further(found, best[1]):
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
        found, drifts = replay(stage, recipes | combined)
        if not further(found, mismatch):
            return None
        for place in list(changes):
            fewer = {p: r for other, change in changes.items() if other != place for p, r in change.items()}
            trial, trial_drifts = replay(stage, recipes | fewer)
            if not further(found, trial):
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
        pieces = dict(self._sites.pieces(recording, path))
        for key, piece in pieces.items():
            new = layouts.new_size(piece, stage.kept)
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

    def _siblings(
        self, stage: Stage, place: Place, keys: tuple[PieceKey, ...], recipe: Recipe, recording: int
    ) -> dict[Place, Recipe]:
        """Finds the same attribute with the same meaning in all modules of the same class and structure."""
        path, attribute = place
        found: dict[Place, Recipe] = {}
        for twin in self._sites.twins(stage.modules, path, recording):
            pieces = [self._sites.piece(recording, twin, key) for key in keys]
            known = [piece for piece in pieces if piece is not None]
            if len(known) < len(keys):
                continue
            theirs = vars(stage.modules[twin]).get(attribute)
            if isinstance(theirs, int):
                if not isinstance(recipe, tuple) and known[0].size == theirs:
                    found[twin, attribute] = known[0]
            elif isinstance(recipe, tuple) and theirs is not None and is_size(theirs) and len(theirs) == len(recipe):
                rest = iter(known)
                made = tuple(
                    item if isinstance(part, int) else next(rest) for part, item in zip(recipe, theirs, strict=True)
                )
                if tuple(part if isinstance(part, int) else part.size for part in made) == tuple(theirs):
                    found[twin, attribute] = made
        return found
