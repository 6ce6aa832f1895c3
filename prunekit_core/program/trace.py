"""The record of one forward pass: which operations ran, on which tensors, for which module."""

from __future__ import annotations

from collections.abc import Mapping
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

    @property
    def site(self) -> str:
        """Where it ran, in words: ``"aten::relu in layer1.0"``."""
        return f"{self.name} in {self.module or 'the model'}"

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
        kept: Tensors that may be outputs though they weren't returned, with the reason: something holds them and no
            operation reads them, or their values leave PyTorch.
        stored: Tensors that something holds when the forward has returned, though an operation reads them and they are
            no outputs: where they are.
        shares: Index of a tensor that an operation returned to that of the argument whose memory it uses (views).
        decisions: What was decided by value, by operation index; empty for a recording without values.
        constants: By index: fingerprints of the tensors that no operation made (plain attributes, arrays of NumPy's).
        escaped: Tensors of integers or booleans whose values leave PyTorch, with the way.
        assumed: Whether units were chosen in the program's place: always the first ones, whatever their scores.
        read: Indices of tensors whose values became numbers of Python's, other than as the index of another tensor.
        numbers: By operation index: the whole number that it read.
        handed: Tensors of a cache that is returned, where it doesn't count among the results: its memory is held.
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
    kept: Mapping[TensorRef, str] = attrs.field(factory=dict)
    stored: Mapping[TensorRef, str] = attrs.field(factory=dict)
    constants: Mapping[int, str] = attrs.field(factory=dict)
    escaped: Mapping[TensorRef, str] = attrs.field(factory=dict)
    assumed: bool = False
    read: frozenset[int] = frozenset()
    numbers: Mapping[int, int] = attrs.field(factory=dict)
    handed: tuple[TensorRef, ...] = ()

    def memory(self, index: int) -> int:
        """Follows views to the tensor whose memory they use."""
        while index in self.shares:
            index = self.shares[index]
        return index

    def is_view(self, operation: int) -> bool:
        """Tells whether an operation, by its index, makes nothing but views of what it reads."""
        found = self.operations[operation]
        read = {self.memory(ref.index) for ref in found.references()}
        return all(self.memory(ref.index) in read for ref in found.outputs)


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
