"""A cut checked by numbers before it is made: the second line of defence behind the rehearsal.

The plan is applied to a copy of the model's modules (tensors that stay as they are aren't copied), and the copy is
compared with the original that has the removed units zeroed, on the example inputs, with the recording that the plan
was made from. Differences that rounding can't explain stop the call, with the model as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import nn

from prunekit_core.branches.decoding import with_decoding
from prunekit_core.check.exactness import ExactCheck, compared, difference
from prunekit_core.check.masked_run import MaskedRun, followed, run_copy
from prunekit_core.errors import PrunekitError, VerificationError
from prunekit_core.groups.analysis import Analysis, analyse
from prunekit_core.groups.recording import Recording
from prunekit_core.modules.surgery import put_values
from prunekit_core.modules.tree import named_tensors
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.examples import Example
from prunekit_core.record.listener import Listener
from prunekit_core.record.shadow import Shadow
from prunekit_core.record.shared_memory import written_parameters
from prunekit_core.torch_private.trees import pytree

NEVER, AUTO, ALWAYS = "never", "auto", "always"
CHOICES = (NEVER, AUTO, ALWAYS)
SECONDS = 0.1
"""``"auto"`` compares where that is expected to take at most so long: a small share of the first call of a process. It
is told from counts, not from a clock, so that the same call does the same everywhere."""
SECONDS_PER_OPERATION, SECONDS_PER_MAC, SECONDS_PER_BYTE = 1e-3, 2e-10, 1e-9
"""What a comparison takes: per recorded operation, per multiply-accumulate of both models, per byte of tensors that are
cut. On the safe side of what ``benchmarks/verification.py`` measures with one thread."""
COPIED_BYTES = 2**28
"""``"auto"``: up to so many bytes of tensors that are cut, which are there twice more for a moment."""
_ALL_THE_SAME = 'verify="always" compares all the same'
TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Relative errors that rounding may make, in a program of any depth; anything else is compared in double precision."""


@attrs.frozen
class Verification:
    """What became of a verification.

    Attributes:
        check: What was compared; None where nothing was.
        why: Why nothing was compared; empty if something was, or if nothing was cut.
        failed: Whether the original raised, which the user should hear of even if nobody asked.
    """

    check: ExactCheck | None = None
    why: str = ""
    failed: bool = attrs.field(default=False, repr=False)

    def notes(self, wish: str) -> tuple[str, ...]:
        """Returns a line for the report where a comparison that was asked for wasn't possible, or the model raised."""
        return (str(self),) if self.failed or (wish == ALWAYS and self.check is None and self.why) else ()

    def __str__(self) -> str:
        if self.check is not None:
            return f"verified: relative error {self.check.error:.1e} against the original with the removed units zeroed"
        return f"not verified: {self.why}" if self.why else "not verified"


def verify_cut(
    model: nn.Module,
    plan: Plan,
    analysis: Analysis,
    registry: Registry,
    *,
    wish: str,
    costs: Mapping[str, tuple[float, float]],
) -> Verification:
    """Compares what a plan makes of a model with the original that has the removed units zeroed.

    Args:
        model: The model before the plan; it isn't touched.
        plan: The plan.
        analysis: The model as analysed.
        registry: Where op rules and replacements are found.
        wish: ``"never"``, ``"auto"`` (if it costs little) or ``"always"`` (if it is possible).
        costs: Cost model to (before, after), as in `Preview.costs`; ``"auto"`` wants ``"macs"``.

    Returns:
        What was compared, or why nothing was.

    Raises:
        VerificationError: The outputs differ.
    """
    if not (plan.cuts or plan.absent):
        return Verification()
    if wish == NEVER:
        return Verification(why='verify="never"; verify="always" compares the outputs')
    given = analysis.recordings[0].example  # with all that is returned, a cache too
    analysis = with_decoding(analysis, registry) if plan.absent else analysis
    recording = analysis.recordings[followed(analysis, plan)]
    why = _obstacle(model, plan, recording)
    if not why and analysis.shadow.reached:
        name = min(analysis.shadow.reached)
        why = f"the program reaches {name} past the model (a global variable, a registry): a copy would use it, too"
    if not why and wish == AUTO:
        why = _too_much(model, plan, recording, costs)
    if why:
        return Verification(why=why)
    check = _checked(model, plan, analysis, registry, double=False)
    if isinstance(check, str):
        return Verification(why=check, failed=True)
    if check.other_program and wish == ALWAYS:  # strides, and so which copies are made, differ on real tensors
        modes = (recording.training,)
        analysis = analyse(model, [given], registry, modes=modes, fakes=(False,), kept=plan.kept)
        analysis = with_decoding(analysis, registry) if plan.absent else analysis
        if any(analysis.groups[cut.group].size != cut.size for cut in plan.cuts if cut.group in analysis.groups):
            return Verification(why=check.why)
        if all(cut.group in analysis.groups for cut in plan.cuts):
            again = _checked(model, plan, analysis, registry, double=False)
            check = check if isinstance(again, str) else again
    if not check and not check.other_program:  # rounding goes away in double precision
        again = _checked(model, plan, analysis, registry, double=True)
        check = check if isinstance(again, str) else again
    if check.random or check.other_program:
        return Verification(why=check.why)
    if check.error <= check.tolerance:
        return Verification(why=check.why) if check.why else Verification(check)
    raise VerificationError(
        "The pruned model doesn't compute what the original with the removed units zeroed computes.",
        where=type(model).__name__,
        why=str(check),
        hint='please report it, with the model; verify="never" prunes all the same',
    )


