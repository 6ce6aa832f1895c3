"""Costs that are measured: predictions are corrected, and plans made again, until what is measured is near a target."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping

import attrs
from torch import nn

from prunekit_core.graph.graph import Graph
from prunekit_core.groups.costs import WRONG_COST, CostModel, checked_cost
from prunekit_core.plans.plan import Plan
from prunekit_plugins.budgets.budget import Budget, OutOfReachError, Target, allowance, is_fraction

Replan = Callable[[Budget], Plan]
"""Makes a plan that meets a budget by its predictions."""

Predict = Callable[[Plan], Mapping[str, float]]
"""Predicts what a plan leaves: name of a cost to the cost."""

_ATTEMPTS = 6
_NEAR = 0.1
"""How near a measured cost comes to its target."""
_HALVINGS = 4


class Trials:
    """Measurements of one cost, each as a fraction of what is allowed, beside the predictions.

    Between two of them the cost is taken to lie on a straight line, and beyond them on the line through the nearest
    two: a part that stays whatever goes is found out that way, which a single factor would miss.
    """

    def __init__(self) -> None:
        self._points: dict[float, float] = {}

    def add(self, predicted: float, used: float) -> None:
        """Notes a measurement; one of the same prediction takes the place of an earlier one.

        Args:
            predicted: The prediction.
            used: What was measured, divided by what is allowed.
        """
        self._points[predicted] = used

    def expected(self, predicted: float) -> float:
        """Corrects a prediction; returns a fraction of what is allowed."""
        points = sorted(self._points.items())
        if len(points) == 1:
            (x, y) = points[0]
            return y * predicted / x
        after = next((number for number, (x, _) in enumerate(points) if x >= predicted), len(points) - 1)
        (x0, y0), (x1, y1) = points[max(0, after - 1) : max(0, after - 1) + 2]
        return y0 + (y1 - y0) * (predicted - x0) / (x1 - x0)

    def wanted(self) -> float:
        """Returns the prediction at which just what is allowed is expected; 0 or more."""
        points = sorted(self._points.items())
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            if y0 <= 1 < y1:
                return x0 + (1 - y0) / (y1 - y0) * (x1 - x0)
        if points[0][1] <= 1:
            return points[-1][0]
        (x0, y0), (x1, y1) = points[0], points[min(1, len(points) - 1)]
        nearer = x0 - (y0 - 1) * (x1 - x0) / (y1 - y0) if y1 > y0 else 0.0
        return nearer if nearer > 0 else x0 / y0


def corrected(graph: Graph, target: Target, budget: Budget) -> Budget:
    """Corrects the predictions of measured costs by what the model takes now, where an absolute value is asked for."""
    scales, dense = dict(budget.scales), dict(budget.dense)
    for name, model in budget.models.items():
        if model.measured and not is_fraction(target[name]):
            taken, _ = _taken(graph, name, model, graph.model)
            scales[name] = taken / budget.now[name]
            dense[name] *= scales[name]
    return attrs.evolve(budget, scales=scales, dense=dense)


def measured(graph: Graph, target: Target, budget: Budget, replan: Replan, predict: Predict) -> Plan:
    """Makes a plan, measures it and plans again, until it is as near to the target as was promised.

    A copy of the model is cut and measured beside the model itself. The plan that came nearest is returned, those first
    that don't take too much, with a note of what was predicted and what was measured. Where no cost is measured, the
    first plan is returned.

    Args:
        graph: The analysed model.
        target: The target.
        budget: The budget, see `corrected`.
        replan: Plans for it, and for corrected limits.
        predict: Predicts what a plan leaves, by this budget.
    """
    plan = replan(budget)
    if not budget.measured:
        return plan
    best: tuple[tuple[bool, float], Plan] | None = None
    trials = {name: Trials() for name, model in budget.models.items() if model.measured}
    for attempt in range(_ATTEMPTS):
        checks = _checks(graph, target, budget, plan, predict(plan), trials)
        worst = max(checks, key=lambda check: check.used)
        off = abs(worst.used - 1) if not plan.empty or worst.used > 1 else 0.0
        rank = (worst.used > 1 + _NEAR, off)
        if best is None or rank < best[0]:
            notes = tuple(check.note(attempt + 1) for check in checks)
            best = rank, attrs.evolve(plan, notes=(*plan.notes, *notes))
        if off <= _NEAR:
            break
        wanted = {name: min(found.wanted(), budget.dense[name]) for name, found in trials.items()}
        changed = _replanned(budget, wanted, replan)
        if changed is None or changed[1] == plan:
            break
        budget, plan = changed
    assert best is not None
    return best[1]


def _replanned(budget: Budget, wanted: Mapping[str, float], replan: Replan) -> tuple[Budget, Plan] | None:
    """Plans for corrected limits; halfway there, where by the prediction not even the smallest model meets them."""
    for _ in range(_HALVINGS):
        changed = attrs.evolve(budget, allowed={**budget.allowed, **wanted})
        try:
            return changed, replan(changed)
        except OutOfReachError:
            wanted = {name: math.sqrt(value * budget.allowed[name]) for name, value in wanted.items()}
    return None


@attrs.frozen
class _Check:
    """A measured cost of a plan.

    Attributes:
        name: The cost model.
        model: The same.
        predicted: What the compiled cost says, corrected by what the model and earlier plans took.
        found: What it costs.
        allowed: What it may cost.
        before: What the model costs.
    """

    name: str
    model: CostModel
    predicted: float
    found: float
    allowed: float
    before: float

    @property
    def used(self) -> float:
        """Fraction of what is allowed."""
        return self.found / self.allowed

    def note(self, attempts: int) -> str:
        """Words a line for the report."""
        values = (self.predicted, self.found, self.allowed, self.before)
        predicted, found, allowed, before = map(self.model.text, values)
        far = "" if abs(self.used - 1) <= _NEAR else f", {self.used:.0%} of what was asked for"
        return (
            f"{self.name}: predicted {predicted}, measured {found}{far}; asked for {allowed}; the model took {before} "
            f"(attempt {attempts})"
        )


def _checks(
    graph: Graph,
    target: Target,
    budget: Budget,
    plan: Plan,
    predicted: Mapping[str, float],
    trials: Mapping[str, Trials],
) -> list[_Check]:
    small = graph.step_to(plan).apply(copy.deepcopy(graph.model), registry=graph.registry)
    found = []
    for name, known in trials.items():
        model = budget.models[name]
        before, after = _taken(graph, name, model, small)
        whole = budget.present[name]
        allowed = allowance(model, name, target[name], budget.dense[name] * before / whole)
        known.add(whole, before / allowed)
        found.append(_Check(name, model, known.expected(predicted[name]) * allowed, after, allowed, before))
        known.add(predicted[name], after / allowed)
    return found


def _taken(graph: Graph, name: str, model: CostModel, small: nn.Module) -> tuple[float, float]:
    """Measures the model of a graph and a pruned copy of it."""
    registry = graph.registry
    blame = registry.owners.blame("prunekit_budgets", registry.named("prunekit_budgets", name))
    with blame.blamed(WRONG_COST):
        before, after = model.measure(graph.model, small, graph.analysis.counted[0][0].example)
    return checked_cost(before, blame), checked_cost(after, blame)
