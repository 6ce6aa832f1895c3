"""Budgets: what a target allows a model to cost, and what selections and removals of branches cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs

from prunekit_core.arguments import check_forms
from prunekit_core.choose.pruner import Pruner
from prunekit_core.errors import ArgumentError, nearest
from prunekit_core.graph.graph import Graph
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.costs import Compiled, CostModel, compiled_cost, cost_model, costs_after
from prunekit_core.groups.report import outputs_that_pin
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.budgets.knapsack import SLACK

Target = Mapping[str, float | str]
"""Cost model to what should be left of it: a fraction of the original (a number up to one), or an absolute value."""


class OutOfReachError(ArgumentError):
    """Not even the smallest model meets a target."""


def check_target(target: Target, registry: Registry) -> None:
    """Raises `ArgumentError` unless a target names registered cost models and says how much of each should be left."""
    check_forms({"target": target})
    known, refused = registry.entries("prunekit_budgets"), registry.refused("prunekit_budgets")
    if not target:
        raise ArgumentError("The target is empty.", hint='for example target={"macs": 0.5}')
    for name, value in target.items():
        if name in refused:
            raise refused[name]
        if name not in known:
            raise ArgumentError(f"No cost model is registered as {name!r}.", hint=nearest(name, map(str, known)))
        allowance(cost_model(known[name].value), name, value, 1.0)


def allowance(model: CostModel, name: str, value: float | str, dense: float) -> float:
    """Returns how much a target allows, in the unit of its cost model.

    Args:
        model: The cost model.
        name: Its name.
        value: A fraction of the original (up to 1), an absolute value (above 1), or a text with a unit.
        dense: What the original costs.

    Raises:
        ArgumentError: The value is no positive number, or a text that can't be read.
    """
    if is_fraction(value):
        return float(value) * dense
    try:
        found = math.nan if isinstance(value, bool) else model.absolute(value)
    except (TypeError, ValueError):
        found = math.nan
    if not 0 < found < math.inf:
        raise ArgumentError(
            "A target must be a positive number.",
            where=name,
            why=f"got {value!r}",
            hint="up to 1 it is what is left of the original (0.6: 60 %); above 1, and as a text, "
            "which may have a unit, it is an absolute value",
        )
    return found


def unit_notes(target: Target, registry: Registry) -> list[str]:
    """Says which unit was taken for numbers without one, of costs that have one."""
    notes = []
    for name, value in target.items():
        model = cost_model(registry.named("prunekit_budgets", name))
        if model.unit and not isinstance(value, str) and not is_fraction(value):
            notes.append(f"the target {name}={value:g} has no unit: it was read as {model.text(float(value))}")
    return notes


def is_fraction(value: float | str) -> bool:
    """Tells whether the value of a target is a fraction of the original."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


