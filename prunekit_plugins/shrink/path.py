"""The way to a target: what each step may leave of each cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from prunekit_core.choose.schedule import Schedule, bound_schedule
from prunekit_core.errors import ArgumentError
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.budgets.budget import Budget, Target, is_fraction
from prunekit_plugins.calibration import Batches
from prunekit_plugins.depth.settings import BOTH
from prunekit_plugins.prune import prune

INFORMED = ("importance", "branch_importance", "allocation", "compensation", "reestimate_batchnorm", "stages", "verify")
"""Arguments of `prune` that say what goes, and not how much can."""


@attrs.frozen
class CostPath:
    """How costs fall from those of the model to what a target allows.

    Attributes:
        target: The target.
        dense: What the model costs, by name.
        allowed: What the target allows.
        parts: Cost to the part of the saving that is made after each step, from 0 to 1: ``steps + 1`` numbers.
    """

    target: Target
    dense: Mapping[str, float]
    allowed: Mapping[str, float]
    parts: Mapping[str, Sequence[float]]

    @classmethod
    def of(cls, budget: Budget, target: Target, schedule: Schedule | str, steps: int) -> CostPath:
        """Follows a schedule.

        Args:
            budget: The target on the model.
            target: The same as it was given.
            schedule: A schedule or its registered name, applied to the part of each cost that goes.
            steps: Number of steps.

        Raises:
            ArgumentError: The schedule isn't known, or returns no ascending ratios.
            PluginError: The same of a plugin's.
        """
        curve = bound_schedule(schedule, steps, budget.registry)
        parts = {}
        for name, dense in budget.dense.items():
            whole = max(0.0, 1 - budget.allowed[name] / dense) if dense else 0.0
            parts[name] = [part / whole for part in curve(whole)] if whole else [1.0] * (steps + 1)
        return cls(target, budget.dense, budget.allowed, parts)

    def costs(self, step: int) -> dict[str, float]:
        """Returns what the model may cost after a step, counted from 1."""
        last = step == len(next(iter(self.parts.values()))) - 1
        return {
            name: self.allowed[name] if last else dense - (dense - self.allowed[name]) * self.parts[name][step]
            for name, dense in self.dense.items()
        }

    def target_at(self, step: int, present: Mapping[str, float]) -> dict[str, float | str]:
        """Returns the target of a step as `prune` takes it.

        Args:
            step: The step, counted from 1.
            present: What the model costs before it, by name.
        """
        last = step == len(next(iter(self.parts.values()))) - 1
        found: dict[str, float | str] = {}
        for name, cost in self.costs(step).items():
            given = self.target[name]
            whole = last and not is_fraction(given)
            found[name] = given if whole else min(1.0, cost / present[name]) if present[name] else 1.0
        return found


def reachable(
    model: nn.Module,
    example: Any,
    target: Target,
    options: Mapping[str, Any],
    calibration: Batches,
    registry: Registry,
) -> Budget:
    """Cuts a copy of a model to a target at once, without data, to find out whether that can be done.

    Args:
        model: A copy of the model; it is pruned.
        example: Example inputs.
        target: The target.
        options: Further arguments of `prune`.
        calibration: Data, for a choice that can't be made without them; one batch is read.
        registry: Where plugins are found.

    Returns:
        The target on the model.

    Raises:
        ArgumentError: An argument is wrong, the target can't be reached, or the model meets it as it is.
        PrunekitError: The model can't be pruned.
    """
    options = {name: value for name, value in options.items() if name not in INFORMED}
    if options.get("by") == BOTH:
        options |= {
            "calibration": attrs.evolve(calibration, limit=1),
            "compensation": None,
            "reestimate_batchnorm": False,
        }
    result = prune(model, example, target=target, verify="never", registry=registry, **options)
    budget = Budget.on(result.graph, target)
    if budget.allows(budget.dense):
        raise ArgumentError(
            "The model meets the target as it is.",
            why=", ".join(f"{name}={budget.dense[name]:,.0f}, allowed {budget.allowed[name]:,.0f}" for name in target),
            hint="there is nothing to cut: pk.distill trains it on; up to 1 a target is what is left of the model",
        )
    return budget
