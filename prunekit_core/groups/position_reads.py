"""Positions that a program reads as numbers of Python's: experts in a list of modules, ``stack[int(expert)]``.

What such a number reaches outside of tensors shows where the program is recorded with other units chosen: paths of
modules (``experts.3``) and arguments that follow the number. If the recordings differ in nothing else, the program
treats all units alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from prunekit_core.program.trace import Operation, TensorRef, Trace

READS = "aten::_local_scalar_dense"
_Site = tuple[str, int]


@attrs.frozen
class Followed:
    """What follows numbers that were read.

    Attributes:
        sites: Which operations are given a number: the name of an argument, and how many operations after the read.
        lists: Paths of lists of modules whose entries run, each with what stands before the number of an entry.
    """

    sites: frozenset[_Site] = frozenset()
    lists: frozenset[tuple[str, str]] = frozenset()


ANYTHING = Followed(frozenset([("", 0)]))
"""Stands for the assumption that whatever equals the number follows it."""


@attrs.frozen
class Reads:
    """The numbers that one program reads.

    Attributes:
        arguments: Index of an operation to that of the one that read the number that it is given.
        lists: Path of a list of modules to the operations that read the numbers of its entries.
        operations: The operations that read numbers.
        tensors: Indices of the tensors that are read.
        assumed: Whether it is only assumed that the arguments follow the numbers.
    """

    arguments: Mapping[int, int]
    lists: Mapping[str, tuple[int, ...]]
    operations: frozenset[int]
    tensors: frozenset[int]
    assumed: bool = False


def reads_of(trace: Trace, followed: Followed) -> Reads:
    """Finds what follows the numbers that a program reads.

    Args:
        trace: A program.
        followed: What is known of it.
    """
    arguments: dict[int, int] = {}
    lists: dict[str, dict[int, None]] = {container: {} for container, _ in followed.lists}
    for operation, read in _after_reads(trace):
        number = trace.numbers[read]
        for name, value in operation.arguments.items():
            known = followed is ANYTHING or (name, operation.index - read) in followed.sites
            if known and type(value) is int and value == number:
                arguments[operation.index] = read
        for container, prefix in followed.lists:
            if _is_in(operation.module, f"{container}.{prefix}{number}"):
                lists[container][read] = None
    reading = [operation for operation in trace.operations if operation.index in trace.numbers]
    return Reads(
        arguments,
        {container: tuple(found) for container, found in lists.items()},
        frozenset(operation.index for operation in reading),
        frozenset(ref.index for operation in reading for ref in operation.references()),
        followed is ANYTHING,
    )


def reads_numbers(trace: Trace) -> bool:
    """Tells whether a program reads integers as numbers of Python's."""
    return bool(trace.numbers)


def followed_in(first: Trace, others: Sequence[Trace]) -> Followed | None:
    """Finds what follows the numbers that a program reads; None where other units make it another program.

    Args:
        first: The program with the first units chosen.
        others: The same with others chosen, so that together all of them are.
    """
    sites, lists = set[_Site](), set[tuple[str, str]]()
    for other in others:
        comparison = _Comparison(first, other)
        if not comparison.agrees():
            return None
        sites |= comparison.sites
        lists |= comparison.lists
    found = Followed(frozenset(sites), frozenset(lists))
    return found if all(_only_by_number(trace, found) for trace in (first, *others)) else None


def _after_reads(trace: Trace) -> Iterator[tuple[Operation, int]]:
    """Yields the operations behind a read, each with the operation that read the last number."""
    read: int | None = None
    for operation in trace.operations:
        if read is not None:
            yield operation, read
        if operation.index in trace.numbers:
            read = operation.index


def _only_by_number(trace: Trace, followed: Followed) -> bool:
    """Tells whether entries of lists, and their parameters, are used only where their number was just read."""
    names = {ref.index: name for name, ref in trace.parameters.items()}
    heads = [f"{container}.{prefix}" for container, prefix in followed.lists]
    numbers = {operation.index: trace.numbers[read] for operation, read in _after_reads(trace)}
    for operation in trace.operations:
        used = [operation.module, *(names.get(ref.index, "") for ref in operation.references())]
        for path in used:
            for head in heads:
                if path.startswith(head) and not _is_in(path, f"{head}{numbers.get(operation.index, -1)}"):
                    return False
    return True


def _is_in(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


class _Comparison:
    """Compares two recordings of a program that differ in which units were chosen.

    Attributes:
        sites: See `Followed`.
        lists: See `Followed`.
    """

    def __init__(self, first: Trace, other: Trace) -> None:
        self._first, self._other = first, other
        self._names = [{ref.index: name for name, ref in trace.parameters.items()} for trace in (first, other)]
        self._numbers: tuple[int, int] | None = None
        self._read = 0
        self.sites: set[_Site] = set()
        self.lists: set[tuple[str, str]] = set()

    def agrees(self) -> bool:
        """Tells whether all that differs follows the numbers that were read."""
        first, other = self._first, self._other
        if len(first.operations) != len(other.operations) or first.shapes != other.shapes:
            return False
        for one, two in zip(first.operations, other.operations, strict=True):
            if one.op is not two.op or not self._same_path(one.module, two.module):
                return False
            if not all(self._same(one, name, value, two.arguments[name]) for name, value in one.arguments.items()):
                return False
            if one.index in first.numbers or one.index in other.numbers:
                if one.index not in first.numbers or one.index not in other.numbers:
                    return False
                self._numbers, self._read = (first.numbers[one.index], other.numbers[one.index]), one.index
        return True

    def _same_path(self, one: str, two: str) -> bool:
        if one == two:
            return True
        parts, others = one.split("."), two.split(".")
        differing = [place for place, pair in enumerate(zip(parts, others, strict=False)) if pair[0] != pair[1]]
        if len(parts) != len(others) or len(differing) != 1 or self._numbers is None:
            return False
        place, (a, b) = differing[0], self._numbers
        prefix = parts[place].removesuffix(str(a))
        self.lists.add((".".join(parts[:place]), prefix))
        return parts[place] == f"{prefix}{a}" and others[place] == f"{prefix}{b}"

    def _same(self, operation: Operation, name: str, one: Any, two: Any) -> bool:
        if isinstance(one, TensorRef) and isinstance(two, TensorRef):
            if one.index == two.index:
                return True
            paths = self._names[0].get(one.index, ""), self._names[1].get(two.index, "")
            return bool(paths[0] and paths[1]) and self._same_path(*paths)
        if isinstance(one, list) and isinstance(two, list):
            return len(one) == len(two) and all(
                self._same(operation, name, a, b) for a, b in zip(one, two, strict=True)
            )
        if type(one) is int and type(two) is int and one != two:
            self.sites.add((name, operation.index - self._read))
            return self._numbers == (one, two)
        return one is two or (type(one) is type(two) and bool(one == two))