def outputs_of_copy(model: nn.Module, plan: Plan, analysis: Analysis, registry: Registry) -> list[torch.Tensor]:
    """Returns what a copy computes to which a plan was applied, for `confirm_cut`."""
    recording = analysis.recordings[0]
    small = plan.apply(_copy(model, plan, double=False), registry=registry)
    return run_copy(small, analysis, registry, recording.example, Listener(), recording.training)


def confirm_cut(
    expected: Sequence[torch.Tensor], model: nn.Module, analysis: Analysis, registry: Registry, tolerance: float
) -> None:
    """Holds the model itself, once it is cut, against a copy that was.

    What programs reach past the model (a class, a global variable) is the model's own in both, and was whole for the
    copy.

    Args:
        expected: What the copy computes; see `outputs_of_copy`.
        model: The model, cut.
        analysis: The model as analysed.
        registry: Where op rules and replacements are found.
        tolerance: The relative error that is allowed.

    Raises:
        VerificationError: It computes something else; the cut has to be undone.
    """
    recording = analysis.recordings[0]
    found = run_copy(model, analysis, registry, recording.example, Listener(), recording.training)
    error = max(map(difference, expected, found), default=0.0)
    if len(found) != len(expected) or not error <= tolerance:
        raise VerificationError(
            "The pruned model doesn't compute what a pruned copy of it computes.",
            where=type(model).__name__,
            why=f"relative error {error:.2e}: the program reads something of the model past its attributes (a "
            "global variable, a class, an object that isn't copied), which a rehearsal can't follow",
            hint='hold it as an attribute of a module; verify="never" prunes all the same',
        )


def _obstacle(model: nn.Module, plan: Plan, recording: Recording) -> str:
    """Says why a cut can't be compared by numbers; empty if it can."""
    tensors = named_tensors(model)
    given = pytree.tree_leaves((recording.example.args, recording.example.kwargs))
    if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in [*given, *tensors.values()]):
        return "the model or its inputs have no values (meta device)"
    if plan.constants:
        changed = list(dict.fromkeys(constant.short for constant in plan.constants))
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"{changed[0]}{more} changes, so that the two compute something else"
    for name in written_parameters(recording.trace):
        if isinstance(tensors.get(name), nn.Parameter):
            return f"the forward pass writes to the parameter {name}"
    return ""


def _too_much(model: nn.Module, plan: Plan, recording: Recording, costs: Mapping[str, tuple[float, float]]) -> str:
    """Says why a comparison would take long; empty if it wouldn't."""
    if "macs" not in costs:
        return "what it would cost isn't known, as no cost model counts MACs"
    tensors = named_tensors(model)
    copied = sum(math.prod(cut.shape) * tensors[cut.parameter].element_size() for cut in plan.parameters)
    if copied > COPIED_BYTES:
        return f"copies of what is cut would take much memory; {_ALL_THE_SAME}"
    expected = SECONDS_PER_OPERATION * len(recording.trace.operations)
    expected += SECONDS_PER_MAC * sum(costs["macs"]) + SECONDS_PER_BYTE * copied
    return f"it would take more than {SECONDS:g} s; {_ALL_THE_SAME}" if expected > SECONDS else ""


def _checked(model: nn.Module, plan: Plan, analysis: Analysis, registry: Registry, *, double: bool) -> ExactCheck | str:
    """Compares; returns why not where the two can't be run.

    Args:
        double: Whether both run in double precision.
    """
    recording = analysis.recordings[followed(analysis, plan)]
    try:
        example = _doubled(recording.example) if double else recording.example
        full, small = (_copy(model, plan, double=double) for _ in range(2))
        plan.apply(small, registry=registry)
        dtypes = {tensor.dtype for tensor in named_tensors(full).values() if tensor.is_floating_point()}
        tolerance = min((TOLERANCES.get(dtype, 0.0) for dtype in dtypes), default=TOLERANCES[torch.float64])
        run = MaskedRun(full, small, plan, analysis, registry, training=recording.training)
        return compared(run, example, plan, analysis, tolerance)
    except PrunekitError:
        raise
    except Exception as error:  # whatever the masked original raises: what can't be run isn't compared
        return f"the masked original raised {type(error).__name__}: {error}"


def _doubled(example: Example) -> Example:
    def doubled(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    args, kwargs = pytree.tree_map_only(torch.Tensor, doubled, (example.args, example.kwargs))
    return attrs.evolve(example, args=args, kwargs=kwargs)


def _copy(model: nn.Module, plan: Plan, *, double: bool) -> nn.Module:
    """Copies the modules of a model; of its tensors only what would be written to."""
    copied = Shadow(model, fake=False).module
    written = {rescale.parameter for rescale in plan.rescales}
    for name, tensor in named_tensors(copied).items():
        if double and tensor.is_floating_point():
            put_values(tensor, tensor.detach().double())
        elif name in written:
            put_values(tensor, tensor.detach().clone())
    for own, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        own.requires_grad_(theirs.requires_grad)  # programs ask whether a parameter is frozen
    return copied
