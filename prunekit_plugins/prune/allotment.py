"""What `prune` was told about sharing out a target, from the arguments to what decides."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from prunekit_core.choose.pruner import Pruner
from prunekit_core.errors import ArgumentError
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.budgets.allocation import (
    ESTIMATED,
    GLOBAL,
    UNIFORM,
    Solver,
    Weight,
    alike,
    by_default,
    selector,
    solver_of,
)
from prunekit_plugins.budgets.curves import Sensitivity
from prunekit_plugins.budgets.knapsack import Problem
from prunekit_plugins.budgets.measuring import QUICK_RATIOS, measure
from prunekit_plugins.budgets.targets import Selector
from prunekit_plugins.prune.calibrated import CalibratedPath
from prunekit_plugins.prune.settings import PruneSettings


@attrs.frozen(eq=False)
class Allotment:
    """How a target is shared out among the groups.

    Attributes:
        chosen: A name or a solver; None for the same ratio in all groups, or nothing to share out.
        sensitivity: Measured damages.
        open: Whether the choice waits for the statistics, which say whether scores are damages.
        weight: What damages out of scores are multiplied by.
    """

    chosen: str | Solver | None
    sensitivity: Sensitivity | None = None
    open: bool = False
    weight: Weight = alike

    @classmethod
    def of(cls, settings: PruneSettings, registry: Registry) -> Allotment:
        """Reads the arguments of `prune`.

        Raises:
            ArgumentError: The allocation isn't known, or doesn't go with the other arguments.
        """
        allocation, sensitivity, target = settings.allocation, settings.sensitivity, settings.target
        if allocation is not None:
            solver_of(allocation, registry)
        calibrated = settings.calibration is not None and target is not None and not settings.global_pruning
        allotment = cls(allocation, sensitivity, allocation is None and calibrated)
        if allotment.weighs and target is None:
            raise ArgumentError(
                "This allocation needs a target.", why=f"allocation={allocation!r} weighs damage and cost"
            )
        if sensitivity is not None and (not allotment.weighs or allocation == ESTIMATED):
            raise ArgumentError("A sensitivity needs an allocation that uses it.", hint='allocation="dp" or "greedy"')
        return allotment

    @property
    def weighs(self) -> bool:
        """Whether damage is weighed against cost, instead of searching for a ratio."""
        return self.chosen is not None and self.chosen not in (UNIFORM, GLOBAL)

    def metric(self, pruner: Pruner) -> str:
        """Says what the damages are that it weighs."""
        if self.sensitivity is not None:
            return self.sensitivity.metric
        return "squared change of the outputs" if pruner.additive else "-log of the part of the scores that stays"

    @property
    def ranks(self) -> bool:
        """Whether the pruner has to rank all units together; as long as the choice is open it has to be able to."""
        return self.open or self.chosen == GLOBAL

    def settled(self, pruner: Pruner) -> Allotment:
        """Returns the allotment with the choice made, once the pruner's criterion has its statistics."""
        return attrs.evolve(self, chosen=by_default(sums=pruner.additive), open=False) if self.open else self

    def informed(self, pruner: Pruner, path: CalibratedPath | None) -> Allotment:
        """Returns the allotment with the damages that it weighs, which are measured where they are needed.

        Raises:
            ArgumentError: Damages can't be measured on a model on disk, or were measured on another model.
        """
        if not self.weighs:
            return self
        sensitivity = self.sensitivity
        if sensitivity is not None:
            sensitivity.check(pruner.graph.analysis)
        elif path is not None and self.chosen != ESTIMATED:
            if pruner.graph.current.stored is not None:
                raise ArgumentError(
                    "Damages can't be measured on a model on disk.",
                    why=f"allocation={self.chosen!r} cuts copies of the model, and they don't fit into memory",
                    hint='allocation="global", or a sensitivity that was measured elsewhere',
                )
            sensitivity = measure(pruner, path.batches, ratios=QUICK_RATIOS, finish=path.finish(pruner.graph))
        return attrs.evolve(self, sensitivity=sensitivity)

    def selector(
        self,
        pruner: Pruner,
        path: CalibratedPath | None,
        seen: Callable[[Problem], None] = lambda problem: None,
    ) -> Selector | None:
        """Makes what decides how many units each group keeps, if not a search for a ratio does.

        Damages that are needed and weren't given are measured, on calibration data if there are any.

        Args:
            pruner: The pruner.
            path: What is done with calibration data.
            seen: Called with every problem before it is solved; a plan is made by the last one.

        Raises:
            ArgumentError: Damages can't be measured on a model on disk, or were measured on another model.
        """
        if not self.weighs or self.chosen is None:
            return None
        sensitivity = self.informed(pruner, path).sensitivity
        solve = solver_of(self.chosen, pruner.registry)
        assert solve is not None
        registry, weight = pruner.registry, self.weight
        return selector(solve, sensitivity, sums=pruner.additive, registry=registry, seen=seen, weight=weight)
