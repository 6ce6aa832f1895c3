"""Layouts of the parameters and of one recorded program: how each dim is made of units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.algebra.layout import ExpectedArgument, Kept, Layout, depends, kept_positions, new_size
from prunekit_core.algebra.reasons import Reason
from prunekit_core.algebra.requirements import NeedsZeros, Temperature
from prunekit_core.program.examples import Example
from prunekit_core.program.extents import Chosen, LeastSize, Wholes
from prunekit_core.program.op_call import Verb
from prunekit_core.program.trace import Trace
from prunekit_core.record.decisions import ChosenFrom


def _positions(dims: Sequence[Layout], kept: Kept) -> dict[int, torch.Tensor]:
    sizes = ((dim, layout, new_size(layout, kept)) for dim, layout in enumerate(dims))
    return {dim: kept_positions(layout, kept) for dim, layout, size in sizes if size != layout.size}


@attrs.frozen
class ParameterLayout:
    """How a parameter or buffer is made of units.

    Attributes:
        shape: Its shape at analysis.
        dims: One layout per dim.
        reasons: Per dim, why (some of) it is pinned; None where nothing is.
        itemsize: Bytes per element.
        buffer: Whether it is a buffer.
    """

    shape: tuple[int, ...]
    dims: tuple[Layout, ...]
    reasons: tuple[Reason | None, ...]
    itemsize: int
    buffer: bool

    def positions(self, kept: Kept) -> dict[int, torch.Tensor]:
        """Returns, per dim that shrinks, the positions that stay."""
        return _positions(self.dims, kept)


@attrs.frozen(eq=False)
class Recording:
    """One trace with the layouts that its tensors have.

    Attributes:
        trace: The trace.
        example: What it was recorded on.
        training: The mode it ran in.
        replayed: False when another recording is the same program, so that one replay proves both.
        live: Layouts of the tensors that can shrink, by `TensorRef.index`.
        wholes: Whole-axis uses by operation index.
        least: By operation index: how many elements it needs.
        expectations: By operation index: what its arguments must be.
        temperatures: By operation index: the constant and the layout of the axis that it follows.
        unread: Indices of operations that say nothing, as nobody reads their results; they only have to run.
        choices: By operation index: units that it chooses by value.
        marks: Tensors and their dims along which they are zero for units that weren't chosen.
        needs_zeros: By operation index: what has to be zero where units were removed.
    """

    trace: Trace
    example: Example
    training: bool | None
    replayed: bool
    live: Mapping[int, tuple[Layout, ...]]
    wholes: Mapping[int, Wholes]
    least: Mapping[int, tuple[LeastSize, ...]]
    expectations: Mapping[int, tuple[ExpectedArgument, ...]]
    temperatures: Mapping[int, tuple[Temperature, Layout]]
    unread: frozenset[int]
    choices: Mapping[int, Chosen] = attrs.field(factory=dict)
    marks: frozenset[tuple[int, int]] = frozenset()
    needs_zeros: Mapping[int, Sequence[NeedsZeros]] = attrs.field(factory=dict)

    def shape(self, index: int, sizer: Callable[[Layout], Any]) -> tuple[Any, ...]:
        """Returns the shape a tensor must have when only the sizer's kept units stay.

        Args:
            index: `TensorRef.index`.
            sizer: Computes sizes of layouts: a `Sizer`, or a `SymbolicSizer`, whose sizes are polynomials.
        """
        layouts = self.live.get(index)
        if layouts is None:
            return self.trace.shapes[index]
        return tuple(map(sizer, layouts))

    def positions(self, index: int, kept: Kept) -> dict[int, torch.Tensor]:
        """Returns, per dim of a tensor that shrinks, the positions that stay."""
        return _positions(self.live.get(index, ()), kept)

    def chosen_from(self, index: int, kept: Kept) -> ChosenFrom | None:
        """Returns which positions an operation may still choose when only the kept units stay; None if any."""
        choice = self.choices.get(index)
        if choice is None or not depends(choice.layout, kept):
            return None
        use = next(use for use in self.wholes[index].uses if use.verb is Verb.CHOOSE)
        (ref, dim), arguments = use.operands[0], self.trace.operations[index].arguments
        name = next(name for name, value in arguments.items() if value == ref)
        return ChosenFrom(name, dim, kept_positions(choice.layout, kept), choice.output)

    def chooses(self, kept: Kept) -> bool:
        """Tells whether some operation chooses among fewer units when only the kept ones stay."""
        return any(depends(choice.layout, kept) for choice in self.choices.values())

    def following(self) -> frozenset[int]:
        """Lists the decisions that follow from which units were chosen, and from nothing else that is computed."""
        plain, known, found = set[int](), set[int](), set[int]()  # plain: made of numbers of the program alone
        for operation in self.trace.operations:
            choice = self.choices.get(operation.index)
            if choice is not None:
                known.add(operation.outputs[choice.output].index)
                continue
            read = {ref.index for ref in operation.references()}
            if not read:
                plain.update(ref.index for ref in operation.outputs)
            elif read & known and read <= known | plain:
                known.update(ref.index for ref in operation.outputs)
                found.add(operation.index)
        return frozenset(found & self.trace.decisions.keys())
