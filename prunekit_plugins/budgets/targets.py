"""Planning to a target: the largest model that costs no more than was asked for."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import nn

from prunekit_core.arguments import check_forms
from prunekit_core.choose.candidates import Scope
from prunekit_core.choose.chooser import Chooser
from prunekit_core.choose.pruner import Pruner
from prunekit_core.errors import ArgumentError, nearest
from prunekit_core.groups.costs import WRONG_COST, Compiled, CostModel, checked_cost, compiled_cost, cost_model
from prunekit_core.groups.report import outputs_that_pin
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.budgets.families import Family, RatioFamily
from prunekit_plugins.budgets.knapsack import SLACK
from prunekit_plugins.budgets.trials import Trials

Target = Mapping[str, float | str]
"""Cost model to what should be left of it: a fraction of the original (a number up to one), or an absolute value."""

FamilyMaker = Callable[[Chooser, Sequence[Scope], "Budget"], Family]
"""Makes the family that a search goes through, for the ties known by now."""

Selector = Callable[[Chooser, Sequence[Scope], "Budget"], Mapping[str, int]]
"""Decides how many units each group keeps within a budget, for the ties known by now."""

_SEARCH_STEPS = 40
_STRONGEST = 1.0 - 1e-6
_ATTEMPTS = 6
_NEAR = 0.1
"""How near a measured cost comes to its target."""
_HALVINGS = 4


class OutOfReachError(ArgumentError):
    """Not even the smallest model meets a target."""


def check_target(target: Target, registry: Registry) -> None:
    """Raises `ArgumentError` unless a target names registered cost models and says how much of each should be left."""
    check_forms({"target": target})
    known, refused = registry.entries("prunekit_budgets"), registry.refused("prunekit_budgets")
    if not target:
        raise ArgumentError("The target is empty.", hint='for example target={"macs": 0.5}')
    for name, value in target.items():
        if name in refused:
            raise refused[name]
        if name not in known:
            raise ArgumentError(f"No cost model is registered as {name!r}.", hint=nearest(name, map(str, known)))
        allowance(cost_model(known[name].value), name, value, 1.0)


def allowance(model: CostModel, name: str, value: float | str, dense: float) -> float:
    """Returns how much a target allows, in the unit of its cost model.

    Args:
        model: The cost model.
        name: Its name.
        value: A fraction of the original (up to 1), an absolute value (above 1), or a text with a unit.
        dense: What the original costs.

    Raises:
        ArgumentError: The value is no positive number, or a text that can't be read.
    """
    if _is_fraction(value):
        return float(value) * dense
    try:
        found = math.nan if isinstance(value, bool) else model.absolute(value)
    except (TypeError, ValueError):
        found = math.nan
    if not 0 < found < math.inf:
        raise ArgumentError(
            "A target must be a positive number.",
            where=name,
            why=f"got {value!r}",
            hint="up to 1 it is what is left of the original, above 1 an absolute value; a text may have a unit",
        )
    return found


def _is_fraction(value: float | str) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


@attrs.frozen(eq=False)
class Budget:
    """A target on a model: what may be spent, and what selections cost.

    Attributes:
        models: Cost model by name.
        costs: The same as functions of group sizes.
        dense: What the original costs.
        allowed: What may be spent.
        base: Sizes of the groups that earlier steps have cut.
        pins: What can be done about parameters that outputs of the model pin; empty where none does.
    """

    models: Mapping[str, CostModel]
    costs: Mapping[str, Compiled]
    dense: Mapping[str, float]
    allowed: Mapping[str, float]
    base: Mapping[str, int]
    pins: str = ""

    @classmethod
    def of(cls, pruner: Pruner, target: Target) -> Budget:
        """Compiles the cost models of a target for the model of a pruner.

        Raises:
            ArgumentError: See `check_target`.
        """
        check_target(target, pruner.registry)
        graph = pruner.graph
        models = {name: cost_model(pruner.registry.named("prunekit_budgets", name)) for name in target}
        costs = {name: compiled_cost(pruner.registry, name, graph.analysis) for name in models}
        dense = {name: cost({}) for name, cost in costs.items()}
        allowed = {name: allowance(models[name], name, value, dense[name]) for name, value in target.items()}
        base = {name: len(units) for name, units in graph.applied.kept.items()}
        return cls(models, costs, dense, allowed, base, outputs_that_pin(graph.analysis))

    def spent(self, units: Mapping[str, int]) -> dict[str, float]:
        """Computes what a selection costs.

        Args:
            units: Group to the number of units that it keeps.
        """
        sizes = {**self.base, **units}
        return {name: cost(sizes) for name, cost in self.costs.items()}

    def fits(self, units: Mapping[str, int]) -> bool:
        """Tells whether a selection costs no more than is allowed."""
        sizes = {**self.base, **units}
        return all(cost(sizes) <= self.allowed[name] * SLACK for name, cost in self.costs.items())

    def allows(self, spent: Mapping[str, float]) -> bool:
        """Tells whether costs, such as those of a model without some branches, are no more than is allowed."""
        return all(spent[name] <= allowed * SLACK for name, allowed in self.allowed.items())

    def refuse(self, smallest: Mapping[str, int]) -> OutOfReachError:
        """Words the error for a target that not even the smallest selection meets."""
        reached, wanted = [], []
        for name, cost in self.spent(smallest).items():
            model, dense = self.models[name], self.dense[name]
            share = f" ({cost / dense:.1%} of {model.text(dense)})" if dense else ""
            reached.append(f"{name}={model.text(cost)}{share}")
            wanted.append(f"{name}={model.text(self.allowed[name])}")
        return OutOfReachError(
            "The target can't be reached.",
            why=f"the smallest model has {', '.join(reached)}; asked for {', '.join(wanted)}",
            hint="ask for more, or let more go: ignored_layers, max_pruning_ratio, round_to and stated ratios hold; "
            "prune_num_heads=True takes whole heads; the report says what the program pins, and why"
            + (f"; {self.pins}" if self.pins else ""),
        )


def ratio_family(chooser: Chooser, scopes: Sequence[Scope], budget: Budget) -> Family:
    """The family in which every scope loses the same ratio."""
    return RatioFamily(chooser, scopes)


def plan_to_target(
    pruner: Pruner, target: Target, family: FamilyMaker = ratio_family, select: Selector | None = None
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

    Returns:
        A proven plan from the model as it was at construction; ``pruner.graph.apply(plan)`` carries it out.

    Raises:
        ArgumentError: The target is wrong, or not even the smallest reachable model meets it.
    """
    budget = _corrected(pruner, target, Budget.of(pruner, target))
    plan = _planned(pruner, budget, family, select)
    if not any(model.measured for model in budget.models.values()):
        return plan
    return _measured(pruner, target, budget, plan, lambda changed: _planned(pruner, changed, family, select))


