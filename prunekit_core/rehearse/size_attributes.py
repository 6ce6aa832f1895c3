"""Recipes: what the size attributes of modules mean, found by trying which hypothesis gets a replay further."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Kept, Layout, depends, new_size
from prunekit_core.groups.analysis import Analysis
from prunekit_core.modules.attributes import attributes_of, slots_of
from prunekit_core.modules.edits import is_size
from prunekit_core.modules.entries import objects_in, place_of
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.op_call import Kind
from prunekit_core.rehearse.comparison import Drift, Mismatch
from prunekit_core.rehearse.places import PieceKey, Sites, ancestors
from prunekit_core.rehearse.rehearsal import Stage

Recipe = Layout | tuple[Layout | int, ...]
"""What a size attribute means: the size of a layout, or a tuple of such sizes and constants."""

Place = tuple[str, str]
"""Where an attribute lives: module path and attribute name; in an object that modules hold, the first of them, and the
object's name before the attribute's (``config.num_experts``)."""


def value_of(recipe: Recipe, kept: Kept) -> Any:
    """Returns the value that an attribute has when only the kept units stay."""
    if isinstance(recipe, tuple):
        return tuple(part if isinstance(part, int) else layouts.new_size(part, kept) for part in recipe)
    return layouts.new_size(recipe, kept)


def replay(stage: Stage, recipes: Mapping[Place, Recipe]) -> tuple[Mismatch | None, list[Drift]]:
    """Replays a cut with some attributes as their recipes say."""
    edits = {}
    for (path, attribute), recipe in recipes.items():
        value, (table, name) = value_of(recipe, stage.kept), place_of(stage.modules[path], attribute)
        edits[path, attribute] = value if isinstance(value, int) else type(table[name])(value)
    return stage.replay(edits)


def further(found: Mismatch | None, than: Mismatch | None) -> bool:
    """Tells whether a replay got further than another one."""
    if than is None:
        return False
    return found is None or found.progress > than.progress


Found = tuple[dict[Place, Recipe], Mismatch | None, list[Drift]]
"""All recipes, and what the replay with them found."""

NEAR = 3
"""Modules around a mismatch that are asked for objects with numbers: those far from it hold a whole model's."""

_Option = tuple[Place, tuple[PieceKey, ...], Recipe]
"""A hypothesis: an attribute, where the pieces of its recipe show in the module, and the recipe."""

_Failure = tuple[type[nn.Module], int, str, tuple[PieceKey, ...]]
"""A hypothesis that didn't help: class, operation within the module, attribute, pieces."""


class _Trials:
    """Replays of one stage with changes on top of what is known; none is made twice."""

    def __init__(self, stage: Stage, recipes: Mapping[Place, Recipe], mismatch: Mismatch) -> None:
        self.stage, self.mismatch, self._recipes = stage, mismatch, recipes
        self._known: dict[frozenset[tuple[Place, Recipe]], Found] = {}

    def of(self, changes: Iterable[Mapping[Place, Recipe]]) -> Found:
        made = {place: recipe for change in changes for place, recipe in change.items()}
        key = frozenset(made.items())
        if key not in self._known:
            recipes = {**self._recipes, **made}
            self._known[key] = (recipes, *replay(self.stage, recipes))
        return self._known[key]


