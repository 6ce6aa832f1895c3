"""The contents of a plan as values: what is cut, which attributes change, what is scaled and exchanged."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Layout
from prunekit_core.errors import PlanError
from prunekit_core.modules.absent import Result, children_of
from prunekit_core.modules.entries import NO_ENTRIES, Entries
from prunekit_core.modules.renaming import Renaming, Tied
from prunekit_core.modules.source_code import Sources

Size = int | tuple[int, ...]


@attrs.frozen
class GroupCut:
    """What stays of one group.

    Attributes:
        group: Name of the group.
        size: Number of units before.
        kept: Units that stay, ascending.
    """

    group: str
    size: int
    kept: tuple[int, ...]


@attrs.frozen
class ParameterCut:
    """How a parameter or buffer that loses something is made of units.

    Attributes:
        parameter: Canonical dotted name.
        shape: Its shape before.
        dims: One layout per dim.
        aliases: Its other dotted names, where modules share it; a checkpoint may use any of them.
        persistent: Whether checkpoints hold it; False for a non-persistent buffer.
    """

    parameter: str
    shape: tuple[int, ...]
    dims: tuple[Layout, ...]
    aliases: tuple[str, ...] = ()
    persistent: bool = True


@attrs.frozen
class AttributeEdit:
    """A size that lives in an attribute of a module.

    Attributes:
        module: Dotted path of the module; empty for the model itself.
        attribute: Name of the attribute; of an attribute of an object that the module holds, with that object's before
            it (``"config.vocab_size"``).
        old: Its value before.
        new: Its value after.
    """

    module: str
    attribute: str
    old: Size
    new: Size


@attrs.frozen
class Table:
    """A list or a mapping of plain values that an attribute holds, such as ``suppress_tokens`` or ``id2label``.

    Attributes:
        values: Its values: integers and texts, in a list also None and lists of these, as tuples.
        keys: The keys of a mapping, in its order; None for a list.
    """

    values: tuple[Any, ...]
    keys: tuple[int | str, ...] | None = None

    @classmethod
    def of(cls, value: Any) -> Table | None:
        """Reads an attribute; None where it holds something else."""
        if type(value) is dict:
            plain = all(type(item) in (int, str) for pair in value.items() for item in pair)
            return cls(tuple(value.values()), tuple(value)) if value and plain else None
        found = _frozen_list(value) if type(value) is list else None
        return None if found is None else cls(found)

    @classmethod
    def from_json(cls, data: Any) -> Table:
        """Reads what `to_json` returned.

        Raises:
            TypeError: It is something else.
        """
        keys = data.get("keys")
        found = cls.of(data["values"] if keys is None else dict(zip(keys, data["values"], strict=True)))
        if found is None or (keys is not None and len(keys) > len(set(keys))):
            raise TypeError(f"{data!r} is no list and no mapping of plain values")
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns plain data."""
        return {"values": self.values} if self.keys is None else {"keys": self.keys, "values": self.values}

    def value(self) -> Any:
        """Returns the list or mapping."""
        return _thawed(self.values) if self.keys is None else dict(zip(self.keys, self.values, strict=True))


