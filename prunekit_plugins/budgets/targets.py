"""Planning to a target: the largest model that costs no more than was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import torch

from prunekit_core.choose.candidates import Scope
from prunekit_core.choose.chooser import Chooser
from prunekit_core.choose.pruner import Pruner
from prunekit_core.errors import first_reasons
from prunekit_core.plans.plan import Plan
from prunekit_plugins.budgets.budget import Budget, OutOfReachError, Target
from prunekit_plugins.budgets.corrections import corrected, measured
from prunekit_plugins.budgets.families import Family, RatioFamily
from prunekit_plugins.budgets.remarks import coarse_sizes, why_whole

FamilyMaker = Callable[[Chooser, Sequence[Scope], "Budget"], Family]
"""Makes the family that a search goes through, for the ties known by now."""

Selector = Callable[[Chooser, Sequence[Scope], "Budget"], Mapping[str, int]]
"""Decides how many units each group keeps within a budget, for the ties known by now."""

_SEARCH_STEPS = 40
_STRONGEST = 1.0 - 1e-6


def ratio_family(chooser: Chooser, scopes: Sequence[Scope], budget: Budget) -> Family:
    """The family in which every scope loses the same ratio."""
    return RatioFamily(chooser, scopes)


def plan_to_target(
    pruner: Pruner,
    target: Target,
    family: FamilyMaker = ratio_family,
    select: Selector | None = None,
    *,
    scores: Mapping[str, torch.Tensor] | None = None,
) -> Plan:
    """Finds the largest model that meets a target, without running it.

    The strength of a family is bisected on predicted costs; then single units are given back to one group after the
    other for as long as any fits. Both end at the same place for the same model. A pruner that has stepped goes on from
    where it is; fractions mean those of the model as it was at construction.

    Args:
        pruner: The pruner; its ratios are not used, but for those stated for single layers and for heads.
        target: See `prune`.
        family: Makes the family that is searched.
        select: Decides instead of a search in a family (see `prunekit_plugins.budgets.allocation`).
        scores: What `Pruner.scores` returned for the groups of the pruner; None to score them.

    Returns:
        A proven plan from the model as it was at construction; ``pruner.graph.apply(plan)`` carries it out.

    Raises:
        ArgumentError: The target is wrong, or not even the smallest reachable model meets it.
    """
    budget = corrected(pruner.graph, target, Budget.of(pruner, target))

    def replan(changed: Budget) -> Plan:
        return _planned(pruner, changed, family, select, scores)

    def predict(plan: Plan) -> dict[str, float]:
        return budget.spent({cut.group: len(cut.kept) for cut in plan.cuts})

    return measured(pruner.graph, target, budget, replan, predict)


def _planned(
    pruner: Pruner,
    budget: Budget,
    family: FamilyMaker,
    select: Selector | None,
    known: Mapping[str, torch.Tensor] | None,
) -> Plan:
    scores = pruner.scores(pruner.scopes()) if known is None else known
    while True:  # ends, because every further round knows more ties, more multiples or more groups that can't shrink
        state = pruner.graph.knowledge.limits
        scopes = [scope for scope in pruner.scopes() if scope.groups]
        chooser = pruner.chooser({name: scores[name] for s in scopes for name in s.groups if name in scores})
        try:
            if select is None:
                units = fill(chooser, scopes, search(family(chooser, scopes, budget), budget), budget)
            else:
                units = dict(select(chooser, scopes, budget))
        except OutOfReachError as error:
            given_back = pruner.graph.knowledge.restored
            if given_back:  # sizes that were tried before were refused by the program
                reasons = [f"{name}: {why}" for name, why in given_back.items()]
                error.why += f"; given back, because the program can't have other sizes: {first_reasons(reasons)}"
                error.hint += "; where a kernel takes multiples only, round_to=8 (or another multiple) asks for them"
            raise
        plan = pruner.draft_counts(chooser, units, why_whole(chooser, units, budget))
        if pruner.graph.knowledge.limits == state:
            coarse = coarse_sizes(chooser, units, budget, pruner.settings.demands.about("round_to"))
            return attrs.evolve(plan, notes=(*plan.notes, *coarse))


def search(family: Family, budget: Budget) -> dict[str, int]:
    """Finds the largest selection of a family that a budget allows.

    Raises:
        ArgumentError: Not even the smallest one is allowed.
    """
    largest, smallest = family.counts(0.0), family.counts(_STRONGEST)
    if not budget.fits(smallest):
        raise budget.refuse(smallest)
    if budget.fits(largest):
        return largest
    low, high, best = 0.0, _STRONGEST, smallest
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        units = family.counts(middle)
        if budget.fits(units):
            high, best = middle, units
        else:
            low, largest = middle, units
        if largest == best:
            break
    return best


def fill(chooser: Chooser, scopes: Sequence[Scope], units: Mapping[str, int], budget: Budget) -> dict[str, int]:
    """Gives units back where that fits a budget, until nothing more does.

    Groups take turns: in every round each gets its smallest possible number of units back, those first whose units
    score highest, compared with the mean score of all that they are ranked with. Ties, ``round_to`` and stated ratios
    are respected.
    """
    result = dict(units)
    means = _mean_scores(chooser, scopes)
    waiting = _growing(chooser, means)
    while waiting:
        turns: list[tuple[float, int, str, dict[str, int]]] = []
        for place, group in enumerate(waiting):
            larger = chooser.larger(result, group)
            if larger is not None:
                scores = chooser.returned(result, larger)
                worth = sum(float(s.mean()) / means[name] for name, s in scores.items()) / len(scores)
                turns.append((-worth, place, group, larger))
        waiting = []
        for _, _, group, larger in sorted(turns):
            if budget.fits({**result, **larger}):
                result.update(larger)
                waiting.append(group)
    return result


def _mean_scores(chooser: Chooser, scopes: Sequence[Scope]) -> dict[str, float]:
    """Mean absolute score of what each group that may grow is ranked with: all of its scope, or itself."""
    means: dict[str, float] = {}
    for scope in scopes:
        names = [name for name in scope.groups if name in chooser.candidates and not scope.fixed]
        own = {name: chooser.candidates[name].scores.detach().double().abs().cpu() for name in names}
        if scope.ranked and names:
            means.update(dict.fromkeys(names, float(torch.cat(list(own.values())).mean()) or 1.0))
        else:
            means.update({name: float(values.mean()) or 1.0 for name, values in own.items()})
    return means


def _growing(chooser: Chooser, means: Mapping[str, float]) -> list[str]:
    """Lists the groups that may grow, one for each tie; a tie with a group that may not stays."""
    tied = {name for tie in chooser.ties for name in tie.sizes}
    leaders = [next(iter(tie.sizes)) for tie in chooser.ties if all(name in means for name in tie.sizes)]
    return [*(name for name in means if name not in tied), *leaders]