def _corrected(pruner: Pruner, target: Target, budget: Budget) -> Budget:
    """Corrects the predictions of measured costs by what the model takes now, where an absolute value is asked for."""
    graph, costs, dense = pruner.graph, dict(budget.costs), dict(budget.dense)
    for name, model in budget.models.items():
        if model.measured and not _is_fraction(target[name]):
            taken, _ = _taken(pruner, name, model, graph.model)
            factor = taken / costs[name](budget.base)
            costs[name] = functools.partial(_scaled, costs[name], factor)
            dense[name] *= factor
    return attrs.evolve(budget, costs=costs, dense=dense)


def _scaled(cost: Compiled, factor: float, sizes: Mapping[str, int]) -> float:
    return factor * cost(sizes)


def _planned(pruner: Pruner, budget: Budget, family: FamilyMaker, select: Selector | None) -> Plan:
    scores = pruner.scores(pruner.scopes())
    while True:  # ends, because every further round knows more ties or more groups that can't shrink
        state = _known(pruner)
        scopes = [scope for scope in pruner.scopes() if scope.groups]
        chooser = pruner.chooser({name: scores[name] for s in scopes for name in s.groups if name in scores})
        if select is None:
            units = fill(chooser, scopes, search(family(chooser, scopes, budget), budget), budget)
        else:
            units = dict(select(chooser, scopes, budget))
        plan = pruner.draft_counts(chooser, units)
        if _known(pruner) == state:
            return plan


