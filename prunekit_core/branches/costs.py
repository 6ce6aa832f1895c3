"""What a model costs without some of its branches."""

from __future__ import annotations

from collections.abc import Iterable

from prunekit_core.algebra.layout import Kept
from prunekit_core.branches.branch import Branch
from prunekit_core.branches.without import without
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.costs import compiled_cost, cost_model
from prunekit_core.plugins.registry import Registry


def costs_without(
    analysis: Analysis, registry: Registry, branches: Iterable[Branch], kept: Kept
) -> dict[str, tuple[float, float]]:
    """Computes every cost that previews show, with some branches and without them.

    Args:
        analysis: The analysed model.
        registry: Where cost models are found.
        branches: The branches.
        kept: Kept units per group, with the branches and without.

    Returns:
        Name of the cost model to (with, without).

    Raises:
        PluginError: A cost model is wrong.
    """
    sizes = {name: len(units) for name, units in kept.items()}
    left = without(analysis, branches)
    names = [name for name, entry in registry.entries("prunekit_budgets").items() if cost_model(entry.value).previewed]
    return {
        name: (compiled_cost(registry, name, analysis)(sizes), compiled_cost(registry, name, left)(sizes))
        for name in names
    }
