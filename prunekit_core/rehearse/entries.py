"""Which entries of lists of modules may leave once their branches are gone, proven by replay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from torch import nn

from prunekit_core.modules.absent import Handed, Plain, Result, Several
from prunekit_core.modules.edits import Stub, exchanged_by
from prunekit_core.modules.entries import (
    NO_ENTRIES,
    Deletion,
    Entries,
    Place,
    Recount,
    Shortening,
    holder_of,
    is_plain,
    objects_in,
    prefix_of,
)
from prunekit_core.rehearse.comparison import Mismatch
from prunekit_core.rehearse.size_attributes import further

Trial = Callable[[Entries], Mismatch | None]
"""Replays the program without some entries; returns the first place where it is another one."""


def entries_that_leave(
    modules: Mapping[str, nn.Module],
    stubs: Sequence[Stub],
    trial: Trial,
    deleted: Collection[str] = (),
    *,
    keep_names: bool = False,
) -> Entries:
    """Finds the entries that the program doesn't need: a layer that has lost all its branches, in a list of layers.

    Numbers that entries hold of themselves follow (``layer_idx``), and the texts that a configuration has for each of
    its layers; other lists with a value for each entry, and numbers of entries, where the program goes on only then.

    Args:
        modules: The modules by path.
        stubs: The modules that are exchanged.
        trial: Replays the program.
        deleted: Paths of entries that have left already.
        keep_names: Whether all others stay.

    Returns:
        All that may leave together; none if none may.
    """
    places = {stub.module: place for stub in stubs if (place := _entry(modules, stub)) is not None}
    settled = [place for path, place in places.items() if path in deleted]
    wanted = settled if keep_names else list(places.values())
    is_exchanged = exchanged_by(stubs)
    search = _Search(modules, {path: one for path, one in modules.items() if not is_exchanged(path)}, trial)
    found = search.proven(wanted)
    if found or len(wanted) < 2:
        return found
    chosen = settled
    found = search.proven(chosen)
    for place in wanted:
        more = search.proven([*chosen, place]) if place not in settled else None
        if more:
            chosen, found = [*chosen, place], more
    return found


def _entry(modules: Mapping[str, nn.Module], stub: Stub) -> tuple[str, int] | None:
    """Returns the list that a module is an entry of, and its place in it, if it only hands on what it is given."""
    container, _, name = stub.module.rpartition(".")
    prefix = prefix_of(modules.get(container))
    return (container, int(name[len(prefix) :])) if prefix is not None and _hands_on(stub.result) else None


def _hands_on(result: Result) -> bool:
    if isinstance(result, Several):
        return any(map(_hands_on, result.items)) and all(isinstance(item, Handed | Plain) for item in result.items)
    return isinstance(result, Handed)


class _Search:
    """Proves that entries may leave.

    Args:
        modules: The modules by path.
        left: Those that aren't exchanged.
        trial: Replays the program.
    """

    def __init__(self, modules: Mapping[str, nn.Module], left: Mapping[str, nn.Module], trial: Trial) -> None:
        self._modules, self._left, self._trial = modules, left, trial

    def proven(self, places: Sequence[tuple[str, int]]) -> Entries:
        """Proves that some entries may leave together; none where they may not."""
        if not places:
            return NO_ENTRIES
        by_list: dict[str, list[int]] = {}
        for container, number in places:
            by_list.setdefault(container, []).append(number)
        deletions = tuple(
            Deletion(
                container,
                len(self._modules[container]._modules),
                tuple(sorted(numbers)),
                prefix=prefix_of(self._modules[container]) or "",
            )
            for container, numbers in by_list.items()
        )
        own = tuple(recount for deletion in deletions for recount in _own_numbers(self._left, deletion))
        others = [change for deletion in deletions for change in _counting(self._left, deletion)]
        texts = [change for deletion in deletions for change in _kinds(self._left, deletion)]
        # a short recording doesn't always show which kind a layer was, so that replay wouldn't miss these
        mismatch = self._trial(Entries(deletions, (*own, *texts)))
        if mismatch is None:
            return Entries(deletions, (*own, *texts))
        if texts:
            mismatch = self._trial(Entries(deletions, own))
            if mismatch is None:
                return Entries(deletions, own)
        needed = _needed(others, lambda chosen: self._trial(Entries(deletions, (*own, *chosen))), mismatch)
        if needed is not None:
            return Entries(deletions, (*own, *needed))
        return Entries(deletions) if own and self._trial(Entries(deletions)) is None else NO_ENTRIES


def _needed(
    options: Sequence[Recount | Shortening],
    trial: Callable[[Iterable[Recount | Shortening]], Mismatch | None],
    mismatch: Mismatch,
) -> list[Recount | Shortening] | None:
    """Chooses the changes with which the program goes on, each only if it gets further with it; None if it doesn't."""
    chosen: list[Recount | Shortening] = []
    left: Mismatch | None = mismatch
    while left is not None:
        trials = ((option, trial([*chosen, option])) for option in options if option not in chosen)
        better = next(((option, found) for option, found in trials if further(found, left)), None)
        if better is None:
            break
        chosen.append(better[0])
        left = better[1]
    if left is None:
        return chosen
    if len(options) < 2 or trial(options) is not None:
        return None
    chosen = list(options)
    for option in options:
        fewer = [one for one in chosen if one is not option]
        if trial(fewer) is None:
            chosen = fewer
    return chosen


