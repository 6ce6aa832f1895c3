"""The programs of a model: what it does in every mode, for every example."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import attrs
from torch import nn

from prunekit_core.errors import RecordingError
from prunekit_core.modules.surgery import exchange_module
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.examples import Example
from prunekit_core.program.sameness import same_program
from prunekit_core.program.trace import Trace
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
) -> Programs:
    """Records a model in every mode; on fakes, and where the program needs values, once more on real tensors.

    Some layers tie the same axes in all modes, though they ask for it. Where no other module asks, the first recording
    of an example stands for the other modes; where one does, it stands for those in which all else is the same.

    A program may ask for the very class of a layer. Where nothing used the parameters of a layer that something else
    stands in for, it is recorded once more with the layer itself.

    Raises:
        RecordingError: The forward raised in the first mode, on everything that it was recorded on.
    """
    programs = _record_programs(model, examples, registry, modes, fakes, swapped=True)
    unused = _unused(programs)
    if not unused:
        return programs
    try:
        own = _record_programs(model, examples, registry, modes, fakes, swapped=False)
    except RecordingError:  # then it is no other branch that this one stands for
        return programs
    if _used(own) <= _used(programs):
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
    """Lists the modules with stand-ins of whose parameters none is read."""
    if not programs.swaps:
        return []
    used = _used(programs)
    return [path for path, _ in programs.swaps if not any(name.startswith(f"{path}.") for name in used)]


def _record_programs(
    model: nn.Module,
    examples: Sequence[Example],
    registry: Registry,
    modes: Sequence[bool | None],
    fakes: Sequence[bool],
    *,
    swapped: bool,
) -> Programs:
    last: RecordingError | None = None
    partial: Programs | None = None
    valued = ""
    ways = [(fake, gradients) for fake in fakes for gradients in (False, True)]
    differentiates = False
    for fake, gradients in ways:
        if not fake and any(parameter.is_meta for parameter in model.parameters()):
            break
        if gradients is not differentiates:
            continue
        shadow = Shadow(model, fake=fake)
        shadow.gradients = gradients
        swaps = swap_modules(shadow.module, registry) if swapped else []
        shadow.watch(registry.opaque)
        shadow.flag_gradients(model)
        notes = []
        if not fake and fakes[0]:
            notes.append(f"{valued or 'the program'} depends on values: recorded on real tensors instead of fake ones")
        if gradients:
            notes.append("the forward differentiates: recorded with gradients on, as the operations below autograd")
        recorded: list[tuple[Trace, Example, bool | None]] = []
        failed: list[Trace] = []
        settled: set[int] = set()
        try:
            for (number, example), (position, training) in itertools.product(enumerate(examples), enumerate(modes)):
                if number in settled:
                    continue
                label = _LABELS[training]
                trace, error, note = _try_mode(shadow, example, registry, label, training)
                notes.extend(note)
                if error is not None:
                    differentiates = differentiates or _differentiates(error)
                    if position == 0 or differentiates is not gradients:
                        raise error
                    notes.append(f"{label} mode was not recorded: {error.why}")
                    failed.append(trace)
                    if fake and False in fakes and needs_values(error.__cause__):
                        valued = f"{label} mode"
                    continue
                if position and _is_known(
                    trace, [known for known, of, _ in recorded if of is example], shadow, registry
                ):
                    continue
                recorded.append((trace, example, training))
                if all(registry.same_in_training(shadow.modules[path]) for path in shadow.modes.asked):
                    settled.add(number)
        except RecordingError as error:
            last = error
            continue
        found = Programs(shadow, tuple(swaps), tuple(recorded), tuple(failed), tuple(notes))
        if partial is not None and failed:
            return partial
        if not failed or not valued:
            return found
        partial = found  # on real tensors the other mode may run as well
    if partial is not None:
        return partial
    assert last is not None
    raise last


def _differentiates(error: RecordingError) -> bool:
    """Tells whether a forward raised because gradients were off: it calls autograd itself."""
    texts = ("requires_grad", "require grad", "grad_fn", "nference tensor", "saved for backward")
    return isinstance(error.__cause__, RuntimeError) and any(text in error.why for text in texts)


def _try_mode(
    shadow: Shadow, example: Example, registry: Registry, label: str, training: bool | None
) -> tuple[Trace, RecordingError | None, list[str]]:
    """Records a mode, without the checks of norms where it can't be recorded with them, and says so."""
    trace, error = try_to_record(shadow, example, registry.op_rules, label=label, training=training)
    if error is None or training is False or shadow.unchecked:
        return trace, error, []
    shadow.unchecked = True
    again, still = try_to_record(shadow, example, registry.op_rules, label=label, training=training)
    if still is None:
        return again, None, [f"{label} mode was recorded without the check of norms that says: {error.why}"]
    shadow.unchecked = False
    return trace, error, []


def _is_known(trace: Trace, recorded: Sequence[Trace], shadow: Shadow, registry: Registry) -> bool:
    """Tells whether a forward does what one in another mode did, but inside layers that tie the same axes in both."""
    inside = {path for path, module in shadow.modules.items() if registry.same_in_training(module)}
    return any(same_program(known, trace, inside) for known in recorded)


def swap_modules(shadow: nn.Module, registry: Registry) -> list[tuple[str, str]]:
    """Exchanges modules that can't hold a smaller shape for prunable equivalents."""
    swaps = []
    for path, module in list(shadow.named_modules()):
        replacement = registry.replacement(module)
        converted = replacement.convert(module) if replacement is not None and path else None
        if replacement is not None and converted is not None:
            converted.train(module.training)
            exchange_module(shadow, module, converted)
            swaps.append((path, replacement.name))
    return swaps
