"""Forward passes of a model on calibration batches that go on from the first operation that has to run again.

Compensation runs the same batches again and again, each time with other weights further behind. Here the operations of
the first forward on a batch are written down, and the values that operations behind some place read are kept. What
comes before that place doesn't run again until a tensor that it reads is given other values. Where no value decides
what the program does, batches of one form run the operations that were written down for the first of them.

A forward is run by its program, as always, where that isn't sure to give the same: where it draws random numbers,
writes to its inputs, or decides by values that follow from what has changed; and where there is no room for the values.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.modules.surgery import put_values, tensor_at
from prunekit_core.program.calls import tensors_of
from prunekit_core.program.examples import Runner
from prunekit_core.program.outputs import named_outputs
from prunekit_core.program.trace import tensor_refs
from prunekit_core.record.listener import Listener
from prunekit_core.torch_private.trees import pytree
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.branch_replays import Program, Step, Tape
from prunekit_plugins.calibration.branch_sums import SumPlaces
from prunekit_plugins.calibration.observation import Enough, Seen, Watched, WatchingListener
from prunekit_plugins.calibration.products import Output, Product, find_product

LEAST_ROOM = 256 << 20
"""Bytes that may be kept whatever the size of the model."""
STEP_BYTES = 1024
"""What an operation that is written down takes, about."""
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


@attrs.define(eq=False)
class Room:
    """How many bytes may be kept.

    Attributes:
        left: Those that are still free.
    """

    left: int

    @classmethod
    def beside(cls, watched: Watched) -> Room:
        """Returns as much as the tensors of a model take, or `LEAST_ROOM`."""
        tensors = watched.shadow.tensors().values()
        return cls(max(LEAST_ROOM, sum(tensor.numel() * tensor.element_size() for tensor in tensors)))


class _Recording(Tape):
    """The listener that writes down a forward, and which of its operations are consumers."""

    def __init__(self, watched: Watched, batch: Batch) -> None:
        super().__init__(watched, SumPlaces({}, watched.rules), batch, ())
        self.consumers: list[int] = []
        self.inputs: list[torch.Tensor] = []
        self._watching = WatchingListener(watched, batch, self._note)

    def start(self, tensors: Mapping[str, torch.Tensor], inputs: Any) -> None:
        self.inputs = list(inputs)
        self._watching.start(tensors, inputs)

    def operation(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> None:
        super().operation(op, module, arguments, outputs)
        self._watching.operation(op, module, arguments, outputs)
        if self._watching.casting:  # what a cast is of is known only to who saw it
            self.repeatable = False
        if torch.Tag.dynamic_output_shape in getattr(op, "tags", ()) and not _by_positions(arguments):
            self.decided = len(self.steps)

    def _note(self, seen: Seen) -> None:
        self.consumers.append(len(self.steps) - 1)


def _by_positions(arguments: Mapping[str, Any]) -> bool:
    """Whether an operation is given positions, so that the shape of its result follows from their shape."""
    indices = arguments.get("indices")
    return isinstance(indices, list | tuple) and all(
        one.dtype not in (torch.bool, torch.uint8) for one in tensors_of(list(indices))
    )


@attrs.frozen(eq=False)
class _Form:
    """What a batch is, but for the values of its tensors.

    Attributes:
        runner: What runs the model on it.
        spec: How its leaves are nested.
        leaves: What is known of each of them.
        tensors: The tensors among them, each once.
    """

    runner: Runner
    spec: Any
    leaves: Sequence[Any]
    tensors: Sequence[torch.Tensor]

    @classmethod
    def of(cls, batch: Batch) -> _Form | None:
        """Returns the form of a batch; None if there are objects in it of which nothing is known."""
        leaves, spec = pytree.tree_flatten((batch.example.args, batch.example.kwargs))
        if any(type(leaf) not in (torch.Tensor, *_PLAIN) for leaf in leaves):
            return None
        tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}
        if any(tensor.layout is not torch.strided for tensor in tensors.values()):
            return None
        places = {one: place for place, one in enumerate(tensors)}
        known = [(type(leaf), _kind(leaf, places[id(leaf)]) if id(leaf) in places else leaf) for leaf in leaves]
        return cls(batch.example.runner, spec, known, [tensor.detach() for tensor in tensors.values()])

    def equals(self, other: _Form) -> bool:
        """Whether both differ in values of tensors alone."""
        return self.spec == other.spec and self.leaves == other.leaves and self.runner == other.runner


def _kind(tensor: torch.Tensor, place: int) -> tuple[Any, ...]:
    return place, tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


class _Course:
    """The program of forwards on batches that run the same operations.

    Args:
        recording: The first of them.
        outputs: What the model returned.
        names: Identity of each of the model's tensors to its name.
        form: The form of its batch; None where it has none.
    """

    def __init__(self, recording: _Recording, outputs: Any, names: Mapping[int, str], form: _Form | None) -> None:
        self.program = Program(recording, outputs)
        self._form, self._given = form, recording.given
        places = {id(tensor): place for place, tensor in enumerate(recording.inputs)}
        self._inputs = {number: places[id(t)] for number, t in recording.given.items() if id(t) in places}
        self.consumers, self.decided, self.product = recording.consumers, recording.decided, find_product(self.program)
        self.named = {number: names[id(t)] for number, t in recording.given.items() if id(t) in names}
        self.named |= recording.stored
        self.first: dict[str, int] = {}  # name of a tensor to the first operation that reads it
        for place, step in enumerate(self.program.steps):
            for ref in tensor_refs(list(step.arguments.values())):
                if ref.index in self.named:
                    self.first.setdefault(self.named[ref.index], place)

    def first_read(self, names: Collection[str]) -> int:
        """Returns the place of the first operation that reads one of some tensors; the end where none does."""
        return min((self.first[name] for name in names if name in self.first), default=len(self.program.steps))

    def given(self, form: _Form) -> dict[int, torch.Tensor] | None:
        """Returns the tensors that no operation makes, by number, for a batch; None where it may run other operations.

        Args:
            form: The form of the batch.
        """
        if self.decided or self._form is None or not self._form.equals(form):
            return None
        copies = {number: form.tensors[place].clone() for number, place in self._inputs.items()}  # as a shadow takes
        return {**self._given, **copies}

    def equals(self, other: _Course) -> bool:
        """Whether both are the same operations on the same tensors."""
        alike = (self.named, self.consumers, self.decided, self.program.outputs)
        if alike != (other.named, other.consumers, other.decided, other.program.outputs):
            return False
        pairs = zip(self.program.steps, other.program.steps, strict=False)
        return len(self.program.steps) == len(other.program.steps) and all(_alike(*pair) for pair in pairs)


def _alike(one: Step, other: Step) -> bool:
    return (one.op, one.module, one.outputs, one.shapes, one.arguments) == (
        *(other.op, other.module, other.outputs, other.shapes),
        other.arguments,
    )


@attrs.define(eq=False)
class _Kept:
    """A forward on one batch that has come to some place.

    Attributes:
        batch: The batch.
        course: Its operations.
        given: Tensors that no operation made, by number.
        values: What the operations from the place on read, by number.
        place: The next operation.
        size: Bytes of what is kept, without the model's own tensors.
    """

    batch: Batch
    course: _Course
    given: Mapping[int, torch.Tensor]
    values: dict[int, torch.Tensor]
    place: int = 0
    size: int = 0

    def bytes(self) -> int:
        """Counts the memory of what is kept, each piece once."""
        there = (self.given[number] for number in self.course.named if number in self.given)  # others are on disk
        own = {tensor.untyped_storage().data_ptr() for tensor in there}
        stores = [tensor.untyped_storage() for tensor in (*self.given.values(), *self.values.values())]
        return sum({one.data_ptr(): one.nbytes() for one in stores if one.data_ptr() not in own}.values())


class Forwards:
    """The forwards of a model on calibration batches.

    Args:
        watched: The model.
        room: How much may be kept; None for nothing.

    Attributes:
        watched: The same.
    """

    def __init__(self, watched: Watched, room: Room | None) -> None:
        self.watched, self._room = watched, room
        self._kept: dict[int, _Kept] = {}
        self._courses: list[_Course] = []
        self._changed: set[str] = set()

    def changed(self, name: str, values: torch.Tensor) -> None:
        """Gives a tensor of the model other values.

        Args:
            name: Its canonical name.
            values: Its values, in memory that the model may share; those of a tensor on disk are read when needed.
        """
        tensor = tensor_at(self.watched.shadow.module, name)
        if self.watched.stored_name(tensor) is None:
            put_values(tensor, values)
        self._changed.add(name)
        for kept in list(self._kept.values()):
            if kept.course.first.get(name, kept.place) < kept.place:
                self._settle(kept, dict(kept.given), 0)

    def outputs(self, number: int, batch: Batch) -> list[tuple[str, Output]]:
        """Returns the model's outputs by name; those of its last layer may be a `Product`, see `find_product`.

        Args:
            number: Number of the batch.
            batch: The batch, or some of its examples.
        """
        kept = self._find(number, batch) or self._follow(number, batch)
        if kept is not None:
            values = self._run(kept)
            if values is not None:
                return kept.course.program.outputs_in(values)
        if self._room is None or number in self._kept:
            return [*named_outputs(self.watched.run_into(batch, Listener()))]
        recording = _Recording(self.watched, batch)
        found = self.watched.run_into(batch, recording)
        if recording.repeatable:
            self._note(number, batch, recording, found)
        return [*named_outputs(found)]

    def run_into(
        self,
        number: int,
        batch: Batch,
        listener: WatchingListener,
        start: Collection[str],
        keep: Collection[str],
        *,
        whole: bool = False,
    ) -> None:
        """Runs a batch into a listener, which sees all consumers of some tensors, and what comes behind them.

        Args:
            number: Number of the batch.
            batch: The batch.
            listener: The listener; it may raise `Enough`.
            start: Names of these tensors.
            keep: Names of tensors before whose first use the values are kept, for the next time: none of them is used
                before the first one of ``start``.
            whole: Whether the listener has to see all operations.
        """
        kept = None if whole else self._find(number, batch)
        if kept is None or not self._advance(kept, kept.course.first_read(start)):
            self.watched.run_into(batch, listener)
            return
        listener.start(self.watched.shadow.tensors(), None)
        listener.go_on(bisect.bisect_left(kept.course.consumers, kept.place))
        self._show(kept, listener, kept.course.first_read(keep))

    # -- what is kept

    def _note(self, number: int, batch: Batch, recording: _Recording, outputs: Any) -> None:
        """Keeps a forward, if there is room."""
        assert self._room is not None
        course = _Course(recording, outputs, self.watched.shadow.names, _Form.of(batch))
        known = next((one for one in self._courses if one.equals(course)), None)
        if known is None:
            size = STEP_BYTES * len(course.program.steps)
            if size > self._room.left:
                return
            self._room.left -= size
            self._courses.append(course)
        self._start(number, _Kept(batch, known or course, recording.given, dict(recording.given)))

    def _follow(self, number: int, batch: Batch) -> _Kept | None:
        """Keeps a forward on a batch that runs what is known of another one, if there is such a one, and room."""
        form = None if self._room is None or number in self._kept or not self._courses else _Form.of(batch)
        for course in self._courses:
            given = None if form is None else course.given(form)
            if given is not None:
                kept = _Kept(batch, course, given, dict(given))
                return kept if self._start(number, kept) else None
        return None

    def _start(self, number: int, kept: _Kept) -> bool:
        """Keeps a forward that is at its start; returns False where there is no room."""
        self._kept[number] = kept
        return self._settle(kept, kept.values, 0)

    def _settle(self, kept: _Kept, values: dict[int, torch.Tensor], place: int) -> bool:
        """Notes where a forward has come to; forgets it and returns False where there is no room for its values."""
        assert self._room is not None
        kept.values, kept.place = values, place
        size = kept.bytes()
        self._room.left -= size - kept.size
        kept.size = size
        if self._room.left < 0:
            self._forget(kept)
            return False
        return True

    def _forget(self, kept: _Kept) -> None:
        assert self._room is not None
        self._room.left += kept.size
        kept.values, kept.size = {}, 0
        self._kept = {number: one for number, one in self._kept.items() if one is not kept}

    def _find(self, number: int, batch: Batch) -> _Kept | None:
        """Returns what is kept of a batch, if it is the same one and its operations are sure to be the same."""
        kept = self._kept.get(number)
        if kept is None or not _same_inputs(kept.batch, batch):
            return None
        return kept if kept.course.first_read(self._changed) >= kept.course.decided else None

    # -- running

    def _run(self, kept: _Kept) -> Mapping[int, Output] | None:
        """Runs on to the end from where a forward is, which stays; None where sizes turn out to be others."""
        program, place, product = kept.course.program, kept.place, kept.course.product
        made: dict[int, Product] = {}
        with torch.inference_mode(), self.watched.shadow.settings():
            values = program.fork(kept.values, place)
            if product is not None and product >= place:
                if not program.run(values, place, product):
                    return None
                step, place = program.steps[product], product + 1
                made[step.outputs[0]] = Product(*(values[step.arguments[name].index] for name in ("input", "weight")))
            return {**values, **made} if program.run(values, place, len(program.steps)) else None

    def _advance(self, kept: _Kept, place: int) -> bool:
        """Brings a forward to a place; returns False where it can't be kept there."""
        if kept.place > place:
            self._settle(kept, dict(kept.given), 0)
        with torch.inference_mode(), self.watched.shadow.settings():
            follows = kept.course.program.run(kept.values, kept.place, place)
        if not follows:
            self._forget(kept)
        return follows and self._settle(kept, kept.values, place)

    def _show(self, kept: _Kept, listener: WatchingListener, keep: int) -> None:
        """Shows the operations from where a forward is to a listener; keeps the values at a later place, or there."""
        program, place = kept.course.program, kept.place

        def show(step: Step, arguments: Mapping[str, Any], result: Any) -> None:
            nonlocal place
            place += 1
            listener.operation(step.op, step.module, arguments, result)

        with torch.inference_mode(), self.watched.shadow.settings():
            try:
                program.run(kept.values, place, keep, show=show)
                values, start = program.fork(kept.values, place), place
                program.run(values, start, len(program.steps), show=show)
            except Enough:
                pass
        self._settle(kept, kept.values, min(place, keep))


def _same_inputs(one: Batch, other: Batch) -> bool:
    """Whether two batches give a model the same."""
    (first, spec), (second, other_spec) = (
        pytree.tree_flatten((batch.example.args, batch.example.kwargs)) for batch in (one, other)
    )
    return spec == other_spec and all(_same(*pair) for pair in zip(first, second, strict=True))


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return isinstance(one, bool | int | float | str) and type(one) is type(other) and bool(one == other)
