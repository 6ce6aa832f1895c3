"""What a model costs without some of its branches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import attrs

from prunekit_core.branches.without import without
from prunekit_core.graph.graph import Graph
from prunekit_core.groups.costs import compiled_cost
from prunekit_plugins.budgets.budget import Budget


class CostsWithout:
    """What a model costs without some branches, as a function of the sizes of its groups; compiled once for each set.

    Args:
        graph: The analysed model; branches that were taken out through it stay so.
        budget: What is allowed.
    """

    def __init__(self, graph: Graph, budget: Budget) -> None:
        self._graph, self._budget = graph, budget
        self._branches = {branch.name: branch for branch in graph.branches()}
        plain = graph.branch_analysis.recordings[: len(graph.analysis.recordings)]  # what decodes besides costs nothing
        self._analysis = attrs.evolve(graph.branch_analysis, recordings=plain)
        self._known: dict[frozenset[str], Callable[[Mapping[str, int]], dict[str, float]]] = {}

    def of(self, names: Iterable[str]) -> Callable[[Mapping[str, int]], dict[str, float]]:
        """Returns the costs without some branches: sizes of groups to costs by name."""
        absent = frozenset((*names, *self._graph.applied.absent))
        if absent not in self._known:
            self._known[absent] = self._compiled(absent)
        return self._known[absent]

    def _compiled(self, absent: frozenset[str]) -> Callable[[Mapping[str, int]], dict[str, float]]:
        budget = self._budget
        left = without(self._analysis, [one for one in self._branches.values() if one.name in absent])
        costs = {name: compiled_cost(budget.registry, name, left) for name in budget.models}

        def spent(sizes: Mapping[str, int]) -> dict[str, float]:
            every = {**budget.base, **sizes}
            return {name: budget.scales.get(name, 1.0) * cost(every) for name, cost in costs.items()}

        return spent
