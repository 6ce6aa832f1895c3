"""The result of analysing a model: its groups, and how every tensor dim is made of their units.

A group is one free leaf of size above one together with every parameter dim that holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core import axes, unseen
from prunekit_core.axes import Axis, Form, Reason
from prunekit_core.examples import Example
from prunekit_core.extents import LeastSize, Whole, Wholes
from prunekit_core.layout import (
    Concat,
    Fixed,
    Kept,
    Layout,
    Product,
    Stated,
    Units,
    groups_of,
    join_concat,
    join_product,
    kept_positions,
    new_size,
    parts_of,
    walk,
)
from prunekit_core.momentum import MomentumCopy, momentum_copies, tie_run, unrun_tensors
from prunekit_core.outputs import check_free
from prunekit_core.programs import record_programs
from prunekit_core.propagate import NotUnderstood, Propagation, parameter_axes, propagate
from prunekit_core.regime import collection_paused
from prunekit_core.registry import Registry
from prunekit_core.requirements import Expectation, Temperature
from prunekit_core.rules import Kind, Role, RuleTable, Verb
from prunekit_core.sameness import same_where_live
from prunekit_core.shadow import Shadow
from prunekit_core.stated import stated_roles
from prunekit_core.trace import Trace
from prunekit_core.zeros import Zeros


@attrs.frozen
class Member:
    """A parameter (or buffer) dim that holds units of a group.

    Attributes:
        parameter: Canonical dotted name.
        dim: The dim of the parameter.
        role: What the parameter does with the units.
    """

    parameter: str
    dim: int
    role: Role

    @property
    def module(self) -> str:
        """Dotted path of the module that owns the parameter."""
        return self.parameter.rpartition(".")[0]


@attrs.frozen
class UnitGroup:
    """Units that can only leave together, and everything that holds them.

    Attributes:
        name: Stable name: the module that produces the units, with the kind where that isn't channels or neurons.
        size: Number of units at analysis.
        kind: What the units are.
        members: Every parameter dim that holds units, in order of the model's parameters.
        outer: Whether each unit contains units of other groups (heads hold head dims).
        mixes: Operations whose result depends on the number of units (``"aten::layer_norm in ln"``); empty: exact.
        least: How many units must stay, so that every operation has a value.
    """

    name: str
    size: int
    kind: Kind
    members: tuple[Member, ...]
    outer: bool
    mixes: tuple[str, ...]
    least: int = 1

    def producers(self) -> list[Member]:
        """Lists the members that produce the units."""
        return [member for member in self.members if member.role is Role.OUT]


def _positions(dims: Sequence[Layout], kept: Kept) -> dict[int, torch.Tensor]:
    sizes = ((dim, layout, new_size(layout, kept)) for dim, layout in enumerate(dims))
    return {dim: kept_positions(layout, kept) for dim, layout, size in sizes if size != layout.size}


@attrs.frozen
class ParameterLayout:
    """How a parameter or buffer is made of units.

    Attributes:
        shape: Its shape at analysis.
        dims: One layout per dim.
        reasons: Per dim, why (some of) it is pinned; None where nothing is.
        itemsize: Bytes per element.
        buffer: Whether it is a buffer.
    """

    shape: tuple[int, ...]
    dims: tuple[Layout, ...]
    reasons: tuple[Reason | None, ...]
    itemsize: int
    buffer: bool

    def positions(self, kept: Kept) -> dict[int, torch.Tensor]:
        """Returns, per dim that shrinks, the positions that stay."""
        return _positions(self.dims, kept)


@attrs.frozen(eq=False)
class Recording:
    """One trace with the layouts that its tensors have.

    Attributes:
        trace: The trace.
        example: What it was recorded on.
        training: The mode it ran in.
        replayed: False when another recording is the same program, so that one replay proves both.
        live: Layouts of the tensors that can shrink, by `TensorRef.index`.
        wholes: Whole-axis uses by operation index.
        least: By operation index: how many elements it needs.
        expectations: By operation index: what its arguments must be.
        temperatures: By operation index: the constant and the layout of the axis that it follows.
        unread: Indices of operations that say nothing, as nobody reads their results; they only have to run.
    """

    trace: Trace
    example: Example
    training: bool | None
    replayed: bool
    live: Mapping[int, tuple[Layout, ...]]
    wholes: Mapping[int, Wholes]
    least: Mapping[int, tuple[LeastSize, ...]]
    expectations: Mapping[int, tuple[Stated, ...]]
    temperatures: Mapping[int, tuple[Temperature, Layout]]
    unread: frozenset[int]

    def shape(self, index: int, sizer: Callable[[Layout], Any]) -> tuple[Any, ...]:
        """Returns the shape a tensor must have when only the sizer's kept units stay.

        Args:
            index: `TensorRef.index`.
            sizer: Computes sizes of layouts: a `Sizer`, or a `SymbolicSizer`, whose sizes are polynomials.
        """
        layouts = self.live.get(index)
        if layouts is None:
            return self.trace.shapes[index]
        return tuple(map(sizer, layouts))

    def positions(self, index: int, kept: Kept) -> dict[int, torch.Tensor]:
        """Returns, per dim of a tensor that shrinks, the positions that stay."""
        return _positions(self.live.get(index, ()), kept)


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


def analyse(
    model: nn.Module,
    examples: Sequence[Example],
    registry: Registry,
    *,
    modes: Sequence[bool | None] = (False, True),
    fakes: Sequence[bool] = (True, False),
    declared_copies: Mapping[str, str] | None = None,
) -> Analysis:
    """Records a model in every mode and finds its groups.

    Args:
        model: The model, as `check_recordable` returned it; it is not touched.
        examples: Example inputs; each is recorded in every mode.
        registry: Where op rules and replacements are found.
        modes: Training flags to record in; the first must run, later ones may fail with a note.
        fakes: What to record on, in this order until one works: True for fake tensors, False for real ones.
        declared_copies: Path of a submodule that follows another one to that of its original.

    Raises:
        RecordingError: The forward raised on the example inputs.
        PluginError: What a layer type says about its parameters is wrong.
    """
    with collection_paused():
        return _analyse(model, examples, registry, modes, fakes, declared_copies or {})


def _analyse(
    model: nn.Module,
    examples: Sequence[Example],
    registry: Registry,
    modes: Sequence[bool | None],
    fakes: Sequence[bool],
    declared: Mapping[str, str],
) -> Analysis:
    programs = record_programs(model, examples, registry, modes, fakes)
    shadow, recorded = programs.shadow, programs.recorded
    parameters = parameter_axes([trace for trace, _, _ in recorded], registry.op_rules)
    names = [name for trace, _, _ in recorded for name in trace.names]
    check_free(names, [pattern for example in examples for pattern in example.free_outputs])
    propagations = [propagate(t, registry.op_rules, parameters, e.free_outputs) for t, e, _ in recorded]
    partial = [propagate(trace, registry.op_rules, parameters) for trace in programs.failed]
    touched = set().union(*(p.touched for p in (*propagations, *partial)))
    copies, hints = momentum_copies(shadow.modules, shadow.names, touched, declared, parameters)
    tie_run(copies, parameters)
    followed = unrun_tensors(copies)
    untouched = [name for name in parameters if name not in touched]
    unknown = [name for name in untouched if name not in followed]
    untouched_dims = tuple(name for name in unknown if parameters[name])
    unseen.keep_untouched(untouched, parameters)
    if programs.failed:
        unseen.keep_widths(unknown, parameters, (*propagations, *partial))
    roles = {key: role for p in reversed(propagations) for key, role in p.effects.roles.items()}
    roles |= stated_roles(registry, shadow.modules, parameters)
    unseen.keep_unread(parameters, (*propagations, *partial), roles, registry.op_rules)
    freezer = _Freezer(parameters, propagations, roles)
    recordings: list[Recording] = []
    for propagation, (trace, example, training) in zip(propagations, recorded, strict=True):
        recording = freezer.recording(propagation, example, training)
        if len(recorded) > 1:
            like = (same_where_live(trace, known.trace, recording.live, known.live) for known in recordings)
            recording = attrs.evolve(recording, replayed=not any(like))
        recordings.append(recording)
    tensors = shadow.tensors()
    zeroed = freezer.weights() | {name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
    missed = [name for name in untouched_dims if isinstance(tensors[name], nn.Parameter)]
    return Analysis(
        groups=freezer.groups(_mixes(recordings, registry.op_rules, zeroed), recordings),
        parameters={
            name: freezer.parameter(
                followed.get(name, name), tensor.element_size(), not isinstance(tensor, nn.Parameter)
            )
            for name, tensor in tensors.items()
        },
        recordings=tuple(recordings),
        untouched=untouched_dims,
        not_understood=_merged(_blamed(gap, registry) for p in propagations for gap in p.not_understood),
        notes=(*shadow.notes, *programs.notes, *_unseen(recordings, missed), *(copy.note() for copy in copies), *hints),
        shadow=shadow,
        swaps=programs.swaps,
        copies=tuple(copies),
    )


def _unseen(recordings: Sequence[Recording], untouched: Sequence[str]) -> list[str]:
    traces = [recording.trace for recording in recordings]
    stored = {line for recording in recordings for line in unseen.stored(recording.trace, recording.live)}
    return [*sorted(stored), *unseen.missed(untouched, traces)]


def _blamed(gap: NotUnderstood, registry: Registry) -> NotUnderstood:
    """Says whose rule it is that is wrong, with file and line."""
    origin = None if gap.faulty is None else registry.rule_origin(gap.faulty)
    if origin is None:
        return gap
    return attrs.evolve(gap, why=f"{gap.why} (rule of {origin.owner.name} in {origin.site})", faulty=None)


def _merged(gaps: Iterable[NotUnderstood]) -> tuple[NotUnderstood, ...]:
    """One line per operation and reason: the first place where it cost something, else the first place."""
    merged: dict[tuple[str, str], NotUnderstood] = {}
    for gap in gaps:
        known = merged.setdefault((gap.operation, gap.why), gap)
        if gap.froze and not known.froze:
            merged[gap.operation, gap.why] = gap
    return tuple(merged.values())


class _Freezer:
    """Turns live axes into layouts over named groups."""

    def __init__(
        self,
        parameters: Mapping[str, tuple[Axis, ...]],
        propagations: Sequence[Propagation],
        roles: Mapping[tuple[str, int], Role],
    ) -> None:
        self._parameters, self._propagations = parameters, propagations
        self._layouts: dict[int, Layout] = {}
        self._members: dict[int, list[Member]] = {}
        self._leaves: dict[int, Axis] = {}
        for name, dims in parameters.items():
            for dim, axis in enumerate(dims):
                matrix = len(dims) == 2 and name.endswith("weight")  # a packed weight is used in pieces only
                fallback = (Role.OUT, Role.IN)[dim] if matrix else Role.ALONG
                member = Member(name, dim, roles.get((name, dim), fallback))
                for leaf in dict.fromkeys(axes.leaves(axis)):
                    if leaf.size > 1 and leaf.reason is None:
                        self._leaves[id(leaf)] = leaf
                        self._members.setdefault(id(leaf), []).append(member)
        self._kinds = self._find_kinds()
        self._names = self._name_groups()

    def _find_kinds(self) -> dict[int, Kind]:
        order = list(Kind)
        found: dict[int, Kind] = {}
        for propagation in self._propagations:
            for axis, kind in propagation.effects.kinds:
                for leaf in axes.leaves(axis):
                    if id(leaf) in self._leaves:
                        known = found.get(id(leaf), kind)
                        found[id(leaf)] = min(known, kind, key=order.index)
        return found

    def _name_groups(self) -> dict[int, str]:
        names: dict[int, str] = {}
        taken: dict[str, int] = {}
        for key, members in self._members.items():
            lead = next((m for m in members if m.role is Role.OUT), members[0])
            kind = self._kinds.get(key, Kind.UNITS)
            owner, _, leaf = lead.parameter.rpartition(".")
            base = owner if leaf == "weight" and owner else lead.parameter
            if kind not in (Kind.CHANNELS, Kind.NEURONS, Kind.UNITS):
                base = f"{base}#{kind.value}"
            taken[base] = taken.get(base, 0) + 1
            names[key] = base if taken[base] == 1 else f"{base}~{taken[base]}"
        return names

    def layout(self, axis: Axis) -> Layout:
        """Returns the layout of an axis (the same object for the same class)."""
        root = axes.resolve(axis)
        made = self._layouts.get(id(root))
        if made is None:
            made = self._layouts[id(root)] = self._make(root)
        return made

    def _make(self, root: Axis) -> Layout:
        if root.form is Form.LEAF:
            name = self._names.get(id(root))
            return Fixed(root.size) if name is None else Units(name, root.size)
        if root.form is Form.PRODUCT:
            parts = [part for factor in axes.factors(root) for part in parts_of(self.layout(factor), Product)]
            return join_product(parts)
        parts = [part for segment in axes.segments(root) for part in parts_of(self.layout(segment), Concat)]
        return join_concat(parts)

    def weights(self) -> set[str]:
        """Names the parameters and buffers that make or read units, not only lie along them."""
        return {m.parameter for members in self._members.values() for m in members if m.role is not Role.ALONG}

    def parameter(self, name: str, itemsize: int, buffer: bool) -> ParameterLayout:
        dims = self._parameters[name]
        return ParameterLayout(
            tuple([axes.resolve(axis).size for axis in dims]),
            tuple([self.layout(axis) for axis in dims]),
            tuple([axes.reason_of(axis) for axis in dims]),
            itemsize=itemsize,
            buffer=buffer,
        )

    def recording(self, p: Propagation, example: Example, training: bool | None) -> Recording:
        live = {}
        for index, dims in p.tensors.items():
            layouts = tuple([self.layout(axis) for axis in dims])
            if any(type(layout) is not Fixed for layout in layouts):
                live[index] = layouts
        effects = p.effects
        return Recording(
            trace=p.trace,
            example=example,
            training=training,
            replayed=True,
            live=live,
            wholes={
                index: Wholes(tuple(Whole(self.layout(use.axis), use.verb, use.operands) for use in uses))
                for index, uses in effects.whole.items()
            },
            least={
                index: tuple(
                    LeastSize(tuple(map(self.layout, needed.axes)), needed.size, needed.text) for needed in found
                )
                for index, found in effects.least.items()
            },
            expectations={index: tuple(map(self._stated, found)) for index, found in effects.expectations.items()},
            temperatures={i: (t, self.layout(t.axis)) for i, t in effects.temperatures.items()},
            unread=p.unread,
        )

    def _stated(self, of: Expectation) -> Stated:
        along = None if of.along is None else self.layout(of.along)
        return Stated(of.argument, of.position, tuple([self.layout(axis) for axis in of.pieces]), along)

    def _outer(self) -> set[str]:
        """Names the groups whose units contain units of other groups, or of an axis that is pinned.

        After a channel shuffle two factors stand in both orders; then conv groups, or the fewer units, are outer.
        Copies of channels count as outer wherever they stand: channels go with all of their copies.
        """
        pairs: dict[tuple[str, str], None] = {}
        for dims in self._parameters.values():
            for axis in dims:
                for part in walk(self.layout(axis)):
                    factors = part.parts if isinstance(part, Product) else ()
                    for position, factor in enumerate(factors):
                        inside = [name for later in factors[position + 1 :] for name in groups_of(later)]
                        pairs.update(((name, inner), None) for name in groups_of(factor) for inner in inside)
        order, keys = list(Kind), {name: key for key, name in self._names.items()}
        copies = {name for name, key in keys.items() if self._kinds.get(key) is Kind.COPIES}
        pairs = {((b, a) if b in copies and a not in copies else (a, b)): None for a, b in pairs}

        def rank(name: str) -> tuple[int, int, str]:
            kind = self._kinds.get(keys[name], Kind.UNITS)
            return (order.index(kind), self._leaves[keys[name]].size, name)

        return self._around_pinned() | {a for a, b in pairs if a != b and ((b, a) not in pairs or rank(a) < rank(b))}

    def _around_pinned(self) -> set[str]:
        """Names the groups of kinds that contain units (of heads, of channels) where those inside are pinned.

        Dims that a weight reads don't tell: behind a flatten, every channel contains pinned places.
        """
        found = set()
        for key, name in self._names.items():
            if self._kinds.get(key) in _CONTAINING:
                made = [member for member in self._members[key] if member.role is not Role.IN]
                layouts = [self.layout(self._parameters[member.parameter][member.dim]) for member in made]
                if any(_holds_fixed(part, name) for layout in layouts for part in walk(layout)):
                    found.add(name)
        return found

    def groups(self, mixes: Mapping[str, Mapping[str, None]], recordings: Sequence[Recording]) -> dict[str, UnitGroup]:
        needs = [needed for recording in recordings for found in recording.least.values() for needed in found]
        outer = self._outer()
        return {
            name: UnitGroup(
                name,
                self._leaves[key].size,
                self._kinds.get(key, Kind.UNITS),
                tuple(self._members[key]),
                name in outer,
                tuple(mixes.get(name, ())),
                max((needed.units(name, self._leaves[key].size) for needed in needs), default=1),
            )
            for key, name in self._names.items()
        }


_CONTAINING = (Kind.CONV_GROUPS, Kind.NORM_GROUPS, Kind.QUERIES_PER_HEAD)
"""Kinds whose units contain others, besides heads, which are told by their kind alone."""


def _holds_fixed(layout: Layout, group: str) -> bool:
    """Tells whether each unit of a group is several positions that never leave alone."""
    if not isinstance(layout, Product):
        return False
    at = next((position for position, factor in enumerate(layout.parts) if group in groups_of(factor)), None)
    return at is not None and any(isinstance(factor, Fixed) for factor in layout.parts[at + 1 :])


def _mixes(recordings: Iterable[Recording], rules: RuleTable, zeroed: Collection[str]) -> dict[str, dict[str, None]]:
    """Lists, by group, the operations whose result isn't the same without a unit as with zeros in its place."""
    mixes: dict[str, dict[str, None]] = {}
    for recording in recordings:
        zeros: Zeros | None = None
        for index, wholes in recording.wholes.items():
            operation = recording.trace.operations[index]
            for use in wholes.uses:
                for name in groups_of(use.layout):
                    if use.verb is not Verb.MIX:
                        zeros = zeros or Zeros(recording.trace, recording.live, rules, zeroed)
                        if zeros.sums(operation, use.operands, name, several=use.verb is Verb.CONTRACT):
                            continue
                    mixes.setdefault(name, {})[operation.site] = None
    return mixes
