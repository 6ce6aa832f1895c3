"""Pruning with calibration data: the criterion gets statistics, and the plan's weights are repaired before the cut."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from torch import nn

from prunekit_core.choose.branch_group import BranchCriterion
from prunekit_core.choose.criterion import Criterion
from prunekit_core.choose.pruner import Pruner
from prunekit_core.errors import ArgumentError
from prunekit_core.graph.current import StoredWeights
from prunekit_core.graph.graph import Graph
from prunekit_core.modules.surgery import replace_values
from prunekit_core.modules.tree import named_tensors
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.calibration.demand import LACKS, SET_IT, Demand, StatisticalCriterion, lacks_statistics
from prunekit_plugins.calibration.observation import Watched
from prunekit_plugins.calibration.statistics import COVARIANCES, CURVATURES, MOMENTS, NEURONS
from prunekit_plugins.calibration.stream import bytes_needed, gather
from prunekit_plugins.checkpoints.stored_values import Cut, Scratch
from prunekit_plugins.compensation.repair import Compensator
from prunekit_plugins.compensation.run import (
    Repaired,
    Takeovers,
    copy_of_model,
    find_compensators,
    run_compensation,
    takeovers_of,
    write,
)
from prunekit_plugins.prune.settings import PruneSettings

BATCHNORM = "batchnorm"
IMPORTANCE = "prunekit_importance"
CRITERIA = ("importance", "expert_importance")
"""The attributes of a pruner that are criteria; the second one is for experts."""


def check_informed(criterion: Criterion, registry: Registry) -> None:
    """Raises an error for a criterion that needs statistics and has none, where there are no data.

    Raises:
        ArgumentError: It has none.
        PluginError: It has no attribute for them.
    """
    _check_attribute(criterion, registry)
    if isinstance(criterion, StatisticalCriterion) and criterion.statistics is None and criterion.needs:
        raise ArgumentError(
            "The criterion has no statistics.",
            where=registry.owners.blame(IMPORTANCE, criterion).where,
            hint="give calibration data: prune(..., calibration=batches), or in Python "
            "statistics=calibrate(model, batches)",
        )


def _check_attribute(criterion: Criterion, registry: Registry) -> None:
    """Raises `PluginError` for a criterion that names statistics and has no attribute for them."""
    if lacks_statistics(criterion) and not isinstance(criterion, BranchCriterion):  # these need other things
        blame = registry.owners.blame(IMPORTANCE, criterion)
        raise blame.error("A criterion can't be given statistics.", LACKS, hint=SET_IT)


@attrs.frozen(eq=False)
class CalibratedPath:
    """What `prune` does with calibration data.

    Attributes:
        batches: The data.
        methods: Compensators or their names, in order.
        stages: See `compensate`.
        registry: Where compensators are found.
        notes: Lines for the report.
    """

    batches: Batches
    methods: Sequence[str | Compensator]
    stages: int | None
    registry: Registry
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, settings: PruneSettings, registry: Registry) -> CalibratedPath | None:
        """Reads the arguments of `prune`; None without calibration data.

        Raises:
            ArgumentError: The data can't be iterated over, or hold NaN or infinity, or a compensator isn't known.
        """
        if settings.calibration is None:
            return None
        batches, notes = Batches.of(settings.calibration).checked(strict=settings.depth.requested)
        if batches.forward_fn is None and settings.forward_fn is not None:
            batches = attrs.evolve(batches, forward_fn=settings.forward_fn)
        methods = list(settings.methods)
        if settings.reestimate_batchnorm and BATCHNORM not in methods:
            methods.append(BATCHNORM)
        find_compensators(methods, registry)
        return cls(batches, methods, settings.stages, registry, notes)

    def inform(self, pruner: Pruner) -> tuple[str, ...]:
        """Gathers what the pruner's criteria need, unless they have statistics; returns what speaks against them."""
        names = CRITERIA if pruner.has_experts else CRITERIA[:1]
        uninformed = {name: one for name in names if (one := self._uninformed(getattr(pruner, name))) is not None}
        if not uninformed:
            return ()
        graph, stored = pruner.graph, pruner.graph.current.stored
        demands = [self._demand(one, graph.model, stored) for one in uninformed.values()]
        if pruner.has_experts:
            demands.append(Demand((), (NEURONS,)))
        demand = functools.reduce(operator.or_, demands)
        found = gather(
            graph.model, self.batches, demand, values=stored, registry=self.registry, analysis=graph.analysis
        )
        if demand.has(MOMENTS, COVARIANCES, CURVATURES) and not found.sites:
            raise ArgumentError(
                "Calibration data say nothing about this model.",
                where=type(graph.model).__name__,
                why="no operation was seen that multiplies what it reads by a parameter, or by a part or a cast of one",
                hint='importance="magnitude", compensation=None',
            )
        for name, one in uninformed.items():
            informed = copy.copy(one)
            informed.statistics = found
            setattr(pruner, name, informed)
        return found.notes

    def _uninformed(self, criterion: Criterion | None) -> StatisticalCriterion | None:
        """Returns a criterion if it needs statistics and has none."""
        if criterion is None:
            return None
        _check_attribute(criterion, self.registry)
        lacks = isinstance(criterion, StatisticalCriterion) and criterion.statistics is None
        return criterion if lacks and isinstance(criterion, StatisticalCriterion) else None

    def _demand(self, criterion: StatisticalCriterion, model: nn.Module, stored: StoredWeights | None) -> Demand:
        blame = self.registry.owners.blame(IMPORTANCE, criterion)
        return Demand.of(criterion, lambda: bytes_needed(model, self.batches, stored, self.registry), blame)

    def repair(self, graph: Graph, plan: Plan) -> Repaired | None:
        """Finds the weights that a model should have after a plan, by their names before; the model isn't touched."""
        if not self.methods or not (plan.cuts or plan.absent):
            return None
        found = self._repair(graph, plan, self.stages, graph.current.stored, takeovers_of(graph, plan))
        if not plan.entries or found.on_disk:  # on disk names are those in the checkpoint
            return found
        return attrs.evolve(found, values={plan.renaming.before(name): value for name, value in found.values.items()})

    def _repair(
        self,
        graph: Graph,
        plan: Plan,
        stages: int | None,
        stored: StoredWeights | None,
        takeovers: Takeovers = ((), {}),
    ) -> Repaired:
        model = graph.model
        model_copy = copy_of_model(model)
        tensors = named_tensors(model_copy)
        for name in {rescale.parameter for rescale in plan.rescales}:  # scaled in place, and shared with the model
            replace_values(tensors[name], tensors[name])
        plan.apply(model_copy, registry=self.registry)
        original = Watched(model, self.registry, None if stored is None else Cut(stored, Plan()))
        scratch = None if stored is None else Scratch(Cut(stored, plan))
        return run_compensation(
            original,
            model_copy,
            plan,
            self.batches,
            self.methods,
            stages,
            self.registry,
            scratch,
            takeovers,
            analyse=lambda: graph.analysis,
        )

    def provenance(self, repaired: Repaired | None) -> dict[str, Any]:
        """Returns what a protocol says of the data, and of what was fitted to them.

        Args:
            repaired: The weights that were found; None without compensation.
        """
        done: dict[str, list[str]] = {}
        for layer in () if repaired is None else repaired.result.layers:
            done.setdefault(layer.method, []).append(layer.consumer)
        fitted = {name: f"{len(some)} layers" if len(some) > 1 else some[0] for name, some in done.items()}
        return {"examples": self.batches.passes[-1] if self.batches.passes else None, "fitted": fitted}

    def finish(self, graph: Graph) -> Callable[[nn.Module, Plan], None] | None:
        """Returns what compensates a copy that was cut for a measurement, in one stage; None without compensation."""
        if not self.methods:
            return None

        def compensated(small: nn.Module, plan: Plan) -> None:
            write(self._repair(graph, plan, 1, None), small)

        return compensated
