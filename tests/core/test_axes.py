"""Each function of the axis algebra against written answers."""

from __future__ import annotations

import itertools

import pytest

from prunekit_core.algebra.axes import (
    Axis,
    AxisMismatchError,
    Form,
    concat,
    cut,
    factors,
    is_pinned,
    leaves,
    pin,
    product,
    reason_of,
    regroup,
    resolve,
    segments,
    split,
    tie,
)
from prunekit_core.algebra.reasons import Reason

WHY = Reason("a test", "aten::test", "net.block")


def sizes(axes: list[Axis]) -> list[int]:
    return [resolve(axis).size for axis in axes]


def same(left: Axis, right: Axis) -> bool:
    return resolve(left) is resolve(right)


def all_same(left: list[Axis], right: list[Axis]) -> bool:
    return len(left) == len(right) and all(itertools.starmap(same, zip(left, right, strict=True)))


# -- reasons, reading


def test_a_reason_names_its_place() -> None:
    assert str(WHY) == "a test (aten::test in net.block)"
    assert str(Reason("a test", "aten::test")) == "a test (aten::test)"
    assert str(Reason("a test")) == "a test"


def test_an_axis_prints_its_structure() -> None:
    a, b, c = Axis(2), Axis(3), Axis(4, pinned=WHY)
    assert repr(product([a, concat([b, c])])) == "(2 x (3 + 4!))"


def test_a_fresh_axis_is_a_free_leaf() -> None:
    axis = Axis(5)
    assert (axis.size, axis.form, axis.reason) == (5, Form.LEAF, None)
    assert not is_pinned(axis)
    assert leaves(axis) == [axis]


def test_leaves_are_in_order_and_repeat() -> None:
    a, b = Axis(2), Axis(3)
    assert leaves(concat([a, b, a])) == [a, b, a]
    assert leaves(product([b, concat([a, b])])) == [b, a, b]


def test_resolve_follows_links_to_one_representative() -> None:
    chain = [Axis(4) for _ in range(6)]
    for left, right in itertools.pairwise(chain):
        tie(left, right)
    assert len({id(resolve(axis)) for axis in chain}) == 1


# -- pins


def test_pin_reaches_every_leaf_and_keeps_the_first_reason() -> None:
    a, b = Axis(2), Axis(3)
    pin(a, WHY)
    pin(product([a, b]), Reason("later"))
    assert a.reason == WHY
    assert b.reason == Reason("later")
    assert is_pinned(product([a, b]))


def test_single_units_and_nothing_count_as_pinned_without_a_reason() -> None:
    for size in (0, 1):
        assert is_pinned(Axis(size))
        assert reason_of(Axis(size)) is None


def test_a_part_that_is_free_leaves_the_whole_free() -> None:
    mixed = concat([Axis(2, pinned=WHY), Axis(3)])
    assert not is_pinned(mixed)
    assert reason_of(mixed) == WHY


def test_refining_a_pinned_leaf_passes_the_pin_on() -> None:
    axis = Axis(12, pinned=WHY)
    outer, inner = split(axis, 3, 4)
    assert (outer.reason, inner.reason) == (WHY, WHY)
    assert [piece.reason for piece in cut(Axis(5, pinned=WHY), [0, 2, 5])] == [WHY, WHY]


def test_pinning_after_refining_reaches_the_parts() -> None:
    axis = Axis(12)
    outer, inner = split(axis, 3, 4)
    pin(axis, WHY)
    assert (outer.reason, inner.reason) == (WHY, WHY)


def test_pinning_after_tying_reaches_the_twin() -> None:
    a, b = Axis(6), Axis(6)
    tie(a, b)
    pin(a, WHY)
    assert is_pinned(b)


@pytest.mark.parametrize("pinned_first", [True, False])
def test_tying_to_a_pinned_axis_pins(pinned_first: bool) -> None:
    fixed, free = Axis(6, pinned=WHY), Axis(6)
    tie(*((fixed, free) if pinned_first else (free, fixed)))
    assert is_pinned(free)
    assert reason_of(free) == WHY


