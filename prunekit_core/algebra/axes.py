"""The algebra of axes: what a tensor dimension means, and how operations tie meanings together.

A tensor dim is an `Axis`: an identity with a size. Axes live in a union-find whose classes can be refined. An axis is

- a *leaf*: an atomic run of units, free or pinned (with a reason);
- a *product* ``A x B x C``: row-major factors, most significant first (what ``view`` makes and undoes);
- a *concat* ``A + B + C``: consecutive segments (what ``cat``, ``split``, ``chunk`` and slices make and undo).

Axes of size one vanish from products. Adjacent pinned parts merge, because a pinned axis needs no structure.
Nothing in this file knows about tensors or operations.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from prunekit_core.algebra.reasons import SINGLE_UNITS, Reason


class AxisMismatchError(ValueError):
    """Two axes can't mean the same, or an axis can't be taken apart as asked."""


class Form(enum.Enum):
    """The three forms of an axis."""

    LEAF = "leaf"
    PRODUCT = "product"
    CONCAT = "concat"


class Axis:
    """A node of the union-find; use the functions of this module to relate and to read axes.

    Args:
        size: Number of units, zero or more.
        pinned: The reason why the axis must keep its size; None leaves it free.
    """

    __slots__ = ("_link", "form", "parts", "reason", "size")

    def __init__(self, size: int, pinned: Reason | None = None) -> None:
        self.size = size
        self.form = Form.LEAF
        self.parts: tuple[Axis, ...] = ()
        self.reason = pinned
        self._link: Axis | None = None

    def __repr__(self) -> str:
        root = resolve(self)
        if root.form is Form.LEAF:
            return f"{root.size}{'!' if root.reason else ''}"
        sign = " x " if root.form is Form.PRODUCT else " + "
        return "(" + sign.join(repr(part) for part in root.parts) + ")"


def resolve(axis: Axis) -> Axis:
    """Returns the representative of the axis' class (with path compression)."""
    root = axis
    while root._link is not None:
        root = root._link
    while axis is not root:
        assert axis._link is not None
        axis._link, axis = root, axis._link
    return root


def leaves(axis: Axis) -> list[Axis]:
    """Returns the leaves below an axis, in order; a leaf that occurs twice is listed twice."""
    root = resolve(axis)
    if root.form is Form.LEAF:
        return [root]
    return [leaf for part in root.parts for leaf in leaves(part)]


def is_pinned(axis: Axis) -> bool:
    """Tells whether nothing of the axis can be removed (size one or less counts as pinned)."""
    root = resolve(axis)
    if root.size <= 1:
        return True
    if root.form is Form.LEAF:
        return root.reason is not None
    return all(is_pinned(part) for part in root.parts)


def reason_of(axis: Axis) -> Reason | None:
    """Returns the first reason found among the axis' leaves, if any is pinned."""
    root = resolve(axis)
    if root.form is Form.LEAF:
        return root.reason
    return next((leaf.reason for leaf in leaves(root) if leaf.reason is not None), None)


def pin(axis: Axis, reason: Reason) -> None:
    """Pins all leaves below the axis, and with them every later refinement; the first reason stays."""
    root = resolve(axis)
    if root.form is Form.LEAF:
        if root.reason is None:
            root.reason = reason
        return
    for part in root.parts:
        pin(part, reason)


def factors(axis: Axis) -> list[Axis]:
    """Returns the row-major factors of an axis: leaves and concats of size above one, no products."""
    root = resolve(axis)
    if root.form is Form.PRODUCT:
        return [factor for part in root.parts for factor in factors(part)]
    return [] if root.size == 1 else [root]


def segments(axis: Axis) -> list[Axis]:
    """Returns the consecutive segments of an axis: leaves and products, no concats."""
    root = resolve(axis)
    if root.form is Form.CONCAT:
        return [segment for part in root.parts for segment in segments(part)]
    return [root]


def product(axes: Iterable[Axis]) -> Axis:
    """Returns the axis with the given row-major factors, in normal form."""
    flat = _merge_pinned([factor for axis in axes for factor in factors(axis)], math.prod)
    if not flat:
        return Axis(1)
    if len(flat) == 1:
        return flat[0]
    return _node(Form.PRODUCT, flat, math.prod(factor.size for factor in flat))


def concat(axes: Iterable[Axis]) -> Axis:
    """Returns the axis with the given consecutive segments, in normal form."""
    flat = _merge_pinned([segment for axis in axes for segment in segments(axis) if segment.size], sum, units=False)
    if not flat:
        return Axis(0)
    if len(flat) == 1:
        return flat[0]
    return _node(Form.CONCAT, flat, sum(segment.size for segment in flat))


