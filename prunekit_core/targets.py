"""Planning to a target: how much may go so that the model costs what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from prunekit_core.errors import ArgumentError, nearest
from prunekit_core.plan import Plan
from prunekit_core.pruner import BasePruner
from prunekit_core.registry import Registry
from prunekit_core.selection import Scope, check_ratio

_SEARCH_STEPS = 24
_ROUNDS = 8


def check_target(target: Mapping[str, float], registry: Registry) -> None:
    """Raises `ArgumentError` unless a target names registered cost models and says how much of each should be left."""
    known = registry.entries("prunekit_budgets")
    if not target:
        raise ArgumentError("The target is empty.", hint='for example target={"macs": 0.5}')
    for name, value in target.items():
        if name not in known:
            raise ArgumentError(f"No cost model is registered as {name!r}.", hint=nearest(name, map(str, known)))
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ArgumentError("A target must be a positive number.", where=name, why=f"got {value!r}")


def plan_to_target(pruner: BasePruner, target: Mapping[str, float]) -> Plan:
    """Finds the largest model that meets a target, by bisecting the ratio on predicted costs.

    Args:
        pruner: A pruner that has not stepped yet.
        target: See `prune`.

    Raises:
        ArgumentError: Not even the smallest reachable model meets the target.
    """
    budgets = {name: pruner.registry.named("prunekit_budgets", name) for name in target}
    analysis = pruner.graph.analysis
    dense = {name: budget(analysis, {}) for name, budget in budgets.items()}
    allowed = {name: value * dense[name] if value <= 1 else float(value) for name, value in target.items()}
    scores = pruner.scores(pruner.scopes())

    def scopes_at(ratio: float) -> list[Scope]:
        return [scope if scope.fixed else attrs.evolve(scope, ratio=ratio) for scope in pruner.scopes()]

    def meets(kept: Mapping[str, Sequence[int]]) -> bool:
        return all(budget(analysis, kept) <= allowed[name] * (1 + 1e-9) for name, budget in budgets.items())

    for _ in range(_ROUNDS):
        state = (list(pruner.graph.knowledge.ties), dict(pruner.graph.knowledge.given_back))
        low, high = 0.0, 1.0 - 1e-6
        smallest = pruner.kept_at(scopes_at(high), scores)
        if not meets(smallest):
            reached = ", ".join(f"{name}={budget(analysis, smallest):,.0f}" for name, budget in budgets.items())
            wanted = ", ".join(f"{name}={value:,.0f}" for name, value in allowed.items())
            raise ArgumentError(
                "The target can't be reached.", why=f"the smallest model has {reached}; asked for {wanted}"
            )
        if meets(pruner.kept_at(scopes_at(low), scores)):
            high = low
        for _ in range(_SEARCH_STEPS if high else 0):
            middle = (low + high) / 2
            low, high = (low, middle) if meets(pruner.kept_at(scopes_at(middle), scores)) else (middle, high)
        plan = pruner.draft(scopes_at(check_ratio(high, "the ratio found")), scores)
        if meets(plan.kept) or (pruner.graph.knowledge.ties, pruner.graph.knowledge.given_back) == state:
            return plan
    return plan