@pytest.mark.parametrize("pinned_first", [True, False])
def test_tying_structures_where_one_is_pinned_pins_the_other(pinned_first: bool) -> None:
    a, b, c, d = Axis(2), Axis(3), Axis(4), Axis(2)
    pin(product([a, b]), WHY)
    pinned, free = product([a, b]), concat([c, d])
    tie(*((pinned, free) if pinned_first else (free, pinned)))
    assert c.reason == WHY
    assert d.reason == WHY


# -- normal forms


def test_products_are_flat_and_ones_vanish() -> None:
    a, b, c = Axis(2), Axis(3), Axis(4)
    nested = product([product([a, Axis(1)]), Axis(1), product([b, c])])
    assert nested.form is Form.PRODUCT
    assert all_same(factors(nested), [a, b, c])
    assert nested.size == 24


def test_concats_are_flat_and_nothing_vanishes() -> None:
    a, b, c = Axis(2), Axis(3), Axis(4)
    nested = concat([concat([a, Axis(0)]), concat([b, c])])
    assert all_same(segments(nested), [a, b, c])
    assert nested.size == 9


def test_a_single_part_is_itself() -> None:
    a = Axis(4)
    assert same(product([a, Axis(1)]), a)
    assert same(concat([Axis(0), a]), a)


def test_no_parts() -> None:
    assert product([]).size == 1
    assert product([Axis(1), Axis(1)]).size == 1
    assert concat([]).size == 0
    assert concat([Axis(0)]).size == 0


def test_a_product_with_an_empty_factor_is_empty() -> None:
    assert product([Axis(3), Axis(0)]).size == 0


def test_pinned_neighbours_merge() -> None:
    a = Axis(5)
    squares = product([a, Axis(7, pinned=WHY), Axis(7, pinned=WHY)])
    assert sizes(factors(squares)) == [5, 49]
    joined = concat([Axis(7, pinned=WHY), Axis(2, pinned=WHY), a])
    assert sizes(segments(joined)) == [9, 5]


def test_pinned_parts_apart_stay_apart() -> None:
    a = Axis(5)
    assert sizes(factors(product([Axis(2, pinned=WHY), a, Axis(2, pinned=WHY)]))) == [2, 5, 2]


def test_free_single_units_of_a_concat_stay_apart() -> None:
    assert sizes(segments(concat([Axis(1), Axis(1), Axis(3)]))) == [1, 1, 3]


def test_equal_meanings_have_equal_form() -> None:
    a, b, c = Axis(2), Axis(3), Axis(4)
    one = product([a, product([b, c])])
    two = product([product([a, b]), Axis(1), c])
    assert repr(one) == repr(two)
    tie(one, two)
    assert same(one, two)
    assert all_same(factors(one), [a, b, c])


# -- split


def test_split_of_a_leaf() -> None:
    axis = Axis(12)
    outer, inner = split(axis, 3, 4)
    assert (outer.size, inner.size) == (3, 4)
    assert all_same(factors(axis), [outer, inner])


def test_splitting_twice_gives_the_same_parts() -> None:
    axis = Axis(12)
    assert all_same(list(split(axis, 3, 4)), list(split(axis, 3, 4)))


def test_split_by_one_is_trivial() -> None:
    axis = Axis(6)
    outer, inner = split(axis, 1, 6)
    assert (outer.size, same(inner, axis)) == (1, True)
    outer, inner = split(axis, 6, 1)
    assert (same(outer, axis), inner.size) == (True, 1)
    assert axis.form is Form.LEAF


def test_split_of_a_product_regroups() -> None:
    a, b, c = Axis(2), Axis(3), Axis(4)
    outer, inner = split(product([a, b, c]), 6, 4)
    assert all_same(factors(outer), [a, b])
    assert same(inner, c)


def test_split_inside_a_factor_of_a_product() -> None:
    a, b = Axis(4), Axis(3)
    outer, inner = split(product([a, b]), 2, 6)
    high, low = factors(a)
    assert same(outer, high)
    assert all_same(factors(inner), [low, b])


