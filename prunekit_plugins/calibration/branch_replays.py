"""Running a model with one branch after the other switched off, of which only what comes behind the branch runs again.

The operations of a run on one batch are written down, without tensors. Run once more in order, with the values that
are still needed, they are at some time where a branch is added: from there the rest of them is run without it, and
then they go on with it. Of ``n`` branches that are spread evenly this takes about ``n / 2`` forward passes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import torch
from torch.utils.weak import WeakIdKeyDictionary

from prunekit_core.program.calls import tensors_of, written_arguments
from prunekit_core.program.linear_forms import Addition
from prunekit_core.program.outputs import named_outputs
from prunekit_core.program.rules import ModuleOp
from prunekit_core.program.trace import TensorRef, tensor_refs
from prunekit_core.record.random_numbers import draws
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.branch_sums import SumListener, SumPlaces, switch_off
from prunekit_plugins.calibration.observation import Watched

_DETACH = torch.ops.aten.detach_.default
"""Changes nothing outside of autograd."""
_LITERAL = torch.ops.aten.lift_fresh.default
"""Hands on a tensor that is written down in the program."""


@attrs.frozen(eq=False)
class Step:
    """An operation of a run.

    Attributes:
        op: The operation.
        module: Dotted path of the innermost module that was running.
        arguments: Its arguments by name, tensors replaced by references.
        outputs: What it returned.
        shapes: Their shapes.
        names: Arguments that are branches, with the branches' names.
    """

    op: Any
    module: str
    arguments: Mapping[str, Any]
    outputs: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    names: Mapping[str, str]


class Tape(SumListener):
    """The listener that writes down the operations of a run in which no branch is switched off.

    Args:
        watched: The model that runs.
        places: Where branches are added.
        batch: The batch that runs.
        names: Names of the branches that will be switched off.

    Attributes:
        steps: The operations in order.
        given: Tensors that no operation made, by number.
        stored: Those that have their values on disk, by number: names, to read them again.
        decided: Number of operations until the last time that values left PyTorch, or decided what the program does.
        repeatable: Whether the operations can be run again: each of them is PyTorch's, draws no random numbers, and
            writes only to what another one made.
    """

    def __init__(self, watched: Watched, places: SumPlaces, batch: Batch, names: Collection[str]) -> None:
        super().__init__(watched.shadow, places, batch, (), names)
        self.steps: list[Step] = []
        self.given: dict[int, torch.Tensor] = {}
        self.stored: dict[int, str] = {}
        self.memory: list[int] = []
        self.decided, self.repeatable = 0, True
        self._numbers: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._numbers_of_stored: dict[str, int] = {}
        self._names: Mapping[str, str] = {}
        self._model = watched

    @property
    def model(self) -> Watched:
        """The model that runs."""
        return self._model

    def _sum(self, op: Any, addition: Addition, arguments: dict[str, Any], names: Mapping[str, str]) -> Any:
        self._names = names
        return op(**arguments)

    def operation(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> None:
        """Writes an operation down."""
        names, self._names = self._names, {}
        if op is _DETACH or op is _LITERAL:
            for tensor in tensors_of(outputs):
                self.number(tensor)
            return
        written = () if isinstance(op, ModuleOp) else written_arguments(op)
        referred = {name: self._referred(value) for name, value in arguments.items()}
        numbers = {ref.index for name in written for ref in tensor_refs([referred[name]])}
        outside = {self.memory[number] for number in self.given} & {self.memory[number] for number in numbers}
        drawing = isinstance(op, ModuleOp) or draws(op, arguments)
        self.repeatable = self.repeatable and not drawing and not (outside - {0})
        made = tensors_of(outputs)
        shapes = tuple(tensor.shape for tensor in made)
        self.steps.append(Step(op, module, referred, tuple(map(self._number, made)), shapes, names))
        if not made:
            self.decided = len(self.steps)

    def leaves(self, tensor: torch.Tensor, way: str) -> None:
        """Notes that values leave PyTorch."""
        self.decided = len(self.steps)

    def alias(self, source: torch.Tensor, result: torch.Tensor) -> None:
        """Takes the result for the same tensor."""
        self._numbers[result] = self.number(source)

    def number(self, tensor: torch.Tensor) -> int:
        """Returns the number of a tensor that is there; one that no operation made is kept, or read again."""
        if tensor not in self._numbers:
            name = self._model.stored_name(tensor)
            if name is None:
                self.given[self._number(tensor)] = tensor
            elif name in self._numbers_of_stored:  # values that were read for an earlier operation, and are gone
                self._numbers[tensor] = self._numbers_of_stored[name]
            else:
                self._numbers_of_stored[name] = number = self._number(tensor)
                self.stored[number] = name
        found: int = self._numbers[tensor]
        return found

    def _number(self, tensor: torch.Tensor) -> int:
        if tensor not in self._numbers:
            self._numbers[tensor] = len(self.memory)
            plain = tensor.layout is torch.strided
            self.repeatable = self.repeatable and plain
            self.memory.append(tensor.untyped_storage().data_ptr() if plain else 0)
        number: int = self._numbers[tensor]
        return number

    def _referred(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return TensorRef(self.number(value))
        if isinstance(value, list | tuple):
            return [self._referred(item) for item in value]
        return value


_Value = TypeVar("_Value")
Show = Callable[[Step, Mapping[str, Any], Any], None]
"""Called with an operation that ran, its arguments by name, and what it returned."""


class Program:
    """Operations of a run that are run again, in parts.

    Args:
        tape: The operations.
        outputs: What the model returned.

    Attributes:
        steps: The operations in order.
        outputs: Names of the model's outputs with their numbers.
        stored: Tensors that have their values on disk, by number: names.
    """

    def __init__(self, tape: Tape, outputs: Any) -> None:
        self.steps = tape.steps
        self.outputs = [(name, tape.number(tensor)) for name, tensor in named_outputs(outputs)]
        self.stored, self._model = tape.stored, tape.model
        self._memory = tape.memory
        self._written: dict[int, int] = {}  # memory to the last operation that writes to it
        last: dict[int, int] = {}
        for place, step in enumerate(tape.steps):
            for ref in tensor_refs(list(step.arguments.values())):
                last[ref.index] = place
            last |= dict.fromkeys(step.outputs, place)
            written = () if isinstance(step.op, ModuleOp) else written_arguments(step.op)
            for ref in tensor_refs([step.arguments[name] for name in (*written, *step.names)]):
                self._written[tape.memory[ref.index]] = place
        kept = {number for _, number in self.outputs}
        self._ended: dict[int, list[int]] = {}
        for number, place in last.items():
            if number not in kept:
                self._ended.setdefault(place, []).append(number)

    def run(
        self,
        values: dict[int, torch.Tensor],
        start: int,
        stop: int,
        *,
        off: Collection[str] = (),
        show: Show | None = None,
    ) -> bool:
        """Runs some operations; values that nothing needs any more are dropped.

        Args:
            values: Values by number, which are changed.
            start, stop: The first operation and the one after the last.
            off: Names of branches that are switched off.
            show: Called with each operation once it ran.

        Returns:
            Whether all results had the shapes that they had before: where sizes follow from values, they may not.
        """
        for place in range(start, stop):
            step = self.steps[place]
            with self._model.loaded(self._names_on_disk(step)) as loaded:
                arguments = {name: self._filled(value, values, loaded) for name, value in step.arguments.items()}
                switch_off(step.op, arguments, [argument for argument, name in step.names.items() if name in off])
                result = step.op(**arguments)
                made = tensors_of(result)
                if tuple(tensor.shape for tensor in made) != step.shapes:
                    return False
                values.update(zip(step.outputs, made, strict=True))
                if show is not None:
                    show(step, arguments, result)
                del arguments, result, made, loaded
            for number in self._ended.get(place, ()):
                values.pop(number, None)
        return True

    def outputs_in(self, values: Mapping[int, _Value]) -> list[tuple[str, _Value | torch.Tensor]]:
        """Returns the model's outputs by name, once all operations ran.

        Args:
            values: Values by number, or what stands for them.
        """
        read = {n: self._model.values(self.stored[n]) for _, n in self.outputs if n in self.stored and n not in values}
        return [(name, values[n] if n in values else read[n]) for name, n in self.outputs]

    def _names_on_disk(self, step: Step) -> list[str]:
        """Names the tensors that a step reads and that have their values on disk."""
        if not self.stored:
            return []
        refs = tensor_refs(list(step.arguments.values()))
        return list(dict.fromkeys(self.stored[ref.index] for ref in refs if ref.index in self.stored))

    def _filled(self, value: Any, values: Mapping[int, torch.Tensor], loaded: Mapping[str, torch.Tensor]) -> Any:
        """Puts values in the place of references."""
        if isinstance(value, TensorRef):
            return values[value.index] if value.index in values else loaded[self.stored[value.index]]
        if isinstance(value, list):
            return [self._filled(item, values, loaded) for item in value]
        return value

    def fork(self, values: Mapping[int, torch.Tensor], place: int) -> dict[int, torch.Tensor]:
        """Copies what operations from some place on write to, views of one memory together."""
        copies: dict[int, torch.UntypedStorage] = {}
        found = dict(values)
        for number, tensor in values.items():
            memory = self._memory[number]
            if memory and self._written.get(memory, -1) >= place:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in copies:
                    copies[storage.data_ptr()] = storage.clone()
                where = (tensor.storage_offset(), tensor.shape, tensor.stride())
                found[number] = tensor.new_empty(0).set_(copies[storage.data_ptr()], *where)
        return found


class Replay:
    """Runs what a tape holds again, with branches switched off.

    Args:
        tape: The operations.
        outputs: What the model returned.
        settings: Gives the settings under which the model ran.
    """

    def __init__(
        self, tape: Tape, outputs: Any, settings: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self._tape, self._settings, self._program = tape, settings, Program(tape, outputs)
        self._first: dict[str, int] = {}
        for place, step in enumerate(tape.steps):
            for name in step.names.values():
                self._first.setdefault(name, place)

    def can(self, names: Iterable[str]) -> bool:
        """Tells whether the program is sure to be the same with some branches switched off."""
        first = min((self._first.get(name, -1) for name in names), default=-1)
        return self._tape.repeatable and first >= self._tape.decided

    def outputs(
        self, names: Sequence[str], off: Collection[str]
    ) -> Iterator[tuple[str, list[tuple[str, torch.Tensor]] | None]]:
        """Yields the outputs, by name, with one branch after the other switched off; None where they aren't known.

        Args:
            names: Names of these branches.
            off: Names of the branches that are switched off all the time.
        """
        program, base, place, follows = self._program, dict(self._tape.given), 0, True
        for name in sorted(names, key=self._first.__getitem__):
            with torch.inference_mode(), self._settings():
                follows = follows and program.run(base, place, self._first[name], off=off)
                place = self._first[name]
                values = program.fork(base, place) if follows else {}
                known = follows and program.run(values, place, len(program.steps), off={*off, name})
            yield name, program.outputs_in(values) if known else None
