"""Lists of modules whose entries are the units of an axis: experts, each a module of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import attrs
from torch import nn

from prunekit_core.algebra import axes
from prunekit_core.algebra.axes import Axis, AxisMismatchError
from prunekit_core.algebra.layout import Kept, Layout, depends, groups_of, kept_positions
from prunekit_core.algebra.lookups import look_up
from prunekit_core.algebra.reasons import Reason
from prunekit_core.groups.position_reads import Reads
from prunekit_core.groups.propagate import Propagation
from prunekit_core.modules.entries import Deletion, prefix_of

UNLIKE = "experts in a list of modules that aren't alike"


@attrs.frozen(eq=False)
class ExpertList:
    """A list of modules with one entry for each unit of an axis.

    Attributes:
        container: Path of the list.
        prefix: What stands before the number in the name of an entry.
        layout: Layout of the axis.
    """

    container: str
    prefix: str
    layout: Layout

    def order(self, kept: Kept) -> list[int]:
        """Returns the entries that stay, by their numbers, and behind them those that leave."""
        stays: list[int] = kept_positions(self.layout, kept).tolist()
        return [*stays, *sorted(set(range(self.layout.size)).difference(stays))]

    def deletion(self, kept: Kept) -> Deletion | None:
        """Returns what leaves; None where nothing does."""
        if not depends(self.layout, kept):
            return None
        gone = tuple(sorted(set(range(self.layout.size)).difference(kept_positions(self.layout, kept).tolist())))
        return Deletion(self.container, self.layout.size, gone, prefix=self.prefix) if gone else None

    def entry(self, path: str) -> tuple[int, str] | None:
        """Returns the number of the entry that a module or tensor lies in, and the rest of its path, or None."""
        head = f"{self.container}.{self.prefix}".lstrip(".")
        number, _, rest = path[len(head) :].partition(".") if path.startswith(head) else ("", "", "")
        return (int(number), rest) if number.isdigit() else None

    def path(self, number: int, rest: str) -> str:
        """Returns the path of something in an entry."""
        return f"{self.container}.{self.prefix}{number}.{rest}".strip(".")


def deletions(lists: Iterable[ExpertList], kept: Kept) -> list[Deletion]:
    """Returns what leaves some lists when only the kept units stay."""
    return [found for one in lists if (found := one.deletion(kept)) is not None]


def moved_in_front(lists: Iterable[ExpertList], kept: Kept) -> Iterator[tuple[ExpertList, Mapping[int, int]]]:
    """Yields the lists that lose something, with the place that each entry has when those that stay come first."""
    for one in lists:
        if depends(one.layout, kept):
            yield one, {number: place for place, number in enumerate(one.order(kept))}


@attrs.frozen(eq=False)
class Leaving:
    """What leaves lists.

    Attributes:
        deletions: By list.
        modules: Paths of the entries that leave, as keys, in order.
        tensors: Names of the parameters and buffers in them.
    """

    deletions: tuple[Deletion, ...]
    modules: Mapping[str, None]
    tensors: tuple[str, ...]

    @classmethod
    def of(cls, lists: Iterable[ExpertList], kept: Kept, names: Iterable[str]) -> Leaving:
        """Returns what leaves some lists when only the kept units stay.

        Args:
            lists: The lists.
            kept: Kept units per group.
            names: All parameters and buffers.
        """
        found = tuple(deletions(lists, kept))
        modules = dict.fromkeys(one.path(number) for one in found for number in one.entries)
        return cls(found, modules, tuple(name for name in names if _is_within(name, modules)))

    def has(self, path: str) -> bool:
        """Tells whether a module or a tensor is in what leaves."""
        return _is_within(path, self.modules)


def _is_within(path: str, modules: Collection[str]) -> bool:
    """Whether a path is one of some modules, or in one; they may be thousands."""
    while path:
        if path in modules:
            return True
        path = path.rpartition(".")[0]
    return False


def first_entries(lists: Iterable[ExpertList], names: Iterable[str]) -> dict[str, tuple[Layout, ...]]:
    """Chooses tensors that stand for those at their place in the other entries of lists that may lose entries.

    Args:
        lists: The lists.
        names: Parameters and buffers.

    Returns:
        Name of each of the tensors that are in no other entry than the first one of any list, in order, to the layouts
        of the lists that it is in: there are as many tensors like it as the product of their sizes.
    """
    known = {one.container: one for one in lists if groups_of(one.layout)}
    found: dict[str, tuple[Layout, ...]] = {}
    for name in names:
        places = [(one, place) for one in _lists_around(name, known) if (place := one.entry(name)) is not None]
        if all(number == 0 for _, (number, _) in places):
            found[name] = tuple(one.layout for one, _ in places)
    return found


def _lists_around(path: str, lists: Mapping[str, ExpertList]) -> Iterator[ExpertList]:
    while path and lists:
        path = path.rpartition(".")[0]
        if path in lists:
            yield lists[path]


def alike(lists: Iterable[ExpertList], path: str) -> list[str]:
    """Lists the paths of what stands in the other entries of a list in the place of a module or a tensor."""
    for one in lists:
        entry = one.entry(path)
        if entry is not None:
            return [one.path(number, entry[1]) for number in range(one.layout.size) if number != entry[0]]
    return []


def tie_entries(
    propagation: Propagation,
    reads: Reads,
    modules: Mapping[str, nn.Module],
    parameters: Mapping[str, tuple[Axis, ...]],
    known: dict[str, tuple[str, Axis]],
) -> set[str]:
    """Ties the axes of lists of modules to those whose positions the numbers of their entries are.

    The entries are alike: the dims of their parameters are the same axes.

    Args:
        propagation: A propagated trace.
        reads: The numbers that it reads.
        modules: The modules by path.
        parameters: Axes of all parameters and buffers.
        known: By path of a list: its prefix, and its axis; what is found is added.

    Returns:
        Names of the parameters and buffers in these lists.
    """
    names: set[str] = set()
    for container, operations in reads.lists.items():
        positions = [propagation.effects.numbers[index] for index in operations if index in propagation.effects.numbers]
        prefix = prefix_of(modules.get(container))
        if prefix is None or not positions:
            continue
        size = len(modules[container]._modules)
        _, axis = known.setdefault(container, (prefix, Axis(size)))
        for other in positions:
            look_up(axis, other)
        head = f"{container}.{prefix}"
        names |= _tie_alike(head, size, parameters, [axis, *positions])
    return names


def _tie_alike(head: str, size: int, parameters: Mapping[str, tuple[Axis, ...]], units: Sequence[Axis]) -> set[str]:
    first = {name[len(head) + 1 :]: dims for name, dims in parameters.items() if name.startswith(f"{head}0.")}
    names = set()
    for number in range(size):
        own = {n[len(f"{head}{number}") :]: dims for n, dims in parameters.items() if n.startswith(f"{head}{number}.")}
        if own.keys() != first.keys():
            axes_of = [axis for dims in own.values() for axis in dims]
            for axis in (*units, *axes_of):
                axes.pin(axis, Reason(UNLIKE))
            continue
        names |= {f"{head}{number}{rest}" for rest in own}
        for rest, dims in own.items():
            for one, other in zip(first[rest], dims, strict=True):
                try:
                    axes.tie(one, other)
                except AxisMismatchError:
                    for axis in (*units, one, other):
                        axes.pin(axis, Reason(UNLIKE))
    return names
