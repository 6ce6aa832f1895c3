"""The algebra of plans: composing two, and the difference of two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import attrs

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Fixed, Kept, Layout, Listed
from prunekit_core.errors import PlanError
from prunekit_core.modules.edits import (
    AttributeEdit,
    Decision,
    GroupCut,
    ParameterCut,
    Rescale,
    Stub,
    TableEdit,
    exchanged_by,
    runs_of,
)
from prunekit_core.modules.entries import NO_ENTRIES
from prunekit_core.plans.entries import compose_entries, remaining_entries
from prunekit_core.plans.names import compose_tied, named_after, named_before, remaining_tied, without_removed


def compose(first: Decision, later: Decision) -> Decision:
    """Returns the decision that does what ``first`` and then ``later`` do.

    The later plan counts from what the first one leaves. Example: the first keeps units 0, 2, 4, 6 of a group of 8, the
    later one units 1 and 3 of the 4 that are left: together they keep units 2 and 6.

    A group of the later plan means the same in the first one if both put it at the same places (`_shared_groups`). If
    it doesn't (the graph was built anew in between, and found other groups), its dims are written as lists of
    positions.

    Raises:
        PlanError: ``later`` doesn't fit the model that ``first`` leaves.
    """
    tied, entries = compose_tied(first, later), compose_entries(first, later)
    later = named_before(first, later)
    entries = entries.without(exchanged_by(later.stubs))
    _check_there(first, later)
    first = without_removed(first, later)
    same = _shared_groups(first, later)
    before = {cut.parameter: cut for cut in first.parameters}
    after = {cut.parameter: cut for cut in later.parameters}
    parameters = (
        _compose_parameter(before.get(name), after.get(name), first.kept, later.kept, same)
        for name in dict.fromkeys([*before, *after])
    )
    return Decision(
        cuts=_compose_cuts(first, later, same),
        parameters=tuple(parameters),
        edits=_compose_edits(first.edits, later.edits),
        tables=_compose_edits(first.tables, later.tables),
        rescales=(*first.rescales, *(_before_first(rescale, before, first.kept) for rescale in later.rescales)),
        swaps=(*first.swaps, *(swap for swap in later.swaps if swap not in first.swaps)),
        absent=(*first.absent, *later.absent),
        stubs=(*(stub for stub in first.stubs if not _is_in(stub.module, later.stubs)), *later.stubs),
        gone=(*first.gone, *later.gone),
        tied=tied,
        entries=entries,
        silent=_compose_silent(first, later),
        sources=tuple(sorted({**dict(later.sources), **dict(first.sources)}.items())),
        notes=(*first.notes, *later.notes),
        constants=(*first.constants, *later.constants),
    )


def _compose_silent(first: Decision, later: Decision) -> tuple[str, ...]:
    """Parameters whose zeros switch off the branches of both plans; none where those of one can't be."""
    unknown = any(plan.absent and not plan.silent for plan in (first, later))
    return () if unknown else (*first.silent, *later.silent)


def _check_there(first: Decision, later: Decision) -> None:
    """Raises `PlanError` where the later plan changes or removes what the first one removes."""
    gone = set(first.gone)
    named = (*(cut.parameter for cut in later.parameters), *later.gone)
    places = (*(edit.module for edit in later.changed()), *(stub.module for stub in later.stubs))
    away = first.renaming
    lost = [name for name in named if name in gone] + [path for path in places if away.after(path) is None]
    if lost:
        raise _no_fit(lost[0], "the first plan removes it")


def _no_fit(where: str, why: str) -> PlanError:
    return PlanError("The second plan doesn't fit the model that the first one leaves.", where=where, why=why)


def _is_in(path: str, stubs: Iterable[Stub]) -> bool:
    """Tells whether a module is exchanged, or lies in one that is."""
    return any(f"{path}.".startswith(f"{stub.module}.") for stub in stubs)


