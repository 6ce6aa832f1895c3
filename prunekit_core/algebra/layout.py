"""Layouts: the frozen form of an axis, an expression over the units of groups.

An `Axis` is alive while operations are propagated; a `Layout` is what remains: how one dim of a parameter or of an
activation is made of the units of prunable groups. Given the kept units of each group it tells the new size of the
dim and which positions stay. Layouts are values: equal meanings are equal objects.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch

Kept = Mapping[str, Sequence[int]]
"""Kept units per group name, ascending; a group that is absent keeps all its units."""


@attrs.frozen
class Fixed:
    """A run of positions that always stay."""

    size: int


@attrs.frozen
class Units:
    """The units of one group, in order."""

    group: str
    size: int


@attrs.frozen
class Listed:
    """A run of ``size`` positions of which exactly ``kept`` stay, whatever the groups say (made by composing plans)."""

    size: int
    kept: tuple[int, ...]


@attrs.frozen
class Product:
    """Row-major factors, most significant first."""

    parts: tuple[Layout, ...]
    size: int = attrs.field(init=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "size", math.prod(part.size for part in self.parts))


@attrs.frozen
class Concat:
    """Consecutive segments."""

    parts: tuple[Layout, ...]
    size: int = attrs.field(init=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "size", sum(part.size for part in self.parts))


Layout = Fixed | Units | Listed | Product | Concat


@attrs.frozen(eq=False)
class ExpectedArgument:
    """What an integer argument of one operation must be: the total size of some layouts.

    Attributes:
        argument: Name of the argument.
        position: Which entry of it, if it is a list.
        pieces: The layouts.
        along: If the argument is a place along a dim, the layout of that dim.
        offset: What is added to the size.
    """

    argument: str
    position: int | None
    pieces: tuple[Layout, ...]
    along: Layout | None
    offset: int = 0


def long_tensor(numbers: Sequence[int]) -> torch.Tensor:
    """Makes a tensor of ints as ``torch.tensor`` does, which for a long tuple takes several times as long.

    Returns:
        Tensor ``[len(numbers)]``, int64, on the CPU.
    """
    if not numbers:
        return torch.empty(0, dtype=torch.long, device="cpu")
    return torch.frombuffer(bytearray(struct.pack(f"{len(numbers)}q", *numbers)), dtype=torch.long)


def walk(layout: Layout) -> Iterator[Layout]:
    """Yields the layout and everything below it, depth first."""
    pending = [layout]
    while pending:
        part = pending.pop()
        yield part
        if isinstance(part, Product | Concat):
            pending.extend(reversed(part.parts))


def groups_of(layout: Layout) -> list[str]:
    """Names the groups in a layout, in order of first occurrence."""
    return list(dict.fromkeys(part.group for part in walk(layout) if isinstance(part, Units)))


def new_size(layout: Layout, kept: Kept) -> int:
    """Returns the size that remains when only the kept units stay."""
    if isinstance(layout, Fixed):  # asked for every dim of every tensor, where matching patterns takes thrice as long
        return layout.size
    if isinstance(layout, Units):
        units = kept.get(layout.group)
        return layout.size if units is None else len(units)
    if isinstance(layout, Listed):
        return len(layout.kept)
    sizes = [new_size(part, kept) for part in layout.parts]
    return math.prod(sizes) if isinstance(layout, Product) else sum(sizes)


def depends(layout: Layout, kept: Kept) -> bool:
    """Tells whether a layout may lose something when only the kept units stay."""
    if isinstance(layout, Units):
        return layout.group in kept
    return isinstance(layout, Listed) or any(depends(part, kept) for part in getattr(layout, "parts", ()))


class Sizer:
    """Computes new sizes of layouts for one choice of kept units, each layout object once.

    Args:
        kept: Kept units per group.
    """

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self._known: dict[int, tuple[Layout, int]] = {}

    def __call__(self, layout: Layout) -> int:
        """Returns the size that remains of a layout."""
        if isinstance(layout, Fixed):
            return layout.size
        known = self._known.get(id(layout))
        if known is None:
            known = self._known[id(layout)] = (layout, new_size(layout, self.kept))
        return known[1]


class Positions:
    """Computes which positions of layouts stay for one choice of kept units, those of each layout object once.

    Args:
        kept: Kept units per group.
    """

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self._known: dict[str | int, tuple[Layout, torch.Tensor]] = {}
        self._joined: dict[tuple[str | int, ...], tuple[torch.Tensor, int]] = {}

    def __call__(self, layout: Layout) -> torch.Tensor:
        """Returns the positions that stay, ascending: tensor ``[new_size]``, int64, on the CPU."""
        key = self._key(layout)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = (layout, self._positions(layout))
        return known[1]

    def _key(self, layout: Layout) -> str | int:
        """What a layout is known by: units of a group, of which there may be many objects, by its name."""
        return layout.group if type(layout) is Units and layout.group in self.kept else id(layout)

    def _positions(self, layout: Layout) -> torch.Tensor:
        if isinstance(layout, Product):
            # row-major: position = outer * size of the part + inner. Of heads[2] x dims[3], heads {1} and dims {0, 2}
            # stay: 1 * 3 + {0, 2} = {3, 5}
            result = self(layout.parts[0])
            for part in layout.parts[1:]:
                result = torch.add(self(part), result.view(-1, 1), alpha=part.size).view(-1)
            return result
        if isinstance(layout, Concat):
            return self._concatenated(layout.parts)
        if isinstance(layout, Listed):
            return long_tensor(layout.kept)
        if isinstance(layout, Units) and layout.group in self.kept:
            return long_tensor(self.kept[layout.group])
        return torch.arange(layout.size, device="cpu")

    def _concatenated(self, parts: Sequence[Layout]) -> torch.Tensor:
        """Positions of consecutive segments, each behind those before it.

        All segments but the last are looked up at once: inputs of a dense block are ``a``, ``a + b``, ``a + b + c``.
        """
        keys = tuple([self._key(part) for part in parts])
        pieces, size = [], 0
        if keys[:-1] in self._joined:
            known, size = self._joined[keys[:-1]]
            pieces, parts = [known], parts[-1:]
        for part in parts:
            pieces.append(self(part) + size if size else self(part))
            size += part.size
        result = torch.cat(pieces)
        self._joined[keys] = (result, size)
        return result


def kept_positions(layout: Layout, kept: Kept) -> torch.Tensor:
    """Returns the positions of one layout that stay, ascending.

    Returns:
        Tensor ``[new_size]``, int64, on the CPU.
    """
    return Positions(kept)(layout)


Placement = tuple[torch.Tensor, torch.Tensor]
"""Where the units of a group are: positions of a dim, and the unit that each holds; both int64 ``[positions]``."""


def placements(layout: Layout, kept: Kept) -> dict[str, Placement]:
    """Tells where the remaining units of every group are, once only the kept units stay.

    Example: ``(2 x dims[3]) + rest[1]`` with dims {0, 2} kept has five positions: dims 0, 2, 0, 2 and rest 0. So
    ``dims`` is at positions 0, 1, 2, 3 with units 0, 2, 0, 2, and ``rest`` at position 4 with unit 0.

    Returns:
        Group to positions (as numbered after the cut, ascending) and units (as numbered before it).
    """
    found: dict[str, list[Placement]] = {}
    match layout:
        case Units(group, size):
            units = long_tensor(kept[group]) if group in kept else torch.arange(size, device="cpu")
            return {group: (torch.arange(len(units), device="cpu"), units)}
        case Concat(parts):
            offset = 0
            for part in parts:
                for group, (positions, units) in placements(part, kept).items():
                    found.setdefault(group, []).append((positions + offset, units))
                offset += new_size(part, kept)
        case Product(parts):
            sizes = [new_size(part, kept) for part in parts]
            for number, part in enumerate(parts):
                outer, inner = math.prod(sizes[:number]), math.prod(sizes[number + 1 :])
                if isinstance(part, Units):  # every position of the product holds one of its units
                    _, units = placements(part, kept)[part.group]
                    repeated = units[:, None].expand(-1, inner).flatten().repeat(outer)
                    found.setdefault(part.group, []).append((torch.arange(len(repeated), device="cpu"), repeated))
                    continue
                for group, (positions, units) in placements(part, kept).items():  # a concat: some positions do
                    # [outer, positions, inner]: (index in outer * size + position) * size of inner + index in inner
                    starts = torch.arange(outer, device="cpu")[:, None, None] * sizes[number]
                    spread = (starts + positions[None, :, None]) * inner + torch.arange(inner, device="cpu")
                    repeated = units[:, None].expand(outer, -1, inner)
                    found.setdefault(group, []).append((spread.flatten(), repeated.flatten()))
    joined = {}
    for group, pieces in found.items():
        if len(pieces) == 1:  # one piece is ascending; several (dims + rest + dims) are sorted together
            joined[group] = pieces[0]
            continue
        positions, order = torch.cat([piece[0] for piece in pieces]).sort()
        joined[group] = (positions, torch.cat([piece[1] for piece in pieces])[order])
    return joined


def prefix(layout: Layout, size: int) -> Layout | None:
    """Returns the leading part of a product that has the given size, or None when there is no such part.

    ``prefix(G x o, G)`` are the groups of a grouped convolution. The size may end inside of a part: ``prefix(12, 4)``
    is a run of 4, and ``prefix(2 x (3 x a), 6)`` is ``2 x 3``.
    """
    if size == 1:
        return Fixed(1)
    if not layout.size or not size:
        return None
    if layout.size == size:
        return layout
    if isinstance(layout, Fixed):
        return Fixed(size) if layout.size % size == 0 else None
    if not isinstance(layout, Product):
        return None
    taken: list[Layout] = []
    missing = size  # the factor that the parts taken so far leave to be found
    for part in layout.parts:
        if missing % part.size:  # the size ends inside of this part
            inner = prefix(part, missing)
            if inner is None:
                return None
            part = inner
        taken.append(part)
        missing //= part.size
        if missing == 1:
            break
    if missing != 1:
        return None
    return taken[0] if len(taken) == 1 else Product(tuple(taken))


def substitute(layout: Layout, kept: Kept) -> Layout:
    """Returns the layout of the same dim after pruning: smaller groups, and no parts of size one in products."""
    match layout:
        case Units(group, size):
            return Units(group, len(kept[group]) if group in kept else size)
        case Listed():
            return Fixed(len(layout.kept))
        case Product(parts):
            return Product(tuple(substitute(part, kept) for part in parts))
        case Concat(parts):
            return Concat(tuple(substitute(part, kept) for part in parts))
    return layout


def regrouped(layout: Layout, names: Callable[[str], str]) -> Layout:
    """Returns a layout whose groups have other names."""
    match layout:
        case Units(group, size):
            return Units(names(group), size)
        case Product(parts):
            return Product(tuple(regrouped(part, names) for part in parts))
        case Concat(parts):
            return Concat(tuple(regrouped(part, names) for part in parts))
    return layout


def describe(layout: Layout) -> str:
    """Writes a layout in words: ``3 x blocks.0.attn#heads[12] x blocks.0.attn#head_dim[64]``."""
    match layout:
        case Units(group, size):
            return f"{group}[{size}]"
        case Product(parts):
            return "(" + " x ".join(describe(part) for part in parts) + ")"
        case Concat(parts):
            return "(" + " + ".join(describe(part) for part in parts) + ")"
    return str(layout.size)


