"""Mixtures in a recorded program: where experts are chosen, weighted, and what their outputs become.

Nothing is known about single models. From a choice on, the program is followed to the first tensor through which
everything goes that depends on it: that is what the mixture puts out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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
from prunekit_core.program.rules import ModuleOp
from prunekit_core.program.trace import Operation, TensorRef, Trace, is_continuous
from prunekit_plugins.calibration.branch_sums import recorded_position


@attrs.frozen
class Place:
    """One operation of a recorded program, to find it in a run.

    Attributes:
        module: Dotted path of the module that runs it.
        op: The operation.
        number: How often the module ran this operation before.
    """

    module: str
    op: object
    number: int


@attrs.frozen(eq=False)
class Scores:
    """A tensor with one number for each expert.

    Attributes:
        place: The operation.
        argument: The argument of it that holds them; empty for what it returns.
        output: Which of the returned tensors holds them.
        dim: The dim of the experts.
        units: Tensor ``[units, positions]``, bool: which positions along the dim belong to a unit of the group.
    """

    place: Place
    argument: str
    output: int
    dim: int
    units: torch.Tensor


@attrs.frozen(eq=False)
class Reader:
    """Where something is read.

    Attributes:
        place: The operation.
        argument: The argument of it that this is.
    """

    place: Place
    argument: str


@attrs.frozen(eq=False)
class Gates:
    """The weights by which outputs of experts are multiplied.

    Attributes:
        place: The operation that returns them.
        output: Which of the returned tensors holds them.
        dense: Whether there is one for each expert; else one for each that was chosen.
    """

    place: Place
    output: int
    dense: bool


@attrs.frozen(eq=False)
class NeuronReads:
    """A stack of weights that multiply the neurons of experts.

    Attributes:
        group: Name of the group of the neurons.
        size: Number of neurons.
        parameter: Canonical name of the stack.
        experts: The dim of it that the experts lie along.
        dim: The dim that the neurons lie along.
        positions: Tensor ``[positions]``, int64, on the CPU: the positions along it that hold a neuron.
        units: The neuron that each holds.
    """

    group: str
    size: int
    parameter: str
    experts: int
    dim: int
    positions: torch.Tensor
    units: torch.Tensor

    def losses(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Returns what a projection of the outputs loses if each neuron isn't read, squared and summed over experts.

        Args:
            weight: The stack.
            gradient: The gradient of the projection by it.

        Returns:
            Tensor ``[neurons]``, float64, on the CPU.
        """
        loss = weight.detach() * gradient
        kept = {self.experts, self.dim}
        others = [dim for dim in range(loss.dim()) if dim not in kept]
        loss = (loss.sum(others) if others else loss).double()
        loss = loss.movedim(int(self.dim > self.experts), 0) if len(kept) > 1 else loss[:, None]
        squares = loss.square().sum(1).cpu()[self.positions]
        return squares.new_zeros(self.size).index_add_(0, self.units, squares)


def neuron_reads(mixture: Mixture, analysis: Analysis) -> tuple[NeuronReads, ...]:
    """Finds the stacks of a mixture that read neurons which nothing but its stacks holds: those that are read last.

    Args:
        mixture: The mixture.
        analysis: What it was found in.
    """
    found = []
    place = {name: number for number, name in enumerate(mixture.stacks)}
    for group in analysis.groups.values():
        if not {member.parameter for member in group.members} <= set(place):
            continue
        last = max(group.members, key=lambda member: place[member.parameter])
        dims = analysis.parameters[last.parameter].dims
        experts = [dim for dim, layout in enumerate(dims) if mixture.group in layouts.groups_of(layout)]
        if len(group.members) > 1 and len(experts) == 1:
            positions, units = layouts.placements(dims[last.dim], {})[group.name]
            found.append(NeuronReads(group.name, group.size, last.parameter, experts[0], last.dim, positions, units))
    return tuple(found)


def summed_up(losses: Sequence[torch.Tensor]) -> torch.Tensor:
    """Adds up losses of neurons, without the differences that a few random projections make by chance.

    Differences from the mean are reduced by the part of their variance over neurons that the variance of a neuron's
    losses over projections explains: else the neurons that happen to look cheapest would be taken for cheap.

    Args:
        losses: Those that were found with each projection: tensors ``[neurons]``.

    Returns:
        Tensor ``[neurons]``, float64.
    """
    each = torch.stack([*losses])
    total, mean = each.sum(0), each.sum(0).mean()
    if len(each) < 2 or len(total) < 2:
        return mean.expand(len(total)).clone()
    chance, seen = len(each) * each.var(0).mean(), total.var()
    known = float((1 - chance / seen).clamp(min=0)) if seen > 0 else 0.0
    return torch.lerp(mean.expand(len(total)), total, known)