def _compose_cuts(first: Decision, later: Decision, same: set[str]) -> tuple[GroupCut, ...]:
    """Kept units of both plans, as numbered before the first one."""
    kept = first.kept
    sizes = {cut.group: cut.size for cut in first.cuts}
    merged: dict[str, GroupCut] = {cut.group: cut for cut in first.cuts}
    for cut in later.cuts:
        if cut.group in same and cut.group in kept:
            units = tuple(kept[cut.group][unit] for unit in cut.kept)
            merged[cut.group] = GroupCut(cut.group, sizes[cut.group], units)
        elif cut.group in same:
            merged[cut.group] = cut
    return tuple(merged.values())


_Edit = TypeVar("_Edit", AttributeEdit, TableEdit)


def _compose_edits(first: Iterable[_Edit], later: Iterable[_Edit]) -> tuple[_Edit, ...]:
    """Each attribute from its value before the first plan to that after the later one."""
    edits = {(e.module, e.attribute): e for e in first}
    for edit in later:
        known = edits.get((edit.module, edit.attribute))
        edits[edit.module, edit.attribute] = edit if known is None else attrs.evolve(edit, old=known.old)
    return tuple(e for e in edits.values() if e.old != e.new)


def _remaining_edits(total: Iterable[_Edit], earlier: Iterable[_Edit]) -> tuple[_Edit, ...]:
    """Each attribute from its value after the earlier plan."""
    done = {(e.module, e.attribute): e.new for e in earlier}
    edits = (attrs.evolve(e, old=done.get((e.module, e.attribute), e.old)) for e in total)
    return tuple(e for e in edits if e.old != e.new)


def _before_first(rescale: Rescale, before: Mapping[str, ParameterCut], kept: Kept) -> Rescale:
    """A rescale of the later plan with its rows as numbered before the first one."""
    rows = [row for start, stop in rescale.rows for row in range(start, stop)]
    if rescale.parameter in before:
        origin = layouts.kept_positions(before[rescale.parameter].dims[0], kept).tolist()
        rows = [origin[row] for row in rows]
    return Rescale(rescale.parameter, runs_of(rows), rescale.factor)


def _shared_groups(first: Decision, later: Decision) -> set[str]:
    """Groups of the later plan that mean the same in the first: same size, same place in every parameter."""
    kept = first.kept
    before = {cut.parameter: cut for cut in first.parameters}
    same = {c.group for c in later.cuts if c.group not in kept or len(kept[c.group]) == c.size}
    for cut in later.parameters:
        known = before.get(cut.parameter)
        for dim, layout in enumerate(cut.dims):
            named = set(layouts.groups_of(layout))
            if known is None:
                same -= named & set(kept)
            elif layouts.substitute(known.dims[dim], kept) != layout:
                same -= named
    return same


def _compose_parameter(
    one: ParameterCut | None, two: ParameterCut | None, kept: Kept, kept_later: Kept, same: set[str]
) -> ParameterCut:
    """How one parameter is cut by both plans.

    Args:
        one: Its cut by the first plan; None where that leaves it alone.
        two: Its cut by the later one.
        kept: Kept units of the first plan.
        kept_later: Kept units of the later one.
        same: Groups that mean the same in both.
    """
    if two is None:
        assert one is not None
        return one
    if one is None:
        return attrs.evolve(two, dims=tuple(_listed(dim, kept_later, same) for dim in two.dims))
    if tuple(layouts.new_size(dim, kept) for dim in one.dims) != two.shape:
        raise _no_fit(two.parameter, f"the second plan was made for shape {two.shape}")
    dims: list[Layout] = []
    for mine, theirs in zip(one.dims, two.dims, strict=True):
        if set(layouts.groups_of(theirs)) & set(kept_later) <= same and layouts.substitute(mine, kept) == theirs:
            dims.append(mine)  # the merged cuts of its groups say it all
            continue
        origin = layouts.kept_positions(mine, kept)  # by position after the first plan: that before it
        chosen = origin[layouts.kept_positions(theirs, kept_later)]
        dims.append(Listed(mine.size, tuple(chosen.tolist())))
    return attrs.evolve(one, dims=tuple(dims))