class AttributeSearch:
    """Finds attributes that have to change with a cut.

    What didn't help at an operation of a module isn't tried at the same operation of another module of its class.

    Args:
        analysis: The analysed model.
        registry: Where layer types are found; their attributes are stated, not searched.
        sites: Where layouts show.
    """

    def __init__(self, analysis: Analysis, registry: Registry, sites: Sites) -> None:
        self._analysis, self._registry, self._sites = analysis, registry, sites
        self._failed: set[_Failure] = set()

    def forget(self) -> None:
        """Forgets what didn't help: sizes are in step now that weren't."""
        self._failed.clear()

    def improve(self, stage: Stage, recipes: dict[Place, Recipe], mismatch: Mismatch) -> Found | None:
        """Looks for attributes whose change gets the replay further than its first mismatch, near to it first.

        Those of objects that modules hold, such as a configuration that all layers share, come after all of modules.

        Returns:
            All recipes with the new ones, and what the replay with them found; None when nothing helps.
        """
        record = self._analysis.recordings[mismatch.recording]
        paths = ancestors(record.trace.operations[mismatch.operation].module)
        trials = _Trials(stage, recipes, mismatch)
        for path, shared in (*((path, False) for path in paths), *((path, True) for path in paths[:NEAR])):
            options = {
                self._failure(stage, mismatch, option): option
                for option in self._options(stage, path, recipes, mismatch.recording, shared=shared)
            }
            left = [option for failure, option in options.items() if failure not in self._failed]
            if not left:
                continue
            found = self._together(trials, left) or self._one_by_one(trials, left)
            if found is not None:
                return found
            self._failed.update(options)
        return None

    def with_unread(self, stage: Stage, recipes: dict[Place, Recipe]) -> dict[Place, Recipe]:
        """Adds the attributes that count experts and that the program doesn't read, if it still is the same with them.

        Args:
            stage: The shadow, with a cut that is proven with the attributes that are known.
            recipes: What is known about attributes.
        """
        experts = _unread(self._analysis, stage.modules, stage.kept, recipes)
        copies = {place: recipe for place, recipe in self._named_alike(stage, recipes) if place not in recipes}
        for more in ({**copies, **experts}, experts) if copies else (experts,):
            if more and replay(stage, {**recipes, **more})[0] is None:
                return {**recipes, **more}
        return recipes

    def _named_alike(self, stage: Stage, recipes: Mapping[Place, Recipe]) -> Iterator[tuple[Place, Recipe]]:
        """Yields attributes of modules with the name and the value of one in a configuration that follows a size."""
        shared = ((place, recipe) for place, recipe in recipes.items() if "." in place[1])
        for (holder, attribute), recipe in shared:
            table, name = place_of(stage.modules[holder], attribute)
            for path, module in stage.modules.items():
                value = vars(module).get(name)
                alike = type(value) is type(table[name]) and value == table[name]
                if alike and self._registry.layer_type(module) is None:
                    yield (path, name), recipe

    def shared(self, stage: Stage, recipes: Mapping[Place, Recipe], mismatch: Mismatch) -> dict[Place, frozenset[str]]:
        """Returns attributes of configurations that modules around a mismatch hold and that follow a size already.

        Args:
            stage: The shadow with a cut.
            recipes: What is known about attributes.
            mismatch: Where the replay ends.

        Returns:
            Their places, each with the groups that it follows.
        """
        operation = self._analysis.recordings[mismatch.recording].trace.operations[mismatch.operation]
        held = (place for path in ancestors(operation.module) for place, _ in self._held(stage, stage.modules[path]))
        return {
            place: frozenset(layouts.groups_of(recipe))
            for place in held
            if (recipe := recipes.get(place)) is not None and not isinstance(recipe, tuple)
        }

    def _failure(self, stage: Stage, mismatch: Mismatch, option: _Option) -> _Failure:
        (path, attribute), keys, _ = option
        inside = self._sites.operations(mismatch.recording, path)
        ordinal = next((i for i, operation in enumerate(inside) if operation.index == mismatch.operation), -1)
        return type(stage.modules[path]), ordinal, attribute, keys

    def _together(self, trials: _Trials, options: Sequence[_Option]) -> Found | None:
        """Tries the first hypothesis of every attribute at once, then leaves out what isn't needed, by halves."""
        changes: dict[Place, dict[Place, Recipe]] = {}
        for place, key, recipe in options:
            if place not in changes:
                changes[place] = {place: recipe} | self._siblings(trials, place, key, recipe)
        found = trials.of(changes.values())
        if not further(found[1], trials.mismatch):
            return None
        chunk = len(changes) // 2
        while chunk:
            places = list(changes)
            for start in range(0, len(places), chunk):
                fewer = {place: changes[place] for place in changes if place not in places[start : start + chunk]}
                if fewer:
                    trial = trials.of(fewer.values())
                    if not further(found[1], trial[1]):
                        found, changes = trial, fewer
            chunk //= 2
        return found

    def _one_by_one(self, trials: _Trials, options: Sequence[_Option]) -> Found | None:
        """Tries every hypothesis by itself, with the module's siblings and without; the one that gets furthest."""
        best: Found | None = None
        for place, key, recipe in options:
            alone = {place: recipe}
            for change in (alone | self._siblings(trials, place, key, recipe), alone):
                found = trials.of([change])
                if further(found[1], trials.mismatch):
                    if best is None or further(found[1], best[1]):
                        best = found
                    break
        return best

    def _options(
        self, stage: Stage, path: str, recipes: Mapping[Place, Recipe], recording: int, *, shared: bool
    ) -> list[_Option]:
        """Lists hypotheses: attributes whose value is the old size of something that shrinks in a module.

        Args:
            stage: The shadow with a cut.
            path: Path of the module.
            recipes: What is known about attributes.
            recording: Position of the recording.
            shared: Whether attributes of objects that the module holds are listed, in place of its own.
        """
        module = stage.modules[path]
        if self._registry.layer_type(module) is not None and any(True for _ in module.parameters(recurse=False)):
            return []
        by_size: dict[int, dict[int, PieceKey]] = {}
        pieces = dict(self._sites.pieces(recording, path))
        for key, piece in pieces.items():
            new = layouts.new_size(piece, stage.kept)
            if new != piece.size:
                by_size.setdefault(piece.size, {}).setdefault(new, key)
        found: list[_Option] = []
        if not by_size:
            return found
        own = (((path, attribute), value) for attribute, value in sorted(vars(module).items()))
        for place, value in self._held(stage, module) if shared else own:
            if place in recipes or not is_size(value):
                continue
            if isinstance(value, int):
                found.extend((place, (key,), pieces[key]) for key in by_size.get(value, {}).values())
            elif any(item in by_size for item in value):
                keys = tuple(next(iter(by_size[item].values())) for item in value if item in by_size)
                recipe = tuple(pieces[next(iter(by_size[i].values()))] if i in by_size else i for i in value)
                found.append((place, keys, recipe))
        return found

    def _held(self, stage: Stage, module: nn.Module) -> Iterator[tuple[Place, Any]]:
        """Yields numbers in the objects that a module holds, if they are copies as the module is, and their places."""
        inside = {id(table) for (_, names), table in objects_in({"": module}) if names}
        if not inside:
            return
        copies = {id(attributes_of(one)) for one in self._analysis.shadow.copied if not slots_of(type(one))}
        for (path, names), table in objects_in(stage.modules):
            leaves = any(one.entry(path) is not None for one in self._analysis.lists)  # it may, with the place
            if id(table) in inside & copies and not leaves:
                yield from (((path, ".".join((*names, name))), value) for name, value in sorted(table.items()))

    def _siblings(
        self, trials: _Trials, place: Place, keys: tuple[PieceKey, ...], recipe: Recipe
    ) -> dict[Place, Recipe]:
        """Finds the same attribute with the same meaning in all modules of the same class and structure."""
        (path, attribute), stage, recording = place, trials.stage, trials.mismatch.recording
        found: dict[Place, Recipe] = {}
        if "." in attribute:  # modules share it
            return found
        for sibling in self._sites.siblings(stage.modules, path, recording):
            pieces = [self._sites.piece(recording, sibling, key) for key in keys]
            known = [piece for piece in pieces if piece is not None]
            if len(known) < len(keys):
                continue
            theirs = vars(stage.modules[sibling]).get(attribute)
            if isinstance(theirs, int):
                if not isinstance(recipe, tuple) and known[0].size == theirs:
                    found[sibling, attribute] = known[0]
            elif isinstance(recipe, tuple) and theirs is not None and is_size(theirs) and len(theirs) == len(recipe):
                rest = iter(known)
                made = tuple(
                    item if isinstance(part, int) else next(rest) for part, item in zip(recipe, theirs, strict=True)
                )
                if tuple(part if isinstance(part, int) else part.size for part in made) == tuple(theirs):
                    found[sibling, attribute] = made
        return found


