"""The record of one forward pass: which operations ran, on which tensors, for which module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs
import torch


@attrs.frozen
class TensorRef:
    """The identity of a tensor within one trace."""

    index: int


@attrs.frozen(eq=False)
class Operation:
    """One operation of a forward pass.

    Attributes:
        index: Position in the trace.
        op: The ``torch._ops.OpOverload`` that ran.
        name: Its qualified name with overload, ``"aten::add.Tensor"``.
        module: Dotted path of the innermost module that was running.
        arguments: Schema argument name to value (defaults filled in), every tensor replaced by its `TensorRef`.
        outputs: The tensors it returned, flattened, in order.
    """

    index: int
    op: Any
    name: str
    module: str
    arguments: Mapping[str, Any]
    outputs: tuple[TensorRef, ...]
    _references: tuple[TensorRef, ...] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_references", tuple(tensor_refs(tuple(self.arguments.values()))))

    def references(self) -> tuple[TensorRef, ...]:
        """Lists the tensors among the arguments, in order."""
        return self._references


@attrs.frozen(eq=False)
class Trace:
    """The operations of one forward, in order.

    Attributes:
        label: What was run, ``"eval"`` or ``"train"``.
        operations: The operations in the order in which they ran.
        shapes: Shape of every tensor, indexed by `TensorRef.index`.
        dtypes: Its dtype, indexed alike.
        parameters: Canonical name of every parameter and buffer to its tensor.
        inputs: The tensors among the example inputs.
        results: The tensors among the outputs of the model.
        names: Their key paths among the outputs; empty for a model that returns one tensor.
        shares: Index of a tensor that an operation returned to that of the argument whose memory it uses (views).
        decisions: What was decided by value, by operation index; empty for a recording without values.
    """

    label: str
    operations: tuple[Operation, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    parameters: Mapping[str, TensorRef]
    inputs: tuple[TensorRef, ...]
    results: tuple[TensorRef, ...]
    names: tuple[str, ...]
    shares: Mapping[int, int]
    decisions: Mapping[int, tuple[Any, ...]] = attrs.field(factory=dict)


def is_continuous(dtype: torch.dtype) -> bool:
    """Tells whether a dtype holds real or complex numbers, not integers or booleans."""
    return dtype.is_floating_point or dtype.is_complex


def tensor_refs(value: Any) -> list[TensorRef]:
    """Lists the tensors in an argument value: a tensor, a list with tensors in it, or neither."""
    if isinstance(value, TensorRef):
        return [value]
    found: list[TensorRef] = []
    if isinstance(value, _NESTED):
        for item in value:
            if isinstance(item, TensorRef):
                found.append(item)
            elif isinstance(item, _NESTED):
                found.extend(tensor_refs(item))
    return found


_NESTED = (list, tuple)
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
