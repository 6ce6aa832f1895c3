"""Hidden states of teacher and student that are the same tensor, unit by unit: matched by the analysis and the plan."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.branches.calls import Calls, calls_of
from prunekit_core.errors import ArgumentError, PlanError, RecordingError
from prunekit_core.graph.graph import Graph
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.recording import Recording
from prunekit_core.modules.tree import Layer, ModelTree
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.trace import TensorRef, is_continuous

Place = tuple[int, ...]
"""Positions in nested tuples and lists: where a tensor is in what a module returns; empty where it is that."""


@attrs.frozen(eq=False)
class HiddenState:
    """A tensor that a module of the teacher returns, and its counterpart.

    Attributes:
        teacher: Dotted path of the module.
        student: Dotted path of the same module in the student.
        place: Where the tensor is in what the module returns.
        kept: Per dim that lost units, the positions of the teacher's tensor that the student has.
    """

    teacher: str
    student: str
    place: Place
    kept: Mapping[int, torch.Tensor]

    def of_teacher(self, tensor: torch.Tensor) -> torch.Tensor:
        """Takes what the student has out of the teacher's tensor."""
        for dim, positions in self.kept.items():
            tensor = tensor.index_select(dim, positions.to(tensor.device))
        return tensor


def match_hidden(
    teacher: nn.Module, plan: Plan, example: Any, registry: Registry, layers: Iterable[Layer] | None = None
) -> tuple[HiddenState, ...]:
    """Finds the hidden states that a student still has.

    Args:
        teacher: The model before the plan; it is analysed on the example.
        plan: The plan that leads to the student.
        example: Example inputs, an `Example`.
        registry: Where rules are found.
        layers: The modules whose outputs are compared; None for the innermost ones in which branches are added up
            (blocks).

    Returns:
        In the order of the program. Modules that left with the plan are skipped, as are those that run several times,
        and those that return no tensor with units.

    Raises:
        PlanError: The plan was made for another model.
        ArgumentError: No module is left to compare.
    """
    graph = Graph.of(teacher, example, registry=registry)
    analysis = _analysis_of(graph, plan)
    calls = calls_of(analysis, graph.registry.op_rules)
    if calls is None:
        raise RecordingError(
            "The program doesn't run the same way twice.",
            where=type(teacher).__name__,
            why="so it isn't known which tensors its modules return",
            hint='leave "hidden" out of the weights',
        )
    chosen = _blocks(graph) if layers is None else sorted(ModelTree(graph.model).paths_of(layers))
    found = _matched(analysis.recordings[0], calls[0], chosen, plan)
    if not found:
        raise ArgumentError(
            "There are no hidden states to compare.",
            why=f"none of {len(chosen)} modules returns, once, a tensor that the student has"
            if chosen
            else "no module adds branches up",
            hint='name modules whose outputs are compared: hidden=["layer1", "layer2"]',
        )
    return tuple(found)


def _blocks(graph: Graph) -> list[str]:
    """Paths of the modules that add branches up themselves."""
    recording = graph.branch_analysis.recordings[0]
    operations = recording.trace.operations
    sums = [summand for branch in graph.branches() for summand in branch.sums if summand.recording == 0]
    return sorted({operations[summand.operation].module for summand in sums})


def _matched(recording: Recording, calls: Calls, chosen: Sequence[str], plan: Plan) -> list[HiddenState]:
    renaming, kept = plan.renaming, plan.kept
    gone = {stub.module for stub in plan.stubs}
    found = []
    for path in sorted((path for path in chosen if len(calls.get(path, ())) == 1), key=lambda p: calls[p][0].start):
        place = renaming.place(path)
        if place is None or path in gone:
            continue
        for where, ref in _tensors(calls[path][0].result):
            if is_continuous(recording.trace.dtypes[ref.index]) and len(recording.trace.shapes[ref.index]) > 1:
                found.append(HiddenState(path, place, where, recording.positions(ref.index, kept)))
                break
    return found


def _tensors(value: Any, place: Place = ()) -> Iterator[tuple[Place, TensorRef]]:
    if isinstance(value, TensorRef):
        yield place, value
    elif isinstance(value, tuple | list):
        for position, item in enumerate(value):
            yield from _tensors(item, (*place, position))


def _analysis_of(graph: Graph, plan: Plan) -> Analysis:
    """Returns the analysis that a plan was made with: where branches go, a cache is no output.

    Raises:
        PlanError: It was made with none of them.
    """
    strange = _strange(graph.analysis, plan)
    if not strange:
        return graph.analysis
    if not _strange(graph.branch_analysis, plan):
        return graph.branch_analysis
    raise PlanError(
        "The plan was made for another model.",
        where=strange,
        why="the teacher has no such parameter, or other units in it",
        hint="the teacher is the model before the plan; of a plan that was made with further arguments of the analysis "
        "(num_heads, more inputs), hidden states can't be matched",
    )


def _strange(analysis: Analysis, plan: Plan) -> str:
    """Names a parameter of which a plan leaves other positions than an analysis says; empty if there is none."""
    kept = plan.kept
    for cut in plan.parameters:
        layout = analysis.parameters.get(cut.parameter)
        if layout is None or layout.shape != cut.shape:
            return cut.parameter
        own, planned = layout.positions(kept), plan.positions(cut)
        if own.keys() != planned.keys() or not all(torch.equal(own[dim], planned[dim]) for dim in own):
            return cut.parameter
    return ""


class ModuleOutputs:
    """What some modules return while a model runs.

    Args:
        model: The model.
        states: Dotted path of each module to where the tensor is in what it returns.
    """

    def __init__(self, model: nn.Module, states: Mapping[str, Place]) -> None:
        self._model, self._states = model, states
        self._found: dict[str, torch.Tensor] = {}
        self._listening = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watches until the end of a ``with`` statement."""
        with contextlib.ExitStack() as hooks:
            for path, place in self._states.items():
                handle = self._model.get_submodule(path).register_forward_hook(self._hook(path, place))
                hooks.callback(handle.remove)
            yield

    def listen(self) -> None:
        """Notes what the modules return from now on; not what is computed again in a backward pass."""
        self._listening = True

    def take(self) -> dict[str, torch.Tensor]:
        """Returns the tensors since `listen`, by path, and lets go of them."""
        found, self._found, self._listening = self._found, {}, False
        return found

    def _hook(self, path: str, place: Place) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            for position in place:
                output = output[position]
            if self._listening:
                self._found[path] = output

        return note


def paired(
    states: Sequence[HiddenState], student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor], where: str
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Pairs the hidden states of one run, of the teacher's what the student has.

    Args:
        states: What is compared.
        student: Path of each module to what it returned.
        teacher: The same of the teacher.
        where: The batch, for the message.

    Raises:
        ArgumentError: A state wasn't made, or has another shape.
    """
    found = {}
    for state in states:
        own, full = student.get(state.student), teacher.get(state.teacher)
        wanted = None if full is None else state.of_teacher(full)
        if own is None or wanted is None or own.shape != wanted.shape:
            shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (own, wanted)]
            raise ArgumentError(
                "Hidden states of student and teacher don't match.",
                where=f"{state.student}, {where}",
                why=f"the student has {shapes[0]}, the teacher {shapes[1]} of the units that stay",
                hint="the plan must lead from the teacher to the student",
            )
        found[state.student] = (own, wanted.to(own.device))
    return found
