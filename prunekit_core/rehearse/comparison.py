"""Comparing a replay with its recording: every operation, every tensor, every argument.

Every argument has to be the recorded one. What may differ is what a rule states (`OpCall.expect`), an argument that
says nothing but the shape of an output (`OpRule.sizes`), and a plain number that the weights may be able to make up
for: those are collected as `Drift`. Whatever else a size reaches makes another program.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import ExpectedArgument, Kept
from prunekit_core.groups.expert_lists import ExpertList, moved_in_front
from prunekit_core.groups.recording import Recording
from prunekit_core.modules.edits import ChangedConstant
from prunekit_core.program.calls import operation_name, tensors_of
from prunekit_core.program.outputs import named_outputs
from prunekit_core.program.rules import RuleTable, rule_keys
from prunekit_core.program.trace import Operation, TensorRef, tensor_refs
from prunekit_core.record.decisions import answered
from prunekit_core.record.listener import Listener
from prunekit_core.record.recorder import TensorTable
from prunekit_core.record.shadow import fingerprint
from prunekit_core.torch_private.trees import pytree

Argument = tuple[int, int, str]
"""An argument of a recorded program: position of the recording, index of the operation, name."""


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
        number: Whether it is a number of the program that must not differ, whichever size it follows.
        values: The argument that is a tensor of other values, if that is what differed; it may do so every time.
        raised: Whether the operation raised an exception.
        kernel: Whether that was an operation of PyTorch's own, so that the words are about its kernel.
    """

    recording: int
    operation: int
    why: str
    number: bool = False
    values: Argument | None = None
    raised: bool = False
    kernel: bool = False

    @property
    def progress(self) -> tuple[int, int]:
        """How far the replays got; later is better."""
        return (self.recording, self.operation)


@attrs.frozen
class Unmet:
    """A constant that follows a size and that the weights can't make up for.

    Attributes:
        recording: Position of the recording.
        operation: Index of the operation where it meets activations.
        site: Name of that operation, and where it ran.
        why: How it changes, and why it can't be made up for.
    """

    recording: int
    operation: int
    site: str
    why: str

    @property
    def constant(self) -> ChangedConstant:
        """What a plan says of it."""
        return ChangedConstant(self.site, self.why)


class _StopError(Exception):
    """Ends a replay at its first mismatch."""


