"""Entries that leave lists in plans that follow each other."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from prunekit_core.errors import PlanError
from prunekit_core.modules.edits import Decision
from prunekit_core.modules.entries import Deletion, Entries, Place, Recount, Shortening

Change = Recount | Shortening


def compose_entries(first: Decision, later: Decision) -> Entries:
    """What two plans that follow each other do to lists of modules and to what counts their entries.

    Args:
        first: The first plan.
        later: The later one, with its own names.
    """
    renaming = first.renaming
    known = {deletion.container: deletion for deletion in first.entries.deletions}
    for deletion in later.entries.deletions:
        container = renaming.before(deletion.container)
        witness = deletion.witness and renaming.before(deletion.witness)
        known[container] = _both(known.get(container), attrs.evolve(deletion, container=container, witness=witness))
    changes = _by_place(first.entries)
    for change in later.entries.changes:
        place = (renaming.before(change.place[0]), change.place[1])
        changes[place] = _changed_twice(changes.get(place), change, place)
    return Entries(tuple(known.values()), tuple(change for change in changes.values() if _is_change(change)))


def remaining_entries(total: Decision, earlier: Decision) -> Entries:
    """What is left to do of entries after an earlier plan, with the names after it."""
    renaming = earlier.renaming
    done = {deletion.container: deletion for deletion in earlier.entries.deletions}
    deletions = []
    for deletion in total.entries.deletions:
        known = done.get(deletion.container)
        moved = known.moved() if known is not None else {n: n for n in range(deletion.size)}
        left = tuple(moved[number] for number in deletion.entries if number in moved)
        if left:
            container = renaming.after(deletion.container) or deletion.container
            witness = (deletion.witness and renaming.after(deletion.witness)) or ""
            step = attrs.evolve(deletion, container=container, size=len(moved), entries=left, witness=witness)
            deletions.append(step)
    before = _by_place(earlier.entries)
    changes = []
    for change in total.entries.changes:
        place = (renaming.after(change.place[0]) or change.place[0], change.place[1])
        changes.append(_rest(change, before.get(change.place), place))
    return Entries(tuple(deletions), tuple(change for change in changes if _is_change(change)))


def _by_place(entries: Entries) -> dict[Place, Change]:
    return {change.place: change for change in entries.changes}


def _both(first: Deletion | None, later: Deletion) -> Deletion:
    if first is None:
        return later
    origin = _inverse(first.moved())
    if len(origin) != later.size:
        raise PlanError(
            "The second plan doesn't fit the model that the first one leaves.",
            where=first.container,
            why=f"the first leaves {len(origin)} of its entries, the second was made for {later.size}",
        )
    return attrs.evolve(first, entries=tuple(sorted((*first.entries, *(origin[n] for n in later.entries)))))


def _changed_twice(first: Change | None, later: Change, place: Place) -> Change:
    match first, later:
        case Recount(), Recount():
            return Recount(place, first.old, later.new)
        case Shortening(), Shortening():
            both = _both(Deletion("", first.size, first.removed), Deletion("", later.size, later.removed))
            kept = _inverse(Deletion("", first.size, first.removed).moved())
            values = dict(zip(first.removed, first.values, strict=True))
            values |= {kept[n]: value for n, value in zip(later.removed, later.values, strict=True)}
            return Shortening(place, first.size, both.entries, tuple(values[n] for n in both.entries))
        case _, Recount():
            return Recount(place, later.old, later.new)
        case _, Shortening():
            return attrs.evolve(later, place=place)


def _rest(total: Change, done: Change | None, place: Place) -> Change:
    match total, done:
        case Recount(), Recount():
            return Recount(place, done.new, total.new)
        case Shortening(), Shortening():
            moved = Deletion("", done.size, done.removed).moved()
            left = {moved[n]: value for n, value in zip(total.removed, total.values, strict=True) if n in moved}
            return Shortening(place, len(moved), tuple(left), tuple(left.values()))
        case Recount(), _:
            return Recount(place, total.old, total.new)
        case Shortening(), _:
            return attrs.evolve(total, place=place)


def _is_change(change: Change) -> bool:
    return bool(change.removed) if isinstance(change, Shortening) else change.old != change.new


def _inverse(table: Mapping[int, int]) -> dict[int, int]:
    return {new: old for old, new in table.items()}
