"""Scores of the branches of a model as it is now, after earlier cuts, under the names that they had at analysis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from prunekit_core.branches.branch import Branch
from prunekit_core.choose.branch_group import BranchCriterion
from prunekit_core.graph.graph import Graph
from prunekit_core.groups.analysis import analyse
from prunekit_core.plans.plan import Plan
from prunekit_core.record.recorder import check_recordable
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.checkpoints.stored_values import Cut
from prunekit_plugins.depth.scoring import BranchScorer


class PresentScorer:
    """Scores branches of a model as it is now.

    After a cut the program is another one: where calibration data are run through it, it is recorded once more.

    Args:
        graph: The graph that the cuts were made through.
        criterion: The criterion.
        batches: Calibration data; None where there are none.

    Attributes:
        greedy: Whether all scores change with every branch that goes.
    """

    def __init__(self, graph: Graph, criterion: BranchCriterion, batches: Batches | None) -> None:
        seen = graph if batches is None or graph.applied.empty else _as_it_is(graph)
        self._names = {one.name: one.name for one in graph.branches()} if seen is graph else _names_in(graph, seen)
        self._scorer = BranchScorer(seen, criterion, batches)
        self._known: dict[frozenset[str], dict[str, float | None]] = {}

    @property
    def greedy(self) -> bool:
        """Whether they do."""
        return self._scorer.greedy

    def knows(self, name: str) -> bool:
        """Tells whether a branch is found in the model as it is now."""
        return name in self._names

    def scores(self, names: Iterable[str], off: Sequence[str] = ()) -> dict[str, float | None]:
        """Scores some branches; what was scored before is remembered. See `BranchScorer.scores`."""
        wanted = list(names)
        known = self._known.setdefault(frozenset(off), {})
        missing = {self._names[name]: name for name in wanted if name not in known}
        if missing:
            found = self._scorer.scores(missing, [self._names[name] for name in off])
            known.update({missing[now]: score for now, score in found.items()})
        return {name: known[name] for name in self._names if name in wanted}


class _StoredNow(Cut):
    """Values of a model after cuts, in the files of the model before them, for a graph of what is left."""

    def read(self, name: str, plan: Plan | None = None) -> torch.Tensor:
        """Reads a tensor of the model as it is now; no plan was applied since."""
        return super().read(name)


def _as_it_is(graph: Graph) -> Graph:
    """Records the model of a graph as it is now, on the same inputs and in the same modes."""
    recordings, stored = graph.analysis.recordings, graph.current.stored
    examples = list({id(one.example): one.example for one in recordings}.values())
    modes = tuple(dict.fromkeys(one.training for one in recordings))
    model = check_recordable(graph.model)
    found = Graph(model, analyse(model, examples, graph.registry, modes=modes), graph.registry)
    if stored is not None:
        found.current.stored = _StoredNow(stored, graph.applied)
    return found


def _names_in(graph: Graph, seen: Graph) -> dict[str, str]:
    """Finds branches again after cuts: by the parameters that they read, in the order of the program.

    Returns:
        Name at the analysis of the one graph to the name in the other; branches whose number is another are left out.
    """
    places = graph.applied.places(graph.analysis.parameters)
    before = [one for one in graph.branches() if one.name not in graph.applied.absent]
    earlier, later = _by_parameters(before, places), _by_parameters(seen.branches(), None)
    return {
        was: now
        for key, names in earlier.items()
        if len(names) == len(later.get(key, ()))
        for was, now in zip(names, later[key], strict=True)
    }


_Key = tuple[frozenset[str], frozenset[str]]


def _by_parameters(branches: Iterable[Branch], places: Mapping[str, str] | None) -> dict[_Key, list[str]]:
    """Sorts branches by what they alone read and what others read, too; by the names that it has now."""
    found: dict[_Key, list[str]] = {}
    for one in branches:
        own, shared = (
            frozenset(parts if places is None else (places[name] for name in parts if name in places))
            for parts in (one.parameters, one.shared)
        )
        if own or shared:
            found.setdefault((own, shared), []).append(one.name)
    return found