class Comparer(Listener):
    """The listener that compares a replay with a recording.

    Args:
        position: Position of the recording.
        recording: The recording.
        kept: Kept units per group.
        rules: The op rules, which say what may differ.
        keep_alive: As for `TensorTable`.
        unsteady: Arguments that are tensors of other values each time.
        lists: Lists of modules with an entry for each unit of an axis: those that stay have moved up.

    Attributes:
        mismatch: The first difference.
        drifts: Numbers that changed, and that the weights may be able to make up for.
    """

    def __init__(
        self,
        position: int,
        recording: Recording,
        kept: Kept,
        rules: RuleTable,
        *,
        keep_alive: bool,
        unsteady: Collection[Argument] = (),
        lists: Collection[ExpertList] = (),
    ) -> None:
        self.mismatch: Mismatch | None = None
        self.drifts: list[Drift] = []
        self._position, self._recording, self._kept, self._rules = position, recording, kept, rules
        self._sizer = layouts.Sizer(kept)
        self._operations = recording.trace.operations
        self._table = TensorTable(keep_alive=keep_alive)
        self._unsteady = unsteady
        self._moved = tuple(moved_in_front(lists, kept))
        self._following = recording.following() if recording.chooses(kept) else frozenset[int]()
        self._numbers_only: _NumbersOnly | None = None
        self._next = 0

    def start(self, tensors: Mapping[str, torch.Tensor], inputs: Any) -> None:
        """Makes parameters, buffers and inputs known, in the recorder's order."""
        for tensor in tensors.values():
            self._table.ref(tensor)
        for leaf in pytree.tree_leaves(inputs):
            if isinstance(leaf, torch.Tensor):
                self._table.ref(leaf)
        for name, tensor in tensors.items() if self._moved else ():
            self._table.put(tensor, self._recording.trace.parameters[self._recorded(name)])

    def _recorded(self, path: str) -> str:
        """Returns what was recorded in the place of a module or a tensor: an entry of a list that has moved up."""
        for one, places in self._moved:
            entry = one.entry(path)
            if entry is not None:
                return one.path(places[entry[0]], entry[1])
        return path

    def compute(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Runs an operation; what it decides is what was decided when the program was recorded."""
        result = op(*args, **kwargs)
        decisions = self._recording.trace.decisions
        if self._next not in decisions or op is not self._operations[self._next].op or self._next in self._following:
            return result
        cuts = [self._recording.positions(ref.index, self._kept) for ref in self._operations[self._next].outputs]
        return answered(decisions[self._next], cuts, [*args, *kwargs.values()], result)

    def alias(self, source: torch.Tensor, result: torch.Tensor) -> None:
        """Takes the result for the same tensor."""
        self._table.put(result, self._table.ref(source))

    def failed(self, op: Any, module: str, error: Exception) -> None:
        """Takes what an operation raised for the mismatch."""
        if self.mismatch is None:
            name = operation_name(op)
            why = f"{name} raised {type(error).__name__}: {str(error)[:200]}"
            self._report(why, raised=True, kernel=name.startswith("aten::"))

    def operation(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> None:
        """Compares an operation with the recorded one."""
        if self.mismatch is not None:
            raise _StopError
        if self._next >= len(self._operations):
            self._stop(f"{operation_name(op)} runs after the recorded program has ended")
        expected = self._operations[self._next]
        if op is not expected.op or self._recorded(module) != expected.module:
            self._stop(f"{operation_name(op)} ran where {expected.name} was recorded")
        counts = self._next not in self._recording.unread  # if not, only its tensors have to be the recorded ones
        for name, old in expected.arguments.items():
            new = arguments[name]
            if new is not old and (counts or tensor_refs(old)):
                self._compare(expected, name, old, new)
        returned = tensors_of(outputs)
        if len(returned) != len(expected.outputs):
            self._stop(f"{expected.name} returned {len(returned)} tensors, recorded were {len(expected.outputs)}")
        for ref, tensor in zip(expected.outputs, returned, strict=True):
            self._changed_in_place(ref, tensor)
            if self._table.ref(tensor).index != ref.index:
                self._stop(f"{expected.name} returned another tensor than recorded")
            shape = self._recording.shape(ref.index, self._sizer)
            if counts and tuple(tensor.shape) != shape:
                self._stop(f"{expected.name} gave shape {tuple(tensor.shape)}, the axes predict {shape}")
        for wanted in self._recording.expectations.get(self._next, ()):
            self._expect(expected, wanted, arguments[wanted.argument])
        self._next += 1

    def _changed_in_place(self, expected: TensorRef, tensor: torch.Tensor) -> None:
        """Follows the recording where it gave a tensor that changed its shape in place a new reference."""
        if expected.index == len(self._table.shapes) and self._table.get(tensor) is not None:
            self._table.forget(tensor)

    def _compare(self, expected: Operation, name: str, old: Any, new: Any) -> None:
        if isinstance(old, TensorRef):
            self._tensor(name, old, new)
        elif isinstance(old, list) and any(isinstance(item, TensorRef) for item in old):
            if len(old) != len(new):
                self._stop(f"argument {name} has {len(new)} entries, recorded were {len(old)}")
            for item, value in zip(old, new, strict=True):
                self._compare(expected, name, item, value)
        elif isinstance(new, torch.Tensor):
            self._stop(f"argument {name} is a tensor, recorded was {old!r}")
        elif not self._is_size(expected, name) and not self._is_said(name, old, new):
            self._number(expected, name, old, new)

    def _is_size(self, operation: Operation, name: str) -> bool:
        """Tells whether an argument says nothing but the shape of an output, which is compared anyway."""
        rule = self._rules.find(operation.op)
        return rule is not None and name in rule.sizes

    def _is_factor(self, operation: Operation, name: str) -> bool:
        """Tells whether an argument is a number that the result is proportional to."""
        rule = self._rules.find(operation.op)
        return rule is not None and name in rule.factors

    def _tensor(self, name: str, old: TensorRef, new: Any) -> None:
        known = self._table.get(new) if isinstance(new, torch.Tensor) else None
        if not isinstance(new, torch.Tensor) or self._table.ref(new).index != old.index:
            self._stop(f"argument {name} is another tensor than recorded")
        values = None if known is not None else self._recording.trace.constants.get(old.index)
        if values is not None and fingerprint(new) != values:
            self._other_values(name, f"argument {name} is a tensor of other values than recorded")

    def _is_said(self, name: str, old: Any, new: Any) -> bool:
        """Tells whether an argument is the same, or differs only where a rule states what it must be."""
        wanted = [wanted for wanted in self._recording.expectations.get(self._next, ()) if wanted.argument == name]
        if any(one.position is None for one in wanted):
            return True
        if isinstance(new, torch.Generator) and isinstance(old, torch.Generator):  # a local one, made anew each time
            return new.initial_seed() == old.initial_seed()
        if isinstance(new, torch.UntypedStorage) and isinstance(old, torch.UntypedStorage):  # memory, not its contents
            return True
        if new is old:
            return True
        if isinstance(new, torch.ScriptObject):  # has no equality
            return False
        if not isinstance(new, tuple | list):
            return bool(new == old or (new != new and old != old))
        if not isinstance(old, list) or len(old) != len(new):
            return False
        said = {one.position for one in wanted}
        return all(place in said or one == other for place, (one, other) in enumerate(zip(old, new, strict=True)))

    def _number(self, expected: Operation, name: str, old: Any, new: Any) -> None:
        plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (old, new))
        if plain and (self._is_factor(expected, name) or self._reads_numbers_only(expected)):
            self.drifts.append(Drift(self._position, self._next, name, float(old), float(new)))
            return
        why = f"argument {name} is {_short(new)}, recorded was {_short(old)}"
        if name == "fill_value" and not plain:  # a tensor that is written down
            self._other_values(name, why)
            return
        self._report(why, number=True)
        raise _StopError(why)

    def _reads_numbers_only(self, operation: Operation) -> bool:
        """Tells whether all that an operation reads was made of numbers of the program: its result is one of them."""
        if self._numbers_only is None:
            self._numbers_only = _NumbersOnly(self._recording)
        return self._numbers_only(operation)

    def _expect(self, expected: Operation, wanted: ExpectedArgument, value: Any) -> None:
        """Compares an argument with what a rule states; it stays as it was where the sizes do."""
        was = sum(piece.size for piece in wanted.pieces) + wanted.offset
        must = sum(map(self._sizer, wanted.pieces)) + wanted.offset
        old = expected.arguments[wanted.argument]
        if wanted.position is not None:
            old, value = old[wanted.position], value[wanted.position]
        if (value is old and must == was) or (value is None and wanted.along is None):
            return
        if wanted.along is not None:
            old, value = _place(old, wanted.along.size), _place(value, self._sizer(wanted.along))
        if value != (old if must == was else must):
            self._stop(f"argument {wanted.argument} is {value}, the axes predict {must}")

    def _report(
        self,
        why: str,
        *,
        number: bool = False,
        values: Argument | None = None,
        raised: bool = False,
        kernel: bool = False,
    ) -> None:
        operation = min(self._next, len(self._operations) - 1)
        self.mismatch = Mismatch(self._position, operation, why, number, values, raised, kernel)

    def _stop(self, why: str) -> None:
        self._report(why)
        raise _StopError(why)

    def _other_values(self, name: str, why: str) -> None:
        """Stops at a tensor of other values, unless it has others each time."""
        place = (self._position, self._next, name)
        if place not in self._unsteady:
            self._report(why, number=True, values=place)
            raise _StopError(why)

    def returned(self, outputs: Any) -> None:
        """Compares what the model returned with what it returned when it was recorded."""
        named = named_outputs(outputs)
        refs = [self._table.get(tensor) for _, tensor in named]
        if self.mismatch is None and self._next == len(self._operations):
            trace = self._recording.trace
            if tuple(name for name, _ in named) != trace.names or refs != list(trace.results):
                self._report("the model returned other tensors than recorded")

    def finish(self, error: Exception | None) -> None:
        """Closes the comparison; ``error`` is what the forward raised, if anything."""
        if self.mismatch is not None:
            return
        if error is not None:
            self._report(f"the model raised {type(error).__name__}: {str(error)[:200]}", raised=True)
        elif self._next < len(self._operations):
            self._report(f"the program ended before {self._operations[self._next].name}")


class _NumbersOnly:
    """Tells which operations read nothing but what was made of numbers of the program, and nothing random."""

    def __init__(self, recording: Recording) -> None:
        self._writers: dict[int, list[Operation]] = {}
        for operation in recording.trace.operations:
            for ref in operation.outputs:
                self._writers.setdefault(ref.index, []).append(operation)
        given = (*recording.trace.parameters.values(), *recording.trace.inputs)
        self._known = {ref.index: False for ref in given}

    def __call__(self, operation: Operation) -> bool:
        if torch.Tag.nondeterministic_seeded in rule_keys(operation.op):
            return False
        return all(self._tensor(ref.index) for ref in operation.references())

    def _tensor(self, index: int) -> bool:
        if index not in self._known:
            self._known[index] = True  # an operation that writes into it reads it, too
            self._known[index] = all(map(self, self._writers.get(index, ())))
        return self._known[index]


def _place(value: int | None, size: int) -> int:
    """Returns which place along a dim a number means: nothing is the start, negative ones count from the end."""
    place = 0 if value is None else value + size if value < 0 else value
    return min(max(place, 0), size)


def _short(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:80]}..."
