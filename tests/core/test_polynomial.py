"""Polynomials in group sizes say what counting with numbers says."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from prunekit_core.algebra import polynomial
from prunekit_core.algebra.layout import Kept, Layout, new_size
from prunekit_core.algebra.polynomial import (
    Polynomial,
    SymbolicSizer,
    as_polynomial,
    compile_polynomials,
    multiplied,
    size_of,
)
from tests.strategies import SIZES, keeps, layouts


@given(st.lists(st.lists(layouts(listed=True), max_size=3), min_size=1, max_size=4), keeps)
def test_compiled_sums_of_products_equal_counting(rows: list[list[Layout]], kept: Kept) -> None:
    polynomials = [as_polynomial(multiplied(map(size_of, row))) for row in rows]
    evaluate = compile_polynomials(polynomials, SIZES)
    sizes = {name: len(units) for name, units in kept.items()}
    expected = [multiplied(new_size(layout, kept) for layout in row) for row in rows]
    assert evaluate(sizes).tolist() == expected
    assert evaluate({}).tolist() == [multiplied(new_size(layout, {}) for layout in row) for row in rows]
    total = compile_polynomials([sum(polynomials, as_polynomial(0))], SIZES)
    assert total(sizes).tolist() == [sum(expected)]


@given(
    st.lists(st.lists(layouts(listed=True), max_size=3), min_size=1, max_size=4),
    st.lists(st.dictionaries(st.sampled_from([*SIZES, "of another model"]), st.integers(1, 9)), max_size=5),
)
def test_values_after_changes_are_those_of_changed_sizes(
    rows: list[list[Layout]], changes: list[dict[str, int]]
) -> None:
    evaluate = compile_polynomials([as_polynomial(multiplied(map(size_of, row))) for row in rows], SIZES)
    base = dict.fromkeys(list(SIZES)[:2], 2)
    found = evaluate.each(base, changes)
    assert found.shape == (len(changes), len(rows))
    assert found.tolist() == [evaluate({**base, **change}).tolist() for change in changes]


def test_many_changes_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polynomial, "BLOCK", 5)
    evaluate = compile_polynomials([Polynomial({("a", "b"): 1, ("a",): 3})], {"a": 4, "b": 5})
    assert evaluate.each({"a": 2}, [{"b": size} for size in range(7)]).flatten().tolist() == [
        2 * size + 6 for size in range(7)
    ]


def test_polynomials_calculate_like_integers() -> None:
    a, b = Polynomial({("a",): 1}), Polynomial({("b",): 1})
    both = (a + b) * (a + 2) * 3
    assert both.terms == {("a", "a"): 3, ("a",): 6, ("a", "b"): 3, ("b",): 6}
    assert (2 + a).terms == {("a",): 1, (): 2}
    assert multiplied([2, 3]) == 6
    assert as_polynomial(0).terms == {}
    assert compile_polynomials([], SIZES)({}).tolist() == []
    assert compile_polynomials([as_polynomial(7)], SIZES)({}).tolist() == [7]


@given(layouts())
def test_a_layout_is_computed_once(layout: Layout) -> None:
    sizer = SymbolicSizer()
    assert sizer(layout) is sizer(layout)


def test_counts_beyond_single_precision_are_exact() -> None:
    big = Polynomial({("a", "a", "b"): 3})
    assert compile_polynomials([big], {"a": 1_000_003, "b": 7})({}).tolist() == [3 * 1_000_003**2 * 7]