def to_json(layout: Layout) -> object:
    """Writes a layout as plain JSON: a number, a group name with its size, or a tagged list."""
    match layout:
        case Fixed(size):
            return size
        case Units(group, size):
            return {"group": group, "size": size}
        case Listed(size, positions):
            return {"size": size, "kept": list(positions)}
        case Product(parts):
            return {"product": [to_json(part) for part in parts]}
        case Concat(parts):
            return {"concat": [to_json(part) for part in parts]}


def from_json(data: object) -> Layout:
    """Reads what `to_json` wrote.

    Raises:
        ValueError: The data is not a layout.
    """
    if type(data) is int and data >= 0:
        return Fixed(data)
    if isinstance(data, dict):
        fields: dict[Any, Any] = data
        match sorted(fields):
            case ["group", "size"] if type(fields["size"]) is int and fields["size"] >= 0:
                if isinstance(fields["group"], str):
                    return Units(fields["group"], fields["size"])
            case ["kept", "size"] if type(fields["size"]) is int and isinstance(fields["kept"], list):
                kept = fields["kept"]
                if all(type(p) is int and 0 <= p < fields["size"] for p in kept) and sorted(set(kept)) == kept:
                    return Listed(fields["size"], tuple(kept))
            case ["product"] if isinstance(fields["product"], list) and fields["product"]:
                return Product(tuple(from_json(part) for part in fields["product"]))
            case ["concat"] if isinstance(fields["concat"], list) and fields["concat"]:
                return Concat(tuple(from_json(part) for part in fields["concat"]))
    raise ValueError(f"not a layout: {str(data)[:80]}")


def parts_of(layout: Layout, form: type[Product] | type[Concat]) -> tuple[Layout, ...]:
    """Lists the parts of a product (or of a concat); anything else is one part."""
    return layout.parts if isinstance(layout, form) else (layout,)


def join_product(parts: Iterable[Layout]) -> Layout:
    """Makes a product in normal form: neighbours that never shrink are one, factors of size one vanish."""
    joined: list[Layout] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Fixed) and isinstance(last, Fixed):
            joined[-1] = Fixed(last.size * part.size)
        elif part != Fixed(1):
            joined.append(part)
    if not joined:
        return Fixed(1)
    return joined[0] if len(joined) == 1 else Product(tuple(joined))


def join_concat(parts: Iterable[Layout]) -> Layout:
    """Makes a concat in normal form: neighbours that never shrink are one."""
    joined: list[Layout] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Fixed) and isinstance(last, Fixed):
            joined[-1] = Fixed(last.size + part.size)
        else:
            joined.append(part)
    return joined[0] if len(joined) == 1 else Concat(tuple(joined))
