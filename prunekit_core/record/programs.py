"""The programs of a model: what it does in every mode, for every example."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import attrs
from torch import nn

from prunekit_core.errors import RecordingError
from prunekit_core.modules.surgery import exchange_module
from prunekit_core.plugins.registry import Registry
from prunekit_core.plugins.stand_ins import blame_of, stand_in
from prunekit_core.program.examples import Example
from prunekit_core.program.sameness import same_program
from prunekit_core.program.trace import Trace
from prunekit_core.record.decisions import Choices
from prunekit_core.record.fakes import needs_values
from prunekit_core.record.recorder import try_to_record
from prunekit_core.record.shadow import Shadow

_LABELS = {None: "as set", False: "eval", True: "train"}


@attrs.frozen(eq=False)
class Programs:
    """What was recorded.

    Attributes:
        shadow: The shadow that ran.
        swaps: Modules that it holds a replacement for: (module path, registered name).
        recorded: The trace of every program, with its example and the training flag that it was recorded with.
        failed: What was recorded in modes that couldn't be recorded to their end.
        notes: Lines for the report.
    """

    shadow: Shadow
    swaps: tuple[tuple[str, str], ...]
    recorded: tuple[tuple[Trace, Example, bool | None], ...]
    failed: tuple[Trace, ...]
    notes: tuple[str, ...]


def record_programs(
    model: nn.Module,
    examples: Sequence[Example],
    registry: Registry,
    modes: Sequence[bool | None],
    fakes: Sequence[bool],
    choices: Choices | None = None,
) -> Programs:
    """Records a model in every mode; on fakes, and where the program needs values, once more on real tensors.

    BatchNorm and dropout read their ``training`` flag, but tie the same axes in both modes
    (`Registry.same_in_training`). Where no other module reads its flag, the first recording of an example is the
    program of the other modes as well. Where one does, the other mode is recorded, and dropped if it differs only
    inside such layers.

    Choices may be made in the program's place (`Choices`).

    Layers that can't hold smaller shapes are exchanged for prunable ones (`swap_modules`). A program may test for the
    class of the layer (``isinstance(m, nn.MultiheadAttention)``) and go another way if it is another one: then no
    parameter of the replacement is read, and the model is recorded once more with its own layers.

    Raises:
        RecordingError: The forward raised in the first mode, on everything that it was recorded on.
    """
    programs = _record_programs(_Attempts(model, examples, registry, modes, fakes, True, choices))
    unused = _unused(programs)
    if not unused:
        return programs
    try:
        own = _record_programs(_Attempts(model, examples, registry, modes, fakes, False, choices))
    except RecordingError:  # it doesn't run with its own layer either: the first recording is all there is
        return programs
    if _used(own) <= _used(programs):  # the layer is never run, whatever its class
        return programs
    note = (
        f"the program asks for the class of {unused[0]}, so that nothing can stand in for it: it keeps its inner widths"
    )
    return attrs.evolve(own, notes=(*own.notes, note))


def _used(programs: Programs) -> set[str]:
    """Names the parameters that some operation reads."""
    found: set[str] = set()
    for trace, _, _ in programs.recorded:
        read = {ref.index for operation in trace.operations for ref in operation.references()}
        found.update(name for name, ref in trace.parameters.items() if ref.index in read)
    return found


def _unused(programs: Programs) -> list[str]:
    """Lists the exchanged modules of whose parameters none is read."""
    if not programs.swaps:
        return []
    used = _used(programs)
    return [path for path, _ in programs.swaps if not any(name.startswith(f"{path}.") for name in used)]


def _record_programs(attempts: _Attempts) -> Programs:
    """Records every mode, in the first way that works."""
    last: RecordingError | None = None
    incomplete: Programs | None = None  # the first mode ran, a later one failed for want of values
    for fake, gradients in itertools.product(attempts.fakes, (False, True)):
        if not fake and any(parameter.is_meta for parameter in attempts.model.parameters()):
            break
        if gradients is not attempts.differentiates:
            continue  # gradients are on exactly where a forward has shown that it needs them
        try:
            found = attempts.run(fake=fake, gradients=gradients)
        except RecordingError as error:
            last = error
            continue
        if not found.failed:
            return found
        if incomplete is not None:
            return incomplete  # real tensors didn't help that mode either
        if not attempts.failed_on_fakes:
            return found
        incomplete = found  # on real tensors the other mode may run as well
    if incomplete is not None:
        return incomplete
    assert last is not None
    raise last


@attrs.define(eq=False)
class _Attempts:
    """Attempts to record a model, in order: on fake tensors, then on real ones, each with gradients off, then on.

    An attempt starts with a shadow of its own. What it shows about the program decides which attempts follow, so it is
    kept here even where the attempt ends in an error.

    Example: the forward calls ``torch.autograd.grad`` and, in training only, ``x.nonzero()``. (fake, gradients off)
    raises and shows that it differentiates; (fake, on) records eval mode, but train mode needs values; (real, off) is
    skipped; (real, on) records both modes.

    Attributes:
        differentiates: Whether a forward raised because gradients were off.
        failed_on_fakes: What failed on fake tensors for want of values: the mode that did, ``"train mode"``; or empty.
        faults: What layer types said wrongly in earlier attempts.
    """

    model: nn.Module
    examples: Sequence[Example]
    registry: Registry
    modes: Sequence[bool | None]
    fakes: Sequence[bool]
    swapped: bool
    choices: Choices | None = None
    differentiates: bool = False
    failed_on_fakes: str = ""
    faults: list[str] = attrs.field(factory=list)

    def run(self, *, fake: bool, gradients: bool) -> Programs:
        """Records every mode for every example on one shadow.

        Raises:
            RecordingError: The forward raised in the first mode, or raised because gradients are off.
        """
        shadow = Shadow(self.model, fake=fake)
        shadow.gradients = gradients
        declined: dict[str, list[str]] = {}
        swaps = swap_modules(shadow.module, self.registry, declined) if self.swapped else []
        kept = [
            f"{whose} returned None for {_some(paths)}: what isn't converted stays" for whose, paths in declined.items()
        ]
        shadow.watch(self.registry.opaque)
        shadow.flag_gradients(self.model)
        notes = [*self._notes(fake=fake, gradients=gradients), *kept]
        recorded: list[tuple[Trace, Example, bool | None]] = []
        failed: list[Trace] = []
        for example in self.examples:
            for position, training in enumerate(self.modes):
                label = _LABELS[training]
                trace, error, note = _try_mode(shadow, example, self.registry, label, training, self.choices)
                notes.extend(note)
                if error is not None:
                    self.faults.extend(filter(None, shadow.faults))
                    self.differentiates = self.differentiates or _differentiates(error)
                    if position == 0 or self.differentiates is not gradients:
                        error.why = "; ".join(filter(None, (error.why, *kept)))
                        raise error
                    notes.append(f"{label} mode was not recorded: {error.why}")
                    failed.append(trace)
                    if fake and False in self.fakes and needs_values(error.__cause__):
                        self.failed_on_fakes = f"{label} mode"
                    continue
                earlier = [known for known, of, _ in recorded if of is example]
                if position and _is_known(trace, earlier, shadow, self.registry):
                    continue
                recorded.append((trace, example, training))
                if all(self.registry.same_in_training(shadow.modules[path]) for path in shadow.modes.readers):
                    break  # nothing in this forward depends on the mode: the other modes run the same program
        return Programs(shadow, tuple(swaps), tuple(recorded), tuple(failed), tuple(notes))

    def _notes(self, *, fake: bool, gradients: bool) -> list[str]:
        """Lines for the report on how an attempt differs from the first one."""
        notes: list[str] = []
        if not fake and self.fakes[0]:
            reasons = dict.fromkeys(self.faults or [f"{self.failed_on_fakes or 'the program'} depends on values"])
            notes.extend(f"{reason}: recorded on real tensors instead of fake ones" for reason in reasons)
        if gradients:
            notes.append("the forward differentiates: recorded with gradients on, as the operations below autograd")
        return notes


def _differentiates(error: RecordingError) -> bool:
    """Tells whether a forward raised because gradients were off: it calls autograd itself."""
    texts = ("requires_grad", "require grad", "grad_fn", "nference tensor", "saved for backward")
    return isinstance(error.__cause__, RuntimeError) and any(text in error.why for text in texts)


def _try_mode(
    shadow: Shadow,
    example: Example,
    registry: Registry,
    label: str,
    training: bool | None,
    choices: Choices | None,
) -> tuple[Trace, RecordingError | None, list[str]]:
    """Records a mode; where a norm refuses one value per channel in training (a batch of one), without that check."""
    trace, error = try_to_record(shadow, example, registry.op_rules, label=label, training=training, choices=choices)
    if error is None or training is False or shadow.unchecked:
        return trace, error, []
    shadow.unchecked = True
    again, still = try_to_record(shadow, example, registry.op_rules, label=label, training=training, choices=choices)
    if still is None:
        return again, None, [f"{label} mode was recorded without the check of norms that says: {error.why}"]
    shadow.unchecked = False
    return trace, error, []


def _is_known(trace: Trace, recorded: Sequence[Trace], shadow: Shadow, registry: Registry) -> bool:
    """Tells whether a forward differs from an earlier one at most inside layers that tie the same axes in all modes."""
    inside = {path for path, module in shadow.modules.items() if registry.same_in_training(module)}
    return any(same_program(known, trace, inside) for known in recorded)


def _some(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def swap_modules(
    shadow: nn.Module, registry: Registry, declined: dict[str, list[str]] | None = None
) -> list[tuple[str, str]]:
    """Exchanges modules that can't hold a smaller shape for prunable equivalents.

    Args:
        shadow: The module in which they are.
        registry: Where replacements are found.
        declined: Takes whose replacements (of plugins that aren't built in) return None, with the paths of the modules.

    Raises:
        PluginError: A replacement raises, or is no module around the same parameters.
    """
    swaps = []
    for path, module in list(shadow.named_modules()):
        replacement = registry.replacement(module)
        converted = stand_in(registry, replacement, module, path) if replacement is not None and path else None
        if replacement is not None and converted is not None:
            converted.train(module.training)
            exchange_module(shadow, module, converted)
            swaps.append((path, replacement.name))
        elif replacement is not None and path and declined is not None:
            blame = blame_of(replacement, registry)
            if not blame.built_in:
                declined.setdefault(blame.where, []).append(path)
    return swaps
