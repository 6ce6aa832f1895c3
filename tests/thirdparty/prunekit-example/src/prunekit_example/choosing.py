"""A schedule, a pruner and an allocator."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit import BasePruner
from prunekit.plugin import Problem


def quadratic(ratio: float, steps: int) -> list[float]:
    """Removes little at first and much in the end: ``ratio * (step / steps)^2``."""
    return [ratio * (step / steps) ** 2 for step in range(steps + 1)]


class EvenPruner(BasePruner):
    """`BasePruner` that keeps every size even, unless told otherwise."""

    def __init__(self, model: nn.Module, example_inputs: Any, importance: Any = "magnitude", **options: Any) -> None:
        super().__init__(model, example_inputs, importance, **{"round_to": 2, **options})


def widest_first(problem: Problem) -> list[int]:
    """Takes the next smaller option of the choice with the most options left, until the budget is met."""
    picked = [0] * len(problem.choices)
    while not problem.fits(picked):
        left = [len(choice.options) - 1 - at for choice, at in zip(problem.choices, picked, strict=True)]
        picked[left.index(max(left))] += 1
    return picked
