"""The two runs of an exactness check: the masked original, and the pruned model that follows its decisions.

Both are answered with what the recording decided by value, so that they take the recorded path. What they read where
something is decided is compared as well: an answer must not hide a difference.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Kept
from prunekit_core.groups.recording import Recording
from prunekit_core.modules.surgery import select_positions
from prunekit_core.plans.plan import Plan
from prunekit_core.program.calls import bind_arguments, operation_name, tensors_of, written_arguments
from prunekit_core.program.rules import ModuleOp
from prunekit_core.program.trace import Operation, TensorRef, is_continuous
from prunekit_core.record.decisions import ChosenFrom, answered, with_output
from prunekit_core.record.listener import Listener
from prunekit_core.torch_private.trees import pytree

Read = dict[int, list[torch.Tensor]]
"""By operation index: the real numbers that were read where something was decided, at the kept positions."""


class OtherProgramError(Exception):
    """The original ran other operations than were recorded, so that nothing can be said about their operands."""


class AnsweredRun(Listener):
    """Counts the operations of a run and answers those that decide something.

    Args:
        recording: The recorded program.
        kept: Kept units per group.
        whole: Whether the model that runs has all units.
        chosen: By operation index: positions among all units that another run chose, which this one is to choose.

    Attributes:
        read: What was read by operations that decide.
        chosen: What was given; of the whole model what it chose among the units that stay.
        left: What may be outputs though the forward didn't return it, by `TensorRef.index`.
    """

    def __init__(
        self, recording: Recording, kept: Kept, *, whole: bool, chosen: Mapping[int, torch.Tensor] | None = None
    ) -> None:
        self.left: dict[int, torch.Tensor] = {}
        self.chosen = dict(chosen or {})
        self._recording, self._kept, self._whole = recording, kept, whole
        self._following = recording.following() if recording.chooses(kept) else frozenset[int]()
        self.read: Read = {}
        self._next = 0

    def kept(self) -> list[torch.Tensor]:
        """Returns what was read and what may be outputs."""
        return [*self.left.values(), *(tensor for read in self.read.values() for tensor in read)]

    def compute(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Runs an operation; what it decides is what was decided when the program was recorded."""
        index = self._next
        self._next += 1
        result = self._decided(index, op, args, kwargs)
        operations, kept = self._recording.trace.operations, self._recording.trace.kept
        if kept and index < len(operations) and operations[index].op is op:
            for ref, tensor in zip(operations[index].outputs, tensors_of(result), strict=False):
                if ref in kept:
                    self.left[ref.index] = tensor
        return result

    def _decided(self, index: int, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        operations = self._recording.trace.operations
        among = self._recording.chosen_from(index, self._kept)
        if among is not None and operations[index].op is op and index not in self._recording.unread:
            self.read[index] = self._reading(operations[index], bind_arguments(op, args, kwargs))
            return self._choose(index, among, op, args, kwargs)
        decision = None if index in self._following else self._recording.trace.decisions.get(index)
        if decision is None or operations[index].op is not op or index in self._recording.unread:
            return self._result(index, op, args, kwargs)  # a decision that nobody follows may be another one
        self.read[index] = self._reading(operations[index], bind_arguments(op, args, kwargs))
        result = self._result(index, op, args, kwargs)
        kept = {} if self._whole else self._kept
        cuts = [self._recording.positions(ref.index, kept) for ref in operations[index].outputs]
        return answered(decision, cuts, [*args, *kwargs.values()], result)

    def _choose(self, index: int, among: ChosenFrom, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Chooses what the other run chose."""
        result = op(*args, **kwargs)
        if index not in self.chosen:
            return result
        return with_output(result, among.output, lambda _: among.among_these(self.chosen[index]))

    def _result(self, index: int, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return op(*args, **kwargs)

    def _reading(self, operation: Operation, arguments: Mapping[str, Any]) -> list[torch.Tensor]:
        found = []
        refs = operation.references()
        for ref, tensor in zip(refs, tensors_of(list(arguments.values())), strict=True):
            if is_continuous(tensor.dtype) and tensor.layout is torch.strided:
                cut = self._recording.positions(ref.index, self._kept) if self._whole else {}
                found.append(select_positions(tensor, cut).clone())  # it may be overwritten later
        return found


class MaskedOriginal(AnsweredRun):
    """The original: operations that depend on a whole axis run over its kept units only.

    Args:
        recording: The recorded program.
        plan: The cut.
        means: By operation index: what to multiply its result with, where a sum over units is divided by their number,
            so that it is a mean over those that are left.
        zeroed: By operation index: the arguments that are zero, as branches are switched off.
    """

    def __init__(
        self,
        recording: Recording,
        plan: Plan,
        means: Mapping[int, float] | None = None,
        zeroed: Mapping[int, Collection[str]] | None = None,
    ) -> None:
        super().__init__(recording, plan.kept, whole=True)
        self._plan, self._means, self._zeroed = plan, means or {}, zeroed or {}

    def _choose(self, index: int, among: ChosenFrom, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Chooses among the units that stay: what was recorded if that was assumed, else what the program would."""
        self._check(index, op)
        result = among.run(op, args, kwargs)
        if self._recording.trace.assumed:
            first = self._recording.trace.decisions[index][among.output]
            result = with_output(result, among.output, lambda _: among.among_all(first))
        self.chosen[index] = among.chosen(result)
        return result

    def _check(self, index: int, op: Any) -> None:
        operations = self._recording.trace.operations
        recorded = operations[index].name if index < len(operations) else "the end"
        if recorded != operation_name(op):
            raise OtherProgramError(f"the original ran {operation_name(op)} where {recorded} was recorded")

    def _result(self, index: int, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self._check(index, op)
        operations = self._recording.trace.operations
        if index in self._zeroed:
            args, kwargs = (), self._switched_off(index, op, args, kwargs)
        result = self._over_kept(index, op, args, kwargs)
        for tensor in tensors_of(result) if index in self._means else ():
            tensor.mul_(self._means[index])
        refs = operations[index].outputs
        for ref, tensor in zip(refs, tensors_of(result), strict=False):
            live = ref.index in self._recording.live and tensor.layout is torch.strided  # others are never cut
            if live and is_continuous(tensor.dtype) and bool(tensor.isnan().any()):
                self._clear(tensor, ref.index)
        return result

    def _switched_off(self, index: int, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Puts zeros in the place of arguments; what is written to in place is made zero itself."""
        arguments = bind_arguments(op, args, kwargs)
        for name in self._zeroed[index]:
            if name in written_arguments(op):
                arguments[name].zero_()
            else:
                arguments[name] = torch.zeros_like(arguments[name])
        return arguments

    def _clear(self, tensor: torch.Tensor, index: int) -> None:
        """Puts zeros where removed units have become no number: a direction of length zero has no norm to divide by."""
        for dim, kept in self._recording.positions(index, self._kept).items():
            removed = torch.ones(tensor.shape[dim], dtype=torch.bool, device="cpu")
            removed[kept] = False
            part = tensor.movedim(dim, 0)
            part[removed.to(tensor.device)] = part[removed.to(tensor.device)].nan_to_num(nan=0.0)

    def _over_kept(self, index: int, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        wholes = self._recording.wholes.get(index)
        names = {name for use in wholes.uses for name in layouts.groups_of(use.layout)} if wholes else set()
        kept: Kept = {name: self._kept[name] for name in names if name in self._kept}
        if not kept:
            return op(*args, **kwargs)
        if isinstance(op, ModuleOp):  # its attributes are those for the whole plan
            kept = self._kept
        operation = self._recording.trace.operations[index]
        arguments = bind_arguments(op, args, kwargs)
        for name, value in arguments.items():
            arguments[name] = self._sliced(operation.arguments[name], value, kept)
        for wanted in self._recording.expectations.get(index, ()):
            name, size = wanted.argument, sum(layouts.new_size(piece, kept) for piece in wanted.pieces) + wanted.offset
            if size == sum(piece.size for piece in wanted.pieces) + wanted.offset:
                continue
            if wanted.position is None:
                arguments[name] = size
            else:
                arguments[name] = [size if k == wanted.position else item for k, item in enumerate(arguments[name])]
        if index in self._recording.temperatures:
            temperature, _ = self._recording.temperatures[index]
            arguments[temperature.argument] = temperature.value
        given = bind_arguments(op, args, kwargs)
        written = _written(op, given)
        spare = {name: tensor.clone() for name, tensor in written.items()}  # else it would be written to twice
        whole = op(**{**given, **spare}) if spare else op(*args, **kwargs)
        result = op.run(arguments, self._sizes(operation.module)) if isinstance(op, ModuleOp) else op(**arguments)
        # what lies in memory as it was recorded, as what follows depends on that
        spread = self._spread(result, tensors_of(whole), operation.outputs, kept)
        for name, tensor in written.items():
            self._put_back(tensor, arguments[name], operation.arguments[name], kept)
        return self._same(spread, result, {id(arguments[name]): tensor for name, tensor in written.items()})

    def _put_back(self, tensor: torch.Tensor, smaller: torch.Tensor, ref: TensorRef, kept: Kept) -> None:
        """Puts what was written to the kept units of an argument to where the program holds it."""
        if smaller is not tensor:
            tensor.copy_(self._among_zeros(smaller, ref, kept))

    def _among_zeros(self, tensor: torch.Tensor, ref: TensorRef, kept: Kept) -> torch.Tensor:
        for dim, positions in self._recording.positions(ref.index, kept).items():
            shape = list(tensor.shape)
            shape[dim] = self._recording.trace.shapes[ref.index][dim]
            tensor = tensor.new_zeros(shape).index_copy_(dim, positions.to(tensor.device), tensor)
        return tensor

    @staticmethod
    def _same(spread: Any, result: Any, written: Mapping[int, torch.Tensor]) -> Any:
        """Returns the very arguments that an operation wrote to where it returned them."""
        leaves, form = pytree.tree_flatten(spread)
        found = [written.get(id(leaf), place) for leaf, place in zip(pytree.tree_leaves(result), leaves, strict=True)]
        return pytree.tree_unflatten(found, form)

    def _sizes(self, path: str) -> dict[tuple[str, str], Any]:
        """Returns the sizes that the plan sets in the attributes of a module and of those in it."""
        inside = f"{path}." if path else ""
        return {
            (edit.module[len(inside) :], edit.attribute): edit.new
            for edit in self._plan.edits
            if edit.module == path or edit.module.startswith(inside)
        }

    def _sliced(self, ref: Any, value: Any, kept: Kept) -> Any:
        if isinstance(value, torch.Tensor):
            return select_positions(value, self._recording.positions(ref.index, kept))
        if isinstance(value, list | tuple) and any(isinstance(item, torch.Tensor) for item in value):
            return [self._sliced(r, v, kept) for r, v in zip(ref, value, strict=True)]
        return value

    def _spread(self, result: Any, whole: Any, refs: Sequence[Any], kept: Kept) -> Any:
        """Puts results over kept units back to their places among zeros, in the memory format of the whole results."""
        leaves, form = pytree.tree_flatten(result)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        spread = []
        for ref, tensor, like in zip(refs, tensors, whole, strict=True):
            placed = torch.empty_strided(like.shape, like.stride(), dtype=tensor.dtype, device=tensor.device)
            spread.append(placed.copy_(self._among_zeros(tensor, ref, kept)))
        places = iter(spread)
        return pytree.tree_unflatten([next(places) if torch.is_tensor(leaf) else leaf for leaf in leaves], form)


def _written(op: Any, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Lists the tensors that an operation writes to, by argument."""
    names = written_arguments(op)
    return {name: arguments[name] for name in names if isinstance(arguments.get(name), torch.Tensor)}
