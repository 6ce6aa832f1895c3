"""Schedules against their formulas, and what holds for all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from decimal import Decimal, getcontext
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

import prunekit as pk
from prunekit_plugins.schedules import (
    cosine_scheduler,
    cubic_scheduler,
    exponential_scheduler,
    linear_scheduler,
    one_cycle_scheduler,
    one_shot_scheduler,
)

getcontext().prec = 40


def sigmoid(t: Decimal) -> Decimal:
    """Hubens et al. 2021, with alpha 14 and beta 5."""
    return (1 + Decimal(-9).exp()) / (1 + (-14 * t + 5).exp())


FORMULAS: dict[str, Callable[[Decimal, Decimal], Decimal]] = {
    "one_shot": lambda r, t: r if t > 0 else Decimal(0),
    "linear": lambda r, t: r * t,
    "cubic": lambda r, t: r * (3 * t - 3 * t**2 + t**3),
    "exponential": lambda r, t: 1 - (t * (1 - r).ln()).exp(),
    "cosine": lambda r, t: r * Decimal(math.sin(math.pi * float(t) / 2)) ** 2,
    "one_cycle": lambda r, t: r * (sigmoid(t) - sigmoid(Decimal(0))) / (sigmoid(Decimal(1)) - sigmoid(Decimal(0))),
}
FUNCTIONS: dict[str, Callable[[float, int], list[float]]] = {
    "one_shot": one_shot_scheduler,
    "linear": linear_scheduler,
    "cubic": cubic_scheduler,
    "exponential": exponential_scheduler,
    "cosine": cosine_scheduler,
    "one_cycle": one_cycle_scheduler,
}
every = pytest.mark.parametrize("name", FORMULAS)


def test_all_are_registered_under_their_names() -> None:
    table = pk.default_registry().entries("prunekit_schedules")
    assert {name: entry.value for name, entry in table.items()} == FUNCTIONS


@every
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_values_follow_the_formula(name: str, ratio: float, steps: int) -> None:
    expected = [float(FORMULAS[name](Decimal(ratio), Decimal(step) / steps)) for step in range(steps + 1)]
    assert FUNCTIONS[name](ratio, steps) == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_values_by_hand() -> None:
    assert one_shot_scheduler(0.6, 3) == [0, 0.6, 0.6, 0.6]
    assert cubic_scheduler(0.8, 2) == pytest.approx([0, 0.7, 0.8])
    assert exponential_scheduler(0.75, 2) == pytest.approx([0, 0.5, 0.75])
    assert cosine_scheduler(0.5, 3) == pytest.approx([0, 0.125, 0.375, 0.5])
    # beta / alpha is where the sigmoid is at half its height
    assert one_cycle_scheduler(1, 14)[5] == pytest.approx(0.5, abs=0.004)


@every
@given(ratio=st.floats(0, 1, exclude_max=True), steps=st.integers(1, 60))
def test_they_rise_from_zero_to_exactly_the_ratio(name: str, ratio: float, steps: int) -> None:
    values = FUNCTIONS[name](ratio, steps)
    assert len(values) == steps + 1
    assert values[0] == 0
    assert values[-1] == ratio
    if name != "linear":  # its values are those of the reference, rounding included
        assert all(a <= b for a, b in itertools.pairwise(values))
    assert all(a <= b + 1e-15 for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("name", [name for name in FORMULAS if name != "linear"])
@pytest.mark.parametrize(
    ("ratio", "steps", "message"),
    [
        (0.5, 0, "A schedule needs a positive number of steps."),
        (0.5, 1.5, "A schedule needs a positive number of steps."),
        (1.5, 4, "The ratio of a schedule must lie in [0, 1]."),
        (-0.1, 4, "The ratio of a schedule must lie in [0, 1]."),
        (math.nan, 4, "The ratio of a schedule must lie in [0, 1]."),
    ],
)
def test_wrong_arguments_are_told(name: str, ratio: float, steps: Any, message: str) -> None:
    with pytest.raises(pk.ArgumentError) as caught:
        FUNCTIONS[name](ratio, steps)
    assert caught.value.headline == message


def small(schedule: Any, steps: int = 4) -> pk.BasePruner:
    model = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2))
    return pk.BasePruner(
        model, torch.ones(1, 4), iterative_steps=steps, iterative_pruning_ratio_scheduler=schedule, pruning_ratio=0.8
    )


def widths(pruner: pk.BasePruner) -> list[int]:
    found = []
    for _ in range(pruner.iterative_steps):
        pruner.step()
        found.append(len(pruner.model.get_parameter("0.weight")))
    return found


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("one_shot", [20, 20, 20, 20]),
        ("linear", [80, 60, 40, 20]),
        ("cubic", [53, 30, 21, 20]),
        ("exponential", [66, 44, 29, 20]),
        ("cosine", [88, 60, 31, 20]),
        ("one_cycle", [85, 29, 20, 20]),
        (lambda ratio, steps: [0, *([ratio / 2] * (steps - 1)), ratio], [60, 60, 60, 20]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_pruner_follows_the_schedule(schedule: Any, expected: list[int]) -> None:
    assert widths(small(schedule)) == expected


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(pk.ArgumentError, match=r"did you mean 'cubic'\? known: cosine, cubic, exponential, linear"):
        small("cubik")