def _node(form: Form, parts: Sequence[Axis], size: int) -> Axis:
    node = Axis(size)
    node.form, node.parts = form, tuple(parts)
    return node


def _merge_pinned(parts: list[Axis], combine: Callable[[Iterable[int]], int], units: bool = True) -> list[Axis]:
    """Merges neighbours that are pinned; single units of a concat stay apart unless truly pinned."""
    merged: list[Axis] = []
    for fixed, run in itertools.groupby(parts, key=lambda p: is_pinned(p) and (units or reason_of(p) is not None)):
        members = list(run)
        if fixed and len(members) > 1:
            reason = next((r for r in map(reason_of, members) if r is not None), SINGLE_UNITS)
            members = [Axis(combine(member.size for member in members), pinned=reason)]
        merged.extend(members)
    return merged


def _refine(leaf: Axis, form: Form, parts: Sequence[Axis]) -> None:
    if leaf.reason is not None:
        for part in parts:
            pin(part, leaf.reason)
    leaf.form, leaf.parts = form, tuple(parts)


def split(axis: Axis, outer: int, inner: int) -> tuple[Axis, Axis]:
    """Reads an axis as ``outer x inner``.

    A leaf becomes a product. A concat distributes, ``(A + B) -> (A' + B') x inner``, and the inner parts are tied.
    Where a segment isn't a multiple of ``inner``, the axis is read as blocks of a common divisor ``u`` (64 + 32 as
    8 x 12: blocks of 4): the number of blocks is pinned, and every block loses the same of its ``u`` units.

    Raises:
        AxisMismatchError: The structure of the axis doesn't divide that way.
    """
    root = resolve(axis)
    if root.size != outer * inner:
        raise AxisMismatchError(f"an axis of size {root.size} is not {outer} x {inner}")
    if outer == 1:
        return Axis(1), root
    if inner == 1:
        return root, Axis(1)
    if is_pinned(root):
        reason = reason_of(root) or SINGLE_UNITS
        return Axis(outer, pinned=reason), Axis(inner, pinned=reason)
    if root.form is Form.LEAF:
        first, second = Axis(outer), Axis(inner)
        _refine(root, Form.PRODUCT, (first, second))
        return first, second
    if root.form is Form.PRODUCT:
        first, second = regroup([root], [outer, inner])
        return first, second
    return _split_concat(root, inner)


