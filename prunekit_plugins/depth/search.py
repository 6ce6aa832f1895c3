"""The search for branches: lowest scores first, each set proven by rehearsal, to a ratio or to a target."""

from __future__ import annotations

import bisect
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import attrs

from prunekit_core.branches.branch import named_branches
from prunekit_core.branches.surgery import operate
from prunekit_core.branches.without import without
from prunekit_core.errors import RehearsalError
from prunekit_core.graph.graph import Graph
from prunekit_core.plans.plan import Plan
from prunekit_core.rehearse.removals import draft_further
from prunekit_plugins.budgets.budget import Budget, OutOfReachError
from prunekit_plugins.depth.leaving import branches_of, check_lists, items_of, scores_of
from prunekit_plugins.depth.present import PresentScorer
from prunekit_plugins.depth.reachable import Reachable
from prunekit_plugins.depth.settings import DepthSettings
from prunekit_plugins.depth.stays import allowance, most_of, open_branches

_MUCH = 0.05
"""How much less than was asked for is told, as a part of what the model costs."""


@attrs.frozen(eq=False)
class DepthChoice:
    """Which branches go.

    Attributes:
        absent: Their names, in the order of the program.
        plan: A proven plan without them, and with all units of what stays.
        scores: Name to the score of each branch that was scored, as it was when it was chosen, or last.
        left: Name of each branch that stays to the reason.
    """

    absent: tuple[str, ...]
    plan: Plan
    scores: Mapping[str, float]
    left: Mapping[str, str]


def drafted(graph: Graph, names: Iterable[str], *, keep_names: bool) -> Plan:
    """Makes a proven plan without some branches, and without those that are gone; an empty one where none is.

    Where they can't go, it isn't found out which of them is at fault (`Graph.plan_without` does): a search asks often.
    """
    chosen = list(names)
    if not chosen and not graph.applied.absent:
        return Plan()
    return draft_further(graph.model, graph.drafts, graph.applied, chosen, keep_names=keep_names)


def structure_of(name: str) -> str:
    """Returns the name of a branch without its numbers: branches of repeated layers have the same."""
    return re.sub(r"\d+", "*", name)


