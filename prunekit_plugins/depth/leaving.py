"""What leaves together: single branches, or all branches of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs

from prunekit_core.branches.branch import Branch
from prunekit_core.errors import RehearsalError
from prunekit_core.graph.graph import Graph
from prunekit_core.modules.entries import prefix_of
from prunekit_core.plans.plan import Plan
from prunekit_plugins.depth.present import PresentScorer


@attrs.frozen
class Item:
    """What leaves as a whole.

    Attributes:
        name: Name of the branch, or path of the layer.
        branches: Names of the branches, in the order of the program.
        layer: Whether it is a layer, which leaves its list.
    """

    name: str
    branches: tuple[str, ...]
    layer: bool = False


def items_of(graph: Graph, *, layers: bool) -> tuple[dict[str, Item], dict[str, str]]:
    """Lists what can leave, by name, and returns why branches stay that can't leave so, by theirs.

    A layer is an entry of a list of modules (``ModuleList``, ``Sequential``) all of whose parameters are those of
    branches in it; of lists in each other the outermost entry that is one.

    Args:
        graph: The analysed model.
        layers: Whether layers leave as a whole; else branches leave one by one.
    """
    able = [branch for branch in graph.branches() if branch.removable and branch.parameters]
    if not layers:
        return {branch.name: Item(branch.name, (branch.name,)) for branch in able}, {}
    found: dict[str, Item] = {}
    left: dict[str, str] = {}
    around = {branch.name: _entries_around(graph, branch) for branch in able}
    whole = {path for paths in around.values() for path in paths if not _kept_in(graph, able, path)}
    for branch in able:
        path = next((path for path in around[branch.name] if path in whole), None)
        if path is not None:
            found.setdefault(
                path, Item(path, _outermost(branch for branch in able if _inside(branch, path)), layer=True)
            )
        elif around[branch.name]:
            path = around[branch.name][0]
            why = f"{_kept_in(graph, able, path)[0]} is in no branch"
            left[branch.name] = f"layers leave as a whole (uniform=True), and {path} can't: {why}"
        else:
            left[branch.name] = "it is in no list of layers, and layers leave as a whole (uniform=True)"
    return found, left


def _entries_around(graph: Graph, branch: Branch) -> list[str]:
    """Lists the entries of lists of modules that hold all parameters of a branch, the outermost first."""
    modules = graph.branch_analysis.shadow.modules
    parts = branch.parameters[0].split(".")
    paths = [".".join(parts[:end]) for end in range(1, len(parts))]
    entries = [path for path in paths if prefix_of(modules.get(path.rpartition(".")[0])) is not None]
    return [path for path in entries if _inside(branch, path)]


def _inside(branch: Branch, path: str) -> bool:
    return all(name.startswith(f"{path}.") for name in branch.parameters)


def _kept_in(graph: Graph, able: Iterable[Branch], path: str) -> list[str]:
    """Lists the parameters in an entry that none of its branches is computed from."""
    gone = {name for branch in able if _inside(branch, path) for name in branch.parameters}
    known = graph.branch_analysis.parameters
    return [name for name, one in known.items() if name.startswith(f"{path}.") and not (one.buffer or name in gone)]


def _outermost(branches: Iterable[Branch]) -> tuple[str, ...]:
    every = list(branches)
    return tuple(one.name for one in every if not any(one.is_part_of(other) for other in every))


def scores_of(scorer: PresentScorer, items: Sequence[Item], off: Sequence[str] = ()) -> dict[str, float | None]:
    """Scores what leaves, by name: a criterion that asks anew after each removal is asked with all of it switched off.

    Args:
        scorer: Scores branches.
        items: What leaves.
        off: Names of the branches that are switched off while data are gathered.
    """
    found = scorer.scores([item.branches[0] for item in items if not item.layer], off)
    for item in items:
        if not item.layer:
            continue
        *others, last = item.branches
        if scorer.greedy:
            found[item.name] = scorer.scores([last], [*off, *others])[last]
        else:
            parts = [part for part in scorer.scores(item.branches, off).values() if part is not None]
            found[item.name] = sum(parts) if len(parts) == len(item.branches) else None
    return found


def check_lists(plan: Plan, items: Iterable[Item]) -> None:
    """Raises `RehearsalError` where a plan leaves something in a list in the place of a layer."""
    gone = plan.entries.deleted()
    there = next((item.name for item in items if item.layer and item.name not in gone), None)
    if there is not None:
        raise RehearsalError(
            "A layer can't leave its list.",
            where=there,
            why="the program goes on only with something in its place",
            hint="leave it out, or let single branches go (uniform=False)",
        )


def branches_of(items: Mapping[str, Item], names: Iterable[str]) -> list[str]:
    """Returns the names of the branches of some items."""
    return [branch for name in names for branch in items[name].branches]