def _own_numbers(modules: Mapping[str, nn.Module], deletion: Deletion) -> Iterator[Recount]:
    """Yields the new values of numbers that entries hold of themselves: those that rise by one with each entry."""
    values: dict[tuple[str, str], dict[int, int]] = {}
    paths: dict[tuple[int, str], str] = {}
    for number in range(deletion.size):
        prefix = deletion.path(number)
        for path, module in modules.items():
            if path == prefix or path.startswith(f"{prefix}."):
                inner = path[len(prefix) :]
                paths[number, inner] = path
                for name, value in vars(module).items():
                    if type(value) is int:
                        values.setdefault((inner, name), {})[number] = value
    moved = deletion.moved()
    for (inner, name), found in values.items():
        offsets = {value - number for number, value in found.items()}
        if len(found) > 1 and len(offsets) == 1:
            for number, value in found.items():
                new = moved.get(number, number) + min(offsets)
                if number in moved and new != value:
                    yield Recount((paths[number, inner], (name,)), value, new)


def _counting(modules: Mapping[str, nn.Module], deletion: Deletion) -> Iterator[Recount | Shortening]:
    """Yields changes of lists with a value for each entry, and of numbers that are how many there are."""
    for (path, names), table in objects_in(modules):
        inside = f"{deletion.container}."
        if not names and (path == deletion.container or path.startswith(inside)):
            continue
        for name, value in table.items():
            place: Place = (path, (*names, name))
            if isinstance(value, list | tuple) and len(value) == deletion.size and all(map(is_plain, value)):
                values = tuple(value[number] for number in deletion.entries)
                yield Shortening(place, deletion.size, deletion.entries, values)
            elif type(value) is int and value == deletion.size:
                yield Recount(place, value, value - len(deletion.entries))


def _kinds(modules: Mapping[str, nn.Module], deletion: Deletion) -> Iterator[Shortening]:
    """Yields changes of lists of texts, one for each entry, in objects that hold the number of entries as well."""
    for change in _counting(modules, deletion):
        path, names = change.place
        table = holder_of(modules[path], names) if len(names) > 1 else None
        if table is not None and isinstance(change, Shortening):
            counted = any(type(value) is int and value == deletion.size for value in table.values())
            if counted and deletion.size > 1 and all(isinstance(value, str) for value in table[names[-1]]):
                yield change
