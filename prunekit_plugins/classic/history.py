"""Pruning history: what was removed from which layer, in an order in which another copy can lose the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Layout
from prunekit_core.errors import ArgumentError, UnitsError
from prunekit_core.graph.channels import check_indices, not_whole, whole_units
from prunekit_core.groups.analysis import Analysis
from prunekit_core.program.op_call import Role

_BY_GROUP = "group:"
_BRANCH = "branch:"


class Removal(NamedTuple):
    """One entry of a history; a plain tuple in files.

    Attributes:
        layer: Dotted path of the layer; ``"group:<name>"`` where units lie in no layer with numbered channels, and
            ``"branch:<name>"`` for a branch.
        is_out: Whether the numbers are output channels of the layer (else input channels).
        idxs: The channels, as numbered in the layer when they were removed; none for a branch.
    """

    @classmethod
    def of_branch(cls, name: str) -> Removal:
        """Returns the entry of a branch."""
        return cls(_BRANCH + name, True, [])

    layer: str
    is_out: bool
    idxs: list[int]


FlatLayouts = Mapping[str, tuple["Layout | None", "Layout | None"]]
"""Layer path to how its output and its input channels are made of units."""


def removals(
    analysis: Analysis,
    flat: FlatLayouts,
    before: Mapping[str, tuple[int, ...]],
    after: Mapping[str, tuple[int, ...]],
) -> list[Removal]:
    """Writes one step as a list of removals, each relative to the model that the ones before it leave.

    Args:
        analysis: The analysed model.
        flat: How the channels of layers are made of units.
        before: Kept units per group before the step.
        after: Kept units per group after it.
    """
    kept = dict(before)
    found = []
    for name, units in after.items():
        if kept.get(name) == units:
            continue
        place = _place(analysis, flat, name)
        if place is None:
            present = kept.get(name, range(analysis.groups[name].size))
            found.append(Removal(_BY_GROUP + name, True, sorted(set(present) - set(units))))
            kept[name] = units
            continue
        layer, is_out, layout = place
        inside = {other: after[other] for other in layouts.groups_of(layout) if other in after}
        positions = layouts.kept_positions(layout, kept).tolist()
        stay = set(layouts.kept_positions(layout, {**kept, **inside}).tolist())
        found.append(Removal(layer, is_out, [n for n, position in enumerate(positions) if position not in stay]))
        kept.update(inside)
    return found


def _place(analysis: Analysis, flat: FlatLayouts, group: str) -> tuple[str, bool, Layout] | None:
    """Finds a layer in whose channels the units of a group can be numbered: where they are produced, else consumed."""
    members = sorted(analysis.groups[group].members, key=lambda member: member.role is not Role.OUT)
    for member in members:
        out, into = flat.get(member.module, (None, None))
        for is_out, layout in ((True, out), (False, into)):
            if layout is not None and group in layouts.groups_of(layout):
                return member.module, is_out, layout
    return None


def branches_in(history: Sequence[Sequence[object]]) -> list[str]:
    """Lists the names of the branches that a history removes.

    Raises:
        ArgumentError: It is no history.
    """
    return [layer.removeprefix(_BRANCH) for layer, _, _ in _read(history) if layer.startswith(_BRANCH)]


def resolve(
    history: Sequence[Sequence[object]],
    analysis: Analysis,
    flat: FlatLayouts,
    kept: Mapping[str, tuple[int, ...]],
) -> dict[str, tuple[int, ...]]:
    """Works out which units stay when everything in a history goes; branches are passed over.

    Args:
        history: Entries ``(layer, is_out, channels)``.
        analysis: The analysed model.
        flat: How the channels of layers are made of units.
        kept: Units per group that are there now.

    Raises:
        ArgumentError: It is no history, or was made for another model.
        UnitsError: Channels are out of range, repeated, or no whole units.
    """
    result = dict(kept)
    for layer, is_out, idxs in _read(history):
        if layer.startswith(_BRANCH):
            continue
        group = layer.removeprefix(_BY_GROUP)
        removed: Mapping[str, Sequence[int]]
        if group != layer and group in analysis.groups:
            removed = {group: check_indices(idxs, analysis.groups[group].size, layer)}
        else:
            layout = flat.get(layer, (None, None))[0 if is_out else 1]
            if layout is None:
                raise ArgumentError(
                    "The history was made for another model.", where=layer, why="it has no such layer to prune"
                )
            positions = layouts.kept_positions(layout, result)
            chosen = set(positions[check_indices(idxs, len(positions), layer)].tolist())
            removed, covered = whole_units(layout, chosen, result)
            if chosen - covered:
                raise not_whole(layout, min(chosen - covered), layer, "they can't shrink")
        for name, units in removed.items():
            present = result.get(name, tuple(range(analysis.groups[name].size)))
            result[name] = tuple(unit for unit in present if unit not in set(units))
            if not result[name]:
                raise UnitsError("All units of a group can't be removed.", where=layer, why=f"group {name}")
    return result


def _read(history: Sequence[Sequence[object]]) -> list[Removal]:
    found = []
    for entry in history:
        if not isinstance(entry, Sequence) or len(entry) != 3 or not isinstance(entry[0], str):
            raise ArgumentError("Not a pruning history: entries are (layer, is_out, channels).", why=f"got {entry!r}")
        found.append(Removal(entry[0], bool(entry[1]), list(entry[2])))  # type: ignore[call-overload]
    return found