def _measured(pruner: Pruner, target: Target, budget: Budget, plan: Plan, replan: Callable[[Budget], Plan]) -> Plan:
    """Measures a plan and plans again, with predictions corrected, until it is as near to the target as was promised.

    A copy of the model is cut and measured beside the model itself. The plan that came nearest is returned, with a note
    of what was predicted and what was measured.
    """
    best: tuple[float, Plan] | None = None
    trials = {name: Trials() for name, model in budget.models.items() if model.measured}
    for attempt in range(_ATTEMPTS):
        checks = _checks(pruner, target, budget, plan, trials)
        worst = max(checks, key=lambda check: check.used)
        off = abs(worst.used - 1) if plan.cuts or worst.used > 1 else 0.0
        if best is None or off < best[0]:
            notes = tuple(check.note(attempt + 1) for check in checks)
            best = off, attrs.evolve(plan, notes=(*plan.notes, *notes))
        if off <= _NEAR:
            break
        wanted = {name: min(found.wanted(), budget.dense[name]) for name, found in trials.items()}
        changed = _replanned(budget, wanted, replan)
        if changed is None or changed[1] == plan:
            break
        budget, plan = changed
    assert best is not None
    return best[1]


def _replanned(
    budget: Budget, wanted: Mapping[str, float], replan: Callable[[Budget], Plan]
) -> tuple[Budget, Plan] | None:
    """Plans for corrected limits; halfway there, where by the prediction not even the smallest model meets them."""
    for _ in range(_HALVINGS):
        changed = attrs.evolve(budget, allowed={**budget.allowed, **wanted})
        try:
            return changed, replan(changed)
        except OutOfReachError:
            wanted = {name: math.sqrt(value * budget.allowed[name]) for name, value in wanted.items()}
    return None


@attrs.frozen
class _Check:
    """A measured cost of a plan.

    Attributes:
        name: The cost model.
        model: The same.
        predicted: What the compiled cost says, corrected by what the model and earlier plans took.
        found: What it costs.
        allowed: What it may cost.
        before: What the model costs.
    """

    name: str
    model: CostModel
    predicted: float
    found: float
    allowed: float
    before: float

    @property
    def used(self) -> float:
        """Fraction of what is allowed."""
        return self.found / self.allowed

    def note(self, attempts: int) -> str:
        """Words a line for the report."""
        values = (self.predicted, self.found, self.allowed, self.before)
        predicted, found, allowed, before = map(self.model.text, values)
        far = "" if abs(self.used - 1) <= _NEAR else f", {self.used:.0%} of what was asked for"
        return (
            f"{self.name}: predicted {predicted}, measured {found}{far}; asked for {allowed}; the model took {before} "
            f"(attempt {attempts})"
        )


def _checks(pruner: Pruner, target: Target, budget: Budget, plan: Plan, trials: Mapping[str, Trials]) -> list[_Check]:
    graph = pruner.graph
    small = graph.step_to(plan).apply(copy.deepcopy(graph.model), registry=pruner.registry)
    found = []
    for name, known in trials.items():
        model, cost = budget.models[name], budget.costs[name]
        before, after = _taken(pruner, name, model, small)
        whole, counted = cost(budget.base), cost({cut.group: len(cut.kept) for cut in plan.cuts})
        allowed = allowance(model, name, target[name], budget.dense[name] * before / whole)
        known.add(whole, before / allowed)
        found.append(_Check(name, model, known.expected(counted) * allowed, after, allowed, before))
        known.add(counted, after / allowed)
    return found


def _taken(pruner: Pruner, name: str, model: CostModel, small: nn.Module) -> tuple[float, float]:
    """Measures the model of a pruner and a pruned copy of it."""
    graph, registry = pruner.graph, pruner.registry
    blame = registry.owners.blame("prunekit_budgets", registry.named("prunekit_budgets", name))
    with blame.blamed(WRONG_COST):
        before, after = model.measure(graph.model, small, graph.analysis.recordings[0].example)
    return checked_cost(before, blame), checked_cost(after, blame)


def _known(pruner: Pruner) -> tuple[list[frozenset[str]], list[str]]:
    return list(pruner.graph.knowledge.ties), list(pruner.graph.knowledge.restored)


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