@attrs.frozen(eq=False)
class Mixture:
    """A router with its experts, in the program that was recorded.

    Attributes:
        group: Name of the group of its experts.
        scores: The scores that the router gives, and what is chosen from, in order.
        chosen: The operation that chooses the experts of a token.
        output: Which of the tensors that it returns holds their numbers: ``[tokens, top_k]``.
        unit_of: Tensor ``[experts]``, int64: the unit of the group that each expert belongs to.
        gates: Their weights; None where they can't be told from other tensors.
        output_reader: What reads what the mixture puts out, before anything else does: vectors along the last dim, of
            the tokens in the order of the choice.
        gradient_reader: What reads the same first when composite operations arrive in parts, as under autograd.
        stacks: Names of the parameters that hold the weights of the experts, but for the router's, in the order in
            which the program last reads them.
    """

    group: str
    scores: tuple[Scores, ...]
    chosen: Place
    output: int
    unit_of: torch.Tensor
    gates: Gates | None
    output_reader: Reader
    gradient_reader: Reader
    stacks: tuple[str, ...]

    @property
    def units(self) -> int:
        """Number of units of the group."""
        return len(self.scores[0].units)


@attrs.frozen(eq=False)
class MixturesFound:
    """The mixtures of a program.

    Attributes:
        mixtures: By the name of their group.
        counts: (module, operation) to how often the module ran it, for each that a mixture names.
        missed: Group to why nothing is known about what its experts put out.
    """

    mixtures: Mapping[str, Mixture]
    counts: Mapping[tuple[str, object], int]
    missed: Mapping[str, str]


def find_mixtures(analysis: Analysis) -> MixturesFound:
    """Finds the mixtures in the recording in eval mode (the first one where there is none)."""
    recording = analysis.recordings[recorded_position(analysis)]
    places = _places(recording.trace)
    found: dict[str, Mixture] = {}
    missed: dict[str, str] = {}
    for group in analysis.groups.values():
        if group.kind is Kind.EXPERTS:
            mixture = _Search(recording, group, places).mixture()
            if isinstance(mixture, str):
                missed[group.name] = mixture
            else:
                found[group.name] = mixture
    counts: dict[tuple[str, object], int] = {}
    for place in places.values():
        key = place.module, place.op
        counts[key] = max(counts.get(key, 0), place.number + 1)
    return MixturesFound(found, counts, missed)


def _places(trace: Trace) -> dict[int, Place]:
    ran: dict[tuple[str, object], int] = {}
    places = {}
    for operation in trace.operations:
        key = operation.module, operation.op
        number = ran[key] = ran.get(key, -1) + 1
        places[operation.index] = Place(*key, number)
    return places


