"""Hypothesis strategies shared by the tests."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from prunekit_core.algebra.layout import Concat, Fixed, Layout, Listed, Product, Units, groups_of
from tests.programs.spec import Block

numbers = st.integers(0, 71)


def blocks(
    kinds: Sequence[str], nested: Sequence[str], depth: int = 2, most: int = 4
) -> st.SearchStrategy[tuple[Block, ...]]:
    """Sequences of blocks, nested up to a depth.

    Args:
        kinds: Kinds to draw from.
        nested: Those of them that hold blocks.
        depth: Levels of nesting.
        most: Largest number of blocks in a sequence.
    """
    flat = st.builds(Block, st.sampled_from([kind for kind in kinds if kind not in nested]), numbers, numbers)
    if not depth:
        return st.lists(flat, max_size=most).map(tuple)
    inner = blocks(kinds, nested, depth - 1, max(2, most - 2))
    holders = [kind for kind in kinds if kind in nested]
    deep = st.builds(Block, st.sampled_from(holders), numbers, numbers, inner)
    return st.lists(st.one_of(flat, flat, deep), max_size=most).map(tuple)


SIZES = {"a": 4, "b": 3, "c": 2}
"""Groups that layouts are made over, with their sizes."""


def _factors(parts: list[Layout]) -> Layout:
    return Product(tuple(parts))


def layouts(*, listed: bool = False, repeats: bool = True) -> st.SearchStrategy[Layout]:
    """Layouts over the groups of `SIZES`.

    Args:
        listed: Whether runs with listed positions occur.
        repeats: Whether a group may be a factor of itself (``A x A``, as outer products make).
    """
    units = st.sampled_from([Units(name, size) for name, size in SIZES.items()])
    runs = st.integers(0, 3).map(Fixed)
    leaf: st.SearchStrategy[Layout] = st.one_of(units, runs)
    if listed:
        chosen = st.integers(1, 4).flatmap(
            lambda size: st.sets(st.integers(0, size - 1)).map(lambda kept: Listed(size, tuple(sorted(kept))))
        )
        leaf = st.one_of(leaf, chosen)

    def deeper(inner: st.SearchStrategy[Layout]) -> st.SearchStrategy[Layout]:
        parts = st.lists(inner, min_size=1, max_size=3)
        products = (parts if repeats else parts.filter(_distinct)).map(_factors)
        return st.one_of(products, parts.map(lambda found: Concat(tuple(found))))

    return st.recursive(leaf, deeper, max_leaves=5).filter(lambda layout: layout.size <= 400)


def _distinct(parts: list[Layout]) -> bool:
    names = [name for part in parts for name in groups_of(part)]
    return len(names) == len(set(names))


keeps: st.SearchStrategy[dict[str, tuple[int, ...]]] = st.fixed_dictionaries(
    {},
    optional={
        name: st.sets(st.integers(0, size - 1), min_size=1).map(lambda kept: tuple(sorted(kept)))
        for name, size in SIZES.items()
    },
)
"""Kept units for some of the groups of `SIZES`."""
