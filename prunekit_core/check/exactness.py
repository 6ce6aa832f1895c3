"""The oracle: a pruned model must equal the original with the removed units zeroed.

The original runs with zeros in every parameter slice that was removed. Where an operation depends on the whole extent
of an axis (a contraction of two activations, a norm's statistics) it is run over the kept units only. Parameters that
hold one value throughout (zero-initialised heads, fresh norms) could hide a wrong index: they are randomised in both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.branches.decoding import with_decoding
from prunekit_core.branches.find import find_branches
from prunekit_core.check.answered_runs import OtherProgramError
from prunekit_core.check.masked_run import MaskedRun, PrunedModelError, Runs, followed
from prunekit_core.errors import PlanError
from prunekit_core.groups.analysis import Analysis, analyse
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.program.examples import Example
from prunekit_core.program.outputs import check_patterns
from prunekit_core.record.recorder import check_recordable

TOLERANCES = {
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.bfloat16: 5e-2,
    torch.float16: 1e-2,
}


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
        why: What differed, or why nothing could be compared; empty where the outputs agree.
        other_program: Whether the original ran other operations than when it was recorded, so that nothing was
            compared.
        random: What draws random numbers, where the program is random and the outputs differ; a comparison says
            nothing about such a program.
    """

    error: float
    tolerance: float
    inexact: tuple[str, ...]
    outputs: int
    decisions: int = 0
    why: str = ""
    random: tuple[str, ...] = ()
    other_program: bool = False

    @property
    def exact(self) -> bool:
        """Whether the outputs agree."""
        return self.outputs > 0 and self.error <= self.tolerance and not self.why

    def __bool__(self) -> bool:
        return self.exact

    def __str__(self) -> str:
        if self.other_program:
            return f"NOT compared: {self.why}, as values decide what runs; give other inputs, or more of them"
        verdict = "exact" if self.exact else "NOT exact"
        text = f"{verdict}: relative error {self.error:.2e}, tolerance {self.tolerance:.0e}, {self.outputs} outputs"
        return f"{text}; {self.why}" if self.why else text


def check_exact(
    original: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    inputs: Any,
    *,
    tolerance: float | None = None,
    training: bool = False,
    free_outputs: Sequence[str] = (),
    momentum_copies: Mapping[str, str] | None = None,
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
        momentum_copies: What was declared of them when the plan was made.
        registry: Where op rules are found.

    Returns:
        The result; it is true when the outputs agree. An output without a single finite value has been compared
        with nothing: then it isn't.

    Raises:
        PlanError: The plan doesn't fit the original.
    """
    registry = registry or default_registry()
    example = attrs.evolve(Example.of(inputs), free_outputs=check_patterns(free_outputs))
    original, pruned = check_recordable(original), check_recordable(pruned)

    # on real tensors, whose strides (and so which copies are made) are those of the run that is compared
    def analysed(*modes: bool) -> Analysis:
        found = analyse(
            original,
            [example],
            registry,
            modes=modes,
            fakes=(False,),
            declared_copies=momentum_copies,
            kept=plan.kept,
        )
        return with_decoding(found, registry) if plan.absent else found

    analysis = analysed(training, not training)
    if _missing_group(analysis, plan) is not None:  # a plan that was made from one mode may have finer groups
        analysis = analysed(training)
    missing = _missing_group(analysis, plan)
    if missing is not None:
        raise PlanError("The plan was made for another model.", where=missing, why="the original has no such group")
    known = {branch.name for branch in find_branches(analysis, registry.op_rules)} if plan.absent else set()
    unknown = next((name for name in plan.absent if name not in known), None)
    if unknown is not None:
        raise PlanError("The plan was made for another model.", where=unknown, why="the original has no such branch")
    run = MaskedRun(copy.deepcopy(original), copy.deepcopy(pruned), plan, analysis, registry, training=training)
    recording = analysis.recordings[followed(analysis, plan)]
    return compared(run, recording.example, plan, analysis, tolerance)


def compared(
    run: MaskedRun, example: Example, plan: Plan, analysis: Analysis, tolerance: float | None = None
) -> ExactCheck:
    """Runs both sides on one example and compares them.

    Args:
        run: The two models.
        example: What they run on.
        plan: The cut.
        analysis: The original as analysed.
        tolerance: See `check_exact`.

    Raises:
        PlanError: The pruned model returns another number of tensors.
    """
    inexact = tuple(cut.group for cut in plan.cuts if analysis.groups[cut.group].inexact)
    try:
        runs = run.run(example)
    except (PrunedModelError, OtherProgramError) as error:
        other = isinstance(error, OtherProgramError)
        return ExactCheck(float("inf"), tolerance or 0.0, inexact, 0, why=str(error), other_program=other)
    if len(runs.expected) != len(runs.found):
        raise PlanError(
            "The pruned model returns another number of tensors.", why=f"{len(runs.found)}, not {len(runs.expected)}"
        )
    pairs = [*_pairs(runs)]
    dtypes = [expected.dtype for _, expected, _ in pairs if expected.dtype in TOLERANCES]
    allowed = max((TOLERANCES[dtype] for dtype in dtypes), default=0.0) if tolerance is None else tolerance
    errors = [(difference(expected, found), where) for where, expected, found in pairs]
    worst, where = max(errors, default=(float("nan"), ""), key=lambda entry: entry[0])
    why = ""
    random: tuple[str, ...] = ()
    if not worst <= allowed:
        why = f"{where} differs" if errors else "the model returns no tensor"
        random = run.random_operations(example)
    else:
        empty = next((name for name, expected, _ in runs.outputs() if not _has_finite(expected)), None)
        if empty is not None:
            why = f"{_output(empty)} has no finite value, so that nothing was compared"
    if random:
        why = f"the program is random (it draws in {', '.join(random)}): switch that off to compare"
    return ExactCheck(worst, allowed, inexact, len(runs.expected), len(runs.decided), why, random)


def _output(name: str) -> str:
    return f"the output {name}" if name else "the output"


def _pairs(runs: Runs) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yields everything that has to be equal, with a name."""
    for name, expected, found in runs.outputs():
        yield _output(name), expected, found
    for expected, found in runs.decisions():
        yield "what is read where the program decides by value", expected, found
    for expected, found in runs.replaced:
        yield "a replacement of a module (hook prunekit_replacements)", expected, found


def _missing_group(analysis: Analysis, plan: Plan) -> str | None:
    """Returns the first group of a plan that the analysis doesn't have in that size."""
    sizes = {name: group.size for name, group in analysis.groups.items()}
    return next((cut.group for cut in plan.cuts if sizes.get(cut.group) != cut.size), None)


def difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """The largest difference, relative to the largest value; infinite where one is no number and the other is."""
    if expected.shape != found.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    a, b = (_plain(tensor) for tensor in (expected, found))
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)):
        return float("inf")
    if not torch.equal(a[~finite].nan_to_num(nan=0.5), b[~finite].nan_to_num(nan=0.5)):  # infinities become large
        return float("inf")
    if not finite.any():
        return 0.0
    scale = a[finite].abs().max().clamp(min=1e-30)
    return float((a[finite] - b[finite]).abs().max() / scale)


def _has_finite(tensor: torch.Tensor) -> bool:
    return not tensor.numel() or bool(torch.isfinite(_plain(tensor)).any())


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Any tensor as dense real numbers in double precision."""
    dense = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    if dense.is_complex():
        dense = torch.view_as_real(dense.resolve_conj())
    return dense.to(torch.float64)