@attrs.frozen(eq=False)
class Budget:
    """A target on a model: what may be spent, and what selections cost.

    Attributes:
        models: Cost model by name.
        costs: The same as functions of group sizes.
        dense: What the original costs.
        allowed: What may be spent.
        now: What the model as it is now costs, before predictions are corrected; see `present`.
        base: Sizes of the groups that earlier steps have cut.
        registry: Where cost models are found.
        given: The target as it was given.
        scales: What predictions of measured costs are multiplied by; 1 where nothing is said.
        pins: What can be done about parameters that outputs of the model pin; empty where none does.
    """

    models: Mapping[str, CostModel]
    costs: Mapping[str, Compiled]
    dense: Mapping[str, float]
    allowed: Mapping[str, float]
    now: Mapping[str, float]
    base: Mapping[str, int]
    registry: Registry
    given: Target = attrs.field(factory=dict)
    scales: Mapping[str, float] = attrs.field(factory=dict)
    pins: str = ""

    @classmethod
    def of(cls, pruner: Pruner, target: Target) -> Budget:
        """Compiles the cost models of a target for the model of a pruner, without the branches that it takes out.

        Raises:
            ArgumentError: See `check_target`.
        """
        return cls.on(pruner.graph, target, pruner.removal)

    @classmethod
    def on(cls, graph: Graph, target: Target, removal: Plan | None = None) -> Budget:
        """Compiles the cost models of a target for the model of a graph.

        Args:
            graph: The graph.
            target: The target.
            removal: A plan of the graph without some branches: the costs are those of what is left. None where only
                those are gone that the model lacks already.

        Raises:
            ArgumentError: See `check_target`.
        """
        registry = graph.registry
        check_target(target, registry)
        models = {name: cost_model(registry.named("prunekit_budgets", name)) for name in target}
        whole, present = graph.analysis, graph.analysis_after(graph.applied)
        left = graph.analysis_after(removal) if removal is not None and removal.absent else present
        base = {name: len(units) for name, units in graph.applied.kept.items()}
        dense, now, costs = {}, {}, {}
        for name in models:
            compiled = {id(one): compiled_cost(registry, name, one) for one in (whole, present, left)}
            dense[name], now[name] = compiled[id(whole)]({}), compiled[id(present)](base)
            costs[name] = compiled[id(left)]
        allowed = {name: allowance(models[name], name, value, dense[name]) for name, value in target.items()}
        return cls(models, costs, dense, allowed, now, base, registry, target, pins=outputs_that_pin(whole))

    @property
    def measured(self) -> bool:
        """Whether any of its costs is measured."""
        return any(model.measured for model in self.models.values())

    @property
    def present(self) -> dict[str, float]:
        """What the model as it is now costs, with predictions corrected."""
        return {name: self.scales.get(name, 1.0) * cost for name, cost in self.now.items()}

    def spent(self, units: Mapping[str, int]) -> dict[str, float]:
        """Computes what a selection costs.

        Args:
            units: Group to the number of units that it keeps.
        """
        sizes = {**self.base, **units}
        return {name: self.scales.get(name, 1.0) * cost(sizes) for name, cost in self.costs.items()}

    def spent_after(self, units: Mapping[str, int], changes: Sequence[Mapping[str, int]]) -> list[dict[str, float]]:
        """Computes what a selection costs after each of several changes, without the others.

        Args:
            units: Group to the number of units that it keeps.
            changes: The same for the groups that change.
        """
        sizes = {**self.base, **units}
        found: list[dict[str, float]] = [{} for _ in changes]
        for name, cost in self.costs.items():
            scale = self.scales.get(name, 1.0)
            for spent, one in zip(found, costs_after(cost, sizes, changes), strict=True):
                spent[name] = scale * one
        return found

    def spent_by(self, analysis: Analysis) -> dict[str, float]:
        """Computes what the model costs as another analysis knows it, such as one without some branches.

        Args:
            analysis: The analysis.
        """
        return {
            name: self.scales.get(name, 1.0) * compiled_cost(self.registry, name, analysis)(self.base)
            for name in self.models
        }

    def fits(self, units: Mapping[str, int]) -> bool:
        """Tells whether a selection costs no more than is allowed."""
        sizes = {**self.base, **units}
        limits = {name: allowed * SLACK / self.scales.get(name, 1.0) for name, allowed in self.allowed.items()}
        return all(cost(sizes) <= limits[name] for name, cost in self.costs.items())

    def allows(self, spent: Mapping[str, float]) -> bool:
        """Tells whether costs, such as those of a model without some branches, are no more than is allowed."""
        return all(spent[name] <= allowed * SLACK for name, allowed in self.allowed.items())

    def _as_read(self, name: str) -> str:
        """Says how a value was read that may be meant as a fraction: 1.5, or the text "0.6"."""
        value = self.given.get(name, 0)
        if isinstance(value, str):
            text = f" ({value!r} is a text, so an absolute value; the number is a fraction)"
            return text if self.models[name].absolute(value) <= 1 else ""
        if value <= 1:
            return ""
        return f" ({value:g} is an absolute value, because it is above 1; {name}=0.5 leaves half)"

    def refuse(self, smallest: Mapping[str, int]) -> OutOfReachError:
        """Words the error for a target that not even the smallest selection meets."""
        reached, wanted = [], []
        for name, cost in self.spent(smallest).items():
            model, dense = self.models[name], self.dense[name]
            share = f" ({cost / dense:.1%} of {model.text(dense)})" if dense else ""
            reached.append(f"{name}={model.text(cost)}{share}")
            wanted.append(f"{name}={model.text(self.allowed[name])}{self._as_read(name)}")
        return OutOfReachError(
            "The target can't be reached.",
            why=f"the smallest model has {', '.join(reached)}; asked for {', '.join(wanted)}",
            hint="leave more of it (a higher number in the target), or let more go: ignored_layers, "
            "max_pruning_ratio, round_to and stated ratios hold; "
            "prune_num_heads=True takes whole heads; the report says what the program pins, and why"
            + (f"; {self.pins}" if self.pins else ""),
        )
