"""From axes to layouts: classes of axes get names, and become groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prunekit_core.algebra import axes
from prunekit_core.algebra.axes import Axis, Form
from prunekit_core.algebra.layout import (
    Concat,
    ExpectedArgument,
    Fixed,
    Layout,
    Product,
    Units,
    groups_of,
    join_concat,
    join_product,
    parts_of,
    walk,
)
from prunekit_core.algebra.requirements import Expectation
from prunekit_core.groups.propagate import Propagation
from prunekit_core.groups.recording import ParameterLayout, Recording
from prunekit_core.groups.repeated_choices import chosen_in_turn
from prunekit_core.groups.unit_group import Member, UnitGroup
from prunekit_core.program.examples import Example
from prunekit_core.program.extents import Chosen, LeastSize, Whole, Wholes
from prunekit_core.program.op_call import Kind, Role


class Freezer:
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

    def members(self, group: str) -> list[Member]:
        """Lists the parameter dims that hold units of a group."""
        return next(self._members[key] for key, name in self._names.items() if name == group)

    def weights(self) -> set[str]:
        """Names the parameters and buffers that make or read units, not only lie along them."""
        return {m.parameter for members in self._members.values() for m in members if m.role is not Role.ALONG}

    def parameter(self, name: str, itemsize: int, buffer: bool) -> ParameterLayout:
        """Returns the layouts of a parameter or buffer."""
        dims = self._parameters[name]
        return ParameterLayout(
            tuple([axes.resolve(axis).size for axis in dims]),
            tuple([self.layout(axis) for axis in dims]),
            tuple([axes.reason_of(axis) for axis in dims]),
            itemsize=itemsize,
            buffer=buffer,
        )

    def recording(self, p: Propagation, example: Example, training: bool | None) -> Recording:
        """Returns a propagated trace with the layouts of its tensors, for those that can shrink."""
        live = {}
        for index, dims in p.tensors.items():
            layouts = tuple([self.layout(axis) for axis in dims])
            if any(type(layout) is not Fixed for layout in layouts):
                live[index] = layouts
        effects = p.effects
        least = {index: list(found) for index, found in effects.least.items()}
        for index, needed in chosen_in_turn(p):
            least.setdefault(index, []).append(needed)
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
                for index, found in least.items()
            },
            expectations={
                index: tuple(map(self._expected_argument, found)) for index, found in effects.expectations.items()
            },
            temperatures={i: (t, self.layout(t.axis)) for i, t in effects.temperatures.items()},
            unread=p.unread,
            choices={i: Chosen(self.layout(c.axis), c.output, c.dim, c.count) for i, c in effects.choices.items()},
            marks=frozenset(effects.marks),
            needs_zeros=effects.needs_zeros,
        )

    def _expected_argument(self, of: Expectation) -> ExpectedArgument:
        along = None if of.along is None else self.layout(of.along)
        pieces = tuple([self.layout(axis) for axis in of.pieces])
        return ExpectedArgument(of.argument, of.position, pieces, along, of.offset)

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
        """Returns the groups by name, in order of the model's parameters."""
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