# -- attributes that count experts and that the program doesn't read, so that no replay can ask for them
#
# One implementation of a mixture of experts reads the number of experts, another doesn't, and a router may hold it for
# others to see. Such an attribute follows where it can't be anything else: its module, or one around it, holds the
# experts, its value is their number, and so it is in every module of the class; or a replay has shown that an attribute
# of that name counts them elsewhere, or one in a configuration from which it was copied.


def _unread(
    analysis: Analysis, modules: Mapping[str, nn.Module], kept: Kept, recipes: Mapping[Place, Recipe]
) -> dict[Place, Recipe]:
    """Returns what the attributes mean that count experts and that aren't known yet.

    Args:
        analysis: The analysed model.
        modules: The modules of the shadow, by path.
        kept: Kept units per group that shrinks.
        recipes: What is known about attributes.
    """
    stacks = dict(_stacks(analysis, kept))
    proven = {attribute for path, attribute in recipes if any(path in ancestors(owner)[:2] for owner in stacks)}
    found: dict[Place, Recipe] = {}
    for owner, layout in stacks.items():
        for path in ancestors(owner)[:2]:
            for attribute in _counting(modules[path], layout):
                if attribute in proven or _in_all(modules, type(modules[path]), attribute, layout.size):
                    found.setdefault((path, attribute), layout)
    names = proven | {attribute for _, attribute in found}
    if len({new_size(layout, kept) for layout in stacks.values()}) == 1:  # one number for all layers
        for owner, layout in stacks.items():
            for path in ancestors(owner)[2:]:
                found.update(((path, name), layout) for name in _counting(modules[path], layout) if name in names)
    return {place: recipe for place, recipe in found.items() if place not in recipes}


def _stacks(analysis: Analysis, kept: Kept) -> Iterator[tuple[str, Layout]]:
    """Yields the modules that hold experts which leave, with the layout of the dim along which they lie."""
    for group in analysis.groups.values():
        if group.name in kept and group.kind in (Kind.EXPERTS, Kind.EXPERT_GROUPS):
            for member in group.members:
                yield member.module, analysis.parameters[member.parameter].dims[member.dim]
    for one in analysis.lists:
        if depends(one.layout, kept):
            yield one.container, one.layout


def _counting(module: nn.Module, layout: Layout) -> list[str]:
    return [name for name, value in vars(module).items() if type(value) is int and value == layout.size]


def _in_all(modules: Mapping[str, nn.Module], kind: type[nn.Module], attribute: str, size: int) -> bool:
    """Tells whether an attribute has one value in all modules of a class, of which there are several."""
    alike = [module for module in modules.values() if type(module) is kind]
    return len(alike) > 1 and all(vars(module).get(attribute) == size for module in alike)
