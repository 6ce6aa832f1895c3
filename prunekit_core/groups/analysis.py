"""The result of analysing a model: its groups, and how every tensor dim is made of their units.

A group is one free leaf of size above one together with every parameter dim that holds it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import attrs
from torch import nn

from prunekit_core.algebra.axes import Axis, pin
from prunekit_core.algebra.layout import Kept, Layout, groups_of
from prunekit_core.algebra.polynomial import Number, multiplied
from prunekit_core.algebra.reasons import Reason
from prunekit_core.collector import collection_paused
from prunekit_core.groups import unrecorded
from prunekit_core.groups.choosing import choices_among, choices_in_turn, first_choices
from prunekit_core.groups.expert_lists import ExpertList, first_entries, tie_entries
from prunekit_core.groups.freeze import Freezer
from prunekit_core.groups.moving_averages import MomentumCopy, momentum_copies, tie_run, unrun_tensors
from prunekit_core.groups.position_reads import ANYTHING, Followed, followed_in, reads_numbers, reads_of
from prunekit_core.groups.propagate import NotUnderstood, ParameterAxes, Propagation, parameter_axes, propagate
from prunekit_core.groups.recording import ParameterLayout, Recording
from prunekit_core.groups.unit_group import UnitGroup
from prunekit_core.groups.zeros import Zeros
from prunekit_core.modules.edits import Stub
from prunekit_core.modules.entries import NO_ENTRIES, Entries
from prunekit_core.plugins.layer_facts import roles_by_type
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.examples import Example
from prunekit_core.program.op_call import Verb
from prunekit_core.program.outputs import check_free
from prunekit_core.program.rules import RuleTable
from prunekit_core.program.sameness import same_where_live
from prunekit_core.program.trace import TensorRef, Trace
from prunekit_core.record.decisions import Choices
from prunekit_core.record.programs import Programs, record_programs
from prunekit_core.record.shadow import Shadow


@attrs.frozen(eq=False)
class Analysis:
    """Everything known about a model after recording and propagation.

    Attributes:
        groups: By name, in order of the model's parameters.
        parameters: Layouts of all parameters and buffers, by canonical name.
        recordings: One per mode and example.
        untouched: Parameters that no recording touched.
        not_understood: Operations that were pinned for want of a rule.
        notes: Further lines for the report.
        shadow: The shadow on which plans are rehearsed.
        swaps: Modules that the shadow holds a replacement for: (module path, registered name).
        copies: Momentum copies, which are cut as their originals are.
        stubs: Modules that a program without some branches has others for.
        entries: Entries of lists of modules that such a program has no more.
        failed: What was recorded in modes that couldn't be recorded to their end.
        declared: What was declared of momentum copies.
        decoding: Whether the last recordings are of calls that are given a cache; see `with_decoding`.
        undecoded: Why there are none, though the model returns a cache; empty if that isn't so, or nobody has tried.
        lists: Lists of modules with an entry for each unit of an axis.
        followed: What follows the numbers that the programs read of positions; None where that isn't known.
        choices: What was chosen in the place of the programs while they were recorded; None for what they chose.
    """

    groups: Mapping[str, UnitGroup]
    parameters: Mapping[str, ParameterLayout]
    recordings: tuple[Recording, ...]
    untouched: tuple[str, ...]
    not_understood: tuple[NotUnderstood, ...]
    notes: tuple[str, ...]
    shadow: Shadow
    swaps: tuple[tuple[str, str], ...] = ()
    copies: tuple[MomentumCopy, ...] = ()
    stubs: tuple[Stub, ...] = ()
    entries: Entries = NO_ENTRIES
    failed: tuple[Trace, ...] = ()
    declared: Mapping[str, str] = attrs.field(factory=dict)
    decoding: bool = False
    undecoded: str = ""
    lists: tuple[ExpertList, ...] = ()
    followed: Followed | None = None
    choices: Choices | None = None

    @property
    def counted(self) -> tuple[tuple[Recording, float], ...]:
        """The recordings that costs are counted on, in their first mode, and how often each counts.

        That is the first recording, once, unless examples say otherwise: then those that count. The last one of
        them ends with the largest cache.
        """
        first = [recording for recording in self.recordings if recording.training is self.recordings[0].training]
        chosen = [(one, one.example.counts) for one in first if one.example.counts is not None]
        return tuple((one, times) for one, times in chosen if times is not None) or ((self.recordings[0], 1.0),)

    def elements(self, size_of: Callable[[Layout], Number]) -> dict[str, Number]:
        """Computes how many elements parameters and buffers have.

        Those of modules in a list that loses modules are alike, and how many stay is all that is known: they are
        counted together, under the names of those in the first module.

        Args:
            size_of: Computes sizes of layouts: a `Sizer` numbers, a `SymbolicSizer` polynomials.
        """
        counted = first_entries(self.lists, self.parameters).items()
        return {n: multiplied(map(size_of, (*lists, *self.parameters[n].dims))) for n, lists in counted}


def analyse(
    model: nn.Module,
    examples: Sequence[Example],
    registry: Registry,
    *,
    modes: Sequence[bool | None] = (False, True),
    fakes: Sequence[bool] = (True, False),
    declared_copies: Mapping[str, str] | None = None,
    kept: Kept | None = None,
) -> Analysis:
    """Records a model in every mode and finds its groups.

    Args:
        model: The model, as `check_recordable` returned it; it is not touched.
        examples: Example inputs; each is recorded in every mode.
        registry: Where op rules and replacements are found.
        modes: Training flags to record in; the first must run, later ones may fail with a note.
        fakes: What to record on, in this order until one works: True for fake tensors, False for real ones.
        declared_copies: Path of a submodule that follows another one to that of its original.
        kept: Kept units per group, by the names of groups in this analysis. Programs that choose units then choose
            among these, as with all others at minus infinity. Without it, a program that is recorded on real tensors
            is recorded with the first units chosen, so that what it does holds for whichever are left.

    Raises:
        RecordingError: The forward raised on the example inputs.
        PluginError: What a layer type says about its parameters is wrong.
    """
    with collection_paused():
        programs = record_programs(model, examples, registry, modes, fakes)
        names = [name for trace, _, _ in programs.recorded for name in trace.names]
        check_free(names, [pattern for example in examples for pattern in example.free_outputs])
        declared = declared_copies or {}

        def recorded(choices: Choices) -> Programs:
            again = record_programs(model, examples, registry, modes, (False,), choices)
            return attrs.evolve(again, notes=programs.notes)

        found = understood(programs, registry, declared)
        followed = None
        if any(reads_numbers(trace) for trace, _, _ in programs.recorded):
            followed = _followed(understood(programs, registry, declared, followed=ANYTHING), recorded)
            found = found if followed is None else understood(programs, registry, declared, followed=followed)
        choices = first_choices(found.recordings) if kept is None else choices_among(found.recordings, kept)
        if choices is None:
            return found
        return attrs.evolve(understood(recorded(choices), registry, declared, followed=followed), choices=choices)


def _followed(assumed: Analysis, recorded: Callable[[Choices], Programs]) -> Followed | None:
    """Finds what follows the numbers that programs read of positions; None if that can't be said.

    Args:
        assumed: The model as analysed with the assumption that whatever equals a number follows it.
        recorded: Records the model with some units chosen.
    """
    rounds = [[trace for trace, _, _ in recorded(c).recorded] for c in choices_in_turn(assumed.recordings)]
    if not rounds or len({len(traces) for traces in rounds}) > 1:
        return None
    found = [followed_in(first, others) for first, *others in zip(*rounds, strict=True)]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    return Followed(frozenset().union(*(one.sites for one in known)), frozenset().union(*(one.lists for one in known)))


def understood(
    programs: Programs,
    registry: Registry,
    declared: Mapping[str, str],
    pinned: Mapping[tuple[str, int], Reason] = types.MappingProxyType({}),
    *,
    followed: Followed | None = None,
) -> Analysis:
    """Finds the groups of recorded programs.

    Args:
        programs: What was recorded.
        registry: Where op rules are found.
        declared: See `analyse`.
        pinned: Dims of parameters that have to keep their size.
        followed: What follows the numbers that the programs read of positions; None where that isn't known.

    Raises:
        PluginError: What a layer type says about its parameters is wrong.
    """
    shadow, recorded = programs.shadow, programs.recorded
    parameters = parameter_axes([trace for trace, _, _ in recorded], registry.op_rules)
    for (name, dim), reason in pinned.items():
        pin(parameters[name][dim], reason)
    propagations, lists, listed = _propagated(programs, registry, parameters, followed)
    partial = [propagate(trace, registry.op_rules, parameters) for trace in programs.failed]
    touched = listed.union(*(p.touched for p in (*propagations, *partial)))
    copies, hints = momentum_copies(shadow.modules, shadow.names, touched, declared, parameters)
    tie_run(copies, parameters)
    mirrored = unrun_tensors(copies)
    untouched = [name for name in parameters if name not in touched]
    unknown = [name for name in untouched if name not in mirrored]
    unrecorded.keep_untouched(untouched, parameters)
    unrecorded.keep_widths(unknown if programs.failed else (), parameters, (*propagations, *partial))
    warned = unrecorded.keep_entries(unknown, shadow.modules, propagations)
    roles = {key: role for p in reversed(propagations) for key, role in p.effects.roles.items()}
    roles |= roles_by_type(registry, shadow.modules, parameters)
    unrecorded.keep_unread(parameters, (*propagations, *partial), roles, registry.op_rules)
    freezer = Freezer(parameters, propagations, roles)
    recordings: list[Recording] = []
    for propagation, (trace, example, training) in zip(propagations, recorded, strict=True):
        recording = freezer.recording(propagation, example, training)
        if len(recorded) > 1:
            like = (same_where_live(trace, known.trace, recording.live, known.live) for known in recordings)
            recording = attrs.evolve(recording, replayed=not any(like))
        recordings.append(recording)
    tensors = shadow.tensors()
    needed = _not_zero(recordings, registry.op_rules, freezer)
    if not needed.keys() <= pinned.keys():
        return understood(programs, registry, declared, {**needed, **pinned}, followed=followed)
    zeroed = freezer.weights() | {name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
    missed = [name for name in unknown if parameters[name] and isinstance(tensors[name], nn.Parameter)]
    return Analysis(
        groups=freezer.groups(_mixes(recordings, registry.op_rules, zeroed), recordings),
        parameters={
            name: freezer.parameter(
                mirrored.get(name, name), tensor.element_size(), not isinstance(tensor, nn.Parameter)
            )
            for name, tensor in tensors.items()
        },
        recordings=tuple(recordings),
        untouched=tuple(name for name in unknown if parameters[name]),
        not_understood=_merged(_blamed(gap, registry) for p in propagations for gap in p.not_understood),
        notes=(
            *shadow.notes,
            *programs.notes,
            *_unseen(recordings, missed),
            *warned,
            *(copy.note() for copy in copies),
            *hints,
        ),
        shadow=shadow,
        swaps=programs.swaps,
        copies=tuple(copies),
        failed=programs.failed,
        declared=declared,
        lists=tuple(ExpertList(path, prefix, freezer.layout(axis)) for path, (prefix, axis) in lists.items()),
        followed=followed,
    )


def understood_again(
    old: Analysis, recorded: Sequence[tuple[Trace, Example, bool | None]], registry: Registry
) -> Analysis:
    """Finds the groups of an analysed model anew: of further programs, or by other rules.

    Args:
        old: What is known.
        recorded: The recorded programs, each with its example and its mode.
        registry: Where op rules are found.

    Raises:
        PluginError: What a layer type says about its parameters is wrong.
    """
    programs = Programs(old.shadow, old.swaps, tuple(recorded), old.failed, ())
    return attrs.evolve(understood(programs, registry, old.declared, followed=old.followed), choices=old.choices)


def _propagated(
    programs: Programs, registry: Registry, parameters: ParameterAxes, followed: Followed | None
) -> tuple[list[Propagation], dict[str, tuple[str, Axis]], set[str]]:
    """Propagates axes through all programs.

    Returns:
        What is known of each program; by path of a list of experts its prefix and axis; the tensors in these lists.
    """
    found: list[Propagation] = []
    lists: dict[str, tuple[str, Axis]] = {}
    listed: set[str] = set()
    for trace, example, _ in programs.recorded:
        reads = None if followed is None else reads_of(trace, followed)
        found.append(propagate(trace, registry.op_rules, parameters, example.free_outputs, reads))
        if reads is not None:
            listed |= tie_entries(found[-1], reads, programs.shadow.modules, parameters, lists)
    return found, lists, listed


def _unseen(recordings: Sequence[Recording], untouched: Sequence[str]) -> list[str]:
    traces = [recording.trace for recording in recordings]
    stored = {line for recording in recordings for line in unrecorded.stored(recording.trace, recording.live)}
    return [*sorted(stored), *unrecorded.missed(untouched, traces)]


def _blamed(gap: NotUnderstood, registry: Registry) -> NotUnderstood:
    """Says whose rule it is that is wrong, with file and line, or which broken plugin has one that isn't used."""
    if gap.faulty is None:
        return gap
    origin, broken = registry.rule_origin(gap.faulty), registry.broken_owner(gap.faulty)
    if origin is not None:
        out = f"; without it: {origin.owner.leave_out}" if origin.owner.leave_out else ""
        return attrs.evolve(gap, why=f"{gap.why} (rule of {origin.owner.name} in {origin.site}{out})", faulty=None)
    said = f" ({broken.name} has one, and is broken: see the notes)" if broken is not None else ""
    return attrs.evolve(gap, why=f"{gap.why}{said}", faulty=None)


