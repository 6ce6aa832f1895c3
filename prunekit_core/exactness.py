"""The oracle: a pruned model must equal the original with the removed units zeroed.

The original runs with zeros in every parameter slice that was removed. Where an operation depends on the whole extent
of an axis (a contraction of two activations, a norm's statistics) it is run over the kept units only. Parameters that
hold one value throughout (zero-initialised heads, fresh norms) could hide a wrong index: they are randomised in both.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils import _pytree as pytree

from prunekit_core import layout as layouts
from prunekit_core.analysis import Analysis, Recording, analyse
from prunekit_core.errors import PlanError
from prunekit_core.examples import Example
from prunekit_core.layout import Kept, Layout
from prunekit_core.plan import Plan
from prunekit_core.recorder import check_recordable, output_tensors
from prunekit_core.registry import Registry, default_registry
from prunekit_core.rules import ModuleOp
from prunekit_core.shadow import Shadow, Sink, bind_arguments, tensors_of
from prunekit_core.surgery import named_tensors, select_positions, tensor_at, zero_positions

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@attrs.frozen
class ExactCheck:
    """What the comparison found.

    Attributes:
        error: Largest difference between the outputs, relative to the largest output value.
        tolerance: What was allowed.
        inexact: Pruned groups under operations whose result depends on the number of units; the original ran those
            operations over the kept units, so they are part of the comparison.
        outputs: How many output tensors were compared.
    """

    error: float
    tolerance: float
    inexact: tuple[str, ...]
    outputs: int

    @property
    def exact(self) -> bool:
        """Whether the outputs agree."""
        return self.outputs > 0 and self.error <= self.tolerance

    def __bool__(self) -> bool:
        return self.exact

    def __str__(self) -> str:
        verdict = "exact" if self.exact else "NOT exact"
        return f"{verdict}: relative error {self.error:.2e}, tolerance {self.tolerance:.0e}, {self.outputs} outputs"


def check_exact(
    original: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    inputs: Any,
    *,
    tolerance: float | None = None,
    training: bool = False,
    registry: Registry | None = None,
) -> ExactCheck:
    """Compares a pruned model with the original that has the removed units zeroed.

    Args:
        original: The model before the plan.
        pruned: The model after it, with the same weights (not trained since).
        plan: The plan from one to the other.
        inputs: Example inputs to run both on.
        tolerance: Allowed relative error; None for 1e-10 in float64, 1e-5 in float32.
        training: Mode to run in; anything random must be off for a comparison in train mode.
        registry: Where op rules are found.

    Returns:
        The result; it is true when the outputs agree.

    Raises:
        PlanError: The plan doesn't fit the original.
    """
    registry = registry or default_registry()
    example = Example.of(inputs)
    original, pruned = check_recordable(original), check_recordable(pruned)
    # on real tensors, whose strides (and so which copies are made) are those of the run that is compared
    analysis = analyse(original, [example], registry, modes=(training, not training), fakes=(False,))
    if _missing_group(analysis, plan) is not None:  # a plan that was made from one mode may have finer groups
        analysis = analyse(original, [example], registry, modes=(training,), fakes=(False,))
    missing = _missing_group(analysis, plan)
    if missing is not None:
        raise PlanError("The plan was made for another model.", where=missing, why="the original has no such group")
    masked = _Masked(original, pruned, plan, analysis, registry)
    expected, found = masked.run(example, training)
    if len(expected) != len(found):
        raise PlanError("The pruned model returns another number of tensors.", why=f"{len(found)}, not {len(expected)}")
    worst = max((_difference(a, b) for a, b in zip(expected, found, strict=True)), default=float("nan"))
    dtypes = [tensor.dtype for tensor in expected if tensor.dtype in TOLERANCES]
    allowed = max((TOLERANCES[dtype] for dtype in dtypes), default=0.0) if tolerance is None else tolerance
    inexact = tuple(cut.group for cut in plan.cuts if analysis.groups[cut.group].mixes)
    return ExactCheck(worst, allowed, inexact, len(expected))


def _missing_group(analysis: Analysis, plan: Plan) -> str | None:
    """Returns the first group of a plan that the analysis doesn't have in that size."""
    sizes = {name: group.size for name, group in analysis.groups.items()}
    return next((cut.group for cut in plan.cuts if sizes.get(cut.group) != cut.size), None)


def _difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    a, b = expected.detach().to(torch.float64), found.detach().to(torch.float64)
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)) or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = a[finite].abs().max().clamp(min=1e-30)
    return float((a[finite] - b[finite]).abs().max() / scale)


