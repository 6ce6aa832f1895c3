"""The choice of branches: those that are named, so many as a ratio says, or as many as a target wants."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import attrs

from prunekit_core.branches.branch import named_branches
from prunekit_core.errors import ArgumentError, NothingToPruneError, first_reasons
from prunekit_core.graph.graph import Graph
from prunekit_core.plans.plan import Plan
from prunekit_plugins.budgets.budget import Budget, Target
from prunekit_plugins.budgets.corrections import corrected, measured
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.depth.present import PresentScorer
from prunekit_plugins.depth.search import DepthChoice, Search
from prunekit_plugins.depth.settings import DepthSettings
from prunekit_plugins.depth.stays import allowance, counted_branches, held_branches, most_of, protected_branches


def choose_branches(
    graph: Graph, settings: DepthSettings, batches: Batches | None, protected: Mapping[str, str] | None = None
) -> DepthChoice:
    """Decides which branches of a model go; nothing is changed.

    Args:
        graph: The analysed model; branches that were taken out through it stay so.
        settings: What is asked for.
        batches: Calibration data; None where there are none.
        protected: What `protected_branches` returned for the layers to ignore; None to find it in the settings.

    Raises:
        ArgumentError: An argument is wrong, or the target can't be reached.
        RehearsalError: Branches that were named can't go.
    """
    kept = protected_branches(graph, settings.ignored_layers) if protected is None else protected
    if settings.branches:
        return _named(graph, settings, settings.branches, kept)
    make = functools.partial(Search, graph, settings, scorer_of(graph, settings, batches), kept)
    if settings.target is not None:
        return _to_target(graph, settings.target, make)
    search = make()
    search.to_ratio(settings.branch_ratio or 0.0)
    return search.choice()


def scorer_of(graph: Graph, settings: DepthSettings, batches: Batches | None) -> PresentScorer:
    """Makes what scores the branches of the model as it is now."""
    return PresentScorer(graph, settings.criterion(graph.registry, calibrated=batches is not None), batches)


def require_branches(graph: Graph, choice: DepthChoice) -> None:
    """Raises `NothingToPruneError` where branches were asked for and none may go."""
    if choice.absent:
        return
    alike: dict[str, list[str]] = {}
    for name, why in choice.left.items():
        alike.setdefault(why, []).append(name)
    reasons = [f"{', '.join(names[:4])}{', ...' * (len(names) > 4)}: {why}" for why, names in alike.items()]
    raise NothingToPruneError(
        "No branch can go.",
        where=type(graph.model).__name__,
        why=first_reasons(reasons) or "nothing is added to anything in the model that it could go on without",
        hint=f"prunekit inspect lists branches; {_BY_WIDTH}",
    )


def _to_target(graph: Graph, target: Target, make: Callable[[], Search]) -> DepthChoice:
    """Searches for the branches that meet a target, once more where what is measured of it isn't what was predicted."""
    found: list[DepthChoice] = []

    def replan(budget: Budget) -> Plan:
        search = make()
        search.to_target(budget)
        found.append(search.choice())
        return found[-1].plan

    budget = corrected(graph, target, Budget.on(graph, target))

    def predict(plan: Plan) -> dict[str, float]:
        return budget.spent_by(graph.analysis_after(plan if plan.absent else graph.applied))

    plan = measured(graph, target, budget, replan, predict)
    choice = next(one for one in found if one.plan.absent == plan.absent)
    return attrs.evolve(choice, plan=plan)


def _named(graph: Graph, settings: DepthSettings, names: Sequence[str], protected: Mapping[str, str]) -> DepthChoice:
    gone = graph.applied.absent
    chosen = named_branches(graph.branches(), [*gone, *names])
    able = counted_branches(graph)
    absent = tuple(branch.name for branch in chosen)
    if chosen and set(able) <= set(absent):
        raise ArgumentError(
            "A model can't lose all of its branches.",
            where=", ".join(absent),
            hint="leave one out, such as the last" if len(able) > 1 else f"it has no other one; {_BY_WIDTH}",
        )
    held = held_branches(graph, settings, protected)
    contradicted = [f"{name}: {held[name]}" for name in absent if name in held and name not in gone]
    if sum(name in able for name in absent) > most_of(settings, len(able)):
        contradicted.append(allowance(settings, len(able)))
    if contradicted:
        raise ArgumentError(
            "Branches are to go and to stay.",
            why=first_reasons(contradicted),
            hint="leave them out of branches, or out of what keeps them",
        )
    left = {one.name: one.reason or "not named" for one in graph.branches() if one.name not in absent}
    new = [name for name in absent if name not in gone]
    return DepthChoice(absent, graph.plan_without(new, keep_names=settings.keep_names), {}, left)


_BY_WIDTH = "ratio=0.5 removes units instead"
