"""Scores of branches: what a criterion returns for them, gathered from calibration data where it reads these."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from prunekit_core.choose.branch_group import BranchCriterion, BranchGroup, GreedyCriterion
from prunekit_core.choose.untouched import Guard
from prunekit_core.errors import ArgumentError
from prunekit_core.graph.graph import Graph
from prunekit_core.plugins.blame import Blame
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.calibration.branch_runs import BranchGatherer, BranchNeed, BranchRuns, SeenBranch


@runtime_checkable
class LossCriterion(BranchCriterion, Protocol):
    """A criterion whose gatherers are shown the derivatives of a loss.

    Attributes:
        loss_fn: ``loss_fn(outputs, batch)`` returns a scalar, the mean over the examples of a batch; None for random
            signs, see `BranchRuns`.
    """

    loss_fn: Callable[[Any, Any], torch.Tensor] | None


class BranchScorer:
    """Scores the branches of a model.

    Args:
        graph: The analysed model, as it was at analysis.
        criterion: The criterion.
        batches: Calibration data; None where there are none.

    Attributes:
        greedy: Whether all scores change with every branch that goes.
    """

    def __init__(self, graph: Graph, criterion: BranchCriterion, batches: Batches | None) -> None:
        self._graph, self._criterion, self._batches = graph, criterion, batches
        self.greedy = isinstance(criterion, GreedyCriterion) and bool(criterion.greedy)
        self._guard = Guard(graph)
        self._runs: BranchRuns | None = None

    @property
    def _blame(self) -> Blame:
        return self._graph.registry.owners.blame("prunekit_importance", self._criterion)

    def scores(self, names: Iterable[str], off: Sequence[str] = ()) -> dict[str, float | None]:
        """Scores some branches.

        Args:
            names: Their names.
            off: Names of the branches that are switched off while data are gathered.

        Returns:
            Name to score; None where the criterion has nothing to say, and for branches in loops over experts: which
            of them a sum belongs to changes with the data.

        Raises:
            ArgumentError: The criterion reads data and there are none.
            PluginError: The criterion raised, returned something else, or changed the model.
        """
        blame, wanted = self._blame, set(names)
        found: dict[str, object] = {}
        with self._guard.watching(blame):
            for branch in self._graph.branches():
                if branch.name in wanted:
                    with blame.blamed("A criterion failed.", f"branch {branch.name}"):
                        found[branch.name] = self._criterion.branch(BranchGroup(self._graph, branch))
            gatherers = {
                name: _Gatherer(value, name, blame)
                for name, value in found.items()
                if isinstance(value, BranchGatherer)
            }
            lost = self._data().picked & gatherers.keys() if gatherers else frozenset()
            gatherers = {name: one for name, one in gatherers.items() if name not in lost}
            found.update(dict.fromkeys(lost))
            if gatherers:
                self._data().gather(gatherers, off)
        results: dict[str, object] = {**found, **{name: gatherer.score() for name, gatherer in gatherers.items()}}
        return {name: _checked(value, name, blame) for name, value in results.items()}

    def _data(self) -> BranchRuns:
        if self._batches is None:
            raise ArgumentError(
                "The criterion needs calibration data for branches.",
                where=type(self._criterion).__name__,
                hint="calibration=batches",
            )
        if self._runs is None:
            loss = self._criterion.loss_fn if isinstance(self._criterion, LossCriterion) else None
            self._runs = BranchRuns(self._graph, self._batches, loss)
        return self._runs


class _Gatherer:
    """A gatherer of someone's, with the blame for what it raises."""

    def __init__(self, gatherer: BranchGatherer, name: str, blame: Blame) -> None:
        self._gatherer, self._name, self._blame = gatherer, name, blame

    @property
    def needs(self) -> BranchNeed:
        needs = self._gatherer.needs
        if not isinstance(needs, BranchNeed):
            raise self._blame.error(
                "A criterion asks for something else.",
                f"needs is {needs!r}",
                at=f"branch {self._name}",
                hint="a BranchNeed",
            )
        return needs

    def add(self, seen: SeenBranch) -> None:
        with self._blame.blamed("A criterion failed.", f"branch {self._name}"):
            self._gatherer.add(seen)

    def score(self) -> Any:
        with self._blame.blamed("A criterion failed.", f"branch {self._name}"):
            return self._gatherer.score()


def _checked(value: object, name: str, blame: Blame) -> float | None:
    """Checks the score of a branch."""
    if value is None:
        return None
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_meta and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise blame.error(
            "A criterion must return one score per branch.",
            f"it returned {type(value).__name__}",
            at=f"branch {name}",
            hint="return a number, None to leave the branch, or what gathers a score (needs, add, score)",
        )
    if not math.isfinite(value):
        raise blame.error("A criterion returned a score that is not finite.", f"{value}", at=f"branch {name}")
    return float(value)
