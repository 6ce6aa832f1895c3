"""Channel numbers: what users call the 7th channel of a layer, and which units of which groups that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Kept, Layout
from prunekit_core.errors import ArgumentError, UnitsError, nearest
from prunekit_core.groups.unit_group import UnitGroup
from prunekit_core.plugins.layer_facts import channels_by_type
from prunekit_core.plugins.layers import PruningFunction
from prunekit_core.plugins.registry import Registry


def check_indices(indices: Sequence[int] | torch.Tensor, size: int, where: str) -> list[int]:
    """Reads unit indices that a user gave: ints, or an integer tensor.

    Raises:
        UnitsError: They are no integers, out of range or repeated.
    """
    if isinstance(indices, torch.Tensor):
        if indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool or indices.dim() > 1:
            raise UnitsError("Unit indices must be integers.", where=where, why=f"got a {indices.dtype} tensor")
        indices = indices.reshape(-1).tolist()
    if not isinstance(indices, Iterable):
        raise UnitsError("Unit indices must be integers.", where=where, why=f"got {indices!r}")
    numbers = list(indices)
    wrong = [n for n in numbers if isinstance(n, bool) or not hasattr(n, "__index__")]
    if wrong:
        raise UnitsError("Unit indices must be integers.", where=where, why=f"got {wrong[0]!r}")
    numbers = [n.__index__() for n in numbers]
    outside = [n for n in numbers if not 0 <= n < size]
    if outside:
        raise UnitsError("A unit index is out of range.", where=where, why=f"{outside[0]} is not in 0..{size - 1}")
    if len(set(numbers)) < len(numbers):
        twice = next(n for n in numbers if numbers.count(n) > 1)
        raise UnitsError("A unit index is repeated.", where=where, why=f"{twice} occurs more than once")
    return numbers


def check_groups(names: Iterable[str], groups: Mapping[str, UnitGroup]) -> None:
    """Raises `ArgumentError` for the first of some names that no group has."""
    strange = next((name for name in names if name not in groups), None)
    if strange is not None:
        raise ArgumentError("The model has no such group.", where=repr(strange), hint=nearest(strange, groups))


def check_units(
    units: Mapping[str, Sequence[int] | torch.Tensor], groups: Mapping[str, UnitGroup]
) -> dict[str, frozenset[int]]:
    """Reads units that a user named, by group.

    Raises:
        ArgumentError: There is no such group.
        UnitsError: They are no integers, out of range or repeated.
    """
    check_groups(units, groups)
    return {name: frozenset(check_indices(found, groups[name].size, name)) for name, found in units.items()}


def flat_layout(
    layer: nn.Module,
    registry: Registry,
    own: Mapping[str, tuple[Layout, ...]],
    function: PruningFunction,
    where: str,
) -> Layout:
    """Returns how the channels that a pruning function removes from a layer are made of units.

    Args:
        layer: The layer.
        registry: Where its layer type is found.
        own: Layouts of its own parameters, by local name.
        function: The pruning function.
        where: Named in errors.

    Raises:
        ArgumentError: The layer has no type, or the function isn't for it.
        PluginError: Its layer type is wrong.
    """
    layer_type = registry.layer_type(layer)
    if layer_type is None:
        raise ArgumentError(
            "No layer type is registered for this layer.",
            where=where,
            why="; ".join(registry.broken()),
            hint="prune a layer inside it",
        )
    out = function == layer_type.prune_out or function in layer_type.also_out
    into = function == layer_type.prune_in or function in layer_type.also_in
    flat = layer_type.flat_out if out else layer_type.flat_in if into else None
    layout = channels_by_type(registry, layer, flat, own)
    if layout is None:
        name = getattr(function, "__name__", repr(function))
        known = [getattr(f, "__name__", "") for f in (layer_type.prune_out, layer_type.prune_in) if f is not None]
        raise ArgumentError(f"{name} doesn't prune this layer.", where=where, hint="use " + " or ".join(known))
    return layout


def whole_units(layout: Layout, flat: set[int], kept: Kept) -> tuple[dict[str, tuple[int, ...]], set[int]]:
    """Translates flat positions into units.

    Args:
        layout: How the positions are made of units.
        flat: Positions, as numbered at analysis.
        kept: Units that are still there.

    Returns:
        Group to the units whose positions are all among the given ones, as few groups as needed; and the positions
        that these units cover.
    """
    removed: dict[str, tuple[int, ...]] = {}
    holders: dict[str, dict[int, set[int]]] = {}
    present = set(layouts.kept_positions(layout, kept).tolist())
    placed = layouts.placements(layout, {})
    for name in layouts.groups_of(layout):
        of_unit: dict[int, set[int]] = {}
        for position, unit in zip(*(column.tolist() for column in placed[name]), strict=True):
            if position in present:
                of_unit.setdefault(unit, set()).add(position)
        holders[name] = of_unit
        units = tuple(sorted(unit for unit, positions in of_unit.items() if positions <= flat))
        if units:
            removed[name] = units

    def covered(chosen: Mapping[str, Sequence[int]]) -> set[int]:
        return {position for name, units in chosen.items() for unit in units for position in holders[name][unit]}

    reached = covered(removed)
    for name in list(removed):
        fewer = {other: units for other, units in removed.items() if other != name}
        if covered(fewer) == reached:
            removed = fewer
    return removed, reached


def not_whole(layout: Layout, position: int, where: str, pinned: str) -> UnitsError:
    """Words the error for channels that can't be removed."""
    names = layouts.groups_of(layout)
    if not names:
        return UnitsError(
            "These units can't be removed.",
            where=where,
            why=f"pinned: {pinned}",
            hint="graph.explain(layer) says what ties them",
        )
    return UnitsError(
        "These channels are not whole units.",
        where=where,
        why=f"channel {position} can only leave together with others",
        hint=f"the channels are made like this: {layouts.describe(layout)}",
    )
