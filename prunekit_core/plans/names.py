"""Names in plans that follow each other: modules and tensors that a plan removes have no names in the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from prunekit_core.algebra import layout as layouts
from prunekit_core.modules.edits import Decision, ParameterCut
from prunekit_core.modules.renaming import Renaming, Tied


def named_before(first: Decision, later: Decision) -> Decision:
    """Returns a plan for what ``first`` leaves, with the names that everything has before ``first``.

    What is said of tied tensors is left out, see `compose_tied`.
    """
    if not (first.stubs or first.absent):
        return attrs.evolve(later, tied=()) if later.tied else later
    renaming = first.renaming
    known = {tied.name: tied.names[1:] for tied in first.tied if tied.name}

    def aliases(cut: ParameterCut) -> tuple[str, ...]:
        return known.get(cut.parameter) or tuple(map(renaming.before, cut.aliases))

    named = _regrouped(_named(later, renaming.before, aliases), renaming, renaming.unnumbered)
    return attrs.evolve(named, absent=_branches_before(first.absent, later.absent, renaming))


def named_after(earlier: Decision, later: Decision) -> Decision:
    """Returns a plan for the model before ``earlier``, with the names that everything has after ``earlier``.

    What is said of tied tensors is left out, see `remaining_tied`.
    """
    if not (earlier.stubs or earlier.absent):
        return attrs.evolve(later, tied=()) if later.tied else later
    renaming = earlier.renaming

    def aliases(cut: ParameterCut) -> tuple[str, ...]:
        return tuple(_places(renaming, (cut.parameter, *cut.aliases))[1:])

    named = _named(later, lambda name: renaming.after(name) or name, aliases)
    named = _regrouped(named, renaming, renaming.numbered)
    return attrs.evolve(named, absent=_branches_after(earlier.absent, later.absent, renaming))


def _named(plan: Decision, name: Callable[[str], str], aliases: Callable[[ParameterCut], tuple[str, ...]]) -> Decision:
    return attrs.evolve(
        plan,
        parameters=tuple(attrs.evolve(c, parameter=name(c.parameter), aliases=aliases(c)) for c in plan.parameters),
        edits=tuple(attrs.evolve(edit, module=name(edit.module)) for edit in plan.edits),
        tables=tuple(attrs.evolve(edit, module=name(edit.module)) for edit in plan.tables),
        rescales=tuple(attrs.evolve(rescale, parameter=name(rescale.parameter)) for rescale in plan.rescales),
        swaps=tuple(attrs.evolve(swap, module=name(swap.module)) for swap in plan.swaps),
        stubs=tuple(attrs.evolve(stub, module=name(stub.module)) for stub in plan.stubs),
        gone=tuple(map(name, plan.gone)),
        silent=tuple(map(name, plan.silent)),
        sources=tuple((name(path), source) for path, source in plan.sources),
        tied=(),
    )


def _regrouped(plan: Decision, renaming: Renaming, path: Callable[[str], str]) -> Decision:
    """Returns a plan whose groups, which are named after modules, are named after what these are called."""
    if not renaming.renamed:
        return plan

    def name(group: str) -> str:
        module, mark, rest = group.partition("#")
        return path(module) + mark + rest

    return attrs.evolve(
        plan,
        cuts=tuple(attrs.evolve(cut, group=name(cut.group)) for cut in plan.cuts),
        parameters=tuple(
            attrs.evolve(cut, dims=tuple(layouts.regrouped(dim, name) for dim in cut.dims)) for cut in plan.parameters
        ),
    )


def _places(renaming: Renaming, names: Sequence[str]) -> list[str]:
    """Lists what is left of a tensor's names."""
    return [place for place in map(renaming.place, names) if place is not None]


def _branches_before(first: Sequence[str], later: Sequence[str], renaming: Renaming) -> tuple[str, ...]:
    """Names branches of what is left as those of the whole model: the second one named ``x`` is ``x~2`` in it."""
    taken = {_numbered(name) for name in first}
    found = []
    for name in later:
        base, place = _numbered(name)
        base = renaming.before(base)
        number = 0
        while place:
            number += 1
            place -= (base, number) not in taken
        found.append(base if number == 1 else f"{base}~{number}")
    return tuple(found)


def _branches_after(earlier: Sequence[str], later: Sequence[str], renaming: Renaming) -> tuple[str, ...]:
    """Names branches of the whole model as those of what is left, see `_branches_before`."""
    taken = {_numbered(name) for name in earlier}
    found = []
    for name in later:
        base, number = _numbered(name)
        number -= sum((base, lower) in taken for lower in range(1, number))
        base = renaming.after(base) or base
        found.append(base if number == 1 else f"{base}~{number}")
    return tuple(found)


def _numbered(name: str) -> tuple[str, int]:
    base, _, number = name.partition("~")
    return (base, int(number)) if number.isdigit() and number != "0" else (name, 1)


def compose_tied(first: Decision, later: Decision) -> tuple[Tied, ...]:
    """What both plans together do to tensors with several names.

    Args:
        first: The first plan.
        later: The later one, with its own names.
    """
    renaming = first.renaming
    known = {tied.name: tied for tied in first.tied if tied.name}
    found = [tied for tied in first.tied if not tied.name]
    for tied in later.tied:
        names = [old for name in tied.names for old in _names_before(known, name, renaming)]
        found.append(Tied(tied.name, tuple(dict.fromkeys(names))))
    later_names = {name for tied in later.tied for name in tied.names}
    gone = set(later.gone)
    for tied in known.values():
        if tied.name not in later_names:
            found.append(Tied("" if tied.name in gone else later.renaming.after(tied.name) or "", tied.names))
    return tuple(found)


def _names_before(known: dict[str, Tied], name: str, renaming: Renaming) -> tuple[str, ...]:
    return known[name].names if name in known else (renaming.before(name),)


def remaining_tied(total: Decision, earlier: Decision, step: Decision) -> tuple[Tied, ...]:
    """What ``step``, which leads from what ``earlier`` leaves to what ``total`` leaves, does to tied tensors."""
    before, now = earlier.renaming, step.renaming
    found = []
    for tied in total.tied:
        names = tuple(_places(before, tied.names))
        if len(names) > 1 and any(now.place(name) is None for name in names):
            found.append(Tied(tied.name, names))
    return tuple(found)


def without_removed(first: Decision, later: Decision) -> Decision:
    """Returns a plan without what it changes where a later one, with the same names, removes it."""
    if not later.stubs:
        return first
    gone, removed = set(later.gone), later.renaming

    def stays(path: str) -> bool:
        return path not in removed.removed and removed.place(path) is not None

    left = tuple(cut for cut in first.parameters if cut.parameter not in gone)
    lost = {name for cut in first.parameters if cut.parameter in gone for name in _groups(cut)}
    lost -= {name for cut in left for name in _groups(cut)}
    return attrs.evolve(
        first,
        cuts=tuple(cut for cut in first.cuts if cut.group not in lost),
        parameters=left,
        edits=tuple(edit for edit in first.edits if stays(edit.module)),
        tables=tuple(edit for edit in first.tables if stays(edit.module)),
        rescales=tuple(rescale for rescale in first.rescales if rescale.parameter not in gone),
        swaps=tuple(swap for swap in first.swaps if stays(swap.module)),
    )


def _groups(cut: ParameterCut) -> set[str]:
    return {name for dim in cut.dims for name in layouts.groups_of(dim)}