def test_split_of_a_concat_distributes() -> None:
    """``qkv = Q + K + V`` meets ``view(heads, dim)``."""
    q, k, v = Axis(12), Axis(8), Axis(8)
    outer, inner = split(concat([q, k, v]), 7, 4)
    assert sizes(segments(outer)) == [3, 2, 2]
    assert [factors(piece)[1] for piece in (q, k, v)] == [resolve(inner)] * 3
    assert all_same(segments(outer), [factors(piece)[0] for piece in (q, k, v)])


def test_split_of_a_concat_with_a_segment_of_one_unit() -> None:
    a, b = Axis(4), Axis(8)
    outer, inner = split(concat([a, b]), 3, 4)
    assert sizes(segments(outer)) == [1, 2]
    assert same(inner, a)
    assert same(factors(b)[1], a)


def test_split_of_a_concat_with_a_pinned_segment_pins_the_inner_part() -> None:
    a, b = Axis(4, pinned=WHY), Axis(8)
    outer, inner = split(concat([a, b]), 6, 2)
    assert is_pinned(inner)
    assert [is_pinned(segment) for segment in segments(outer)] == [True, False]


def test_split_of_something_empty() -> None:
    outer, inner = split(Axis(0), 0, 4)
    assert (outer.size, inner.size) == (0, 4)


def test_split_errors() -> None:
    with pytest.raises(AxisMismatchError, match=r"^an axis of size 12 is not 5 x 2$"):
        split(Axis(12), 5, 2)
    with pytest.raises(AxisMismatchError, match=r"^the segments 3 \+ 5 are not all multiples of 4$"):
        split(concat([Axis(3), Axis(5)]), 2, 4)
    with pytest.raises(AxisMismatchError, match=r"^a run of 3 units doesn't divide into \[5, 3\]$"):
        split(product([Axis(3), Axis(5)]), 5, 3)


# -- structures that don't align are read in blocks of a common divisor


def test_a_concat_whose_seam_lies_inside_a_unit_is_split_in_blocks() -> None:
    a, b = Axis(64), Axis(32)
    joined = concat([a, b])
    outer, inner = split(joined, 8, 12)
    assert repr(joined) == "((16! x 4) + (8! x 4))"
    assert (repr(outer), repr(inner)) == ("8!", "(3! x 4)")
    assert same(factors(a)[1], factors(b)[1])
    assert same(factors(a)[1], factors(inner)[1])
    assert str(reason_of(outer)) == "the segments 64 + 32 are not all multiples of 12: blocks of 4"