class _Masked:
    """The original with zeros, and the pruned model with the same randomised constants."""

    def __init__(
        self, original: nn.Module, pruned: nn.Module, plan: Plan, analysis: Analysis, registry: Registry
    ) -> None:
        self._plan, self._analysis, self._registry = plan, analysis, registry
        self._full = copy.deepcopy(original)
        self._small = copy.deepcopy(pruned)
        self._cuts = {cut.parameter: cut for cut in plan.parameters}
        self._randomise()
        for name, cut in self._cuts.items():
            tensor = tensor_at(self._full, name)
            if isinstance(tensor, nn.Parameter):
                zero_positions(tensor, plan.positions(cut))

    def _randomise(self) -> None:
        generator = torch.Generator().manual_seed(0)
        scales = {r.parameter for r in self._plan.rescales}
        for name, tensor in named_tensors(self._full).items():
            constant = tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
            if not constant or name in scales:
                continue
            value = float(tensor.detach().flatten()[0])
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            fresh = (value * (0.5 + noise) if value else noise - 0.5).to(tensor)
            tensor.data.copy_(fresh)
            cut = self._cuts.get(name)
            tensor_at(self._small, name).data.copy_(
                select_positions(fresh, self._plan.positions(cut)) if cut else fresh
            )

    def run(self, example: Example, training: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        rules = self._registry.op_rules
        full = Shadow(self._full, fake=False)
        for path, _ in self._analysis.swaps:
            replacement = self._registry.replacement(full.module.get_submodule(path))
            converted = replacement.convert(full.module.get_submodule(path)) if replacement else None
            if converted is not None:
                parent, _, name = path.rpartition(".")
                full.module.get_submodule(parent)._modules[name] = converted
        full.watch(self._registry.opaque)
        sink = _OverKept(self._analysis.recordings[0], self._plan)
        expected = output_tensors(full.run(example, sink, rules, training=training))
        small = Shadow(self._small, fake=False)
        small.watch(self._registry.opaque)
        found = output_tensors(small.run(example, Sink(), rules, training=training))
        return expected, found


class _OverKept(Sink):
    """Runs operations that depend on a whole axis over its kept units only."""

    def __init__(self, recording: Recording, plan: Plan) -> None:
        self._recording, self._plan, self._kept = recording, plan, plan.kept
        self._next = 0

    def compute(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        index = self._next
        self._next += 1
        wholes = self._recording.wholes.get(index)
        names = {name for layout, _, _ in wholes.uses for name in layouts.groups_of(layout)} if wholes else set()
        kept = {name: self._kept[name] for name in names if name in self._kept}
        if not kept:
            return op(*args, **kwargs)
        if isinstance(op, ModuleOp):  # its attributes are those for the whole plan
            kept = self._kept
        operation = self._recording.trace.operations[index]
        arguments = bind_arguments(op, args, kwargs)
        for name, value in arguments.items():
            arguments[name] = self._sliced(operation.arguments[name], value, kept)
        for name, position, pieces in self._recording.expectations.get(index, ()):
            size = sum(layouts.new_size(piece, kept) for piece in pieces)
            if position is None:
                arguments[name] = size
            else:
                arguments[name] = [size if k == position else item for k, item in enumerate(arguments[name])]
        if index in self._recording.temperatures:
            temperature, _ = self._recording.temperatures[index]
            arguments[temperature.argument] = temperature.value
        whole = tensors_of(op(*args, **kwargs))  # lies in memory as what follows was recorded with
        result = op.run(arguments, self._sizes(operation.module)) if isinstance(op, ModuleOp) else op(**arguments)
        return self._spread(result, whole, operation.outputs, kept)

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
            return select_positions(value, self._positions(ref.index, kept))
        if isinstance(value, list | tuple) and any(isinstance(item, torch.Tensor) for item in value):
            return [self._sliced(r, v, kept) for r, v in zip(ref, value, strict=True)]
        return value

    def _positions(self, index: int, kept: Kept) -> dict[int, torch.Tensor]:
        found: Sequence[Layout] = self._recording.live.get(index, ())
        return {
            dim: layouts.kept_positions(layout, kept)
            for dim, layout in enumerate(found)
            if layouts.new_size(layout, kept) != layout.size
        }

    def _spread(self, result: Any, whole: Any, refs: Sequence[Any], kept: Kept) -> Any:
        """Puts results over kept units back to their places among zeros, in the memory format of the whole results."""
        leaves, form = pytree.tree_flatten(result)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        spread = []
        for ref, tensor, like in zip(refs, tensors, whole, strict=True):
            for dim, positions in self._positions(ref.index, kept).items():
                shape = list(tensor.shape)
                shape[dim] = self._recording.trace.shapes[ref.index][dim]
                tensor = tensor.new_zeros(shape).index_copy_(dim, positions.to(tensor.device), tensor)
            placed = torch.empty_strided(like.shape, like.stride(), dtype=tensor.dtype, device=tensor.device)
            spread.append(placed.copy_(tensor))
        places = iter(spread)
        return pytree.tree_unflatten([next(places) if torch.is_tensor(leaf) else leaf for leaf in leaves], form)