def _merged(gaps: Iterable[NotUnderstood]) -> tuple[NotUnderstood, ...]:
    """One line per operation and reason: the first place where it cost something, else the first place."""
    merged: dict[tuple[str, str], NotUnderstood] = {}
    for gap in gaps:
        known = merged.setdefault((gap.operation, gap.why), gap)
        if gap.froze and not known.froze:
            merged[gap.operation, gap.why] = gap
    return tuple(merged.values())


def _not_zero(recordings: Iterable[Recording], rules: RuleTable, freezer: Freezer) -> dict[tuple[str, int], Reason]:
    """Lists the parameter dims of groups that an operation needs to be zero at removed units, and that aren't."""
    found: dict[tuple[str, int], Reason] = {}
    for recording in recordings:
        zeros: Zeros | None = None
        for index, needs in recording.needs_zeros.items():
            operation = recording.trace.operations[index]
            live = [need for need in needs if need.tensor in recording.live]
            for need in live:
                for name in groups_of(recording.live[need.tensor][need.dim]):
                    zeros = zeros or Zeros(recording.trace, recording.live, rules, freezer.weights(), recording.marks)
                    if not zeros.at(TensorRef(need.tensor), need.dim, name, index):
                        reason = Reason(need.text, operation.name, operation.module)
                        found.update(((m.parameter, m.dim), reason) for m in freezer.members(name))
    return found


def _mixes(recordings: Iterable[Recording], rules: RuleTable, zeroed: Collection[str]) -> dict[str, dict[str, None]]:
    """Lists, by group, the operations whose result isn't the same without a unit as with zeros in its place."""
    mixes: dict[str, dict[str, None]] = {}
    for recording in recordings:
        zeros: Zeros | None = None
        for index, wholes in recording.wholes.items():
            operation = recording.trace.operations[index]
            for use in wholes.uses:
                for name in groups_of(use.layout):
                    if use.verb not in (Verb.MIX, Verb.CHOOSE):
                        zeros = zeros or Zeros(recording.trace, recording.live, rules, zeroed, recording.marks)
                        if zeros.sums(operation, use.operands, name, several=use.verb is Verb.CONTRACT):
                            continue
                    mixes.setdefault(name, {})[operation.site] = None
    return mixes
