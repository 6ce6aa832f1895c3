"""One target for depth and width together: one knapsack over both, solved, measured, and solved again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs
import torch

from prunekit_core.branches.branch import named_branches
from prunekit_core.branches.surgery import obstacles
from prunekit_core.choose.pruner import Pruner
from prunekit_core.errors import ArgumentError, RehearsalError, many
from prunekit_core.groups.unit_group import UnitGroup
from prunekit_core.plans.plan import Plan
from prunekit_core.program.op_call import Kind
from prunekit_plugins.budgets.allocation import choosable, damages, weighed
from prunekit_plugins.budgets.budget import Budget, OutOfReachError, Target
from prunekit_plugins.budgets.corrections import corrected
from prunekit_plugins.budgets.knapsack import Problem
from prunekit_plugins.budgets.options import fixed_units
from prunekit_plugins.budgets.targets import plan_to_target
from prunekit_plugins.depth.costs import CostsWithout
from prunekit_plugins.depth.items import Items, Scales, Solution
from prunekit_plugins.depth.leaving import check_lists, items_of
from prunekit_plugins.depth.nesting import Offer
from prunekit_plugins.depth.offers import Offers, measured_offers, offers_around
from prunekit_plugins.depth.scales import Measured, fitted
from prunekit_plugins.depth.search import DepthChoice, drafted
from prunekit_plugins.depth.settings import DepthSettings
from prunekit_plugins.depth.stays import counted_branches, most_of
from prunekit_plugins.depth.steps import DepthSteps
from prunekit_plugins.prune.allotment import Allotment
from prunekit_plugins.prune.by_depth import Decided
from prunekit_plugins.prune.calibrated import CalibratedPath
from prunekit_plugins.prune.experts import about_experts
from prunekit_plugins.prune.judge import Judge, cut_copy
from prunekit_plugins.prune.kind_scales import agreed
from prunekit_plugins.prune.reach import check_reach_of_both, out_of_reach
from prunekit_plugins.prune.tradeoffs import Solved, Tradeoffs, tradeoffs_of

_ROUNDS = 3
"""Times that a choice with branches is solved for and measured, at most."""
_HOPE, _HOPES = 0.25, 4
"""Compensation may leave little of the damage of branches: where by all of it none goes, they are tried by these parts
of it, one after the other."""
_MARGIN = 0.1
"""How much better than units alone a choice with branches has to be: further stages of compensation help units more."""
_LITTLE = 1e-3
"""A part of the saving that is none."""
_WORTH = "it is worth more than what goes instead"
_STAGES = 1
"""Stages of compensation before a choice is measured; what is taken is compensated as `prune` was told."""


@attrs.frozen(eq=False)
class _Trial:
    """A choice that was carried out on a copy.

    Attributes:
        choice: The branches that go.
        steps: What tells the pruner so.
        pruner: What chose the units.
        plan: What goes.
        change: How far outputs on held-out data are from those of the model.
        expected: What the knapsack said that this would be; None for units alone, which it follows from.
    """

    choice: DepthChoice
    steps: DepthSteps
    pruner: Pruner
    plan: Plan
    change: float
    expected: float | None


def by_both(
    pruner: Pruner, settings: DepthSettings, target: Target, path: CalibratedPath | None, allotment: Allotment
) -> Decided:
    """Decides what meets a target with least harm: sizes of groups, branches and experts are chosen in one knapsack.

    Units alone are tried first, and say what their damages are worth. Then the knapsack is solved, what it chooses is
    carried out on a copy, compensated and compared with the model on batches that decided nothing; damages are scaled
    by what was measured, and it is solved again, until it chooses what is known. The best of all that was measured is
    taken: units alone, where branches aren't clearly better. The model itself is compensated with all batches.

    Args:
        pruner: The pruner of the analysed model; its criterion gets statistics.
        settings: What is asked for of branches.
        target: The target.
        path: What is done with calibration data.
        allotment: How units are chosen.

    Raises:
        ArgumentError: There are no calibration data, or nothing meets the target.
    """
    if path is None:
        raise ArgumentError(
            'by="both" needs calibration data.',
            why="there are none, and it measures on them what branches and units do to the outputs",
            hint='calibration=batches; or by="depth", by="width"',
        )
    check_reach_of_both(pruner, settings, target)
    fit, held = path.batches.held_out()
    trials = attrs.evolve(path, batches=fit)
    doubts = trials.inform(pruner)
    allotment = allotment.settled(pruner).informed(pruner, trials)
    scores = pruner.scores(pruner.scopes())
    allotment, told = _on_one_scale(pruner, target, trials, allotment, scores)
    rounds = _Rounds(pruner, settings, target, trials, allotment, scores, Judge(pruner.graph, held))
    best = rounds.best()
    notes = [*doubts, *told, *rounds.notes(best), *about_experts(best.pruner, best.plan)]
    if fit.source is held.source:
        notes.append("choices were compared on the data that decided: there is only one batch of calibration data")
    return Decided(best.pruner, best.plan, path, notes, rounds.tradeoffs(best))


def _on_one_scale(
    pruner: Pruner,
    target: Target,
    path: CalibratedPath,
    allotment: Allotment,
    scores: Mapping[str, torch.Tensor],
) -> tuple[Allotment, Sequence[str]]:
    """Holds damages of kinds of units against each other, where units alone meet the target; returns notes as well."""

    def solve(chosen: Allotment) -> tuple[Plan, Problem | None]:
        problems: list[Problem] = []
        select = chosen.selector(pruner, path, problems.append)
        plan = plan_to_target(pruner, target, select=select, scores=scores)
        return plan, problems[-1] if problems else None

    try:
        found = agreed(pruner, allotment, path, solve)
    except OutOfReachError:  # with branches it may be met
        return allotment, ()
    return found.allotment, found.notes


class _Rounds:
    """Solves, measures, scales and solves again."""

    def __init__(
        self,
        pruner: Pruner,
        settings: DepthSettings,
        target: Target,
        path: CalibratedPath,
        allotment: Allotment,
        scores: Mapping[str, torch.Tensor],
        judge: Judge,
    ) -> None:
        graph = pruner.graph
        self._pruner, self._settings, self._target = pruner, settings, target
        self._path, self._allotment, self._judge = path, allotment, judge
        self._scores = scores
        self._budget = corrected(graph, target, Budget.on(graph, target))
        self._costs = CostsWithout(graph, self._budget)
        self._offers = Offers((), {})
        self._scales = Scales()
        self._layers = list(items_of(graph, layers=settings.uniform)[0].values())
        self._trials: list[_Trial] = []
        self._refused: list[str] = []
        self._beside: dict[str, float] = {}

    def best(self) -> _Trial:
        """Returns the choice that was measured to change outputs least; units alone, where nothing is clearly better.

        Raises:
            ArgumentError: Nothing meets the target.
        """
        self._try((), None)
        if not self._needs_nothing():
            self._offers = measured_offers(self._pruner.graph, self._settings, self._path.batches, self._saved)
            for number in range(_ROUNDS):
                before = self._least()
                if not self._round() or (number and self._least() >= before) or self._is_settled():
                    break
                self._look_around()
        if not self._trials:
            raise self._out_of_reach()
        best = min(self._trials, key=self._rank)
        choice = attrs.evolve(best.choice, scores=self._damages(), left=self._left(best.choice.absent))
        best.steps.choice = choice
        return attrs.evolve(best, choice=choice)

    def _is_settled(self) -> bool:
        """Whether what was measured last is what the knapsack said, and units alone are taken all the same."""
        last = self._trials[-1]
        holds = last.expected is not None and abs(last.change - last.expected) <= _MARGIN * last.expected
        return holds and not min(self._trials, key=self._rank).choice.absent

    @staticmethod
    def _rank(trial: _Trial) -> float:
        return trial.change if trial.choice.absent else trial.change * (1 - _MARGIN)

    def _needs_nothing(self) -> bool:
        """Whether the model meets the target as it is."""
        return any(trial.plan.empty for trial in self._trials)

    def _round(self) -> bool:
        """Solves, and carries out what isn't known yet; returns whether there is more to find out."""
        self._scales = self._fitted()
        items = self._items(self._offers.offers)
        found = items.solve(self._scales)
        if found is not None and not found.absent and not any(trial.choice.absent for trial in self._trials):
            found = self._hoped_for(items) or found
        elif found is not None and self._known(items, found):
            found = self._beside_known(items)
        if found is None or self._known(items, found):
            return False
        return self._try(self._in_order(items.names(found.absent)), self._expected(items, found))

    def _known(self, items: Items, found: Solution) -> bool:
        names = set(self._in_order(items.names(found.absent)))
        return any(names == set(trial.choice.absent) for trial in self._trials)

    def _beside_known(self, items: Items) -> Solution | None:
        """Solves with dearer branches, then with cheaper ones, until another choice comes out."""
        scales = self._scales
        for factor in (1.5, 1 / 1.5, 3.0, 1 / 3.0):
            self._scales = attrs.evolve(scales, depth=factor * scales.depth)
            found = items.solve(self._scales)
            if found is not None and not self._known(items, found):
                return found
        return None

    def _least(self) -> float:
        return min((trial.change for trial in self._trials), default=math.inf)

    def _look_around(self) -> None:
        """Measures branches anew, with the best choice of them that is known switched off."""
        tried = [trial for trial in self._trials if trial.choice.absent]
        if tried and self._settings.branch_importance is None:
            best = min(tried, key=lambda trial: trial.change).choice.absent
            self._offers = offers_around(self._pruner.graph, self._settings, self._path.batches, self._offers, best)

    def _hoped_for(self, items: Items) -> Solution | None:
        """Solves with less and less damage of branches, until some go: what compensation leaves of it isn't known."""
        for _ in range(_HOPES):
            self._scales = attrs.evolve(self._scales, depth=_HOPE * self._scales.depth)
            found = items.solve(self._scales)
            if found is not None and found.absent:
                return found
        return None

    def _expected(self, items: Items, found: Solution) -> float:
        problem = items.problem(found.absent)
        width, depth = items.parts(found.absent, problem.units(found.picked))
        return self._scales.width * width + self._scales.depth * depth

    def _in_order(self, names: Sequence[str]) -> tuple[str, ...]:
        gone = self._pruner.graph.applied.absent
        return tuple(one.name for one in self._pruner.graph.branches() if one.name in names or one.name in gone)

    # -- carrying a choice out

    def _try(self, names: Sequence[str], expected: float | None) -> bool:
        """Carries a choice of branches out on a copy, with the units that go best with it, and measures it.

        Returns:
            Whether more may be found: the choice was measured, or a branch is known by now that can't go.
        """
        graph = self._pruner.graph
        try:
            removal = self._removal(names)
        except RehearsalError as error:
            self._give_back(names, error)
            return self._round()
        choice = DepthChoice(tuple(names), removal, {}, {})
        steps = DepthSteps(graph, self._settings, self._path.batches)
        steps.choice = choice
        part = self._pruner.without(removal, steps)
        try:
            select = self._allotment.selector(part, self._path)
            plan = plan_to_target(part, self._target, select=select, scores=self._scores)
        except OutOfReachError as error:
            self._refused.append(f"{_named(names)}: {error.why}")
            return bool(names) and self._costs_more(part, names) and self._round()
        small = cut_copy(part, plan, self._path, _STAGES)
        self._trials.append(_Trial(choice, steps, part, plan, self._judge.change(small), expected))
        return True

    def _removal(self, names: Sequence[str]) -> Plan:
        """Makes a proven plan without some branches; layers leave their lists where the program goes on only then.

        Which of them leave in the end is found out with the units that go; where layers leave as a whole, all of them.
        """
        if self._settings.uniform and names and not self._settings.keep_names:
            plan = drafted(self._pruner.graph, names, keep_names=False)
            check_lists(plan, (item for item in self._layers if set(item.branches) <= set(names)))
            return plan
        try:
            return drafted(self._pruner.graph, names, keep_names=True)
        except RehearsalError:
            if self._settings.keep_names:
                raise
            return drafted(self._pruner.graph, names, keep_names=False)

    def _costs_more(self, part: Pruner, names: Sequence[str]) -> bool:
        """Notes what is left in the place of branches, such as zeros; returns whether it is more than was known."""
        budget = Budget.of(part, self._target)
        real, thought = budget.spent({}), self._costs.of(names)(budget.base)
        more = {one: real[one] - thought[one] for one in real if real[one] - thought[one] > self._beside.get(one, 0.0)}
        self._beside.update(more)
        return bool(more)

    def _points(self) -> list[Measured]:
        """What was measured, beside what the damages say that are known by now."""
        items, points = self._items(self._offers.offers), []
        for trial in self._trials:
            gone = set(trial.choice.absent)
            absent = frozenset(n for n, offer in enumerate(self._offers.offers) if gone.issuperset(offer.branches))
            width, depth = items.parts(absent, {cut.group: len(cut.kept) for cut in trial.plan.cuts})
            points.append(Measured(width, depth, trial.change))
        return points

    def _fitted(self) -> Scales:
        """The scales that explain what was measured; first those of units by what they did alone."""
        points = self._points()
        alone = next((one for one in points if one.width > 0 and not one.depth), None)
        known = alone is not None and alone.change > 0
        return fitted(points, Scales(alone.change / alone.width) if alone is not None and known else Scales())

    def _give_back(self, names: Sequence[str], error: RehearsalError) -> None:
        """Finds the branches that the program can't go on without, and offers them no more."""
        graph = self._pruner.graph
        alone = obstacles(graph.branch_analysis, graph.registry.op_rules, named_branches(graph.branches(), names))
        wrong = {name: f"given back: {why}" for name, why in alone.items() if name not in graph.applied.absent}
        for offer in () if wrong else self._offers.offers:
            try:
                self._removal(offer.branches if set(offer.branches) <= set(names) else ())
            except RehearsalError as own:
                wrong.update(dict.fromkeys(offer.branches, f"given back: {own.why}"))
        if not wrong:  # together only: the one that is worth least goes no more
            damages = self._damages()
            worst = max(names, key=lambda name: damages.get(name, 0.0) / max(self._saved(name), 1e-12))
            wrong = {worst: f"given back: {error.why}"}
        stay = tuple(offer for offer in self._offers.offers if not wrong.keys() & set(offer.branches))
        self._offers = Offers(stay, {**self._offers.left, **wrong})

    def _damages(self) -> dict[str, float]:
        return {name: offer.damage for offer in self._offers.offers for name in offer.branches}

    def _left(self, names: Sequence[str]) -> dict[str, str]:
        """Why branches stay."""
        stay = {one.name: one.reason or _WORTH for one in self._pruner.graph.branches() if one.name not in names}
        return {**stay, **{name: why for name, why in self._offers.left.items() if name in stay}}

    # -- the knapsack

    def _items(
        self,
        offers: Sequence[Offer],
        chosen: Callable[[UnitGroup], bool] = lambda group: True,
    ) -> Items:
        """Makes the knapsack, by the ties that are known by now.

        Args:
            offers: The branches that may go.
            chosen: Which groups may shrink.
        """
        pruner, groups = self._pruner, self._pruner.graph.analysis.groups
        sensitivity, weight = self._allotment.sensitivity, self._allotment.weight
        scopes = [scope for scope in pruner.scopes() if scope.groups]
        chooser = pruner.chooser({n: self._scores[n] for s in scopes for n in s.groups if n in self._scores})
        free = choosable(chooser, scopes, sensitivity)
        return Items(
            pruner.graph,
            self._costs,
            {one: most - self._beside.get(one, 0.0) for one, most in self._budget.allowed.items()},
            [options for options in free if all(chosen(groups[name]) for name in options[0])],
            lambda options: weighed(weight, options, damages(chooser, options, sensitivity, sums=pruner.additive)),
            offers,
            fixed_units(chooser, scopes, free),
            most_of(self._settings, len(counted_branches(pruner.graph))) - len(pruner.graph.applied.absent),
        )

    def _saved(self, name: str) -> float:
        """What a branch saves, as a part of what has to be saved; of several costs the largest."""
        now, left = (self._costs.of(names)(self._budget.base) for names in ((), (name,)))
        needed = {one: now[one] - allowed for one, allowed in self._budget.allowed.items() if now[one] > allowed}
        return max(((now[one] - left[one]) / need for one, need in needed.items()), default=0.0)

    def _out_of_reach(self) -> OutOfReachError:
        smallest = self._items([attrs.evolve(offer, damage=0.0) for offer in self._offers.offers]).smallest()
        error = out_of_reach(self._pruner, self._settings, self._budget, smallest)
        error.why = "; ".join((error.why, *self._refused))
        return error

    # -- the report

    def tradeoffs(self, best: _Trial) -> Tradeoffs | None:
        """What each branch and each group could have saved, around the choice that is taken."""
        items, scales = self._items(self._offers.offers), self._fitted()
        gone = set(best.choice.absent)
        solved = Solved(
            lambda absent: items.problem(absent, scales.width),
            {cut.group: len(cut.kept) for cut in best.plan.cuts},
            [attrs.evolve(offer, damage=scales.depth * offer.damage) for offer in items.offers],
            items.outermost(n for n, offer in enumerate(items.offers) if gone.issuperset(offer.branches)),
            items.outermost,
        )
        return tradeoffs_of(solved, self._pruner.graph.analysis.groups, "change of held-out outputs")

    def notes(self, best: _Trial) -> Iterator[str]:
        """Says what was measured of each choice, and what each axis would have cost."""
        yield from self._refused
        for trial in self._trials:
            taken = "; this was taken" if trial.steps is best.steps and len(self._trials) > 1 else ""
            expected = "" if trial.expected is None else f" (expected: {trial.expected:.3g})"
            yield f"{_named(trial.choice.absent)}: held-out outputs change by {trial.change:.3g}{expected}{taken}"
        axes = list(self._axes()) if self._offers.offers else []
        if axes:
            yield f"what one axis alone would cost for each percent of the saving, by estimate: {', '.join(axes)}"

    def _axes(self) -> Iterator[str]:
        """Says what each axis alone would cost for what it saves."""
        scales = self._fitted()
        experts = self._pruner.has_experts
        axes: list[tuple[str, Sequence[Offer], Callable[[UnitGroup], bool]]] = [
            ("branches", self._offers.offers, lambda group: False),
            *([("experts", (), lambda group: group.kind is Kind.EXPERTS)] if experts else []),
        ]
        alone = next((one for one in self._points() if not one.depth), None)
        if alone is not None:
            yield f"units {scales.width * alone.width / 100:.2g}"
        now = self._costs.of(())(self._budget.base)
        for name, offers, chosen in axes:
            items = self._items(offers, chosen)
            least = items.smallest()
            parts = [
                (now[one] - least[one]) / (now[one] - allowed)
                for one, allowed in self._budget.allowed.items()
                if now[one] > allowed
            ]
            part = min(1.0, *parts) * (1 - 1e-9)
            if part < _LITTLE:
                yield f"{name} save nothing"
                continue
            allowed = {one: now[one] - part * max(0.0, now[one] - most) for one, most in self._budget.allowed.items()}
            found = items.within(allowed).solve(scales)
            if found is not None:
                reach = "" if part > 1 - _LITTLE else f" (at most {part:.0%} of it)"
                yield f"{name} {found.damage / (100 * part):.2g}{reach}"


def _named(names: Sequence[str]) -> str:
    return f"without {many(len(names), 'branch', 'branches')}" if names else "units alone"
