"""Reading what the rules say about a function of some tensors, without a model around it."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.algebra.axes import Axis, Form, factors, is_pinned, leaves, reason_of, resolve, segments
from prunekit_core.algebra.reasons import Reason
from prunekit_core.errors import RecordingError
from prunekit_core.groups.propagate import Propagation, parameter_axes, propagate
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.program.examples import Example
from prunekit_core.program.op_call import Kind, Role, Verb
from prunekit_core.program.rules import RuleTable
from prunekit_core.program.trace import Trace
from prunekit_core.record.recorder import record
from prunekit_core.record.shadow import Shadow


def sample(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """Makes a tensor of distinct whole numbers around zero, none of them zero, in random order.

    Sums and products of whole numbers are exact in float64, so results can be compared bit by bit.
    """
    count = torch.Size(shape).numel()
    numbers = torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu") - count // 2
    return torch.where(numbers >= 0, numbers + 1, numbers).to(dtype).reshape(shape)


class _Case(nn.Module):
    """Runs a function on its own parameters; those that are no weights of the operation count as activations."""

    def __init__(self, function: Callable[..., Any], tensors: Sequence[torch.Tensor], weights: Sequence[int]) -> None:
        super().__init__()
        self.function, self.weights, self.count = function, tuple(weights), len(tensors)
        for position, tensor in enumerate(tensors):
            free = tensor.is_floating_point() or tensor.is_complex()
            self.register_parameter(f"x{position}", nn.Parameter(tensor.detach().clone(), requires_grad=free))

    def forward(self) -> Any:
        own = [getattr(self, f"x{position}") for position in range(self.count)]
        return self.function(*(x if k in self.weights else x.clone() for k, x in enumerate(own)))


@attrs.frozen(eq=False)
class AxesRead:
    """What the rules say about a function of some tensors.

    Attributes:
        propagation: The axes of all tensors, and what the rules said beyond ties.
        inputs: Axes of the given tensors.
        outputs: Axes of the tensors that the function returned.
    """

    propagation: Propagation
    inputs: tuple[tuple[Axis, ...], ...]
    outputs: tuple[tuple[Axis, ...], ...]

    def __str__(self) -> str:
        """Writes inputs and outputs as ``a2 b3, a2 c4 -> a2 (b3+c4)``.

        A letter with a size is a run of units that may shrink, equal letters shrink together; ``4!`` is pinned;
        ``(a2*b3)`` is a product and ``(a2+b3)`` a concat; the scalar is ``()``.
        """
        names: dict[int, str] = {}
        letters = itertools.chain(
            string.ascii_lowercase, map("".join, itertools.product(string.ascii_lowercase, repeat=2))
        )

        def write(axis: Axis) -> str:
            root = resolve(axis)
            if is_pinned(root):
                return f"{root.size}!" if root.size > 1 else str(root.size)
            if root.form is Form.PRODUCT:
                return "(" + "*".join(map(write, factors(root))) + ")"
            if root.form is Form.CONCAT:
                return "(" + "+".join(map(write, segments(root))) + ")"
            if id(root) not in names:
                names[id(root)] = next(letters)
            return f"{names[id(root)]}{root.size}"

        sides = [", ".join(" ".join(map(write, dims)) or "()" for dims in side) for side in (self.inputs, self.outputs)]
        return " -> ".join(sides).strip()

    def reason(self, tensor: int, dim: int) -> Reason | None:
        """Returns why a dim of an input is pinned."""
        return reason_of(self.inputs[tensor][dim])

    def role(self, tensor: int, dim: int) -> Role | None:
        """Returns what the rules say that an input does along one of its dims."""
        return self.propagation.effects.roles.get((f"x{tensor}", dim % len(self.inputs[tensor])))

    def kinds(self, tensor: int, dim: int) -> set[Kind]:
        """Returns what the rules say that the units along a dim of an input are."""
        own = {id(leaf) for leaf in leaves(self.inputs[tensor][dim])}
        return {kind for axis, kind in self.propagation.effects.kinds if own & {id(leaf) for leaf in leaves(axis)}}

    def used_whole(self, verb: Verb) -> set[int]:
        """Returns the identities of the leaves whose whole extent some operation uses with this verb."""
        uses = (use for found in self.propagation.effects.whole.values() for use in found)
        return {id(leaf) for use in uses if use.verb is verb for leaf in leaves(use.axis)}

    def verbs(self, tensor: int, dim: int) -> set[Verb]:
        """Returns how operations use the whole extent of a dim of an input."""
        own = {id(leaf) for leaf in leaves(self.inputs[tensor][dim])}
        return {verb for verb in Verb if own & self.used_whole(verb)}

    @property
    def not_understood(self) -> tuple[str, ...]:
        """What was pinned for want of a rule, as ``"operation: why"``."""
        return tuple(f"{gap.operation}: {gap.why}" for gap in self.propagation.not_understood)


def read_axes(
    function: Callable[..., Any],
    tensors: Sequence[torch.Tensor],
    *,
    weights: Sequence[int] = (),
    registry: Registry | None = None,
) -> AxesRead:
    """Records a function of some tensors and lets the rules tie their axes; no input or output is pinned.

    Args:
        function: Calls operations on the tensors and returns a tensor, or several.
        tensors: What it is called with: floating-point ones have free axes.
        weights: Positions of the tensors that are parameters of the operation; the others are activations.
        registry: Where rules are found; None for the default registry.

    Raises:
        RecordingError: The function raised.
    """
    rules = (registry or default_registry()).op_rules
    case = _Case(function, tensors, weights)
    try:
        trace = _record(case, rules, fake=True)
    except RecordingError:  # operations that need values
        trace = _record(case, rules, fake=False)
    known = parameter_axes([trace], rules)
    propagation = propagate(trace, rules, known, free_outputs=["*"])
    inputs = tuple(known[f"x{position}"] for position in range(len(tensors)))
    return AxesRead(
        propagation=attrs.evolve(propagation, trace=trace), inputs=inputs, outputs=_outputs(trace, propagation)
    )


def _record(case: _Case, rules: RuleTable, *, fake: bool) -> Trace:
    shadow = Shadow(case, fake=fake)
    shadow.watch(lambda module: None)
    return record(shadow, Example((), {}), rules, label="kit", training=None)


def _outputs(trace: Trace, propagation: Propagation) -> tuple[tuple[Axis, ...], ...]:
    for ref in trace.results:
        assert ref.index in propagation.tensors, "the function returned a tensor that no operation made"
    return tuple(propagation.tensors[ref.index] for ref in trace.results)
