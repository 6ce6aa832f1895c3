"""What a model costs without some of its branches."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping

from prunekit_core.algebra.layout import Kept
from prunekit_core.branches.branch import Branch
from prunekit_core.branches.without import without
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.costs import PreviewedCosts
from prunekit_core.plugins.registry import Registry


def costs_without(
    analysis: Analysis, registry: Registry, branches: Iterable[Branch], kept: Kept, skipped: MutableMapping[str, str]
) -> dict[str, tuple[float, float]]:
    """Computes every cost that previews show, with some branches and without them.

    Args:
        analysis: The analysed model.
        registry: Where cost models are found.
        branches: The branches.
        kept: Kept units per group, with the branches and without.
        skipped: Takes the costs that can't be computed, see `PreviewedCosts`.

    Returns:
        Name of the cost model to (with, without).

    Raises:
        PluginError: A cost model of prunekit's own is wrong.
    """
    sizes = {name: len(units) for name, units in kept.items()}
    before, after = (PreviewedCosts(registry, a, skipped).at(sizes) for a in (analysis, without(analysis, branches)))
    return {name: (before[name][0], after[name][0]) for name in before if name in after}
