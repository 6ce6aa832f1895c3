"""Which branches settings keep, and the reasons."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from prunekit_core.graph.graph import Graph
from prunekit_core.modules.tree import Layer
from prunekit_plugins.depth.present import PresentScorer
from prunekit_plugins.depth.settings import DepthSettings


def protected_branches(graph: Graph, layers: Iterable[Layer]) -> dict[str, str]:
    """Finds the branches with parameters in some layers, by the names that these had at analysis.

    Returns:
        Name of each branch to the first such layer.

    Raises:
        ArgumentError: A layer isn't in the model.
    """
    paths, found = graph.module_paths(layers), {}
    for one in graph.branches() if paths else ():
        owners = {name.rpartition(".")[0] for name in one.parameters}
        if not owners.isdisjoint(paths):
            found[one.name] = min(owners & paths)
    return found


def counted_branches(graph: Graph) -> list[str]:
    """Lists the names of the branches that can go, with parameters of their own: those that all settings are about.

    One that only reads what something else reads as well is a part of another branch, or a second use of its weights.
    """
    return [branch.name for branch in graph.branches() if branch.removable and branch.parameters]


def held_branches(graph: Graph, settings: DepthSettings, protected: Mapping[str, str]) -> dict[str, str]:
    """Returns the names of branches that settings keep, with the reason.

    Args:
        graph: The analysed model.
        settings: The settings.
        protected: What `protected_branches` returned for the layers that are ignored.
    """
    counted, found = counted_branches(graph), dict[str, str]()
    for place, name in enumerate(counted):
        if name in protected:
            found[name] = f"{protected[name]} is in ignored_layers"
        elif place < settings.keep_first:
            found[name] = f"one of the first {settings.keep_first} (keep_first)"
        elif place >= len(counted) - settings.keep_last:
            found[name] = f"one of the last {settings.keep_last} (keep_last)"
    return found


def most_of(settings: DepthSettings, count: int) -> int:
    """Returns how many of some branches may go."""
    return max(0, min(math.floor(settings.max_pruning_ratio * count + 1e-9), count - 1))


def allowance(settings: DepthSettings, count: int) -> str:
    """Says how many of some branches may go."""
    most = most_of(settings, count)
    if most < count - 1:
        return f"max_pruning_ratio={settings.max_pruning_ratio:g} lets {most} of {count} go"
    return "one branch always stays"


def open_branches(
    graph: Graph, settings: DepthSettings, scorer: PresentScorer, protected: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Lists the branches that may go, in the order of the program, and returns why others stay, by name.

    Args:
        graph: The analysed model.
        settings: What is asked for.
        scorer: Scores the branches of the model as it is now.
        protected: What `protected_branches` returned for the layers that are ignored.
    """
    able, gone = counted_branches(graph), graph.applied.absent
    left = {one.name: one.reason or SHARED for one in graph.branches() if one.name not in able}
    left.update(held_branches(graph, settings, protected))
    left.update({one: LOST for one in able if not scorer.knows(one) and one not in left})
    left = {name: why for name, why in left.items() if name not in gone}
    return [name for name in able if name not in left and name not in gone], left


SHARED = "it has no parameters of its own: name it in branches to take it out"
LOST = "after the cuts so far it can't be told apart from others"
