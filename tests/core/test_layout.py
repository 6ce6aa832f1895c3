"""Layouts: what stays, which unit a position holds, and the round trip through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from prunekit_core.algebra.layout import (
    Concat,
    Fixed,
    Kept,
    Layout,
    Listed,
    Product,
    Units,
    from_json,
    groups_of,
    kept_positions,
    new_size,
    placements,
    prefix,
    substitute,
    to_json,
    walk,
)
from tests.strategies import SIZES, keeps, layouts


def coordinates(layout: Layout, position: int) -> dict[str, list[int]]:
    """The units that one position holds, by group, from the meaning of each form alone."""
    if isinstance(layout, Units):
        return {layout.group: [position]}
    found: dict[str, list[int]] = {}
    inner: list[tuple[Layout, int]] = []
    if isinstance(layout, Product):
        for part in reversed(layout.parts):
            position, own = divmod(position, part.size)
            inner.append((part, own))
    elif isinstance(layout, Concat):
        for part in layout.parts:
            if 0 <= position < part.size:
                inner.append((part, position))
            position -= part.size
    for part, own in inner:
        for group, units in coordinates(part, own).items():
            found.setdefault(group, []).extend(units)
    return found


def unit_labels(layout: Layout, group: str) -> torch.Tensor:
    """Which unit of a group each position holds, -1 where it holds none."""
    labels = torch.full((layout.size,), -1)
    if group in groups_of(layout):
        positions, units = placements(layout, {})[group]
        labels[positions] = units
    return labels


@given(layouts(), keeps)
def test_the_new_size_counts_the_kept_positions(layout: Layout, kept: Kept) -> None:
    positions = kept_positions(layout, kept)
    assert len(positions) == new_size(layout, kept)
    assert positions.dtype == torch.int64
    assert all(a < b for a, b in zip(positions.tolist(), positions.tolist()[1:], strict=False))
    assert all(0 <= position < layout.size for position in positions.tolist())


@given(layouts(), keeps)
def test_a_position_stays_when_all_its_units_stay(layout: Layout, kept: Kept) -> None:
    stay = {group: set(kept.get(group, range(size))) for group, size in SIZES.items()}
    expected = [
        position
        for position in range(layout.size)
        if all(set(units) <= stay[group] for group, units in coordinates(layout, position).items())
    ]
    assert kept_positions(layout, kept).tolist() == expected


@given(layouts())
def test_nothing_removed_keeps_everything(layout: Layout) -> None:
    assert kept_positions(layout, {}).tolist() == list(range(layout.size))
    assert new_size(layout, {}) == layout.size


@given(layouts(repeats=False))
def test_unit_labels_name_the_unit_at_each_position(layout: Layout) -> None:
    for group in SIZES:
        labels = unit_labels(layout, group).tolist()
        assert labels == [coordinates(layout, p).get(group, [-1])[0] for p in range(layout.size)]


@given(layouts(repeats=False), keeps)
def test_unit_labels_agree_with_kept_positions(layout: Layout, kept: Kept) -> None:
    """A position goes exactly when one of its labels names a removed unit."""
    stays = torch.ones(layout.size, dtype=torch.bool)
    for group, units in kept.items():
        labels = unit_labels(layout, group)
        gone = torch.tensor([unit for unit in range(SIZES[group]) if unit not in units], dtype=torch.long)
        stays &= ~torch.isin(labels, gone)
    assert kept_positions(layout, kept).tolist() == stays.nonzero().flatten().tolist()


@given(layouts(), keeps)
def test_substitute_is_the_layout_after_pruning(layout: Layout, kept: Kept) -> None:
    after = substitute(layout, kept)
    assert after.size == new_size(layout, kept)
    assert substitute(after, {}) == after


@given(layouts(), keeps, st.data())
def test_pruning_twice_is_pruning_once(layout: Layout, kept: Kept, data: st.DataObject) -> None:
    second = {
        group: tuple(sorted(data.draw(st.sets(st.integers(0, len(units) - 1), min_size=1), label=group)))
        for group, units in kept.items()
    }
    both = {group: tuple(units[k] for k in second[group]) for group, units in kept.items()}
    first = kept_positions(layout, kept)
    later = kept_positions(substitute(layout, kept), second)
    assert first[later].tolist() == kept_positions(layout, both).tolist()


@given(layouts(listed=True), keeps)
def test_json_round_trip(layout: Layout, kept: Kept) -> None:
    again = from_json(json.loads(json.dumps(to_json(layout))))
    assert again == layout
    assert hash(again) == hash(layout)
    assert again.size == layout.size
    assert kept_positions(again, kept).tolist() == kept_positions(layout, kept).tolist()


@given(layouts())
def test_groups_are_named_in_order(layout: Layout) -> None:
    names = [part.group for part in walk(layout) if isinstance(part, Units)]
    assert groups_of(layout) == sorted(set(names), key=names.index)


@given(layouts(), st.integers(1, 200))
def test_a_prefix_is_a_leading_factor(layout: Layout, size: int) -> None:
    found = prefix(layout, size)
    if found is None:
        return
    assert found.size == size
    assert layout.size % size == 0
    inner = layout.size // size
    for group in groups_of(found):
        labels = unit_labels(found, group)
        assert unit_labels(layout, group).view(size, inner)[:, 0].tolist() == labels.tolist()


def test_prefix_answers() -> None:
    g, o = Units("g", 4), Units("o", 3)
    assert prefix(Product((g, o)), 4) == g
    assert prefix(Product((g, o)), 12) == Product((g, o))
    assert prefix(Product((g, o)), 1) == Fixed(1)
    assert prefix(Product((g, o)), 3) is None
    assert prefix(Product((Fixed(4), o)), 2) == Fixed(2)
    assert prefix(Product((g, Fixed(6))), 8) == Product((g, Fixed(2)))
    assert prefix(g, 2) is None
    assert prefix(Concat((g, o)), 7) == Concat((g, o))


def test_written_example() -> None:
    """``qkv`` of two heads with three dims, packed: removing the first dim removes it everywhere."""
    layout = Product((Fixed(3), Units("heads", 2), Units("dims", 3)))
    kept = {"dims": (1, 2)}
    assert kept_positions(layout, kept).tolist() == [1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17]
    assert unit_labels(layout, "heads").tolist() == [0, 0, 0, 1, 1, 1] * 3
    assert unit_labels(layout, "dims").tolist() == [0, 1, 2] * 6
    assert substitute(layout, kept) == Product((Fixed(3), Units("heads", 2), Units("dims", 2)))
    assert to_json(layout) == {"product": [3, {"group": "heads", "size": 2}, {"group": "dims", "size": 3}]}


def test_a_listed_run_keeps_what_it_lists() -> None:
    layout = Concat((Listed(4, (1, 3)), Units("g", 2)))
    assert kept_positions(layout, {"g": (1,)}).tolist() == [1, 3, 5]
    assert substitute(layout, {"g": (1,)}) == Concat((Fixed(2), Units("g", 1)))


BAD: tuple[Any, ...] = (
    -1,
    True,
    1.5,
    None,
    "x",
    [],
    {},
    {"group": "g"},
    {"group": 1, "size": 2},
    {"group": "g", "size": -1},
    {"group": "g", "size": True},
    {"group": "g", "size": 2, "more": 1},
    {"product": []},
    {"product": 3},
    {"concat": [1, None]},
    {"size": 3, "kept": [0, 3]},
    {"size": 3, "kept": [-1]},
    {"size": 3, "kept": [1, 0]},
    {"size": 3, "kept": [1, 1]},
    {"size": 3, "kept": [0.0]},
    {"size": True, "kept": []},
)


@pytest.mark.parametrize("data", BAD, ids=repr)
def test_what_is_no_layout_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"^not a layout: "):
        from_json(data)