class _Search:
    """Follows a choice of experts through a recorded program. Tensors are told apart by the memory that they use."""

    def __init__(self, recording: Recording, group: UnitGroup, places: Mapping[int, Place]) -> None:
        self._recording, self._trace, self._group, self._places = recording, recording.trace, group, places
        self._last_read: dict[int, int] = {}
        for operation in self._trace.operations:
            for ref in operation.references():
                self._last_read[self._memory(ref)] = operation.index
        self._last_read.update({self._memory(ref): len(self._trace.operations) for ref in self._trace.results})

    def mixture(self) -> Mixture | str:
        """Returns the mixture, or why there is none."""
        choices = [
            (self._trace.operations[index], choice)
            for index, choice in self._recording.choices.items()
            if self._group.name in layouts.groups_of(choice.layout)
        ]
        if not choices:
            return "no operation chooses them in the recorded program"
        if len({self._form(operation) for operation, _ in choices}) != len(choices):
            return "several layers share them"
        operation, choice = choices[-1]
        chosen = operation.outputs[choice.output]
        shape = self._trace.shapes[chosen.index]
        if choice.dim is None or choice.dim % len(shape) != len(shape) - 1:
            return f"{operation.site} doesn't list the chosen experts along its last dim"
        first = self._logits(operation)
        if first is None:
            return f"what scores them isn't known ({operation.site})"
        after = self._put_out(operation, chosen)
        if after is None:
            return f"what they put out isn't one tensor with a row for each token ({operation.site})"
        reader, argument = after
        later, other = self._past_views(reader, argument)
        return Mixture(
            self._group.name,
            (first, *(self._chosen_from(op, found) for op, found in choices)),
            self._places[operation.index],
            choice.output,
            _unit_of(choice.layout, self._group),
            self._gates(operation, choice, first, reader),
            Reader(self._places[reader.index], argument),
            Reader(self._places[later.index], other),
            self._by_last_read(self._stacks(operation)),
        )

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
                of_group = [dim for dim, layout in enumerate(dims) if self._group.name in layouts.groups_of(layout)]
                if len(of_group) == 1 and self._memory(ref) in needed and self._is_float(ref):
                    (dim,) = of_group
                    return Scores(self._places[operation.index], "", number, dim, _positions(dims[dim], self._group))
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
        return Scores(self._places[operation.index], argument, 0, dim, _positions(choice.layout, self._group))

    # -- what the experts put out

    def _put_out(self, choice: Operation, chosen: TensorRef) -> tuple[Operation, str] | None:
        """Finds the operation that reads what all experts together put out, and its argument that this is."""
        stacks = {self._memory(self._trace.parameters[name]) for name in self._stacks(choice)}
        weights, last = self._weights(choice, stacks)
        if not weights:
            return None
        depends = {self._memory(ref) for ref in choice.outputs}
        rows = math.prod(self._trace.shapes[chosen.index][:-1])
        for operation in self._trace.operations[choice.index + 1 :]:
            self._spread(operation, depends)
            if operation.index < last:
                continue
            alive = {memory for memory in depends if self._last_read.get(memory, -1) > operation.index}
            if len(alive) == 1:
                found = self._reader(operation.index, alive.pop(), rows)
                if found is not None:
                    return found
        return None

    def _stacks(self, choice: Operation) -> tuple[str, ...]:
        """Names of the parameters of the experts that the choice doesn't depend on."""
        behind, parameters = self._behind(choice), self._trace.parameters
        names = dict.fromkeys(member.parameter for member in self._group.members if member.parameter in parameters)
        return tuple(name for name in names if self._memory(parameters[name]) not in behind)

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

    def _weights(self, choice: Operation, stacks: set[int]) -> tuple[set[int], int]:
        """Returns what is made of the stacks of weights alone, and the index of the last operation that reads it."""
        plain = {self._memory(ref) for ref in self._trace.parameters.values()}
        weights, last = set(stacks), choice.index
        for operation in self._trace.operations:
            read = {self._memory(ref) for ref in operation.references()}
            if read & weights:
                last = max(last, operation.index)
                if read <= plain | weights:
                    weights |= {self._memory(ref) for ref in operation.outputs}
        return weights, last

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

    def _past_views(self, reader: Operation, argument: str) -> tuple[Operation, str]:
        """Goes on through operations that only hand all numbers on, in another form."""
        ref = reader.arguments[argument]
        size = math.prod(self._trace.shapes[ref.index])
        alone = len(reader.references()) == len(reader.outputs) == 1
        if not alone or math.prod(self._trace.shapes[reader.outputs[0].index]) != size:
            return reader, argument
        (result,) = reader.outputs
        if self._memory(result) != self._memory(ref) and self._last_read.get(self._memory(ref), -1) > reader.index:
            return reader, argument  # it is read elsewhere, too
        for operation in self._trace.operations[reader.index + 1 :]:
            for name, value in operation.arguments.items():
                if isinstance(value, TensorRef) and self._memory(value) == self._memory(result):
                    return self._past_views(operation, name)
        return reader, argument

    # -- their weights

    def _gates(self, choice: Operation, found: Chosen, scores: Scores, reader: Operation) -> Gates | None:
        """The last tensor with a weight for each chosen expert, or for each expert, that all weights are made of."""
        operations = self._trace.operations
        stacks = {self._memory(self._trace.parameters[name]) for name in self._stacks(choice)}
        start = next(index for index, place in self._places.items() if place == scores.place)
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
            if operation is choice or everything & chosen:
                chosen |= {self._memory(ref) for ref in operation.outputs}
                for number, ref in enumerate(operation.outputs):
                    if self._memory(ref) in numbers - stacks and self._trace.shapes[ref.index] in sources:
                        candidates.append((operation, number))
        for operation, number in reversed(candidates):
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
        (ref, _), chosen = use.operands[0], choice.outputs[found.output]
        return {self._trace.shapes[ref.index]: True, self._trace.shapes[chosen.index]: False}

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