class Search:
    """Takes branches out one after the other, for as long as there is need; those that are gone stay so.

    Where layers leave as a whole, what is chosen are layers, each with all of its branches.

    Args:
        graph: The analysed model.
        settings: What is asked for.
        scorer: Scores the branches of the model as it is now.
        protected: What `protected_branches` returned for the layers that are ignored.
    """

    def __init__(
        self, graph: Graph, settings: DepthSettings, scorer: PresentScorer, protected: Mapping[str, str]
    ) -> None:
        self._graph, self._settings, self._scorer = graph, settings, scorer
        self._branches = {branch.name: branch for branch in graph.branches()}
        self._items, apart = items_of(graph, layers=settings.uniform)
        self._able = list(self._items)
        open_, why = open_branches(graph, settings, scorer, protected)
        self._left = {**{name: reason for name, reason in apart.items() if name in open_}, **why}
        self._gone = [name for name in self._branches if name in graph.applied.absent]
        self._chosen = [one.name for one in self._items.values() if set(one.branches) <= set(self._gone)]
        self._before = tuple(self._chosen)
        self._open: list[str] = []
        for item in self._items.values():
            if set(item.branches) <= {*open_, *self._gone}:
                self._open.extend([item.name] if item.name not in self._chosen else [])
            else:
                held = next(name for name in item.branches if name not in open_)
                self._left.update({name: f"{held}: {why[held]}" for name in item.branches if name in open_})
        self._scores: dict[str, float] = {}
        self._alone: dict[str, float] = {}
        self._plan = drafted(graph, self._gone, keep_names=settings.keep_names)
        self._on_the_way = False  # whether layers that may leave their lists are in them, see _drafted
        self._most = most_of(settings, len(self._able))
        self._notes: tuple[str, ...] = ()

    def _names(self, items: Iterable[str]) -> list[str]:
        """Returns the names of the branches of some items, and of those that are gone."""
        return list(dict.fromkeys([*self._gone, *branches_of(self._items, items)]))

    # -- to a ratio

    def to_ratio(self, ratio: float) -> None:
        """Takes a fraction of the branches out: of each structure, or of all together."""
        scope = {name: "" if self._settings.global_pruning else structure_of(name) for name in self._able}
        quota = {
            one: math.floor(ratio * sum(scope[name] == one for name in self._able) + 1e-9)
            for one in dict.fromkeys(scope.values())
        }
        none = {name for name, one in scope.items() if not quota[one]}
        if not self._scorer.greedy:
            self._at_once(scope, quota)
        quota = self._rest(scope, quota)
        while any(count > 0 for count in quota.values()) and len(self._chosen) < self._most:
            taken = self._next([name for name in self._open if quota[scope[name]] > 0])
            if taken is None:
                break
            quota[scope[taken]] -= 1
        for name in self._open:
            if len(self._chosen) >= self._most and ratio:
                self._left[name] = allowance(self._settings, len(self._able))
            elif name in none:
                alike = sum(one == scope[name] for one in scope.values())
                why = (
                    f"branch_ratio={ratio:g} of {alike} alike is less than one; global_pruning=True counts all together"
                )
                self._left[name] = why if ratio else "not asked for"
            else:
                self._left[name] = "not among the lowest scores"

    def _rest(self, scope: Mapping[str, str], quota: Mapping[str, int]) -> dict[str, int]:
        """Returns what is left of quotas after what is chosen."""
        taken = Counter(scope[name] for name in self._chosen if name in scope)
        return {one: count - taken[one] for one, count in quota.items()}

    def _at_once(self, scope: Mapping[str, str], quotas: Mapping[str, int]) -> None:
        """Takes all out in one rehearsal, where that passes: most sets do."""
        quota, chosen = self._rest(scope, quotas), list(self._chosen)
        for name in self._ranked(self._open):
            if quota[scope[name]] > 0 and len(chosen) < self._most and not self._overlaps(name, chosen):
                quota[scope[name]] -= 1
                chosen.append(name)
        self._take_all(chosen, self._final)

    # -- to a target

    def to_target(self, budget: Budget) -> None:
        """Takes branches out, those first that do least damage for what they save, until a target is met.

        Then what is not needed for it comes back, those first that do most damage. Where a knapsack over what each does
        alone finds another set that meets the target with less damage, that one goes.
        """
        savings = self._savings(budget)
        if not self._fill(budget, savings):
            raise self._out_of_reach(budget)
        for name in sorted(self._new, key=lambda one: -self._scores[one]):
            self._give_back(name, budget)
        sizes = self._reachable(budget)
        if sizes is not None:
            self._take_better(budget, sizes)
            self._notes = tuple(self._overshoot(budget, sizes))
        for name in self._open:
            self._left[name] = "not needed for the target"

    @property
    def _new(self) -> list[str]:
        return [name for name in self._chosen if name not in self._before]

    def _reachable(self, budget: Budget) -> Reachable | None:
        """Finds the sizes that what may leave can reach, of the cost of which most has to be saved."""
        if not self._new:
            return None
        names = [name for name in self._items if (name in self._new or name in self._open) and name in self._alone]
        tight = self._tight(budget)
        now = budget.present[tight]
        costs = {name: self._cost([*self._before, name], budget)[tight] for name in names}
        saved = {name: (now - cost) / now for name, cost in costs.items() if cost < now}
        known = {name: self._alone[name] for name in saved}
        return Reachable(saved, known, lambda one, other: self._inside(one, [other]), self._most - len(self._before))

    def _tight(self, budget: Budget) -> str:
        now = budget.present
        return max(budget.allowed, key=lambda name: 1 - budget.allowed[name] / now[name] if now[name] else 0.0)

    def _cost(self, items: Iterable[str], budget: Budget) -> dict[str, float]:
        """Computes what the model costs without all that only some items need."""
        gone = [self._branches[name] for name in self._names(items)]
        return budget.spent_by(without(self._graph.branch_analysis, gone))

    def _needed(self, budget: Budget) -> float:
        tight = self._tight(budget)
        return (1 - budget.allowed[tight] / budget.present[tight]) / (1 + 1e-9)

    def _take_better(self, budget: Budget, sizes: Reachable) -> None:
        """Takes the set that does least damage by what each does alone, where it does less than what is chosen."""
        found = sizes.least(self._needed(budget))
        alone = sum(self._alone.get(name, math.inf) for name in self._new)
        if found is None or found.damage >= alone or set(found.names) == set(self._new):
            return
        chosen = [*self._before, *found.names]
        if self._scorer.greedy and self._together(list(found.names)) >= self._together(self._new):
            return
        try:
            if not self._fits(budget, chosen):
                return
            plan = self._drafted(chosen)
        except RehearsalError:
            return
        back = [name for name in self._new if name not in found.names]
        self._plan, self._chosen = plan, chosen
        self._open = [*(name for name in self._open if name not in chosen), *back]

    def _together(self, items: Sequence[str]) -> float:
        """Returns the score of several items that are switched off at once, by a criterion that can say it."""
        *others, last = branches_of(self._items, items)
        return self._scorer.scores([last], others)[last] or 0.0

    def _overshoot(self, budget: Budget, sizes: Reachable) -> Iterator[str]:
        """Says what could be reached instead, where much less is left than was asked for."""
        tight = self._tight(budget)
        left, allowed, dense = self._cost(self._chosen, budget)[tight], budget.allowed[tight], budget.dense[tight]
        if allowed - left <= _MUCH * dense:
            return
        near, above = (
            None if one is None or not one.names else self._cost([*self._before, *one.names], budget)[tight]
            for one in sizes.nearest(self._needed(budget))
        )

        def shown(cost: float) -> str:
            return f"{budget.models[tight].text(cost)} ({cost / dense:.1%})"

        what = "layers" if self._settings.uniform else "branches"
        others = [
            *([] if near is None or near <= left * (1 + 1e-9) else [f"{shown(near)}, which does more damage"]),
            *([] if above is None else [f"{shown(above)}, which is more than that"]),
        ]
        yield (
            f"{tight}: {shown(left)} are left where {shown(allowed)} were asked for, as {what} leave as a whole; "
            f"nearest to it they reach {' and '.join(others) or 'nothing else'}; by width it is met more closely"
        )

    def _fill(self, budget: Budget, savings: Mapping[str, float]) -> bool:
        """Takes branches out until a budget allows what is left; returns whether it does."""
        if not self._scorer.greedy and not self._fits(budget, self._chosen):
            self._fill_at_once(budget, savings)
        while not self._fits(budget, self._chosen):
            useful = [name for name in self._open if savings[name] > 0]
            if len(self._chosen) >= self._most or self._next(useful, savings) is None:
                return False
        return True

    def _fill_at_once(self, budget: Budget, savings: Mapping[str, float]) -> None:
        """Takes as many out in one rehearsal as may be enough, where that passes; most sets do."""
        order = list(self._chosen)
        for name in self._ranked([name for name in self._open if savings[name] > 0], savings):
            if not self._overlaps(name, order):
                order.append(name)
        counts = range(len(self._chosen) + 1, min(len(order), self._most) + 1)
        if not counts:
            return
        count = bisect.bisect_left(counts, True, key=lambda one: self._may_fit(budget, order[:one]))
        self._take_all(order[: counts[min(count, len(counts) - 1)]], self._drafted)

    def _may_fit(self, budget: Budget, names: Sequence[str]) -> bool:
        """Whether a budget allows what the model costs without all that only some branches need: no plan costs less."""
        return budget.allows(self._cost(names, budget))

    def _fits(self, budget: Budget, names: Sequence[str]) -> bool:
        # working out what a plan costs takes a run of the program
        return self._may_fit(budget, names) and budget.allows(self._spent(budget, names))

    def _spent(self, budget: Budget, names: Sequence[str]) -> dict[str, float]:
        """Computes what the model costs without some branches, as the plan takes them out."""
        graph, analysis, gone = self._graph, self._graph.branch_analysis, self._names(names)
        if gone:
            analysis = operate(analysis, graph.registry.op_rules, named_branches(graph.branches(), gone)).analysis
        return budget.spent_by(analysis)

    def _savings(self, budget: Budget) -> dict[str, float]:
        """Computes what each branch alone saves, as a part of what has to be saved."""
        now = budget.present
        needed = {name: now[name] - allowed for name, allowed in budget.allowed.items()}
        found = {}
        if not any(need > 0 for need in needed.values()):
            return dict.fromkeys(self._open, 0.0)
        for name in self._open:
            costs = self._cost([name], budget)
            shares = [(now[one] - costs[one]) / need for one, need in needed.items() if need > 0]
            found[name] = max(shares, default=0.0)
        return found

    def _give_back(self, name: str, budget: Budget) -> None:
        fewer = [other for other in self._chosen if other != name]
        try:
            if not self._fits(budget, fewer):
                return
            self._plan = self._drafted(fewer)
        except RehearsalError:  # what is left can't go without it
            return
        self._chosen = fewer
        self._open.append(name)

    def _out_of_reach(self, budget: Budget) -> OutOfReachError:
        reached = [
            f"{name}={budget.models[name].text(cost)} ({cost / budget.dense[name]:.1%})"
            for name, cost in self._spent(budget, self._chosen).items()
        ]
        wanted = [f"{name}={budget.models[name].text(allowed)}" for name, allowed in budget.allowed.items()]
        reasons = "; ".join(f"{name}: {why}" for name, why in list(self._left.items())[:4])
        return OutOfReachError(
            "The target can't be reached by depth.",
            why=f"without {len(self._names(self._chosen))} of {len(self._branches)} branches the model has "
            f"{', '.join(reached)}; asked for {', '.join(wanted)}" + (f"; {reasons}" if reasons else ""),
            hint="leave more of it (a higher number in the target), or let more go: ignored_layers, "
            "max_pruning_ratio, keep_first and keep_last hold, and one branch always stays; by width more can go"
            + ("; layers leave as a whole: uniform=False lets single branches go" if self._settings.uniform else ""),
        )

    def _take_all(self, chosen: list[str], draft: Callable[[Sequence[str]], Plan]) -> None:
        """Takes a set out, where its rehearsal passes; else they go one after the other, to see which can't."""
        try:
            self._plan = draft(chosen)
        except RehearsalError:
            return
        self._chosen = chosen
        self._open = [name for name in self._open if name not in chosen]

    # -- one after the other

    def _next(self, names: Sequence[str], savings: Mapping[str, float] | None = None) -> str | None:
        """Takes out the first branch in order that the program can go on without; returns None where there is none."""
        for name in self._ranked(names, savings):
            if self._inside(name, self._chosen):
                self._drop(name, "part of a branch that goes")
                continue
            chosen = [*(one for one in self._chosen if not self._inside(one, [name])), name]
            try:
                self._plan = self._drafted(chosen)
            except RehearsalError as error:
                self._drop(name, f"given back: {error.why}")
                continue
            self._chosen = chosen
            self._open.remove(name)
            return name
        return None

    def _final(self, items: Sequence[str]) -> Plan:
        """Makes a plan for a set; layers that leave as a whole leave their lists, too.

        Raises:
            RehearsalError: The program can't go on without them, or a layer has to stay in its list.
        """
        plan = drafted(self._graph, self._names(items), keep_names=self._settings.keep_names)
        if not self._settings.keep_names:
            check_lists(plan, (self._items[name] for name in items))
        return plan

    def _drafted(self, items: Sequence[str]) -> Plan:
        """Makes a plan for a set on the way: layers leave their lists where the program goes on only then.

        Which of them may leave in the end takes more runs of the program to find out, and is found out once; where
        layers leave as a whole it is found out each time.
        """
        if any(self._items[name].layer for name in items):
            return self._final(items)
        names = self._names(items)
        try:
            plan = drafted(self._graph, names, keep_names=True)
        except RehearsalError:
            if self._settings.keep_names:
                raise
            plan = drafted(self._graph, names, keep_names=False)
        self._on_the_way = not self._settings.keep_names
        return plan

    def _drop(self, name: str, why: str) -> None:
        self._left[name] = why
        self._open.remove(name)

    def _ranked(self, names: Sequence[str], savings: Mapping[str, float] | None = None) -> list[str]:
        """Orders branches by score (for what they save); among equals the later go first."""
        missing = list(names) if self._scorer.greedy else [name for name in names if name not in self._scores]
        off = branches_of(self._items, self._new) if self._scorer.greedy else []
        for name, score in scores_of(self._scorer, [self._items[name] for name in missing], off).items():
            if score is None:
                self._drop(name, "the criterion has nothing to say about it")
            else:
                self._scores[name] = score
                self._alone.setdefault(name, score)
        places = {name: place for place, name in enumerate(self._items)}
        known = [name for name in names if name in self._scores and name not in self._left]
        per = savings or {}
        return sorted(known, key=lambda name: (self._scores[name] / per.get(name, 1.0), -places[name]))

    def _inside(self, name: str, others: Iterable[str]) -> bool:
        """Whether all that a branch computes goes with one of some others."""
        around = [self._branches[one] for one in branches_of(self._items, others)]
        own = [self._branches[one] for one in self._items[name].branches]
        return all(any(one.is_part_of(other) for other in around) for one in own)

    def _overlaps(self, name: str, others: Sequence[str]) -> bool:
        """Whether a branch is part of one of some others, or one of them part of it."""
        return self._inside(name, others) or any(self._inside(other, [name]) for other in others)

    def choice(self) -> DepthChoice:
        """Returns what was chosen."""
        gone = set(self._names(self._chosen))
        absent = tuple(name for name in self._branches if name in gone)
        left = {**dict.fromkeys(self._open, "not needed for the target"), **self._left}
        left = {part: why for name, why in left.items() for part in self._parts(name) if part not in gone}
        plan = drafted(self._graph, absent, keep_names=False) if self._on_the_way else self._plan
        scores = {part: score for name, score in self._scores.items() for part in self._parts(name)}
        return DepthChoice(absent, attrs.evolve(plan, notes=(*plan.notes, *self._notes)), scores, left)

    def _parts(self, name: str) -> tuple[str, ...]:
        return self._items[name].branches if name in self._items else (name,)
