"""The algebra of plans: composing two, and the difference of two."""

from __future__ import annotations

import attrs

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Fixed, Kept, Layout, Listed
from prunekit_core.errors import PlanError
from prunekit_core.modules.edits import Decision, GroupCut, ParameterCut, Rescale, runs_of


def compose(first: Decision, later: Decision) -> Decision:
    """Returns the decision that does what ``first`` and then ``later`` do.

    Raises:
        PlanError: ``later`` doesn't fit the model that ``first`` leaves.
    """
    before = {cut.parameter: cut for cut in first.parameters}
    after = {cut.parameter: cut for cut in later.parameters}
    kept, kept_later = first.kept, later.kept
    sizes = {cut.group: cut.size for cut in first.cuts}
    merged: dict[str, GroupCut] = {cut.group: cut for cut in first.cuts}
    same = _shared_groups(first, later)
    for cut in later.cuts:
        if cut.group in same and cut.group in kept:
            units = tuple(kept[cut.group][unit] for unit in cut.kept)
            merged[cut.group] = GroupCut(cut.group, sizes[cut.group], units)
        elif cut.group in same:
            merged[cut.group] = cut
    parameters = []
    for name in dict.fromkeys([*before, *after]):
        parameters.append(_compose_parameter(before.get(name), after.get(name), kept, kept_later, same))
    edits = {(e.module, e.attribute): e for e in first.edits}
    for edit in later.edits:
        known = edits.get((edit.module, edit.attribute))
        edits[edit.module, edit.attribute] = edit if known is None else attrs.evolve(edit, old=known.old)
    rescales = list(first.rescales)
    for rescale in later.rescales:
        rows = [row for start, stop in rescale.rows for row in range(start, stop)]
        if rescale.parameter in before:
            origin = layouts.kept_positions(before[rescale.parameter].dims[0], kept).tolist()
            rows = [origin[row] for row in rows]
        rescales.append(Rescale(rescale.parameter, runs_of(rows), rescale.factor))
    return Decision(
        cuts=tuple(merged.values()),
        parameters=tuple(parameters),
        edits=tuple(e for e in edits.values() if e.old != e.new),
        rescales=tuple(rescales),
        swaps=(*first.swaps, *(swap for swap in later.swaps if swap not in first.swaps)),
        sources=tuple(sorted({**dict(later.sources), **dict(first.sources)}.items())),
        notes=(*first.notes, *later.notes),
    )


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
    if two is None:
        assert one is not None
        return one
    if one is None:
        return attrs.evolve(two, dims=tuple(_listed(dim, kept_later, same) for dim in two.dims))
    if tuple(layouts.new_size(dim, kept) for dim in one.dims) != two.shape:
        raise PlanError(
            "The second plan doesn't fit the model that the first one leaves.",
            where=two.parameter,
            why=f"the second plan was made for shape {two.shape}",
        )
    dims: list[Layout] = []
    for mine, theirs in zip(one.dims, two.dims, strict=True):
        if set(layouts.groups_of(theirs)) & set(kept_later) <= same and layouts.substitute(mine, kept) == theirs:
            dims.append(mine)
            continue
        origin = layouts.kept_positions(mine, kept)
        chosen = origin[layouts.kept_positions(theirs, kept_later)]
        dims.append(Listed(mine.size, tuple(chosen.tolist())))
    return attrs.evolve(one, dims=tuple(dims))


def _listed(layout: Layout, kept: Kept, same: set[str]) -> Layout:
    if set(layouts.groups_of(layout)) & set(kept) <= same:
        return layout
    return Listed(layout.size, tuple(layouts.kept_positions(layout, kept).tolist()))


def difference(total: Decision, earlier: Decision) -> Decision:
    """Returns the decision that leads from what ``earlier`` leaves to what ``total`` leaves.

    Both are over the same groups, and ``total`` keeps nothing that ``earlier`` removed.
    """
    before = earlier.kept
    cuts = []
    for cut in total.cuts:
        present = before.get(cut.group, tuple(range(cut.size)))
        place = {unit: position for position, unit in enumerate(present)}
        units = tuple(place[unit] for unit in cut.kept)
        if len(units) < len(present):
            cuts.append(GroupCut(cut.group, len(present), units))
    moving = {cut.group for cut in cuts}
    parameters = []
    for parameter in total.parameters:
        dims = tuple(layouts.substitute(dim, before) for dim in parameter.dims)
        if any(moving & set(layouts.groups_of(dim)) for dim in dims):
            parameters.append(attrs.evolve(parameter, shape=tuple(dim.size for dim in dims), dims=dims))
    done = {(e.module, e.attribute): e.new for e in earlier.edits}
    edits = (attrs.evolve(e, old=done.get((e.module, e.attribute), e.old)) for e in total.edits)
    originals = {cut.parameter: cut.dims[0] for cut in total.parameters}
    rescales = []
    scaled = {(r.parameter, r.rows): r.factor for r in earlier.rescales}
    for rescale in total.rescales:
        factor = rescale.factor / scaled.get((rescale.parameter, rescale.rows), 1.0)
        if factor != 1.0:
            origin = originals.get(rescale.parameter, Fixed(max(stop for _, stop in rescale.rows)))
            rows = layouts.kept_positions(origin, before).tolist()
            inside = [i for i, row in enumerate(rows) if any(a <= row < b for a, b in rescale.rows)]
            rescales.append(Rescale(rescale.parameter, runs_of(inside), factor))
    return Decision(
        cuts=tuple(cuts),
        parameters=tuple(parameters),
        edits=tuple(e for e in edits if e.old != e.new),
        rescales=tuple(rescales),
        sources=total.sources,
        swaps=tuple(swap for swap in total.swaps if swap not in earlier.swaps),
        notes=total.notes,
    )
