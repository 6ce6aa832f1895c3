"""Rehearsing a cut on the shadow: the pruned program must run the same operations with the predicted shapes.

The shadow's parameters are exchanged for smaller ones and its attributes are edited; then the forward is replayed
under the same recorder, and every operation is compared with what the axes predict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils import _pytree as pytree

from prunekit_core import layout as layouts
from prunekit_core.analysis import Analysis, Recording
from prunekit_core.calls import operation_name, tensors_of
from prunekit_core.decisions import answered
from prunekit_core.edits import AttributeEdit, is_size, normal_size
from prunekit_core.layers import Resizing
from prunekit_core.layout import Kept
from prunekit_core.recorder import TensorTable
from prunekit_core.registry import Registry
from prunekit_core.rules import rule_keys
from prunekit_core.shadow import Sink
from prunekit_core.stated import stated_sizes
from prunekit_core.surgery import set_size
from prunekit_core.trace import TensorRef, tensor_refs

SIZE_ARGUMENTS = frozenset(
    [
        "size",
        "shape",
        "sizes",
        "repeats",
        "split_sizes",
        "split_size",
        "split_size_or_sections",
        "indices",
        "normalized_shape",
        "output_size",
        "new_shape",
        "start",
        "end",
        "length",
        "num_groups",
        "groups",
        "pad",
        "dims_sizes",
    ]
)
"""Arguments that may carry sizes: their effect shows in the shape of the output, or a rule states what they must be."""


@attrs.frozen
class Drift:
    """A number in the program that changed with a size.

    Attributes:
        recording: Position of the recording.
        operation: Index of the operation.
        argument: Name of the argument.
        old: Value when recorded.
        new: Value when replayed.
    """

    recording: int
    operation: int
    argument: str
    old: float
    new: float


@attrs.frozen
class Mismatch:
    """The first place where the pruned program is not the recorded one.

    Attributes:
        recording: Position of the recording.
        operation: Index of the operation.
        why: What differed.
    """

    recording: int
    operation: int
    why: str

    @property
    def progress(self) -> tuple[int, int]:
        """How far the replays got; later is better."""
        return (self.recording, self.operation)


class _StopError(Exception):
    """Ends a replay at its first mismatch."""


class _Comparer(Sink):
    """The sink that compares a replay with a recording."""

    def __init__(self, position: int, recording: Recording, kept: Kept, *, keep_alive: bool) -> None:
        self.mismatch: Mismatch | None = None
        self.drifts: list[Drift] = []
        self._position, self._recording, self._kept = position, recording, kept
        self._sizer = layouts.Sizer(kept)
        self._operations = recording.trace.operations
        self._table = TensorTable(keep_alive=keep_alive)
        self._next = 0

    def start(self, tensors: Mapping[str, torch.Tensor], inputs: Any) -> None:
        for tensor in tensors.values():
            self._table.ref(tensor)
        for leaf in pytree.tree_leaves(inputs):
            if isinstance(leaf, torch.Tensor):
                self._table.ref(leaf)

    def compute(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Runs an operation; what it decides is what was decided when the program was recorded."""
        result = op(*args, **kwargs)
        decisions = self._recording.trace.decisions
        if self._next not in decisions or op is not self._operations[self._next].op:
            return result
        cuts = [self._recording.positions(ref.index, self._kept) for ref in self._operations[self._next].outputs]
        return answered(decisions[self._next], cuts, [*args, *kwargs.values()], result)

    def alias(self, source: torch.Tensor, result: torch.Tensor) -> None:
        self._table.put(result, self._table.ref(source))

    def failed(self, op: Any, module: str, error: Exception) -> None:
        if self.mismatch is None:
            self._report(f"{operation_name(op)} raised {type(error).__name__}: {str(error)[:200]}")

    def operation(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> None:
        if self.mismatch is not None:
            raise _StopError
        if self._next >= len(self._operations):
            self._stop(f"{operation_name(op)} runs after the recorded program has ended")
        expected = self._operations[self._next]
        if op is not expected.op or module != expected.module:
            self._stop(f"{operation_name(op)} ran where {expected.name} was recorded")
        expectations = self._recording.expectations.get(self._next, ())
        stated = {name for name, _, _ in expectations} - SIZE_ARGUMENTS if expectations else ()
        counts = self._next not in self._recording.unread  # if not, only its tensors have to be the recorded ones
        for name, old in expected.arguments.items():
            new = arguments[name]
            if new is not old and (name not in stated if counts else bool(tensor_refs(old))):
                self._compare(name, old, new)
        for ref, tensor in zip(expected.outputs, tensors_of(outputs), strict=True):
            self._changed_in_place(ref, tensor)
            if self._table.ref(tensor).index != ref.index:
                self._stop(f"{expected.name} returned another tensor than recorded")
            shape = self._recording.shape(ref.index, self._sizer)
            if counts and tuple(tensor.shape) != shape:
                self._stop(f"{expected.name} gave shape {tuple(tensor.shape)}, the axes predict {shape}")
        for name, position, pieces in expectations:
            self._expect(name, arguments[name] if position is None else arguments[name][position], pieces)
        self._next += 1

    def _changed_in_place(self, expected: TensorRef, tensor: torch.Tensor) -> None:
        """Follows the recording where it gave a tensor that changed its shape in place a new reference."""
        if expected.index == len(self._table.shapes) and self._table.get(tensor) is not None:
            self._table.forget(tensor)

    def _compare(self, name: str, old: Any, new: Any) -> None:
        if isinstance(old, TensorRef):
            if not isinstance(new, torch.Tensor) or self._table.ref(new).index != old.index:
                self._stop(f"argument {name} is another tensor than recorded")
        elif isinstance(old, list) and any(isinstance(item, TensorRef) for item in old):
            if len(old) != len(new):
                self._stop(f"argument {name} has {len(new)} entries, recorded were {len(old)}")
            for item, value in zip(old, new, strict=True):
                self._compare(name, item, value)
        elif isinstance(new, torch.Tensor):
            self._stop(f"argument {name} is a tensor, recorded was {old!r}")
        elif isinstance(new, tuple | list):
            if name not in SIZE_ARGUMENTS and list(new) != old:
                self._stop(f"argument {name} is {list(new)}, recorded was {old}")
        elif new != old and not (new != new and old != old):
            self._number(name, old, new)

    def _number(self, name: str, old: Any, new: Any) -> None:
        operation = self._operations[self._next]
        pointwise = torch.Tag.pointwise in rule_keys(operation.op)
        plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (old, new))
        if plain and (pointwise or isinstance(old, float) or name == "fill_value"):
            self.drifts.append(Drift(self._position, self._next, name, float(old), float(new)))
        elif name not in SIZE_ARGUMENTS:
            self._stop(f"argument {name} is {new!r}, recorded was {old!r}")

    def _expect(self, name: str, value: Any, pieces: Sequence[layouts.Layout]) -> None:
        size = sum(map(self._sizer, pieces))
        if value != size and value is not None:
            self._stop(f"argument {name} is {value}, the axes predict {size}")

    def _report(self, why: str) -> None:
        operation = min(self._next, len(self._operations) - 1)
        self.mismatch = Mismatch(self._position, operation, why)

    def _stop(self, why: str) -> None:
        self._report(why)
        raise _StopError(why)

    def finish(self, error: Exception | None) -> None:
        """Closes the comparison; ``error`` is what the forward raised, if anything."""
        if self.mismatch is not None:
            return
        if error is not None:
            self._report(f"the model raised {type(error).__name__}: {str(error)[:200]}")
        elif self._next < len(self._operations):
            self._report(f"the program ended before {self._operations[self._next].name}")