def _listed(layout: Layout, kept: Kept, same: set[str]) -> Layout:
    """A dim that the first plan leaves alone: its layout, or where its groups mean something else, its positions."""
    if set(layouts.groups_of(layout)) & set(kept) <= same:
        return layout
    return Listed(layout.size, tuple(layouts.kept_positions(layout, kept).tolist()))


def difference(total: Decision, earlier: Decision) -> Decision:
    """Returns the decision that leads from what ``earlier`` leaves to what ``total`` leaves.

    Both are over the same groups, and ``total`` keeps nothing that ``earlier`` removed. Example: ``total`` keeps units
    2 and 6 of 8, ``earlier`` units 0, 2, 4, 6: what is left to do is to keep units 1 and 3 of 4.
    """
    before = earlier.kept
    cuts = _remaining_cuts(total, before)
    moving = {cut.group for cut in cuts}
    parameters = []
    for parameter in total.parameters:
        dims = tuple(layouts.substitute(dim, before) for dim in parameter.dims)
        if any(moving & set(layouts.groups_of(dim)) for dim in dims):
            parameters.append(attrs.evolve(parameter, shape=tuple(dim.size for dim in dims), dims=dims))
    step = Decision(
        cuts=cuts,
        parameters=tuple(parameters),
        edits=_remaining_edits(total.edits, earlier.edits),
        tables=_remaining_edits(total.tables, earlier.tables),
        rescales=_remaining_rescales(total, earlier),
        sources=tuple((path, source) for path, source in total.sources if not _is_in(path, earlier.stubs)),
        swaps=tuple(swap for swap in total.swaps if swap not in earlier.swaps),
        absent=tuple(name for name in total.absent if name not in earlier.absent),
        stubs=tuple(stub for stub in total.stubs if stub not in earlier.stubs),
        gone=tuple(name for name in total.gone if name not in earlier.gone),
        silent=tuple(name for name in total.silent if name not in earlier.gone),
        notes=total.notes,
        constants=total.constants,
    )
    step = named_after(earlier, step)
    if total.entries == NO_ENTRIES and not total.tied:
        return step
    step = attrs.evolve(step, entries=remaining_entries(total, earlier))
    return attrs.evolve(step, tied=remaining_tied(total, earlier, step))


def _remaining_cuts(total: Decision, before: Kept) -> tuple[GroupCut, ...]:
    """Cuts of the units that an earlier plan left, as numbered among those."""
    cuts = []
    for cut in total.cuts:
        present = before.get(cut.group, tuple(range(cut.size)))
        place = {unit: position for position, unit in enumerate(present)}
        units = tuple(place[unit] for unit in cut.kept)
        if len(units) < len(present):
            cuts.append(GroupCut(cut.group, len(present), units))
    return tuple(cuts)


def _remaining_rescales(total: Decision, earlier: Decision) -> tuple[Rescale, ...]:
    """Factors that are missing after the earlier plan, for the rows that it left."""
    originals = {cut.parameter: cut.dims[0] for cut in total.parameters}
    scaled = {(r.parameter, r.rows): r.factor for r in earlier.rescales}
    rescales = []
    for rescale in total.rescales:
        factor = rescale.factor / scaled.get((rescale.parameter, rescale.rows), 1.0)
        if factor != 1.0:
            origin = originals.get(rescale.parameter, Fixed(max(stop for _, stop in rescale.rows)))
            rows = layouts.kept_positions(origin, earlier.kept).tolist()
            inside = [i for i, row in enumerate(rows) if any(a <= row < b for a, b in rescale.rows)]
            rescales.append(Rescale(rescale.parameter, runs_of(inside), factor))
    return tuple(rescales)
