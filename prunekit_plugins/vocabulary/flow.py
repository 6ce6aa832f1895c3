"""What a recorded program does with ids: where it looks rows up by them, and which constants it holds against them.

Ids keep their order (`IdMap`). So whatever only moves them, compares them with each other or finds the largest comes
out as before, and a constant ``k`` that stands for an id follows if that id stays: it is the number of ids before it.
Everything else that reads an id is a use that can't follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch

from prunekit_core.program.trace import Operation, TensorRef, Trace, tensor_refs

_ONE = """alias as_strided chunk clone contiguous detach diagonal expand flatten flip gather index index_select
lift_fresh lift_fresh_copy masked_select narrow permute repeat repeat_interleave reshape reshape_as roll select slice
split split_with_sizes squeeze t take_along_dim tile to transpose type_as unbind unflatten unfold unsqueeze view view_as
_reshape_alias _to_copy _unsafe_view amax amin cummax cummin max min sort topk"""
MOVES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_ONE.split(), ("self",)),
    "cat": ("tensors",),
    "clamp": ("self", "min", "max"),
    "constant_pad_nd": ("self", "value"),
    "copy": ("src",),
    "fill": ("value",),
    "index_put": ("self", "values"),
    "masked_fill": ("self", "value"),
    "masked_scatter": ("self", "source"),
    "maximum": ("self", "other"),
    "minimum": ("self", "other"),
    "pad": ("self", "value"),
    "scatter": ("self", "src", "value"),
    "select_scatter": ("self", "src"),
    "slice_scatter": ("self", "src"),
    "stack": ("tensors",),
    "where": ("self", "other"),
}
"""Operations whose first result consists of elements of some arguments, with these arguments."""
COMPARES = ("eq", "ne", "lt", "le", "gt", "ge")
"""Operations that compare ``self`` with ``other``."""
BOUNDS = ("lt", "ge")
"""Those of them for which the number of ids may be a bound."""
PLACES = ("argmax", "argmin", "argsort")
"""Operations that return where ids of some rank are."""
MADE: Mapping[str, str | int | None] = {
    **dict.fromkeys(("zeros", "new_zeros", "zeros_like"), 0),
    **dict.fromkeys(("ones", "new_ones", "ones_like"), 1),
    **dict.fromkeys(("full", "new_full", "full_like"), "fill_value"),
    **dict.fromkeys(("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"), None),
}
"""Operations that make a tensor out of one number, with that number, or the argument that holds it. Of another tensor
they read the shape only."""
LOOKUPS: Mapping[str, tuple[str, str]] = {
    "embedding": ("weight", "indices"),
    "index_select": ("self", "index"),
    "index": ("self", "indices"),
}
"""Operations that look rows up: the arguments with the table and with the ids."""
EXACT = (torch.int16, torch.int32, torch.int64, torch.float32, torch.float64)
"""Dtypes that hold ids as they are."""

MIXED = "token ids are mixed with other numbers"
ROUNDED = "token ids are rounded"
READ = "it reads token ids as numbers"


@attrs.frozen
class Constant:
    """A number of the program that stands for an id.

    Attributes:
        value: The number.
        argument: The argument that holds it; empty where the operation itself means it (``zeros``).
        bound: Whether the number of all ids may be meant as well.
    """

    value: int
    argument: str = ""
    bound: bool = False


@attrs.frozen
class Use:
    """What an operation does with ids.

    Attributes:
        table: The argument in which it looks rows up; empty where it doesn't.
        indices: The argument with the ids that it looks up.
        constants: Numbers that it holds against ids, or puts among them.
        why: Why ids can't be renumbered there; empty where they can.
    """

    table: str = ""
    indices: str = ""
    constants: tuple[Constant, ...] = ()
    why: str = ""


def packet_of(operation: Operation) -> str:
    """Returns the short name of an operation, without overload, in-place ones as the ordinary ones."""
    name = operation.name.removeprefix("aten::").partition(".")[0]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def leaving(trace: Trace, inputs: Iterable[TensorRef]) -> str:
    """Tells how the values of ids leave PyTorch (``tolist``); empty where they don't.

    Args:
        trace: The recorded program.
        inputs: The inputs that hold ids.
    """
    flow = _Flow(trace, {trace.memory(ref.index) for ref in inputs})
    return next((why for ref, why in trace.escaped.items() if flow.holds(ref)), "")


def uses_of(trace: Trace, inputs: Iterable[TensorRef]) -> dict[int, Use]:
    """Follows ids from inputs of a program to everything that reads them.

    Args:
        trace: The recorded program.
        inputs: The inputs that hold ids.

    Returns:
        What each operation that has to do with ids does with them, by its index; those that only move them aren't
        listed.
    """
    flow = _Flow(trace, {trace.memory(ref.index) for ref in inputs})
    return {operation.index: use for operation in trace.operations for use in flow.uses(operation)}


class _Flow:
    """Finds the memory that holds ids, whatever tensors see it."""

    def __init__(self, trace: Trace, memory: set[int]) -> None:
        self._trace, self._memory = trace, memory
        self._numbers = {trace.memory(one.outputs[0].index) for one in trace.operations if _is_number(one)}
        before = -1
        while before != len(memory):  # a tensor of zeros holds ids once some are written into it
            before = len(memory)
            for operation in trace.operations:
                self._memory.update(self._receives(operation))
                self._memory.update(self._given(operation))

    def holds(self, ref: TensorRef) -> bool:
        return self._trace.memory(ref.index) in self._memory

    def _receives(self, operation: Operation) -> Iterator[int]:
        """Yields the memory that an operation moves ids to."""
        names = MOVES.get(packet_of(operation), ())
        moved = [ref for name in names for ref in tensor_refs(operation.arguments.get(name))]
        if any(map(self.holds, moved)):
            for ref in self._results(operation):
                if self._trace.dtypes[ref.index] in EXACT:
                    yield self._trace.memory(ref.index)

    def _given(self, operation: Operation) -> Iterator[int]:
        """Yields the memory of numbers that the program writes down as tensors and puts among ids."""
        names = MOVES.get(packet_of(operation), ())
        if any(map(self.holds, self._results(operation))):
            for ref in (one for name in names for one in tensor_refs(operation.arguments.get(name))):
                if self._trace.memory(ref.index) in self._numbers:
                    yield self._trace.memory(ref.index)

    def _results(self, operation: Operation) -> tuple[TensorRef, ...]:
        """The results that hold elements: of those that find the largest, the second says where."""
        located = packet_of(operation) in ("sort", "topk", "max", "min", "cummax", "cummin")
        return operation.outputs[:1] if located else operation.outputs

    def uses(self, operation: Operation) -> Iterator[Use]:
        """Yields the use that an operation makes of ids, if it makes one."""
        name, arguments = packet_of(operation), operation.arguments
        makes = any(map(self.holds, self._results(operation)))
        if not makes and not any(map(self.holds, operation.references())):
            return
        if operation.name == "aten::view.dtype":
            yield Use(why=READ)
        elif _is_number(operation):
            yield Use(constants=(_made("fill_value", arguments),))
        elif name in LOOKUPS and self._looks_up(operation):
            yield self._lookup(operation)
        elif name in MOVES:
            yield from self._moved(operation)
        elif name in COMPARES:
            yield self._held(operation, ("self", "other"), bound=name in BOUNDS)
        elif name in MADE:
            if makes:
                given = MADE[name]
                yield Use(constants=() if given is None else (_made(given, arguments),))
        elif name not in PLACES:
            yield Use(why=READ)

    def _looks_up(self, operation: Operation) -> bool:
        return any(map(self.holds, tensor_refs(operation.arguments[LOOKUPS[packet_of(operation)][1]])))

    def _lookup(self, operation: Operation) -> Use:
        table, indices = LOOKUPS[packet_of(operation)]
        if any(map(self.holds, tensor_refs(operation.arguments[table]))):
            return Use(why=READ)
        padding = operation.arguments.get("padding_idx", -1)
        return Use(table, indices, (Constant(padding, "padding_idx"),) if padding >= 0 else ())

    def _moved(self, operation: Operation) -> Iterator[Use]:
        dtypes = {self._trace.dtypes[ref.index] for ref in self._results(operation)}
        if dtypes == {torch.bool}:  # whether an id is zero
            yield Use(constants=(Constant(0),)) if packet_of(operation) in ("to", "_to_copy") else Use(why=READ)
        elif not dtypes <= set(EXACT):
            yield Use(why=ROUNDED)
        else:
            found = self._held(operation, MOVES[packet_of(operation)])
            if found.constants or found.why:
                yield found

    def _held(self, operation: Operation, names: Iterable[str], *, bound: bool = False) -> Use:
        """What is held against ids, or put among them: other ids, or numbers."""
        constants: list[Constant | None] = []
        for name in names:
            value = operation.arguments.get(name)
            if name == "value" and value is None and operation.arguments.get("mode") == "constant":
                constants.append(Constant(0))  # what is put around a tensor, if nothing is said
            if not all(map(self.holds, tensor_refs(value))):
                return Use(why=MIXED)
            if isinstance(value, int | float):
                constants.append(Constant(int(value), name, bound) if value == int(value) else None)
        known = [constant for constant in constants if constant is not None]
        return Use(constants=tuple(known)) if len(known) == len(constants) else Use(why=READ)


def _is_number(operation: Operation) -> bool:
    """Whether an operation makes a tensor of one whole number that the program writes down, ``torch.tensor(5)``."""
    value = operation.arguments.get("fill_value") if packet_of(operation) == "lift_fresh" else None
    return isinstance(value, int | float) and float(value).is_integer()


def _made(given: str | int, arguments: Mapping[str, Any]) -> Constant:
    return Constant(given) if isinstance(given, int) else Constant(int(arguments[given]), given)