def _split_concat(root: Axis, inner: int) -> tuple[Axis, Axis]:
    pieces = segments(root)
    sizes = " + ".join(str(piece.size) for piece in pieces)
    fault = f"the segments {sizes} are not all multiples of {inner}"
    if not _divides(root, inner):
        unit = _in_blocks(root, lambda size: inner % size == 0, fault)
        reason = Reason(f"{fault}: blocks of {unit.size}")
        return Axis(root.size // inner, pinned=reason), product([Axis(inner // unit.size, pinned=reason), unit])
    pairs = [split(piece, piece.size // inner, inner) for piece in pieces]
    shared = pairs[0][1]
    for _, other in pairs[1:]:
        tie(shared, other)
    return concat(first for first, _ in pairs), resolve(shared)


def _divides(axis: Axis, inner: int) -> bool:
    """Tells whether the structure of an axis can be read as ``outer x inner``, without changing it."""
    root = resolve(axis)
    if root.size % inner:
        return False
    if root.form is Form.LEAF or is_pinned(root):
        return True
    if root.form is Form.CONCAT:
        return all(_divides(segment, inner) for segment in segments(root))
    for factor in reversed(factors(root)):
        if factor.size % inner == 0:
            return _divides(factor, inner)
        if inner % factor.size:
            return False
        inner //= factor.size
    return True


def _sizes_divide(sizes: Sequence[int], inner: int) -> bool:
    """Tells whether row-major sizes can be read as ``outer x inner``."""
    for size in reversed(sizes):
        if size % inner == 0:
            return True
        if inner % size:
            return False
        inner //= size
    return inner == 1


def _in_blocks(axis: Axis, fits: Callable[[int], bool], fault: str) -> Axis:
    """Reads an axis as ``blocks x u`` with the largest ``u`` that its structure allows and that fits another one.

    The blocks are pinned: a boundary of one of the two structures falls inside a run of units of the other, so that
    only what every block loses alike keeps both.

    Returns:
        The axis of the ``u`` units of a block.

    Raises:
        AxisMismatchError: There is no such ``u`` above one, or nothing of it is free; ``fault`` is the text.
    """
    root = resolve(axis)
    small = [number for number in range(1, math.isqrt(root.size) + 1) if root.size % number == 0]
    for unit in [*(root.size // number for number in small[1:]), *reversed(small[1:])]:
        if fits(unit) and _divides(root, unit):
            blocks, inner = split(root, root.size // unit, unit)
            if is_pinned(inner):
                break
            pin(blocks, Reason(f"{fault}: blocks of {unit}"))
            return inner
    raise AxisMismatchError(fault)


def cut(axis: Axis, points: Sequence[int]) -> list[Axis]:
    """Cuts an axis into consecutive pieces.

    A leaf becomes a concat; a product is cut through its first factor when every point is a multiple of the rest, else
    in blocks of a common divisor, as `split` does.

    Args:
        axis: The axis to cut.
        points: Ascending boundaries, starting with 0 and ending with the size of the axis.

    Raises:
        AxisMismatchError: A point falls inside a run of units that belong together.
    """
    root = resolve(axis)
    if list(points) != sorted(points) or points[0] != 0 or points[-1] != root.size:
        raise AxisMismatchError(f"the points {list(points)} don't cut an axis of size {root.size}")
    widths = [high - low for low, high in itertools.pairwise(points)]
    if len(widths) == 1:
        return [root]
    if is_pinned(root):
        reason = reason_of(root) or SINGLE_UNITS
        return [Axis(width, pinned=reason) for width in widths]
    if 0 in widths:
        kept = iter(cut(root, sorted(set(points))))
        return [next(kept) if width else Axis(0) for width in widths]
    if root.form is Form.LEAF:
        pieces = [Axis(width) for width in widths]
        _refine(root, Form.CONCAT, pieces)
        return pieces
    if root.form is Form.CONCAT:
        return _cut_concat(root, points)
    first, *rest = factors(root)
    inner = math.prod(factor.size for factor in rest)
    if any(point % inner for point in points):
        fault = f"the cut {list(points)} splits units of {inner} in {root!r}"
        step = math.gcd(*points)
        unit = _in_blocks(root, lambda size: step % size == 0, fault)
        reason = Reason(f"{fault}: blocks of {unit.size}")
        return [product([Axis(width // unit.size, pinned=reason), unit]) for width in widths]
    return [product([head, *rest]) for head in cut(first, [point // inner for point in points])]


def _cut_concat(root: Axis, points: Sequence[int]) -> list[Axis]:
    pieces: deque[Axis] = deque()
    offset = 0
    for segment in segments(root):
        size = segment.size
        inside = [point - offset for point in points if offset < point < offset + size]
        pieces.extend(cut(segment, [0, *inside, size]))
        offset += size
    result = []
    for low, high in itertools.pairwise(points):
        taken, width = [], 0
        while width < high - low:
            taken.append(pieces.popleft())
            width += taken[-1].size
        result.append(concat(taken))
    return result


def regroup(axes: Iterable[Axis], sizes: Sequence[int]) -> list[Axis]:
    """Deals the factors of some axes out to new sizes: the whole of view, reshape, flatten and unflatten.

    From where the two don't align on, they are read in blocks of a common divisor, as `split` does.

    Raises:
        AxisMismatchError: A new boundary falls inside a factor that doesn't divide there.
    """
    given = list(axes)
    total = math.prod(resolve(axis).size for axis in given)
    if total != math.prod(sizes):
        raise AxisMismatchError(f"{total} elements can't be viewed as {list(sizes)}")
    if total == 0:
        for axis in given:
            pin(axis, Reason("an empty tensor"))
        return [Axis(size, pinned=Reason("an empty tensor")) for size in sizes]
    result: list[Axis] = []
    old, new = 0, 0
    while old < len(given) or new < len(sizes):  # runs between boundaries that stay, each by itself
        first, start, left, right = old, new, 1, 1
        while left != right or (first, start) == (old, new):
            if old < len(given) and (left <= right or new == len(sizes)):
                left, old = left * resolve(given[old]).size, old + 1
            else:
                right, new = right * sizes[new], new + 1
        result.extend(_regroup_run(given[first:old], sizes[start:new]))
    return result


def _regroup_run(given: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    if len(given) == len(sizes) == 1:
        return list(given)
    pending = deque(factors(product(given)))
    result: list[Axis] = []
    for position, size in enumerate(sizes):
        taken, missing = [], size
        while missing > 1:
            factor = resolve(pending.popleft())
            if factor.form is Form.PRODUCT:
                pending.extendleft(reversed(factors(factor)))
            elif missing % factor.size == 0:
                taken.append(factor)
                missing //= factor.size
            elif factor.size % missing == 0:
                head, tail = split(factor, missing, factor.size // missing)
                taken.append(head)
                pending.appendleft(tail)
                missing = 1
            else:
                fault = f"a run of {factor.size} units doesn't divide into {list(sizes)}"
                first, *rest = _regroup_blocks(product([factor, *pending]), [missing, *sizes[position + 1 :]], fault)
                return [*result, product([*taken, first]), *rest]
        result.append(product(taken))
    return result


def _regroup_blocks(axis: Axis, sizes: Sequence[int], fault: str) -> list[Axis]:
    unit = _in_blocks(axis, lambda size: _sizes_divide(sizes, size), fault)
    reason = Reason(f"{fault}: blocks of {unit.size}")
    last, missing = len(sizes) - 1, unit.size
    while missing % sizes[last] == 0 and missing > sizes[last]:
        missing //= sizes[last]
        last -= 1
    part, *tail = regroup([unit], [missing, *sizes[last + 1 :]])
    lead = [Axis(size, pinned=reason) for size in sizes[:last]]
    return [*lead, product([Axis(sizes[last] // missing, pinned=reason), part]), *tail]


def tie(left: Axis, right: Axis) -> None:
    """Makes two axes mean the same: from now on they lose the same units.

    Raises:
        AxisMismatchError: Their sizes differ, or their structures can't be aligned.
    """
    a, b = resolve(left), resolve(right)
    if a is b:
        return
    if a.size != b.size:
        raise AxisMismatchError(f"axes of size {a.size} and {b.size} can't mean the same")
    if a.size <= 1:
        return
    if a.form is not Form.LEAF and b.form is Form.LEAF:
        a, b = b, a
    if a.form is Form.LEAF:
        if a.reason is not None:
            pin(b, a.reason)
        a._link = b
        return
    if is_pinned(a) or is_pinned(b):
        reason = reason_of(a) or reason_of(b) or SINGLE_UNITS
        pin(a, reason)
        pin(b, reason)
        return
    if a.form is b.form is Form.PRODUCT:
        _tie_products(a, b)
    elif a.form is b.form is Form.CONCAT:
        _tie_concats(a, b)
    else:
        flat, segmented = (a, b) if a.form is Form.PRODUCT else (b, a)
        first, *rest = factors(flat)
        outer, inner = split(segmented, first.size, math.prod(factor.size for factor in rest))
        tie(inner, product(rest))
        tie(outer, first)
    a, b = resolve(a), resolve(b)
    if a is not b:
        a._link = b


def _tie_products(a: Axis, b: Axis) -> None:
    ours, theirs = deque(factors(a)), deque(factors(b))
    while ours and theirs:
        x, y = resolve(ours.popleft()), resolve(theirs.popleft())
        if x.form is Form.PRODUCT or y.form is Form.PRODUCT:
            ours.extendleft(reversed(factors(x)))
            theirs.extendleft(reversed(factors(y)))
        elif x.size == y.size:
            tie(x, y)
        elif x.size % y.size and y.size % x.size:
            _tie_blocks([x, *ours], [y, *theirs])
            return
        elif x.size > y.size:
            theirs.appendleft(y)
            ours.extendleft(reversed(split(x, y.size, x.size // y.size)))
        else:
            ours.appendleft(x)
            theirs.extendleft(reversed(split(y, x.size, y.size // x.size)))


def _tie_blocks(ours: Sequence[Axis], theirs: Sequence[Axis]) -> None:
    """Ties row-major factors that don't align in blocks of a common divisor, as `split` reads them."""
    larger, smaller = sorted((ours[0].size, theirs[0].size), reverse=True)
    fault = f"factors of {larger} and {smaller} units don't align"
    unit = _in_blocks(product(ours), lambda size: _divides(product(theirs), size), fault)
    blocks, other = split(product(theirs), product(theirs).size // unit.size, unit.size)
    pin(blocks, Reason(f"{fault}: blocks of {unit.size}"))
    tie(unit, other)


def _tie_concats(a: Axis, b: Axis) -> None:
    points = sorted({*_boundaries(a), *_boundaries(b)})
    for x, y in zip(cut(a, points), cut(b, points), strict=True):
        tie(x, y)


def _boundaries(axis: Axis) -> list[int]:
    return [0, *itertools.accumulate(segment.size for segment in segments(axis))]
