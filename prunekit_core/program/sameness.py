"""Whether two forwards of a model are the same program."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from prunekit_core.program.trace import Operation, TensorRef, Trace, is_continuous

_COMPARED = {int, float, complex, bool, str, torch.dtype, torch.device, torch.layout, torch.memory_format}
"""Types of arguments that are the same where they are equal; of others, what is given has to be the same object."""


def same_program(first: Trace, second: Trace, inside: Collection[str]) -> bool:
    """Tells whether two forwards of a model do the same to all of its tensors.

    Args:
        first: A forward.
        second: Another one.
        inside: Dotted paths of modules in which counters (operations on integers alone) and switches such as
            ``training`` don't count.
    """
    if first.decisions or second.decisions or first.names != second.names:
        return False
    mine, theirs = (
        [op for op in trace.operations if op.module not in inside or _reads_reals(op, trace)]
        for trace in (first, second)
    )
    match = _Match(first, second)
    return match.operations(mine, theirs, lambda operation: operation.module in inside) and match.values(
        list(first.results), list(second.results)
    )


def same_where_live(first: Trace, second: Trace, live: Mapping[int, object], also_live: Mapping[int, object]) -> bool:
    """Tells whether two forwards of a model do the same to the tensors that can shrink.

    Args:
        first: A forward.
        second: Another one.
        live: Indices of the first one's tensors that can shrink. Operations on other tensors only, and switches such as
            ``training``, don't count.
        also_live: Those of the second one.
    """
    mine, theirs = (
        [op for op in trace.operations if any(ref.index in chosen for ref in (*op.outputs, *op.references()))]
        for trace, chosen in ((first, live), (second, also_live))
    )
    return _Match(first, second).operations(mine, theirs, lambda operation: True)


def _reads_reals(operation: Operation, trace: Trace) -> bool:
    return any(is_continuous(trace.dtypes[ref.index]) for ref in (*operation.outputs, *operation.references()))


class _Match:
    """Which tensors of one forward are those of another, one for one."""

    def __init__(self, first: Trace, second: Trace) -> None:
        self._first, self._second = first, second
        self._there: dict[int, int] = {}
        self._back: dict[int, int] = {}

    def operations(
        self, mine: Sequence[Operation], theirs: Sequence[Operation], switched: Callable[[Operation], bool]
    ) -> bool:
        """Tells whether operations are the same one by one, for the same modules; but for switches in some of them."""
        first, second = self._first, self._second
        fits = len(mine) == len(theirs) and first.parameters.keys() == second.parameters.keys()
        fits = fits and self.values([*first.parameters.values()], [*second.parameters.values()])
        fits = fits and self.values(list(first.inputs), list(second.inputs))
        for one, other in zip(mine, theirs, strict=True) if fits else ():
            if one.name != other.name or one.module != other.module or one.arguments.keys() != other.arguments.keys():
                return False
            given = [other.arguments[name] for name in one.arguments]
            if not self.values(list(one.arguments.values()), given, switches=switched(one)):
                return False
            if not self.values(list(one.outputs), list(other.outputs)):
                return False
        return fits

    def values(self, mine: list[Any], theirs: list[Any], *, switches: bool = False) -> bool:
        """Tells whether lists of values are the same, tensors among them for the first time or again."""
        if len(mine) != len(theirs):
            return False
        for one, other in zip(mine, theirs, strict=True):
            if type(one) is not type(other):
                return False
            if isinstance(one, TensorRef):
                here, there = one.index, other.index
                if self._there.setdefault(here, there) != there or self._back.setdefault(there, here) != here:
                    return False
                if self._first.shapes[here] != self._second.shapes[there]:
                    return False
            elif isinstance(one, list):
                if not self.values(one, other, switches=switches):
                    return False
            elif not (
                one is other or (type(one) in _COMPARED and one == other) or (switches and isinstance(one, bool))
            ):
                return False
        return True
