"""Finding mixtures in a recorded program.

Nothing is known about single models. From a choice on, the program is followed to the first tensor through which
everything goes that depends on it: that is what the mixture puts out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import attrs
import torch

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Layout
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.recording import Recording
from prunekit_core.groups.unit_group import UnitGroup
from prunekit_core.program.calls import written_arguments
from prunekit_core.program.extents import Chosen
from prunekit_core.program.op_call import Kind
from prunekit_core.program.rules import ModuleOp, rule_keys
from prunekit_core.program.trace import Operation, TensorRef, Trace, is_continuous
from prunekit_plugins.calibration.experts.mixtures import Choosing, Gates, Mixture, MixturesFound, Place, Reader, Scores


def find_mixtures(analysis: Analysis, position: int) -> MixturesFound:
    """Finds the mixtures in a recording.

    Args:
        analysis: The analysed model.
        position: Position of the recording.
    """
    recording = analysis.recordings[position]
    places = _places(recording.trace)
    found: dict[str, Mixture] = {}
    missed: dict[str, str] = {}
    experts = [group for group in analysis.groups.values() if group.kind is Kind.EXPERTS]
    searches = [_Search(recording, group, places, _listed(analysis, recording.trace, group)) for group in experts]
    loops = [loop for search in searches for loop in search.loops()]
    for search in searches:
        mixture = search.mixture(loops)
        if isinstance(mixture, str):
            missed[search.group.name] = mixture
        else:
            found[search.group.name] = mixture
    counts: dict[tuple[str, object], int] = {}
    for place in places.values():
        if not any(place.key in loop.keys for loop in loops):
            counts[place.key] = max(counts.get(place.key, 0), place.number + 1)
    return MixturesFound(found, counts, missed)


def _listed(analysis: Analysis, trace: Trace, group: UnitGroup) -> list[str]:
    """Names the parameters and buffers that were read of modules of lists that are the experts of a group."""
    lists = [one for one in analysis.lists if group.name in layouts.groups_of(one.layout)]
    return [name for name in trace.parameters if any(one.entry(name) is not None for one in lists)]


@attrs.frozen(eq=False)
class _Loop:
    """Operations that run more or less often, for other tokens.

    Attributes:
        start: Index of the first of them.
        keys: Modules and operations.
    """

    start: int
    keys: frozenset[tuple[str, object]]


def _places(trace: Trace) -> dict[int, Place]:
    ran: dict[tuple[str, object], int] = {}
    places = {}
    for operation in trace.operations:
        key = operation.module, operation.op
        number = ran[key] = ran.get(key, -1) + 1
        places[operation.index] = Place(*key, number)
    return places


class _Search:
    """Follows a choice of experts through a recorded program. Tensors are told apart by the memory that they use.

    Attributes:
        group: The group of the experts.
    """

    def __init__(
        self, recording: Recording, group: UnitGroup, places: Mapping[int, Place], listed: Collection[str]
    ) -> None:
        self._recording, self._trace, self.group, self._places = recording, recording.trace, group, places
        self._listed, self._indices = listed, {place: index for index, place in places.items()}
        self._last_read: dict[int, int] = {}
        for operation in self._trace.operations:
            for ref in operation.references():
                self._last_read[self._memory(ref)] = operation.index
        self._last_read.update({self._memory(ref): len(self._trace.operations) for ref in self._trace.results})
        self._choices = [
            (self._trace.operations[index], choice)
            for index, choice in self._recording.choices.items()
            if group.name in layouts.groups_of(choice.layout)
        ]

    def loops(self) -> Iterator[_Loop]:
        """Yields what runs for the experts, where the program decides by which of them were chosen."""
        found = self._put_out() if self._choices else None
        if found is None:
            return
        operations = self._trace.operations[self._choices[-1][0].index + 1 : found[0].index]
        start = next((one.index for one in operations if self._decides(one)), found[0].index)
        keys = frozenset(self._places[one.index].key for one in operations if one.index > start)
        if keys:
            yield _Loop(start, keys)

    def _decides(self, operation: Operation) -> bool:
        """Tells whether what runs afterwards may depend on values: an operation reads a number, or lists places."""
        if isinstance(operation.op, ModuleOp):
            return False
        return operation.index in self._trace.numbers or torch.Tag.dynamic_output_shape in rule_keys(operation.op)

    def mixture(self, loops: Sequence[_Loop]) -> Mixture | str:
        """Returns the mixture, or why there is none.

        Args:
            loops: What runs more or less often in the program.
        """
        if not self._choices:
            return "no operation chooses them in the recorded program"
        operation, choice = self._choices[-1]
        if self._is_shared():
            return "several layers share them"
        listed = [self._choosing(*one) for one in self._last_choices()]
        choosing = tuple(one for one in listed if one is not None)
        if len(choosing) < len(listed):
            return f"{operation.site} doesn't list the chosen experts along its last dim"
        first = self._logits(operation)
        if first is None:
            return f"what scores them isn't known ({operation.site})"
        found = self._put_out()
        if found is None:
            return f"what they put out isn't one tensor with a row for each token ({operation.site})"
        scores = (first, *(self._chosen_from(*one) for one in self._choices))
        gates = self._gates(operation, choice, first, found[0], loops)
        places = [*(one.place for one in scores), *(one.place for one in choosing)]
        readers = [Reader(self._places[one.index], argument) for one, argument in self._readers(*found)]
        steady = [reader for reader in readers if self._is_steady(reader.place, loops)]
        if not steady or not all(self._is_steady(place, loops) for place in places):
            return f"operations that tell what they do run more or less often for other tokens ({operation.site})"
        return Mixture(
            self.group.name,
            scores,
            choosing,
            _unit_of(choice.layout, self.group),
            gates,
            steady[0],
            steady[-1],
            self._stacks,
        )

    def _last_choices(self) -> list[tuple[Operation, Chosen]]:
        """The operations that choose the experts of a token: the last one, and those like it."""
        last = self._form(self._choices[-1][0])
        return [(operation, choice) for operation, choice in self._choices if self._form(operation) == last]

    def _is_shared(self) -> bool:
        """Tells whether a layer with these experts runs several times."""
        forms, turns = [self._form(operation) for operation, _ in self._choices], self._last_choices()
        first, last = turns[0][0].index, turns[-1][0].index
        return any(first < index < last for index in self._weights[1]) or len({*forms}) < len(forms) - len(turns) + 1

    def _is_steady(self, place: Place, loops: Sequence[_Loop]) -> bool:
        """Tells whether an operation has its number whichever experts run."""
        return not any(loop.start < self._indices[place] and place.key in loop.keys for loop in loops)

    def _choosing(self, operation: Operation, choice: Chosen) -> Choosing | None:
        """How an operation lists the experts that it chooses; None where they don't lie along its last dim."""
        dims = len(self._trace.shapes[operation.outputs[choice.output].index])
        if choice.dim is not None and choice.dim % dims != dims - 1:
            return None
        return Choosing(self._places[operation.index], choice.output, choice.dim is not None)

    def _size_of(self, choice: Chosen, operation: Operation) -> tuple[tuple[int, ...], int]:
        """The shape of what is chosen for, and how many one operation chooses."""
        shape = self._trace.shapes[operation.outputs[choice.output].index]
        return (shape, 1) if choice.dim is None else (shape[:-1], shape[-1])

    def _memory(self, ref: TensorRef) -> int:
        return self._trace.memory(ref.index)

    def _form(self, operation: Operation) -> tuple[object, ...]:
        """What calls of one layer have in common."""
        return operation.module, operation.op, *(self._trace.shapes[ref.index] for ref in operation.references())

    # -- what the router gives

    def _logits(self, choice: Operation) -> Scores | None:
        """The first tensor with a number for each expert that the inputs have a part in, and the choice depends on."""
        needed = self._behind(choice)
        data = {self._memory(ref) for ref in self._trace.inputs}
        for operation in self._trace.operations[: choice.index]:
            if not data & {self._memory(ref) for ref in operation.references()}:
                continue
            data |= {self._memory(ref) for ref in operation.outputs}
            for number, ref in enumerate(operation.outputs):
                dims = self._recording.live.get(ref.index, ())
                of_group = [dim for dim, layout in enumerate(dims) if self.group.name in layouts.groups_of(layout)]
                if len(of_group) == 1 and self._memory(ref) in needed and self._is_float(ref):
                    (dim,) = of_group
                    return Scores(self._places[operation.index], "", number, dim, _positions(dims[dim], self.group))
        return None

    def _behind(self, choice: Operation) -> set[int]:
        """Everything that a choice depends on."""
        needed = {self._memory(ref) for ref in choice.references()}
        for operation in reversed(self._trace.operations[: choice.index]):
            if needed & {self._memory(ref) for ref in operation.outputs}:
                needed |= {self._memory(ref) for ref in operation.references()}
        return needed

    def _chosen_from(self, operation: Operation, choice: Chosen) -> Scores:
        use = next(use for use in self._recording.wholes[operation.index].uses if use.layout == choice.layout)
        ref, dim = use.operands[0]
        argument = next(name for name, value in operation.arguments.items() if value == ref)
        return Scores(self._places[operation.index], argument, 0, dim, _positions(choice.layout, self.group))

    # -- what the experts put out

    def _put_out(self) -> tuple[Operation, str] | None:
        """Finds the operation that reads what all experts together put out, and its argument that this is."""
        choice, chosen = self._choices[-1]
        weights, used = self._weights
        if not weights:
            return None
        last = max((choice.index, *used))
        depends = {self._memory(ref) for ref in choice.outputs}
        rows = math.prod(self._size_of(chosen, choice)[0])
        for operation in self._trace.operations[choice.index + 1 :]:
            self._spread(operation, depends)
            if operation.index < last:
                continue
            alive = {memory for memory in depends if self._last_read.get(memory, -1) > operation.index}
            if len(alive) == 1:
                found = self._reader(operation.index, alive.pop(), rows)
                if found is not None:
                    return self._past_weights(*found, rows)
        return None

    def _past_weights(self, reader: Operation, argument: str, rows: int) -> tuple[Operation, str]:
        """Goes on through operations that multiply what experts put out by weights that the router made of its scores.

        That is so where a token is sent to one expert.
        """
        scores = self._logits(self._choices[-1][0])
        if scores is None:
            return reader, argument
        start = self._indices[scores.place]
        made = {self._memory(self._trace.operations[start].outputs[scores.output])}
        for operation in self._trace.operations[start + 1 : reader.index]:
            self._spread(operation, made)
        while True:
            ref = reader.arguments[argument]
            others = {self._memory(other) for other in reader.references()} - {self._memory(ref)}
            ends = self._last_read[self._memory(ref)] == reader.index and len(reader.outputs) == 1
            after = self._reader(reader.index, self._memory(reader.outputs[0]), rows) if ends else None
            if not others or not others <= made or after is None:
                return reader, argument
            reader, argument = after

    @functools.cached_property
    def _stacks(self) -> tuple[str, ...]:
        """Names of the parameters of the experts that the (first) choice doesn't depend on."""
        behind, parameters = self._behind(self._last_choices()[0][0]), self._trace.parameters
        members = dict.fromkeys(member.parameter for member in self.group.members)
        names = (name for name in (*members, *self._listed) if name in parameters)
        return self._by_last_read([name for name in names if self._memory(parameters[name]) not in behind])

    def _by_last_read(self, stacks: Sequence[str]) -> tuple[str, ...]:
        """Puts parameters in the order of the last operation that reads them, or what is made of parameters alone."""
        plain = {self._memory(ref) for ref in self._trace.parameters.values()}
        made = {self._memory(self._trace.parameters[name]): {name} for name in stacks}
        last = dict.fromkeys(stacks, -1)
        for operation in self._trace.operations:
            read = {self._memory(ref) for ref in operation.references()}
            names = {name for memory in read & made.keys() for name in made[memory]}
            last.update(dict.fromkeys(names, operation.index))
            if names and read <= plain | made.keys():
                for ref in operation.outputs:
                    made[self._memory(ref)] = made.get(self._memory(ref), set()) | names
        return tuple(sorted(stacks, key=last.__getitem__))

    @functools.cached_property
    def _weights(self) -> tuple[set[int], list[int]]:
        """Returns what is made of the experts' weights alone, and the indices of the operations that read it."""
        plain = {self._memory(ref) for ref in self._trace.parameters.values()}
        weights, used = {self._memory(self._trace.parameters[name]) for name in self._stacks}, list[int]()
        for operation in self._trace.operations:
            read = {self._memory(ref) for ref in operation.references()}
            if read & weights:
                used.append(operation.index)
                if read <= plain | weights:
                    weights |= {self._memory(ref) for ref in operation.outputs}
        return weights, used

    def _spread(self, operation: Operation, depends: set[int]) -> None:
        """Adds what an operation makes to the memory that depends on something, if it reads any of that."""
        if depends.isdisjoint(self._memory(ref) for ref in operation.references()):
            return
        depends.update(self._memory(ref) for ref in operation.outputs)
        for name in () if isinstance(operation.op, ModuleOp) else written_arguments(operation.op):
            value = operation.arguments.get(name)
            if isinstance(value, TensorRef):
                depends.add(self._memory(value))

    def _reader(self, index: int, memory: int, rows: int) -> tuple[Operation, str] | None:
        """Finds the next operation that reads some memory, if that holds a row for each token."""
        for operation in self._trace.operations[index + 1 :]:
            for name, value in operation.arguments.items():
                if isinstance(value, TensorRef) and self._memory(value) == memory:
                    shape = self._trace.shapes[value.index]
                    fits = len(shape) > 1 and math.prod(shape[:-1]) == rows and self._is_float(value)
                    return (operation, name) if fits else None
        return None

    def _readers(self, reader: Operation, argument: str) -> Iterator[tuple[Operation, str]]:
        """Yields an operation, and those behind it that read the same: past those that only hand all numbers on."""
        yield reader, argument
        ref = reader.arguments[argument]
        size = math.prod(self._trace.shapes[ref.index])
        alone = len(reader.references()) == len(reader.outputs) == 1
        if not alone or math.prod(self._trace.shapes[reader.outputs[0].index]) != size:
            return
        (result,) = reader.outputs
        if self._memory(result) != self._memory(ref) and self._last_read.get(self._memory(ref), -1) > reader.index:
            return  # it is read elsewhere, too
        for operation in self._trace.operations[reader.index + 1 :]:
            for name, value in operation.arguments.items():
                if isinstance(value, TensorRef) and self._memory(value) == self._memory(result):
                    yield from self._readers(operation, name)
                    return

    # -- their weights

    def _gates(
        self, choice: Operation, found: Chosen, scores: Scores, reader: Operation, loops: Sequence[_Loop]
    ) -> Gates | None:
        """The last tensor with a weight for each chosen expert, or for each expert, that all weights are made of."""
        operations = self._trace.operations
        stacks = {self._memory(self._trace.parameters[name]) for name in self._stacks}
        start = self._indices[scores.place]
        numbers = {self._memory(operations[start].outputs[scores.output])}
        chosen, sources = set[int](), self._shapes_of(choice, found)
        candidates: list[tuple[Operation, int]] = []
        mixed: list[tuple[int, int]] = []  # which weight was used, in which operation
        for operation in operations[start + 1 : reader.index]:
            read = {self._memory(ref) for ref in operation.references() if self._is_float(ref)}
            everything = {self._memory(ref) for ref in operation.references()}
            outputs = {self._memory(ref) for ref in operation.outputs if self._is_float(ref)}
            if everything & stacks:
                mixed += [(memory, operation.index) for memory in read & numbers]
                stacks |= outputs
            elif read & numbers:
                numbers |= outputs
            among = operation is choice or bool(everything & chosen)
            chosen |= {self._memory(ref) for ref in operation.outputs if among}
            for number, ref in enumerate(operation.outputs):
                dense = sources.get(self._trace.shapes[ref.index])
                if self._memory(ref) in numbers - stacks and dense is not None and (among or not dense):
                    candidates.append((operation, number))
        for operation, number in reversed(candidates):
            if not self._is_steady(self._places[operation.index], loops):
                continue  # of single experts
            depends = {self._memory(operation.outputs[number])}
            for later in operations[operation.index + 1 : reader.index]:
                self._spread(later, depends)
            if mixed and all(memory in depends and index > operation.index for memory, index in mixed):
                shape = self._trace.shapes[operation.outputs[number].index]
                return Gates(self._places[operation.index], number, sources[shape])
        return None

    def _shapes_of(self, choice: Operation, found: Chosen) -> dict[tuple[int, ...], bool]:
        """Shapes that weights may have, and whether there is one for each expert."""
        use = next(use for use in self._recording.wholes[choice.index].uses if use.layout == found.layout)
        (ref, _), shapes = use.operands[0], self._trace.shapes
        around = self._size_of(found, choice)[0]
        count = sum(self._size_of(one, operation)[1] for operation, one in self._last_choices())
        one = {} if count > 1 else {around: False}
        return {shapes[ref.index]: True, **one, (*around, count): False}

    def _is_float(self, ref: TensorRef) -> bool:
        return is_continuous(self._trace.dtypes[ref.index])


def _positions(layout: Layout, group: UnitGroup) -> torch.Tensor:
    """Returns which positions along an axis belong to a unit: tensor ``[units, positions]``, bool."""
    found = torch.zeros(group.size, layout.size, dtype=torch.bool, device="cpu")
    for unit in range(group.size):
        found[unit, layouts.kept_positions(layout, {group.name: (unit,)})] = True
    return found


def _unit_of(layout: Layout, group: UnitGroup) -> torch.Tensor:
    return _positions(layout, group).to(torch.uint8).argmax(0)
