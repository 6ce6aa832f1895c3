"""The original with the removed units zeroed, run beside the pruned model.

The reference is the user's own module. Where the analysis put a replacement in its place (an ``nn.MultiheadAttention``
can't hold a smaller shape), the masked run needs the replacement, whose operations it can follow; so the replacement
is held against the user's module first, with the weights as they are and with the removed ones zeroed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.branches.branch import named_branches
from prunekit_core.branches.decoding import DECODING
from prunekit_core.branches.find import find_branches
from prunekit_core.branches.surgery import operate
from prunekit_core.check.answered_runs import AnsweredRun, MaskedOriginal
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.recording import Recording
from prunekit_core.modules.surgery import put_values, select_positions, tensor_at, zeroed
from prunekit_core.modules.tree import named_tensors
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.calls import operation_name, tensors_of
from prunekit_core.program.examples import Example
from prunekit_core.program.op_call import Role
from prunekit_core.program.outputs import output_tensors
from prunekit_core.record.listener import Listener
from prunekit_core.record.programs import swap_modules
from prunekit_core.record.random_numbers import draw_once
from prunekit_core.record.shadow import Shadow
from prunekit_core.record.shared_memory import written_parameters
from prunekit_core.rehearse.factors.deviations import Deviations
from prunekit_core.rehearse.rehearsal import Stage
from prunekit_core.torch_private.trees import pytree

SMALL = 0.1
"""Parameters of one value below this, such as layer scales, are raised: they would hide a wrong index."""

Pair = tuple[torch.Tensor, torch.Tensor]


class PrunedModelError(Exception):
    """The pruned model raised; its own exception is the cause."""


@attrs.frozen(eq=False)
class Runs:
    """What has to be equal.

    Attributes:
        names: Key paths of the outputs.
        expected: Outputs of the masked original, at the positions that stay.
        found: Outputs of the pruned model.
        decided: What both read where something was decided by value.
        replaced: Outputs of the user's own modules and of their replacements, at full size.
    """

    names: tuple[str, ...]
    expected: list[torch.Tensor]
    found: list[torch.Tensor]
    decided: list[tuple[list[torch.Tensor], list[torch.Tensor]]]
    replaced: list[Pair]

    def outputs(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Yields the outputs with their names."""
        yield from zip(self.names, self.expected, self.found, strict=True)

    def decisions(self) -> Iterator[Pair]:
        """Yields what both sides read where they decided. What only one side has read shows in its outputs."""
        for expected, found in self.decided:
            yield from zip(expected, found, strict=False)


