"""The search for branches: lowest scores first, each set proven by rehearsal, to a ratio or to a target."""

from __future__ import annotations

import bisect
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from prunekit_core.branches.branch import named_branches
from prunekit_core.branches.surgery import operate
from prunekit_core.branches.without import without
from prunekit_core.errors import RehearsalError
from prunekit_core.graph.graph import Graph
from prunekit_core.modules.tree import Layer
from prunekit_core.plans.plan import Plan
from prunekit_core.rehearse.removals import draft_further
from prunekit_plugins.budgets.budget import Budget, OutOfReachError
from prunekit_plugins.depth.present import PresentScorer
from prunekit_plugins.depth.settings import DepthSettings


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


def structure_of(name: str) -> str:
    """Returns the name of a branch without its numbers: branches of repeated layers have the same."""
    return re.sub(r"\d+", "*", name)


class Search:
    """Takes branches out one after the other, for as long as there is need; those that are gone stay so.

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
        self._gone = [name for name in self._branches if name in graph.applied.absent]
        self._able = counted_branches(graph)
        self._open, self._left = open_branches(graph, settings, scorer, protected)
        self._scores: dict[str, float] = {}
        self._chosen = list(self._gone)
        self._plan = drafted(graph, self._gone, keep_names=settings.keep_names)
        self._on_the_way = False  # whether layers that may leave their lists are in them, see _drafted
        self._most = most_of(settings, len(self._able))

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
        self._take_all(chosen, lambda names: drafted(self._graph, names, keep_names=self._settings.keep_names))

    # -- to a target

    def to_target(self, budget: Budget) -> None:
        """Takes branches out, those first that do least damage for what they save, until a target is met.

        Then what is not needed for it comes back, those first that do most damage.
        """
        if not self._fill(budget, self._savings(budget)):
            raise self._out_of_reach(budget)
        new = [name for name in self._chosen if name not in self._gone]
        for name in sorted(new, key=lambda one: -self._scores[one]):
            self._give_back(name, budget)
        for name in self._open:
            self._left[name] = "not needed for the target"

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
        return budget.allows(budget.spent_by(without(self._graph.branch_analysis, [self._branches[n] for n in names])))

    def _fits(self, budget: Budget, names: Sequence[str]) -> bool:
        # working out what a plan costs takes a run of the program
        return self._may_fit(budget, names) and budget.allows(self._spent(budget, names))

    def _spent(self, budget: Budget, names: Sequence[str]) -> dict[str, float]:
        """Computes what the model costs without some branches, as the plan takes them out."""
        graph, analysis = self._graph, self._graph.branch_analysis
        if names:
            analysis = operate(analysis, graph.registry.op_rules, named_branches(graph.branches(), names)).analysis
        return budget.spent_by(analysis)

    def _savings(self, budget: Budget) -> dict[str, float]:
        """Computes what each branch alone saves, as a part of what has to be saved."""
        now = budget.present
        needed = {name: now[name] - allowed for name, allowed in budget.allowed.items()}
        found = {}
        if not any(need > 0 for need in needed.values()):
            return dict.fromkeys(self._open, 0.0)
        gone = [self._branches[name] for name in self._gone]
        for name in self._open:
            costs = budget.spent_by(without(self._graph.branch_analysis, [*gone, self._branches[name]]))
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
            why=f"without {len(self._chosen)} of {len(self._branches)} branches the model has {', '.join(reached)}; "
            f"asked for {', '.join(wanted)}" + (f"; {reasons}" if reasons else ""),
            hint="leave more of it (a higher number in the target), or let more go: ignored_layers, "
            "max_pruning_ratio, keep_first and keep_last hold, and one branch always stays; by width more can go",
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

    def _drafted(self, names: Sequence[str]) -> Plan:
        """Makes a plan for a set on the way: layers leave their lists where the program goes on only then.

        Which of them may leave in the end takes more runs of the program to find out, and is found out once.
        """
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
        off = [name for name in self._chosen if name not in self._gone] if self._scorer.greedy else []
        for name, score in self._scorer.scores(missing, off).items():
            if score is None:
                self._drop(name, "the criterion has nothing to say about it")
            else:
                self._scores[name] = score
        places = {name: place for place, name in enumerate(self._branches)}
        known = [name for name in names if name in self._scores and name not in self._left]
        per = savings or {}
        return sorted(known, key=lambda name: (self._scores[name] / per.get(name, 1.0), -places[name]))

    def _inside(self, name: str, others: Iterable[str]) -> bool:
        """Whether all that a branch computes goes with one of some others."""
        return any(self._branches[name].is_part_of(self._branches[other]) for other in others)

    def _overlaps(self, name: str, others: Sequence[str]) -> bool:
        """Whether a branch is part of one of some others, or one of them part of it."""
        return self._inside(name, others) or any(self._inside(other, [name]) for other in others)

    def choice(self) -> DepthChoice:
        """Returns what was chosen."""
        absent = tuple(name for name in self._branches if name in self._chosen)
        left = {**dict.fromkeys(self._open, "not needed for the target"), **self._left}
        plan = drafted(self._graph, absent, keep_names=False) if self._on_the_way else self._plan
        return DepthChoice(absent, plan, dict(self._scores), left)
