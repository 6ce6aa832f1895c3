"""Depth in steps: which branches are gone after each step of a pruner."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import attrs

from prunekit_core.branches.branch import named_branches
from prunekit_core.choose.candidates import TOLERANCE
from prunekit_core.graph.graph import Graph
from prunekit_core.plans.plan import Plan
from prunekit_plugins.budgets.budget import Budget, Target, is_fraction
from prunekit_plugins.budgets.corrections import corrected
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.depth.choice import choose_branches, require_branches
from prunekit_plugins.depth.search import DepthChoice, drafted
from prunekit_plugins.depth.settings import DepthSettings
from prunekit_plugins.depth.stays import protected_branches

Schedule = Callable[[float], Sequence[float]]
"""Gives the cumulative ratios of all steps, from 0 on, for a final ratio."""


class DepthSteps:
    """Decides which branches of a model go, step by step; see `BranchSteps`.

    A ratio grows along the schedule. Of branches that are named, so many go as the schedule says of their share of all,
    in the order in which they are named. Of what a target wants saved, the schedule says which part is.

    Args:
        graph: The analysed model.
        settings: What is asked for in the end.
        batches: Calibration data, which are run through the model as it is at each step; None where there are none.
        schedule: Final ratio to the cumulative ratios of all steps.
        steps: Number of steps.

    Attributes:
        choice: What was decided last; None before that.
    """

    def __init__(
        self,
        graph: Graph,
        settings: DepthSettings,
        batches: Batches | None,
        schedule: Schedule = lambda ratio: (0.0, ratio),
        steps: int = 1,
    ) -> None:
        self._graph, self._settings, self._batches = graph, settings, batches
        self._schedule, self._steps = schedule, steps
        self._protected = protected_branches(graph, settings.ignored_layers)  # while all are there
        self.choice: DepthChoice | None = None

    @property
    def keep_names(self) -> bool:
        """Whether layers stay in their lists, so that all others keep their names."""
        return self._settings.keep_names

    @property
    def left(self) -> Mapping[str, str]:
        """Name of each branch that stays to the reason, by the last decision."""
        return {} if self.choice is None else self.choice.left

    def removal(self, step: int) -> Plan:
        """Decides which branches are gone after a step; see `BranchSteps.removal`."""
        choice = self._choice(step)
        if step == self._steps and self._settings.target is None:
            require_branches(self._graph, choice)
        self.choice = choice
        return choice.plan

    def _choice(self, step: int) -> DepthChoice:
        settings = self._settings
        if settings.branches:
            return self._named(settings.branches, step)
        if settings.target is not None:
            settings = attrs.evolve(settings, target=self._target(settings.target, step))
        elif settings.branch_ratio is not None:
            settings = attrs.evolve(settings, branch_ratio=self._schedule(settings.branch_ratio)[step])
        return choose_branches(self._graph, settings, self._batches, self._protected)

    def _named(self, names: Sequence[str], step: int) -> DepthChoice:
        """Takes the first of the branches that are named; all of them at the last step."""
        if step == self._steps:
            return choose_branches(self._graph, self._settings, None, self._protected)
        branches = self._graph.branches()
        everything = len(branches)
        names = [branch.name for name in names for branch in named_branches(branches, [name])]
        share = min(len(names) / everything, 1 - TOLERANCE)
        count = math.floor(self._schedule(share)[step] * everything + TOLERANCE)
        if count:
            settings = attrs.evolve(self._settings, branches=tuple(names[:count]))
            return choose_branches(self._graph, settings, None, self._protected)
        gone = self._graph.applied.absent
        left = {one.name: one.reason or "not yet" for one in self._graph.branches() if one.name not in gone}
        return DepthChoice(gone, drafted(self._graph, (), keep_names=self.keep_names), {}, left)

    def _target(self, target: Target, step: int) -> Target:
        """What should be left after a step, as fractions of the original; after the last one the target itself."""
        if step == self._steps:
            return target
        budget = corrected(self._graph, target, Budget.on(self._graph, target))
        found: dict[str, float | str] = {}
        for name, value in target.items():
            left = float(value) if is_fraction(value) else budget.allowed[name] / budget.dense[name]
            found[name] = 1 - self._schedule(max(0.0, 1 - left))[step]
        return found