class Stage:
    """The shadow with a cut made on it, to replay forwards on.

    Args:
        analysis: The analysed model.
        registry: Where op rules and layer types are found.
        kept: Kept units per group.
    """

    def __init__(self, analysis: Analysis, registry: Registry, kept: Kept) -> None:
        self.analysis, self.kept = analysis, kept
        self._registry = registry
        self._shadow = analysis.shadow
        self._shadow.rewind()
        self.modules = self._shadow.modules
        size_of = layouts.Sizer(kept)
        shapes = {name: tuple(map(size_of, found.dims)) for name, found in analysis.parameters.items()}
        self._shapes = {name: shape for name, shape in shapes.items() if shape != analysis.parameters[name].shape}
        self.layer_edits = self._layer_edits()
        self._exchange_tensors()
        for edit in self.layer_edits:
            set_size(self.modules[edit.module], edit.attribute, edit.new)
        self._shadow.commit()

    def _layer_edits(self) -> list[AttributeEdit]:
        edits = []
        for path, module in self.modules.items():
            tensors = [*module._parameters.items(), *module._buffers.items()]
            names = {name: self._shadow.names[id(tensor)] for name, tensor in tensors if tensor is not None}
            if self._shapes.keys().isdisjoint(names.values()):
                continue
            own = {name: self.analysis.parameters[canonical].dims for name, canonical in names.items()}
            for attribute, new in stated_sizes(self._registry, module, Resizing(own, self.kept)).items():
                old = getattr(module, attribute)
                if is_size(old) and old != new:
                    edits.append(AttributeEdit(path, attribute, normal_size(old), new))
        return edits

    def _exchange_tensors(self) -> None:
        fresh: dict[int, torch.Tensor] = {}
        for module in self.modules.values():
            for table in (module._parameters, module._buffers):
                slots: dict[str, Any] = table
                for name, tensor in slots.items():
                    if tensor is None:
                        continue
                    canonical = self._shadow.names[id(tensor)]
                    if canonical not in self._shapes:
                        continue
                    if id(tensor) not in fresh:
                        positions = partial(self.analysis.parameters[canonical].positions, self.kept)
                        made = self._shadow.cut(tensor, self._shapes[canonical], positions)
                        if isinstance(tensor, nn.Parameter):
                            made = self._shadow.as_parameter(made)
                        fresh[id(tensor)] = made
                    slots[name] = fresh[id(tensor)]

    def replay(self, edits: Mapping[tuple[str, str], Any]) -> tuple[Mismatch | None, list[Drift]]:
        """Replays every recording with some attribute edits on top of those that layer types state.

        Args:
            edits: (module path, attribute) to new value.

        Returns:
            The first mismatch, or None with the numbers that drifted.
        """
        drifts: list[Drift] = []
        for position, recording in enumerate(self.analysis.recordings):
            if not recording.replayed:
                continue
            comparer = _Comparer(position, recording, self.kept, keep_alive=self._shadow.fake_mode is not None)
            error: Exception | None = None
            try:
                self._shadow.run(
                    recording.example, comparer, self._registry.op_rules, training=recording.training, prepare=edits
                )
            except Exception as raised:  # whatever the pruned program raises is the mismatch
                error = raised
            comparer.finish(error)
            if comparer.mismatch is not None:
                return comparer.mismatch, []
            drifts.extend(comparer.drifts)
        return None, drifts