class MaskedRun:
    """Two models to be run on the same inputs.

    Args:
        full: A copy of the original; its tensors are exchanged here, and its storage isn't written to.
        small: A copy of the pruned model, likewise.
        plan: The plan from one to the other.
        analysis: The original as analysed; with branches removed, where decoding was recorded, with that.
        registry: Where op rules and replacements are found.
        training: The mode to run in.
    """

    def __init__(
        self,
        full: nn.Module,
        small: nn.Module,
        plan: Plan,
        analysis: Analysis,
        registry: Registry,
        *,
        training: bool | None,
    ) -> None:
        self._full, self._small, self._plan = full, small, plan
        self._analysis, self._registry, self._training = analysis, registry, training
        self._position = followed(analysis, plan)
        self._cuts = {cut.parameter: cut for cut in plan.parameters}
        self._branches = named_branches(find_branches(analysis, registry.op_rules), plan.absent) if plan.absent else []
        self._surgery = operate(analysis, registry.op_rules, self._branches, plan.stubs) if plan.absent else None
        self._randomise()

    @property
    def _recording(self) -> Recording:
        return self._analysis.recordings[self._position]

    def _randomise(self) -> None:
        """Gives parameters that hold one value throughout (fresh norms, zero-initialised heads) others, alike in both.

        They could hide a wrong index.
        """
        generator = torch.Generator().manual_seed(0)
        scales, renaming = {r.parameter for r in self._plan.rescales}, self._plan.renaming
        for name, tensor in named_tensors(self._full).items():
            if name in scales or not _is_constant(tensor):
                continue
            value = float(tensor.detach().flatten()[0])
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
            if isinstance(tensor, nn.Parameter) and 0 < abs(value) < SMALL:
                value = math.copysign(1.0, value)
            fresh = (value * (0.5 + noise) if value else noise - 0.5).to(tensor)
            put_values(tensor, fresh)
            cut = self._cuts.get(name)
            if name not in self._plan.gone:
                smaller = select_positions(fresh, self._plan.positions(cut)) if cut else fresh.clone()
                put_values(tensor_at(self._small, renaming.after(name) or name), smaller)

    def _zero(self) -> None:
        """Zeroes what was removed: parameters, and buffers that stand for weights."""
        weights = {
            member.parameter
            for group in self._analysis.groups.values()
            for member in group.members
            if member.role is not Role.ALONG
        }
        for name, cut in self._cuts.items():
            tensor = tensor_at(self._full, name)
            if isinstance(tensor, nn.Parameter) or name in weights:
                put_values(tensor, zeroed(tensor, self._plan.positions(cut)))

    def run(self, example: Example) -> Runs:
        """Runs everything. It changes the models that it was made with, so it is called once.

        Raises:
            PrunedModelError: The pruned model raised.
            OtherProgramError: The original ran other operations than were recorded.
        """
        replaced = self._replaced(self._full, example)
        self._zero()
        masked = MaskedOriginal(self._recording, self._plan, self._means(), self._zeroed())
        whole = self._outputs(self._full, example, masked, swapped=True)
        if not masked.read:  # with other weights, decisions may well be others
            replaced += self._replaced(self._full, example)
        cuts = [self._recording.positions(ref.index, self._plan.kept) for ref in self._recording.trace.results]
        left_over = self._recording if self._surgery is None else self._surgery.analysis.recordings[self._position]
        smaller = AnsweredRun(left_over, self._plan.kept, whole=False, chosen=self._chosen(masked))
        try:
            # decisions are numbered by the recorded operations, which are those of replacements
            found = self._outputs(self._small, example, smaller, swapped=bool(masked.read or masked.left))
            replaced += self._replaced(self._small, example) if masked.read else []
        except Exception as error:  # whatever a model raises
            raise PrunedModelError(f"the pruned model raised {type(error).__name__}: {error}") from error
        self._renumber(smaller)
        left = [index for index in masked.left if index in smaller.left]
        return Runs(
            (*self._recording.trace.names, *("(not returned)" for _ in left)),
            [select_positions(tensor, cut) for tensor, cut in zip(whole, cuts, strict=True)]
            + [masked.left[index] for index in left],  # pinned, so of the same size
            found + [smaller.left[index] for index in left],
            [(masked.read[index], smaller.read.get(index, [])) for index in masked.read if self._stays(index)],
            replaced,
        )

    def _chosen(self, masked: MaskedOriginal) -> dict[int, torch.Tensor]:
        """Returns what the original chose, by the operations of what is left without branches."""
        if self._surgery is None:
            return masked.chosen
        places = self._surgery.places(self._recording.trace, self._position)
        return {places[index]: chosen for index, chosen in masked.chosen.items() if index in places}

    def _zeroed(self) -> dict[int, list[str]]:
        """Lists the operands of sums that are zero, as their branches are switched off."""
        found: dict[int, list[str]] = {}
        for branch in self._branches:
            for summand in branch.sums:
                if summand.recording == self._position:
                    found.setdefault(summand.operation, []).append(summand.argument)
        return found

    def _stays(self, operation: int) -> bool:
        return self._surgery is None or operation not in self._surgery.removed[self._position]

    def _renumber(self, smaller: AnsweredRun) -> None:
        """Numbers what the pruned model read and left as in the recording of the whole model."""
        if self._surgery is None:
            return
        whole, left = self._recording.trace, self._surgery.analysis.recordings[self._position].trace
        places = {place: index for index, place in self._surgery.places(whole, self._position).items()}
        tensors = {
            new.index: old.index
            for place, index in places.items()
            for new, old in zip(left.operations[place].outputs, whole.operations[index].outputs, strict=True)
        }
        smaller.read = {places[place]: read for place, read in smaller.read.items()}
        smaller.left = {tensors[index]: tensor for index, tensor in smaller.left.items()}

    def _means(self) -> dict[int, float]:
        """Finds where a sum over units is divided by their number, which is another one in the pruned model."""
        rules, kept = self._registry.op_rules, self._plan.kept
        if not Deviations(self._recording, rules, kept, ()).has_sums():
            return {}
        edits = {(edit.module, edit.attribute): edit.new for edit in self._plan.edits}
        _, drifts = Stage(self._analysis, self._registry, kept).replay(edits)
        own = [drift for drift in drifts if drift.recording == self._position]
        found = Deviations(self._recording, rules, kept, own).means
        return {index: math.exp(log) for index, log in found.items()}

    def random_operations(self, example: Example) -> tuple[str, ...]:
        """Finds out whether the program is random, by running the original again with other random numbers.

        Returns:
            What draws them; empty where both runs return the same.
        """
        streams = [_Stream(again=again) for again in (False, False, True)]
        same, again, other = (self._outputs(self._full, example, stream) for stream in streams)
        if not _equal(same, again):
            return ("something that doesn't follow the generators of torch, Python and NumPy",)
        if not _equal(same, other):
            return tuple(dict.fromkeys(streams[-1].drawn)) or ("Python's or NumPy's random numbers",)
        return ()

    def _replaced(self, model: nn.Module, example: Example) -> list[Pair]:
        """Runs a model with its own modules and with their replacements, both deciding for themselves."""
        if not self._analysis.swaps:
            return []
        own = self._outputs(model, example, Listener())
        return list(zip(own, self._outputs(model, example, Listener(), swapped=True), strict=True))

    def _outputs(
        self, model: nn.Module, example: Example, listener: Listener, *, swapped: bool = False
    ) -> list[torch.Tensor]:
        return run_copy(model, self._analysis, self._registry, example, listener, self._training, swapped=swapped)


