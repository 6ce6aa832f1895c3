"""Corrected predictions, against costs that are known."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from prunekit_plugins.budgets.corrections import Trials

numbers = st.floats(0.1, 10)


def tried(*points: tuple[float, float]) -> Trials:
    trials = Trials()
    for point in points:
        trials.add(*point)
    return trials


@given(slope=numbers, rest=st.floats(-1, 1), first=numbers, second=numbers)
def test_costs_on_a_straight_line_are_found_from_two_measurements(
    slope: float, rest: float, first: float, second: float
) -> None:
    """Whatever part of them stays when all goes, and on whichever side of the goal the measurements are."""
    if abs(first - second) < 0.05:
        return
    trials = tried(*((x, slope * x + rest) for x in (first, second)))
    assert trials.expected(3.0) == pytest.approx(slope * 3.0 + rest, abs=1e-9)
    goal = (1 - rest) / slope
    if goal <= 0:
        return
    highest = max(first, second)
    assert trials.wanted() == pytest.approx(min(goal, highest) if slope * min(first, second) + rest <= 1 else goal)


def test_one_measurement_is_a_factor() -> None:
    assert tried((10, 2)).expected(5) == 1
    assert tried((10, 2)).wanted() == 5


def test_the_measurements_around_the_goal_count() -> None:
    trials = tried((100, 4.0), (50, 1.5), (40, 0.5), (10, 0.1))
    assert trials.wanted() == pytest.approx(45)
    assert trials.expected(45) == pytest.approx(1)
    assert trials.expected(75) == pytest.approx(2.75)


def test_a_later_measurement_of_the_same_counts() -> None:
    assert tried((10, 2), (10, 4)).expected(10) == 4


def test_noise_that_falls_where_it_should_rise() -> None:
    """No line leads down from there: the smaller prediction is corrected by a factor."""
    assert tried((10, 2.0), (20, 1.5)).wanted() == 5


def test_all_within_what_is_allowed() -> None:
    assert tried((10, 0.5), (20, 0.9)).wanted() == 20