def _frozen_list(value: list[Any] | tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not all(type(item) in (int, str, list, tuple, type(None)) for item in value):
        return None
    nested = [_frozen_list(item) for item in value if type(item) in (list, tuple)]
    if None in nested:
        return None
    left = iter(nested)
    return tuple(next(left) if type(item) in (list, tuple) else item for item in value)


def _thawed(values: tuple[Any, ...]) -> list[Any]:
    return [_thawed(item) if isinstance(item, tuple) else item for item in values]


@attrs.frozen
class TableEdit:
    """A list or a mapping in an attribute that loses entries, or holds other numbers.

    Attributes:
        module: See `AttributeEdit`.
        attribute: See `AttributeEdit`.
        old: What it holds before. A copy of the model that has None there, or no such attribute, is left as it is.
        new: What it holds after.
    """

    module: str
    attribute: str
    old: Table
    new: Table


@attrs.frozen
class Rescale:
    """Rows of a parameter that are scaled, because a constant of the program follows a size.

    Attributes:
        parameter: Canonical dotted name.
        rows: Runs ``(start, stop)`` of positions of dim 0 before the cut.
        factor: What the rows are multiplied with.
    """

    parameter: str
    rows: tuple[tuple[int, int], ...]
    factor: float


@attrs.frozen
class ChangedConstant:
    """A constant of the program that follows a size, and that the weights can't make up for.

    Attributes:
        site: Name of the operation where it meets activations, and where it ran.
        change: How it changes, and why it can't be made up for.
    """

    site: str
    change: str

    @property
    def short(self) -> str:
        """Which one it is."""
        return f"a constant of {self.site}"

    def __str__(self) -> str:
        return f"{self.short} {self.change}"


@attrs.frozen
class Swap:
    """A module that is exchanged for a prunable equivalent.

    Attributes:
        module: Dotted path.
        replacement: Registered name of the replacement.
    """

    module: str
    replacement: str


@attrs.frozen
class Stub:
    """A module that is exchanged for one that returns zeros, as nothing needs more of it.

    Attributes:
        module: Dotted path.
        result: What is returned in its place.
    """

    module: str
    result: Result


def removed_by(stubs: Iterable[Stub]) -> frozenset[str]:
    """Paths of the modules that are exchanged."""
    return frozenset(stub.module for stub in stubs)


def kept_by(stubs: Iterable[Stub]) -> frozenset[str]:
    """Paths of the modules in them that stay."""
    return frozenset(f"{stub.module}.{child}" for stub in stubs for child in children_of(stub.result))


def exchanged_by(stubs: Iterable[Stub]) -> Callable[[str], bool]:
    """Returns what tells whether the module of a path is exchanged, or in one that is and doesn't stay."""
    removed, kept = removed_by(stubs), kept_by(stubs)

    def is_exchanged(path: str) -> bool:
        while path and path not in kept:
            if path in removed:
                return True
            path = path.rpartition(".")[0]
        return False

    return is_exchanged


@attrs.frozen
class Decision:
    """Which units stay, and every edit that follows from it.

    Attributes:
        cuts: Per group that loses units.
        parameters: Per parameter or buffer that loses something.
        edits: Attribute changes.
        tables: Lists and mappings in attributes that change.
        rescales: Rows to scale.
        swaps: Modules to exchange first.
        absent: Names of the branches that go.
        stubs: Modules that are exchanged, as they only computed those.
        gone: Parameters and buffers that go with them, by canonical name.
        tied: Tensors with several names, of which some go with them.
        entries: Entries of lists of modules that leave when all else is done, as their branches are gone; everything
            else in the plan is named as before.
        silent: Parameters among those that go whose zeros switch the branches off; none where zeros don't.
        sources: Path of each module that the cut passes through to what is known of its code, see `sources_of`.
        notes: Lines for the report; no part of the decision's identity.
        constants: Constants of the program that change, for which no rows could be scaled; the notes tell them too.

    Raises:
        PlanError: The parts contradict each other.
    """

    cuts: tuple[GroupCut, ...] = ()
    parameters: tuple[ParameterCut, ...] = ()
    edits: tuple[AttributeEdit, ...] = ()
    rescales: tuple[Rescale, ...] = ()
    swaps: tuple[Swap, ...] = ()
    absent: tuple[str, ...] = ()
    stubs: tuple[Stub, ...] = ()
    gone: tuple[str, ...] = ()
    tied: tuple[Tied, ...] = ()
    entries: Entries = NO_ENTRIES
    silent: tuple[str, ...] = ()
    sources: Sources = ()
    tables: tuple[TableEdit, ...] = ()
    notes: tuple[str, ...] = attrs.field(default=(), eq=False)
    constants: tuple[ChangedConstant, ...] = attrs.field(default=(), eq=False)

    def __attrs_post_init__(self) -> None:
        sizes = {cut.group: cut.size for cut in self.cuts}
        self._check_names()
        for cut in self.cuts:
            where = f"group {cut.group}"
            if not all(map(operator.lt, cut.kept, cut.kept[1:])):
                raise _malformed(where, "kept units not ascending")
            if not cut.kept or cut.kept[0] < 0 or cut.kept[-1] >= cut.size:
                raise _malformed(where, "kept units out of range or none")
            _check_size(where, cut.size)
        checked: set[int] = set()
        size_of = layouts.Sizer(self.kept)
        for parameter in self.parameters:
            if tuple([dim.size for dim in parameter.dims]) != parameter.shape:
                raise _malformed(parameter.parameter, "its dims don't multiply out to its shape")
            _check_size(parameter.parameter, math.prod(parameter.shape))
            for dim in parameter.dims:
                if isinstance(dim, layouts.Fixed) or id(dim) in checked:
                    continue
                checked.add(id(dim))
                if dim.size and not size_of(dim):
                    raise _malformed(parameter.parameter, f"nothing stays of a dim of size {dim.size}")
                for part in layouts.walk(dim):
                    if isinstance(part, layouts.Units) and sizes.get(part.group, part.size) != part.size:
                        why = f"group {part.group} has {sizes[part.group]} units, not {part.size}"
                        raise _malformed(parameter.parameter, why)
        for edit in self.edits:
            for value in (edit.old, edit.new):
                for size in (value,) if isinstance(value, int) else value:
                    _check_size(f"{edit.module or 'the model'}.{edit.attribute}", size)
        for table in self.tables:
            if len(table.new.values) > len(table.old.values) or (table.new.keys is None) != (table.old.keys is None):
                raise _malformed(
                    f"{table.module or 'the model'}.{table.attribute}", "it gets more entries, or other ones"
                )
        for rescale in self.rescales:
            if not math.isfinite(rescale.factor) or rescale.factor <= 0:
                raise _malformed(rescale.parameter, "a factor is not positive")

    def _check_names(self) -> None:
        """Raises `PlanError` where something is named twice, or is changed and goes."""
        for kind, names in (
            ("group", [cut.group for cut in self.cuts]),
            ("parameter", [cut.parameter for cut in self.parameters]),
            ("attribute", [f"{edit.module or 'the model'}.{edit.attribute}" for edit in self.changed()]),
            ("exchanged module", [swap.module for swap in self.swaps]),
            ("branch", list(self.absent)),
            ("removed module", [stub.module for stub in self.stubs]),
            ("removed parameter", list(self.gone)),
            ("silent parameter", list(self.silent)),
            ("tied parameter", [name for tied in self.tied for name in tied.names]),
        ):
            if len(set(names)) < len(names):
                raise _malformed(max(names, key=names.count), f"the {kind} is named twice")
        self._check_removed()

    def _check_removed(self) -> None:
        """Raises `PlanError` where something is changed although it goes, or goes although it has a name left."""
        gone = set(self.gone)
        for tied in self.tied:
            if not tied.names or bool(tied.name) == (tied.names[0] in gone):
                raise _malformed(tied.name, "a tied parameter stays under one of its names, or goes with all of them")
        for name in self.silent:
            if name not in gone:
                raise _malformed(name, "it stays, and zeros in it switch off what goes")
        renaming = self.renaming
        for name in (*(cut.parameter for cut in self.parameters), *(scale.parameter for scale in self.rescales)):
            if name in gone:
                raise _malformed(name, "it is removed, and changed")
        for path in (*(edit.module for edit in self.changed()), *(swap.module for swap in self.swaps)):
            if path in renaming.removed or renaming.after(path) is None:
                raise _malformed(path, "it is in a module that is removed, and changed")

    def changed(self) -> tuple[AttributeEdit | TableEdit, ...]:
        """Lists the changes of attributes: numbers, then lists and mappings."""
        return (*self.edits, *self.tables)

    @property
    def renaming(self) -> Renaming:
        """What the names of modules and tensors become."""
        return Renaming(
            removed_by(self.stubs),
            kept_by(self.stubs),
            self.tied,
            self.entries.renamed(),
            self.entries.deleted(),
        )

    def places(self, names: Iterable[str]) -> dict[str, str]:
        """Returns the name of every tensor that stays, before the plan and after it.

        Args:
            names: Canonical names of tensors before.
        """
        gone, renaming = set(self.gone), self.renaming
        return {name: renaming.after(name) or name for name in names if name not in gone}

    @property
    def empty(self) -> bool:
        """Whether everything stays."""
        return not (self.cuts or self.absent)

    def lines(self) -> tuple[str, ...]:
        """What a report says of the plan: which entries have left their lists, and the notes."""
        return (*map(str, self.entries.deletions), *self.notes)

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """Kept units by group name."""
        return {cut.group: cut.kept for cut in self.cuts}

    def positions(self, cut: ParameterCut) -> dict[int, torch.Tensor]:
        """Returns, per dim that shrinks, the positions that stay."""
        return self.all_positions([cut])[cut.parameter]

    def all_positions(self, cuts: Iterable[ParameterCut]) -> dict[str, dict[int, torch.Tensor]]:
        """Returns the positions that stay for several parameters, computing each shared layout once."""
        kept = self.kept
        positions_of = layouts.Positions(kept)
        known: dict[int, torch.Tensor | None] = {}
        found: dict[str, dict[int, torch.Tensor]] = {}
        for cut in cuts:
            placed = found[cut.parameter] = {}
            for dim, layout in enumerate(cut.dims):
                if type(layout) is layouts.Fixed:  # most are
                    continue
                key = id(layout)
                if key not in known:
                    positions = positions_of(layout) if layouts.depends(layout, kept) else None
                    known[key] = None if positions is None or positions.numel() == layout.size else positions
                positions = known[key]
                if positions is not None:
                    placed[dim] = positions
        return found


def _malformed(where: str, why: str) -> PlanError:
    return PlanError("The plan is malformed.", where=where, why=why)


def _check_size(where: str, size: int) -> None:
    """Raises `PlanError` for a size that no tensor has."""
    if size > _LARGEST:
        raise _malformed(where, f"no tensor has a size of {size}")


_LARGEST = 2**63 - 1


def is_size(value: Any) -> bool:
    """Tells whether a value is an int, or a non-empty tuple or list of ints."""
    if type(value) in (tuple, list, torch.Size):
        return bool(value) and all(type(item) is int for item in value)
    return type(value) is int


def runs_of(positions: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Writes ascending positions as runs ``(start, stop)``."""
    result: list[tuple[int, int]] = []
    for position in positions:
        if result and result[-1][1] == position:
            result[-1] = (result[-1][0], position + 1)
        else:
            result.append((position, position + 1))
    return tuple(result)


def normal_size(value: Any) -> Size:
    """Returns a size attribute as an int or a tuple."""
    return value if isinstance(value, int) else tuple(value)