def followed(analysis: Analysis, plan: Plan) -> int:
    """Returns the position of the recording that both sides of a comparison follow.

    It is the first one; where branches go and calls with a cache were recorded, the first one of these.
    """
    positions = [place for place, one in enumerate(analysis.recordings) if one.trace.label == DECODING]
    return positions[0] if plan.absent and positions else 0


def run_copy(
    model: nn.Module,
    analysis: Analysis,
    registry: Registry,
    example: Example,
    listener: Listener,
    training: bool | None,
    *,
    swapped: bool = False,
    prepare: Callable[[nn.Module], None] | None = None,
) -> list[torch.Tensor]:
    """Runs a copy of a model on real tensors as the analysed one was recorded, and returns the outputs.

    Args:
        model: The model, before a cut or after it.
        analysis: How it was recorded, before a cut.
        registry: Where rules and replacements are found.
        example: The inputs.
        listener: Receives the operations.
        training: The mode to run in.
        swapped: Whether modules are exchanged for their replacements first.
        prepare: Called with the copy before it is run.
    """
    shadow = Shadow(model, fake=False)
    shadow.shared_memory.take_over(
        written_parameters(analysis.recordings[0].trace)
    )  # a run starts with what the model has
    shadow.unchecked, shadow.gradients = analysis.shadow.unchecked, analysis.shadow.gradients
    if swapped:
        swap_modules(shadow.module, registry)
    if prepare is not None:
        prepare(shadow.module)
    shadow.watch(registry.opaque)
    shadow.flag_gradients(model)
    outputs = output_tensors(shadow.run(example, listener, registry.op_rules, training=training))
    shadow.let_go([*outputs, *listener.kept()])  # the next run would find its caches filled
    return outputs


class _Stream(Listener):
    """Runs a program, on request with other random numbers than those that follow from the seeds.

    Args:
        again: Whether whatever draws random numbers does it twice, and the second result counts.

    Attributes:
        drawn: Names of the operations whose two results differ.
    """

    def __init__(self, *, again: bool) -> None:
        self._again = again
        self.drawn: list[str] = []

    def start(self, tensors: Mapping[str, torch.Tensor], inputs: Any) -> None:
        if self._again:
            draw_once()

    def compute(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if not self._again or torch.Tag.nondeterministic_seeded not in getattr(op, "tags", ()):
            return op(*args, **kwargs)
        copied, named = pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, (tuple(args), dict(kwargs)))
        first = tensors_of(op(*copied, **named))
        result = op(*args, **kwargs)
        if not _equal(first, tensors_of(result)):
            self.drawn.append(operation_name(op))
        return result


def _equal(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    """Tells whether two runs of one program on the same numbers returned the same, but for the order of sums."""
    if len(first) != len(second):
        return False
    return all(
        a.shape == b.shape
        and (torch.equal(a, b) or torch.allclose(a.to(torch.complex128), b.to(torch.complex128), 1e-3, equal_nan=True))
        for a, b in zip(map(_dense, first), map(_dense, second), strict=True)
    )


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()


def _is_constant(tensor: torch.Tensor) -> bool:
    """Whether all elements are one value, and there are several."""
    if not tensor.is_floating_point() or tensor.numel() < 2 or tensor.layout is not torch.strided:
        return False
    flat = tensor.detach().flatten()
    return bool(flat[0] == flat[-1]) and bool((flat == flat[0]).all())