def test_blocks_get_finer_with_every_level() -> None:
    """The streams of a U-Net: 80 + 80, 80 + 40, 40 + 20 in 4 groups each."""
    low, mid, high = Axis(80), Axis(40), Axis(20)
    for left, right in ((low, low), (low, mid), (mid, high)):
        total = left.size + right.size
        split(concat([left, right]), 4, total // 4)
    for axis in (low, mid, high):
        *blocks, unit = leaves(axis)
        assert all(map(is_pinned, blocks))
        assert same(unit, leaves(high)[-1])
        assert unit.size == 5


def test_a_segment_that_is_pinned_pins_the_blocks() -> None:
    free = Axis(8)
    with pytest.raises(AxisMismatchError, match=r"^the segments 8 \+ 4 are not all multiples of 6$"):
        split(concat([free, Axis(4, pinned=WHY)]), 2, 6)
    assert is_pinned(factors(free)[-1])


def test_the_largest_unit_that_all_segments_have_is_taken() -> None:
    """Of the divisors of gcd(18, 24, 12), 6 and 3 don't fit the segment that is 6 x 4 already; 2 does."""
    heads, leaf = product([Axis(6), Axis(4)]), Axis(12)
    split(concat([heads, leaf]), 2, 18)
    assert repr(leaf) == "(6! x 2)"
    assert [axis.size for axis in leaves(heads)] == [6, 2, 2]
    assert same(leaves(heads)[-1], leaves(leaf)[-1])
    assert sum(map(is_pinned, leaves(heads))) == 2


def test_a_product_is_cut_inside_a_unit_in_blocks() -> None:
    a, b = Axis(3), Axis(32)
    first, second = cut(product([a, b]), [0, 48, 96])
    assert repr(first) == repr(second) == "(3! x 16)"
    assert same(factors(first)[1], factors(second)[1])
    assert is_pinned(a)
    assert repr(b) == "(2! x 16)"


def test_products_that_do_not_align_are_regrouped_in_blocks() -> None:
    a, b = Axis(3), Axis(32)
    four, rest = regroup([a, b], [4, 24])
    assert (repr(four), repr(rest), repr(b)) == ("4!", "(3! x 8)", "(4! x 8)")
    assert same(factors(rest)[1], factors(b)[1])


def test_what_aligns_before_and_behind_stays_free() -> None:
    lead, a, b, tail = Axis(7), Axis(3), Axis(32), Axis(5)
    first, _, rest, last = regroup([lead, a, b, tail], [7, 4, 24, 5])
    assert same(first, lead)
    assert same(last, tail)
    assert repr(rest) == "(3! x 8)"


def test_products_that_do_not_align_are_tied_in_blocks() -> None:
    a, b = Axis(32), Axis(24)
    tie(product([Axis(3), a]), product([Axis(4), b]))
    assert (repr(a), repr(b)) == ("(4! x 8)", "(3! x 8)")
    assert same(factors(a)[1], factors(b)[1])


# -- cut


def test_cut_of_a_leaf() -> None:
    axis = Axis(7)
    pieces = cut(axis, [0, 2, 7])
    assert sizes(pieces) == [2, 5]
    assert all_same(segments(axis), pieces)


def test_cutting_twice_gives_the_same_pieces() -> None:
    axis = Axis(7)
    assert all_same(cut(axis, [0, 2, 7]), cut(axis, [0, 2, 7]))


def test_a_finer_cut_refines_the_pieces() -> None:
    axis = Axis(7)
    coarse = cut(axis, [0, 4, 7])
    fine = cut(axis, [0, 2, 4, 7])
    assert all_same(segments(coarse[0]), fine[:2])
    assert same(coarse[1], fine[2])


def test_cut_in_one_piece_is_the_axis() -> None:
    axis = Axis(7)
    assert cut(axis, [0, 7]) == [axis]
    assert axis.form is Form.LEAF


def test_cut_of_a_concat_across_its_boundaries() -> None:
    a, b, c = Axis(3), Axis(4), Axis(5)
    first, second = cut(concat([a, b, c]), [0, 5, 12])
    low, high = segments(b)
    assert all_same(segments(first), [a, low])
    assert all_same(segments(second), [high, c])
    assert sizes([low, high]) == [2, 2]


def test_cut_of_a_concat_that_repeats_a_segment() -> None:
    a = Axis(4)
    pieces = cut(concat([a, a]), [0, 1, 4, 6, 8])
    assert sizes(pieces) == [1, 3, 2, 2]
    assert sizes(segments(a)) == [1, 1, 2]
    assert all_same(segments(pieces[2]), segments(a)[:2])
    assert same(pieces[3], segments(a)[2])


def test_cut_through_a_product() -> None:
    a, b = Axis(6), Axis(4)
    first, second = cut(product([a, b]), [0, 8, 24])
    low, high = segments(a)
    assert sizes([low, high]) == [2, 4]
    assert all_same(factors(first), [low, b])
    assert all_same(factors(second), [high, b])


def test_cut_of_one_unit_of_a_product() -> None:
    a, b = Axis(3), Axis(4)
    pieces = cut(product([a, b]), [0, 4, 12])
    assert same(pieces[0], b)
    assert all_same(factors(pieces[1]), [segments(a)[1], b])


def test_cut_with_empty_pieces() -> None:
    axis = Axis(5)
    pieces = cut(axis, [0, 0, 2, 2, 5, 5])
    assert sizes(pieces) == [0, 2, 0, 3, 0]
    assert all_same(segments(axis), [pieces[1], pieces[3]])


def test_cut_of_nothing() -> None:
    assert sizes(cut(Axis(0), [0, 0])) == [0]
    assert sizes(cut(Axis(0), [0, 0, 0])) == [0, 0]


def test_cut_errors() -> None:
    for points in ([1, 5], [0, 4], [0, 3, 2, 5]):
        with pytest.raises(AxisMismatchError, match=r"don't cut an axis of size 5$"):
            cut(Axis(5), points)
    with pytest.raises(AxisMismatchError, match=r"^the cut \[0, 3, 8\] splits units of 4 in \(2 x 4\)$"):
        cut(product([Axis(2), Axis(4)]), [0, 3, 8])


# -- regroup


def test_flatten_and_unflatten() -> None:
    c, h, w = Axis(8), Axis(7, pinned=WHY), Axis(7, pinned=WHY)
    (flat,) = regroup([c, h, w], [392])
    assert sizes(factors(flat)) == [8, 49]
    assert same(factors(flat)[0], c)
    again, space = regroup([flat], [8, 49])
    assert same(again, c)
    assert is_pinned(space)


def test_regroup_splits_where_a_size_divides() -> None:
    axis = Axis(24)
    three, heads, dim = regroup([axis], [3, 2, 4])
    assert all_same(factors(axis), [three, heads, dim])


def test_regroup_deals_ones_out_anywhere() -> None:
    a, b = Axis(2), Axis(3)
    dealt = regroup([a, b], [1, 2, 1, 3, 1])
    assert sizes(dealt) == [1, 2, 1, 3, 1]
    assert same(dealt[1], a)
    assert same(dealt[3], b)


def test_regroup_to_no_dims() -> None:
    assert regroup([Axis(1), Axis(1)], []) == []


def test_regroup_across_two_axes() -> None:
    a, b = Axis(4), Axis(6)
    first, second = regroup([a, b], [2, 12])
    high, low = factors(a)
    assert same(first, high)
    assert all_same(factors(second), [low, b])


def test_regroup_of_nothing_is_pinned() -> None:
    free, empty = regroup([Axis(0), Axis(4)], [2, 0])
    assert (free.size, empty.size) == (2, 0)
    assert is_pinned(free)
    assert reason_of(free) == Reason("an empty tensor")


def test_regroup_through_a_concat() -> None:
    a, b = Axis(4), Axis(6)
    outer, inner = regroup([concat([a, b])], [5, 2])
    assert sizes(segments(outer)) == [2, 3]
    assert same(factors(a)[1], inner)
    assert same(factors(b)[1], inner)


def test_regroup_leaves_apart_what_boundaries_keep_apart() -> None:
    batch, channels = Axis(2, pinned=Reason("an input")), Axis(16, pinned=Reason("a spatial dim"))
    assert regroup([batch, channels], [2, 1, 16, 1])[2] is channels
    one, two = regroup([batch, channels, Axis(1)], [2, 16])
    assert one is batch
    assert two is channels
    flat, last = regroup([batch, channels, Axis(3, pinned=Reason("last"))], [32, 3])
    assert [str(reason_of(axis)) for axis in (flat, last)] == ["an input", "last"]


def test_regroup_merged_pins() -> None:
    """Two pinned factors may be dealt out in any way: a pinned axis needs no structure."""
    dealt = regroup([Axis(4, pinned=WHY), Axis(9, pinned=WHY)], [6, 6])
    assert sizes(dealt) == [6, 6]
    assert all(is_pinned(axis) for axis in dealt)


def test_regroup_errors() -> None:
    with pytest.raises(AxisMismatchError, match=r"^12 elements can't be viewed as \[5, 2\]$"):
        regroup([Axis(12)], [5, 2])
    with pytest.raises(AxisMismatchError, match=r"^a run of 3 units doesn't divide into \[2, 3\]$"):
        regroup([Axis(3), Axis(2)], [2, 3])


# -- tie


def test_tie_of_an_axis_with_itself() -> None:
    a = Axis(3)
    tie(a, a)
    assert resolve(a) is a


def test_tie_of_single_units_says_nothing() -> None:
    a, b = Axis(1), Axis(1)
    tie(a, b)
    assert not same(a, b)


def test_tie_of_two_leaves() -> None:
    a, b = Axis(6), Axis(6)
    tie(a, b)
    assert same(a, b)
    outer, _ = split(a, 2, 3)
    assert same(factors(b)[0], outer)


@pytest.mark.parametrize("leaf_first", [True, False])
def test_tie_of_a_leaf_and_a_product(leaf_first: bool) -> None:
    leaf, a, b = Axis(6), Axis(2), Axis(3)
    whole = product([a, b])
    tie(*((leaf, whole) if leaf_first else (whole, leaf)))
    assert all_same(factors(leaf), [a, b])


@pytest.mark.parametrize("leaf_first", [True, False])
def test_tie_of_a_leaf_and_a_concat(leaf_first: bool) -> None:
    leaf, a, b = Axis(5), Axis(2), Axis(3)
    whole = concat([a, b])
    tie(*((leaf, whole) if leaf_first else (whole, leaf)))
    assert all_same(segments(leaf), [a, b])


def test_tie_of_aligned_products() -> None:
    a, b, c, d = Axis(2), Axis(3), Axis(2), Axis(3)
    tie(product([a, b]), product([c, d]))
    assert same(a, c)
    assert same(b, d)


@pytest.mark.parametrize("swapped", [True, False])
def test_tie_of_products_splits_the_larger_factor(swapped: bool) -> None:
    a, b, c, d = Axis(4), Axis(3), Axis(2), Axis(6)
    left, right = product([a, b]), product([c, d])
    tie(*((right, left) if swapped else (left, right)))
    high, low = factors(a)
    assert same(high, c)
    assert all_same(factors(d), [low, b])


def test_tie_of_products_that_share_a_factor() -> None:
    """``A x B`` and ``B x A``: A is halved into what B is, and everything becomes one axis."""
    a, b = Axis(4), Axis(2)
    tie(product([a, b]), product([b, a]))
    assert all_same(factors(a), [b, b])


@pytest.mark.parametrize("swapped", [True, False])
def test_tie_of_concats_cuts_both_at_all_boundaries(swapped: bool) -> None:
    a, b, c, d = Axis(2), Axis(5), Axis(4), Axis(3)
    left, right = concat([a, b]), concat([c, d])
    tie(*((right, left) if swapped else (left, right)))
    assert sizes(segments(b)) == [2, 3]
    assert all_same(segments(c), [a, segments(b)[0]])
    assert same(segments(b)[1], d)


@pytest.mark.parametrize("swapped", [True, False])
def test_tie_of_a_product_and_a_concat(swapped: bool) -> None:
    rows, inner, a, b = Axis(5), Axis(2), Axis(4), Axis(6)
    left, right = product([rows, inner]), concat([a, b])
    tie(*((right, left) if swapped else (left, right)))
    assert sizes(segments(rows)) == [2, 3]
    assert same(factors(a)[1], inner)
    assert same(factors(b)[1], inner)
    assert all_same(segments(rows), [factors(a)[0], factors(b)[0]])


def test_tied_structures_are_one_class_afterwards() -> None:
    left, right = product([Axis(4), Axis(3)]), product([Axis(2), Axis(6)])
    tie(left, right)
    assert same(left, right)
    left, right = concat([Axis(4), Axis(3)]), concat([Axis(2), Axis(5)])
    tie(left, right)
    assert same(left, right)


def test_tie_through_earlier_ties() -> None:
    a, b, c = Axis(6), Axis(6), Axis(6)
    tie(a, b)
    outer, inner = split(b, 2, 3)
    tie(c, a)
    assert all_same(factors(c), [outer, inner])


def test_tie_errors() -> None:
    with pytest.raises(AxisMismatchError, match=r"^axes of size 3 and 4 can't mean the same$"):
        tie(Axis(3), Axis(4))
    with pytest.raises(AxisMismatchError, match=r"^factors of 3 and 2 units don't align$"):
        tie(product([Axis(3), Axis(2)]), product([Axis(2), Axis(3)]))
    with pytest.raises(AxisMismatchError, match=r"^the segments 3 \+ 3 are not all multiples of 2$"):
        tie(product([Axis(3), Axis(2)]), concat([Axis(3), Axis(3)]))


def test_a_mismatch_is_a_value_error() -> None:
    assert issubclass(AxisMismatchError, ValueError)
