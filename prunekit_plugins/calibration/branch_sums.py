"""Branches at work: what is added where, in a model that runs on real batches, with some branches switched off."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.branches.branch import Branch
from prunekit_core.errors import ArgumentError
from prunekit_core.groups.analysis import Analysis
from prunekit_core.program.calls import bind_arguments, written_arguments
from prunekit_core.program.linear_forms import Addition
from prunekit_core.program.rules import RuleTable, addition_of
from prunekit_core.program.trace import Operation, TensorRef, Trace, is_continuous
from prunekit_core.record.listener import Listener
from prunekit_core.record.shadow import Shadow
from prunekit_plugins.calibration.batches import Batch

_Key = tuple[str, Any]
"""The module that adds, and the operation that does."""


@attrs.frozen(eq=False)
class AddedBranch:
    """What one sum adds in one batch.

    Rows are the vectors along the last dim (tokens) of a tensor of up to three dims, and whole examples of one of more
    (feature maps). Positions that the batch's mask leaves out are not among them.

    Attributes:
        rest: Tensor ``[rows, features]``: what the branch is added to.
        added: Tensor ``[rows, features]``: what the branch adds.
        examples: Tensor ``[rows]``, int64, on the CPU: which example of the batch each row comes from.
        gradient: Tensor ``[rows, features]``: the derivative of the loss of each row's example with respect to
            ``added``; None where it wasn't asked for.
    """

    rest: torch.Tensor
    added: torch.Tensor
    examples: torch.Tensor
    gradient: torch.Tensor | None = None


@attrs.frozen
class SumPoint:
    """One sum of a recorded program, to find it in a run.

    Attributes:
        module: Dotted path of the module that adds.
        op: The operation.
        number: How many sums the module made with this operation before.
    """

    module: str
    op: Any
    number: int


def recorded_position(analysis: Analysis) -> int:
    """Returns the position of the recording in eval mode, of the first one where there is none."""
    modes = [recording.training for recording in analysis.recordings]
    return modes.index(False) if False in modes else 0


def number_sums(trace: Trace, rules: RuleTable) -> dict[int, SumPoint]:
    """Lists the sums of a recorded program by the index of their operation, in order."""
    counts: dict[_Key, int] = {}
    found = {}
    for operation in trace.operations:
        addition = addition_of(rules, operation.op)
        if addition is not None and _is_recorded_sum(trace, operation, addition):
            key = operation.module, operation.op
            number = counts[key] = counts.get(key, -1) + 1
            found[operation.index] = SumPoint(*key, number)
    return found


@attrs.frozen(eq=False)
class SumPlaces:
    """The sums of a recorded program, in order, by the module that makes them.

    A run with batches of another size may have other operations in between; what a module adds, and in which order,
    stays.

    Attributes:
        places: Module and operation to its sums in order, each as argument to the name of the branch that it is.
        rules: The op rules, which say what adds.
    """

    places: Mapping[_Key, Sequence[Mapping[str, str]]]
    rules: RuleTable

    @classmethod
    def of(cls, analysis: Analysis, branches: Iterable[Branch], rules: RuleTable) -> SumPlaces:
        """Lists the sums of the recording in eval mode (of the first one where there is none)."""
        position = recorded_position(analysis)
        names: dict[int, dict[str, str]] = {}
        for branch in branches:
            for summand in branch.sums:
                if summand.recording == position:
                    names.setdefault(summand.operation, {})[summand.argument] = branch.name
        places = dict[_Key, list[Mapping[str, str]]]()
        for index, point in number_sums(analysis.recordings[position].trace, rules).items():
            places.setdefault((point.module, point.op), []).append(names.get(index, {}))
        return cls(places, rules)

    def check(self, counts: Mapping[_Key, int], names: Collection[str], batch: Batch) -> None:
        """Raises `ArgumentError` unless a run made the sums of some branches as often as they were recorded.

        Where a model was recorded several times over (a decoding step after the first call), a run is one of these.
        """
        for key, recorded in self.places.items():
            concerned = {name for sums in recorded for name in sums.values()} & set(names)
            made = counts.get(key, 0)
            if concerned and not _repeats(recorded, made):
                raise ArgumentError(
                    "A calibration batch runs another program than the example inputs.",
                    where=batch.where,
                    why=f"{key[0] or 'the model'} adds {made} times, and {len(recorded)} times on the example inputs: "
                    f"what it does for {min(concerned)} isn't known",
                    hint="example inputs should be like the batches",
                )


def _repeats(recorded: Sequence[Mapping[str, str]], made: int) -> bool:
    if not 0 < made <= len(recorded) or len(recorded) % made:
        return False
    return all(recorded[place] == recorded[place % made] for place in range(len(recorded)))


def _is_recorded_sum(trace: Trace, operation: Operation, addition: Addition) -> bool:
    pair = [operation.arguments[name] for name in (addition.first, addition.second)]
    if not all(isinstance(ref, TensorRef) for ref in pair):
        return False
    shapes = {trace.shapes[ref.index] for ref in pair}
    return len(shapes) == 1 and all(is_continuous(trace.dtypes[ref.index]) for ref in pair)


def is_sum(first: Any, second: Any) -> bool:
    """Tells whether two arguments of a run are tensors of real numbers and of one shape."""
    pair = (first, second)
    return all(isinstance(one, torch.Tensor) for one in pair) and (
        first.shape == second.shape and is_continuous(first.dtype) and is_continuous(second.dtype)
    )


def switch_off(op: Any, arguments: dict[str, Any], gone: Iterable[str]) -> None:
    """Makes some arguments of a sum zero: the tensor itself where the operation writes to it."""
    for argument in gone:
        if argument in written_arguments(op):
            arguments[argument].zero_()
        else:
            arguments[argument] = torch.zeros_like(arguments[argument])


Show = Callable[[str, AddedBranch], None]


@attrs.define(eq=False)
class _Awaited:
    """A sum whose gradient comes later.

    Attributes:
        branch: Name of the branch.
        rest, added: What is added, whole.
        total: The sum.
        edge: Where its gradient arrives; None until autograd knows.
    """

    branch: str
    rest: torch.Tensor
    added: torch.Tensor
    total: torch.Tensor
    edge: Any = None


class SumListener(Listener):
    """The listener that switches branches off, and shows what others add.

    Args:
        shadow: The shadow that runs.
        places: Where branches are added.
        batch: The batch that runs.
        off: Names of the branches that are switched off.
        watched: Names of those that are shown.
        show: Called with the name of a branch and what it adds, while the operation runs; what it is given may be
            overwritten afterwards.
        gradients: Whether what is added is held for `gradients_of` instead of shown.
    """

    def __init__(
        self,
        shadow: Shadow,
        places: SumPlaces,
        batch: Batch,
        off: Collection[str] = (),
        watched: Collection[str] = (),
        show: Show | None = None,
        *,
        gradients: bool = False,
    ) -> None:
        self._shadow, self._places, self._batch = shadow, places, batch
        self._off, self._watched, self._show = set(off), set(watched), show
        self._gradients = gradients
        self._counts: dict[_Key, int] = {}
        self._awaited: list[_Awaited] = []

    def compute(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Runs an operation, a sum without the operands that are switched off."""
        self._settle()
        addition = addition_of(self._places.rules, op)
        key = (self._shadow.stack[-1] if self._shadow.stack else "", op)
        recorded = self._places.places.get(key) if addition is not None else None
        if addition is None or recorded is None:
            return op(*args, **kwargs)
        arguments = bind_arguments(op, args, kwargs)
        if not is_sum(arguments[addition.first], arguments[addition.second]):
            return op(*args, **kwargs)
        place = self._counts[key] = self._counts.get(key, 0) + 1
        names = recorded[place - 1] if place <= len(recorded) else {}
        return self._sum(op, addition, arguments, names)

    def _sum(self, op: Any, addition: Addition, arguments: dict[str, Any], names: Mapping[str, str]) -> Any:
        gone = {argument for argument, name in names.items() if name in self._off}
        switch_off(op, arguments, gone)
        shown = {argument: name for argument, name in names.items() if name in self._watched and argument not in gone}
        pairs = {name: self._pair(addition, arguments, argument) for argument, name in shown.items()}
        if self._gradients:
            pairs = {name: (rest.clone(), added.clone()) for name, (rest, added) in pairs.items()}
        elif self._show is not None:
            for name, (rest, added) in pairs.items():
                self._show(name, self.rows(rest, added))
        result = op(**arguments)
        if self._gradients:
            self._awaited.extend(_Awaited(name, rest, added, result) for name, (rest, added) in pairs.items())
        return result

    @staticmethod
    def _pair(addition: Addition, arguments: Mapping[str, Any], argument: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what an operand is added to, and the operand, as they stand in the sum."""
        first, second = arguments[addition.first], arguments[addition.second]
        factor = arguments.get(addition.factor, 1)
        scaled = second if factor == 1 else second * factor
        return (scaled, first) if argument == addition.first else (first, scaled)

    def _settle(self) -> None:
        """Notes where the gradients of the last sums arrive: an operation in place later makes it another tensor."""
        for awaited in reversed(self._awaited):
            if awaited.edge is not None:
                break
            if awaited.total.requires_grad:
                awaited.edge = torch.autograd.graph.get_gradient_edge(awaited.total)

    def finish(self) -> None:
        """Raises `ArgumentError` unless the run made the recorded sums of all that is switched off or watched."""
        self._settle()
        self._places.check(self._counts, self._off | self._watched, self._batch)

    def gradients_of(self, loss: torch.Tensor, scale: float) -> dict[str, list[AddedBranch]]:
        """Returns what the watched branches added, with the derivatives of a loss.

        Args:
            loss: A scalar that was computed from the outputs of the run.
            scale: What derivatives are multiplied by, so that they are those of single examples.
        """
        edges = [awaited.edge for awaited in self._awaited if awaited.edge is not None]
        found = iter(torch.autograd.grad(loss, edges, allow_unused=True) if edges else ())
        seen: dict[str, list[AddedBranch]] = {}
        for awaited in self._awaited:
            slope = next(found) if awaited.edge is not None else None
            slope = torch.zeros_like(awaited.added) if slope is None else slope * scale
            seen.setdefault(awaited.branch, []).append(self.rows(awaited.rest, awaited.added, slope))
        return seen

    def rows(self, rest: torch.Tensor, added: torch.Tensor, gradient: torch.Tensor | None = None) -> AddedBranch:
        """Arranges tensors of one shape as rows."""
        examples, keep = _examples_of(added, self._batch)
        parts = [None if one is None else _rows(one, keep) for one in (rest, added, gradient)]
        return AddedBranch(parts[0], parts[1], examples, parts[2])  # type: ignore[arg-type]  # these two are given


def _rows(tensor: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    tensor = tensor.detach()
    flat = tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.flatten(1)
    if tensor.dim() == 3:
        flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if keep is None else flat[keep.to(flat.device)]


def _examples_of(tensor: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tells which example each row comes from, and which rows count (None: all do).

    The examples lie along the first dim, each with as many parts (windows, heads) as the others; where they don't, all
    rows count as one example's.
    """
    lead = tuple(tensor.shape[:-1]) if tensor.dim() in (2, 3) else tuple(tensor.shape[:1])
    count = math.prod(lead)
    first = lead[0] if lead else 1
    if batch.size and first % batch.size == 0:
        examples = torch.arange(count, device="cpu") // (count // batch.size)
    else:
        examples = torch.zeros(count, dtype=torch.int64, device="cpu")
    counted = batch.counted(lead) if tensor.dim() in (2, 3) else None
    if counted is None:
        return examples, None
    keep = counted.flatten()
    return examples[keep.cpu()], keep
