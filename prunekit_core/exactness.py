"""The oracle: a pruned model must equal the original with the removed units zeroed.

The original runs with zeros in every parameter slice that was removed. Where an operation depends on the whole extent
of an axis (a contraction of two activations, a norm's statistics) it is run over the kept units only. Parameters that
hold one value throughout (zero-initialised heads, fresh norms) could hide a wrong index: they are randomised in both.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.analysis import Analysis, analyse
from prunekit_core.errors import PlanError
from prunekit_core.examples import Example
from prunekit_core.outputs import check_patterns, output_tensors
from prunekit_core.plan import Plan
from prunekit_core.recorder import check_recordable
from prunekit_core.registry import Registry, default_registry
from prunekit_core.shadow import Shadow
from prunekit_core.sides import MaskedSide, Side
from prunekit_core.surgery import named_tensors, select_positions, tensor_at, zero_positions

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
SMALL = 0.1
"""Parameters of one value below this, such as layer scales, are raised: they would hide a wrong index."""


@attrs.frozen
class ExactCheck:
    """What the comparison found.

    Attributes:
        error: Largest difference between the outputs, relative to the largest output value.
        tolerance: What was allowed.
        inexact: Pruned groups under operations whose result depends on the number of units; the original ran those
            operations over the kept units, so they are part of the comparison.
        outputs: How many output tensors were compared.
        decisions: How many operations decided something by value (a comparison, ``topk``, ``nms``). Both sides follow
            the decisions of the original, and what they read there was compared as well.
    """

    error: float
    tolerance: float
    inexact: tuple[str, ...]
    outputs: int
    decisions: int = 0

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
    free_outputs: Sequence[str] = (),
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
        free_outputs: The outputs that were free to lose units when the plan was made; what stays of them is compared.
        registry: Where op rules are found.

    Returns:
        The result; it is true when the outputs agree.

    Raises:
        PlanError: The plan doesn't fit the original.
    """
    registry = registry or default_registry()
    example = attrs.evolve(Example.of(inputs), free_outputs=check_patterns(free_outputs))
    original, pruned = check_recordable(original), check_recordable(pruned)
    # on real tensors, whose strides (and so which copies are made) are those of the run that is compared
    analysis = analyse(original, [example], registry, modes=(training, not training), fakes=(False,))
    if _missing_group(analysis, plan) is not None:  # a plan that was made from one mode may have finer groups
        analysis = analyse(original, [example], registry, modes=(training,), fakes=(False,))
    missing = _missing_group(analysis, plan)
    if missing is not None:
        raise PlanError("The plan was made for another model.", where=missing, why="the original has no such group")
    masked = _Masked(original, pruned, plan, analysis, registry)
    runs = masked.run(example, training)
    if len(runs.expected) != len(runs.found):
        raise PlanError(
            "The pruned model returns another number of tensors.", why=f"{len(runs.found)}, not {len(runs.expected)}"
        )
    worst = max((_difference(a, b) for a, b in runs.pairs()), default=float("nan"))
    dtypes = [tensor.dtype for tensor, _ in runs.pairs() if tensor.dtype in TOLERANCES]
    allowed = max((TOLERANCES[dtype] for dtype in dtypes), default=0.0) if tolerance is None else tolerance
    inexact = tuple(cut.group for cut in plan.cuts if analysis.groups[cut.group].mixes)
    return ExactCheck(worst, allowed, inexact, len(runs.expected), len(runs.decided))


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


@attrs.frozen(eq=False)
class _Runs:
    """Outputs of both sides, and what both read where something was decided."""

    expected: list[torch.Tensor]
    found: list[torch.Tensor]
    decided: list[tuple[list[torch.Tensor], list[torch.Tensor]]]

    def pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields what has to be equal. What only one side has read shows in its outputs."""
        yield from zip(self.expected, self.found, strict=True)
        for expected, found in self.decided:
            yield from zip(expected, found, strict=False)


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
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
            if isinstance(tensor, nn.Parameter) and 0 < abs(value) < SMALL:
                value = math.copysign(1.0, value)
            fresh = (value * (0.5 + noise) if value else noise - 0.5).to(tensor)
            tensor.data.copy_(fresh)
            cut = self._cuts.get(name)
            tensor_at(self._small, name).data.copy_(
                select_positions(fresh, self._plan.positions(cut)) if cut else fresh
            )

    def run(self, example: Example, training: bool) -> _Runs:
        rules = self._registry.op_rules
        full = Shadow(self._full, fake=False)
        for path, _ in self._analysis.swaps:
            replacement = self._registry.replacement(full.module.get_submodule(path))
            converted = replacement.convert(full.module.get_submodule(path)) if replacement else None
            if converted is not None:
                parent, _, name = path.rpartition(".")
                full.module.get_submodule(parent)._modules[name] = converted
        full.watch(self._registry.opaque)
        masked = MaskedSide(self._analysis.recordings[0], self._plan)
        recording = self._analysis.recordings[0]
        whole = output_tensors(full.run(example, masked, rules, training=training))
        refs = recording.trace.results
        cuts = [recording.positions(ref.index, self._plan.kept) for ref in refs]
        expected = [select_positions(tensor, cut) for tensor, cut in zip(whole, cuts, strict=True)]
        small = Shadow(self._small, fake=False)
        small.watch(self._registry.opaque)
        smaller = Side(self._analysis.recordings[0], self._plan.kept, whole=False)
        found = output_tensors(small.run(example, smaller, rules, training=training))
        decided = [(masked.read[index], smaller.read.get(index, [])) for index in masked.read]
        return _Runs(expected, found, decided)
