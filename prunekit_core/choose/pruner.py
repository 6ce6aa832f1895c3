"""Pruning a model in steps: scores in scopes, a proven plan, and its application."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import attrs
import torch
from torch import nn

from prunekit_core.arguments import forms_checked
from prunekit_core.choose.branch_group import BranchGroup
from prunekit_core.choose.branch_steps import BranchSteps
from prunekit_core.choose.candidates import Candidate, Limits, Scope
from prunekit_core.choose.chooser import Chooser
from prunekit_core.choose.criterion import Criterion, PartialCriterion, additive, checked_scores
from prunekit_core.choose.demands import WITHOUT
from prunekit_core.choose.scopes import Scopes, is_experts, is_heads
from prunekit_core.choose.settings import CheckedSettings, Settings
from prunekit_core.choose.untouched import Guard
from prunekit_core.errors import ArgumentError, NothingToPruneError, PlanError, first_reasons
from prunekit_core.graph.graph import Graph
from prunekit_core.graph.group import Group
from prunekit_core.groups.report import Report, outputs_that_pin
from prunekit_core.modules.exclusive import exclusive
from prunekit_core.modules.transaction import Transaction
from prunekit_core.plans.optimizers import Optimizers
from prunekit_core.plans.plan import Plan


class Pruner:
    """Prunes the model of a graph step by step, in place.

    Args:
        graph: The analysed model.
        settings: What is asked for; None for half of the units of every group.
        blocks: Group to a number of blocks that its units form; the same positions leave all blocks.
        notes: Lines for the report.
        branches: Decides which branches go; None where none does.

    Attributes:
        removal: A plan without some branches; they go with every plan that the pruner makes. `plan` sets it to what is
            decided about the branches of a step.

    Raises:
        ArgumentError: The settings name something that isn't there.
    """

    def __init__(
        self,
        graph: Graph,
        settings: Settings | CheckedSettings | None = None,
        *,
        blocks: Mapping[str, int] | None = None,
        notes: Iterable[str] = (),
        branches: BranchSteps | None = None,
    ) -> None:
        self.graph, self.model, self.registry = graph, graph.model, graph.registry
        wanted = settings or Settings()
        checked = wanted if isinstance(wanted, CheckedSettings) else wanted.checked(graph.model, self.registry)
        self.settings, self.limits, self._schedule = checked.settings, checked.limits, checked.schedule
        self.importance: Any = checked.importance
        self.expert_importance: Criterion | None = checked.expert_importance
        self.current_step = 0
        self._scopes = Scopes(graph, self.settings, self._schedule)
        self._notes, self._blocks = [*checked.notes, *notes], dict(blocks or {})
        self._guard = Guard(graph)
        self.branches = branches
        self.removal = Plan()
        self._left: dict[str, str] = {}
        self._spared: dict[str, int] = {}
        self._unknown: dict[str, Sequence[int]] = {}

    @property
    def pruning_ratio(self) -> float:
        """Fraction of units to remove."""
        return self.settings.pruning_ratio

    @property
    def iterative_steps(self) -> int:
        """In how many steps the ratio is reached."""
        return self.settings.iterative_steps

    @property
    def global_pruning(self) -> bool:
        """Whether all units are ranked together."""
        return self.settings.global_pruning

    def without(self, removal: Plan, branches: BranchSteps) -> Pruner:
        """Returns a pruner of the same model, at the same step, whose plans take some branches out as well.

        What scores said so far it knows as well.

        Args:
            removal: A plan of this pruner's graph without these branches.
            branches: What decided about them.
        """
        return self._alike(self.settings, branches, removal)

    def with_heads(self, counts: Mapping[str, tuple[int, ...]]) -> Pruner:
        """Returns a pruner like this one that removes whole heads as well, in numbers that `Demands` would allow."""
        demands = attrs.evolve(self.settings.demands, counts=counts)
        settings = attrs.evolve(self.settings, prune_num_heads=True, demands=demands)
        return self._alike(settings, self.branches, self.removal)

    def _alike(self, settings: Settings, branches: BranchSteps | None, removal: Plan) -> Pruner:
        checked = CheckedSettings(settings, self.importance, self._schedule, self.limits, (), self.expert_importance)
        other = Pruner(self.graph, checked, blocks=self._blocks, notes=self._notes, branches=branches)
        other.current_step, other.removal = self.current_step, removal
        other.recall(self._left, self._unknown)
        return other

    def recall(self, left: Mapping[str, str], unknown: Mapping[str, Sequence[int]]) -> None:
        """Takes over what scores said when another pruner of the model asked for them.

        Args:
            left: Name of each group without scores to the reason.
            unknown: Group to the positions of the units that nothing is known about.
        """
        self._left.update(left)
        self._unknown.update(unknown)

    @property
    def _keep_names(self) -> bool:
        return self.branches is not None and self.branches.keep_names

    # -- deciding

    def scopes(self, step: int | None = None) -> list[Scope]:
        """Lists the scopes that units are ranked in, with their ratios at a step (None: the last one)."""
        found = self._scopes.at(self.iterative_steps if step is None else step)
        gone = set(self.removal.gone)
        if not gone:
            return found
        groups = self.graph.analysis.groups
        rest = [
            attrs.evolve(
                scope, groups=tuple(n for n in scope.groups if any(m.parameter not in gone for m in groups[n].members))
            )
            for scope in found
        ]
        return [scope for scope in rest if scope.groups]

    def score(self, group: str, shared: dict[Any, torch.Tensor] | None = None) -> torch.Tensor | None:
        """Scores the units of a group that are there now.

        Args:
            group: Name of the group.
            shared: Intermediate results to share with other groups scored in the same pass.

        Returns:
            Tensor ``[units]``, or None when the criterion has nothing to say about the group.

        Raises:
            PluginError: The criterion raised, returned something else, or values that are not numbers, or it changed
                the model; the model is as it was.
        """
        criterion = self._criterion_for(group)
        blame = self.registry.owners.blame("prunekit_importance", criterion)
        whole = self.graph.whole_group(group, shared)
        with self._guard.watching(blame), blame.blamed("A criterion failed.", f"group {group}"):
            found = self.unchecked_scores(group, shared)
            if isinstance(criterion, PartialCriterion) and found is not None:
                self._unknown[group] = tuple(criterion.unknown(whole))
        return checked_scores(found, whole, group, blame)

    def _criterion_for(self, group: str) -> Criterion:
        experts = self.expert_importance
        own: Criterion = self.importance
        return own if experts is None or not is_experts(self.graph.analysis.groups[group]) else experts

    @property
    def doubts(self) -> Sequence[str]:
        """What was asked for and can't be had, as far as that is known without scores."""
        return self._scopes.notes

    @property
    def additive(self) -> bool:
        """Whether the scores of all groups that are up for choice are damages that add up."""
        experts = self.expert_importance if self.settings.expert_pruning_ratio is None and self.has_experts else None
        return additive(self.importance) and (experts is None or additive(experts))

    @property
    def has_experts(self) -> bool:
        """Whether the model has experts that may leave."""
        return any(is_experts(group) and not group.outer for group in self.graph.groups())

    def unchecked_scores(self, group: str, shared: dict[Any, torch.Tensor] | None = None) -> torch.Tensor | None:
        """Calls the criterion on the units of a group that are there now; what it returns isn't checked yet."""
        scores: torch.Tensor | None = self._criterion_for(group)(self.graph.whole_group(group, shared))
        return scores

    def scores(self, scopes: Sequence[Scope]) -> dict[str, torch.Tensor]:
        """Scores all groups of some scopes that the criterion has something to say about."""
        shared: dict[Any, torch.Tensor] = {}
        scores: dict[str, torch.Tensor] = {}
        blame = self.registry.owners.blame("prunekit_importance", self.importance)
        with self._guard.watching(blame):
            for group in (group for scope in scopes for group in scope.groups):
                found = self.score(group, shared)
                if found is None:
                    own = self.registry.owners.blame("prunekit_importance", self._criterion_for(group))
                    whose = "" if own.built_in else f" ({own.where})"
                    self._left[group] = f"the criterion has nothing to say about it{whose}"
                else:
                    scores[group] = found
        return scores

    def kept_at(self, scopes: Sequence[Scope], scores: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """Chooses the units that stay, for given scopes and scores."""
        chooser = self.chooser(scores)
        counts = chooser.counts(scopes)
        groups = self.graph.analysis.groups
        told = {name for name in counts.spared if is_experts(groups[name]) and groups[name].least > 1}  # by the scopes
        self._spared = {name: counts.units[name] for name in counts.spared if name not in told}
        return self._settled(chooser, counts.units, {name for scope in scopes if scope.ratio for name in scope.groups})

    def chooser(self, scores: Mapping[str, torch.Tensor]) -> Chooser:
        """Makes what chooses counts and units by some scores, within the limits and ties known by now."""
        return Chooser(self._candidates(scores), self.graph.knowledge.ties)

    def _settled(
        self,
        chooser: Chooser,
        units: Mapping[str, int],
        chosen: Collection[str],
        whole: Mapping[str, str] | None = None,
    ) -> dict[str, tuple[int, ...]]:
        """Chooses the units that stay, and notes which groups stay whole although units of theirs were asked for."""
        known = whole or {}
        for name, count in units.items():
            if name in chosen and count == len(self.graph.remaining(name)):
                size = self.graph.analysis.groups[name].size
                share = f"all {size}" if count == size else f"{count} of {size}"
                if name in known:
                    self._left[name] = f"{share} units stay: {known[name]}"
                    continue
                counted = name in self.settings.demands.counts
                limits = chooser.candidates[name].limits if counted else self.limits
                asked = self.settings.demands.about("round_to")
                self._left.setdefault(name, f"{share} units stay at this ratio{limits}{asked}")
        return chooser.kept(units)

    def _candidates(self, scores: Mapping[str, torch.Tensor]) -> dict[str, Candidate]:
        groups, multiples = self.graph.analysis.groups, self.graph.knowledge.multiples
        found = {}
        for name, values in scores.items():
            one_by_one = is_heads(groups[name]) or is_experts(groups[name])
            counts = self.settings.demands.counts.get(name)
            limits = Limits(self.limits.max_ratio, numbers=counts) if one_by_one else self.limits
            unknown = list(self._unknown.get(name, ()))
            limits = attrs.evolve(limits, least=max(groups[name].least, len(unknown)))
            if name in multiples:
                limits = attrs.evolve(limits, round_to=math.lcm(limits.round_to or 1, multiples[name].step))
            present = self.graph.remaining(name)
            if unknown:  # they stay: no known one is ranked above them
                values = values.index_fill(
                    0, torch.tensor(unknown, device=values.device), 1 + 2 * float(values.abs().max())
                )
            found[name] = Candidate.of(groups[name].size, present, values, limits, self._blocks.get(name, 1))
        return found

    def plan(self) -> Plan:
        """Decides the next step without touching anything.

        Returns:
            A proven plan from the model as it was at construction.
        """
        with exclusive(self.graph.model):
            step = min(self.current_step + 1, self.iterative_steps)
            if self.branches is not None:
                self.removal = self.branches.removal(step)
            scopes = self.scopes(step)
            if self.branches is not None and not any(scope.ratio for scope in scopes):  # nothing to score units for
                return self.removal if self.removal.absent else self.graph.draft({})
            return self.draft(scopes)

    def draft(self, scopes: Sequence[Scope], scores: Mapping[str, torch.Tensor] | None = None) -> Plan:
        """Makes a proven plan for given scopes (see `scopes`)."""
        found = dict(scores) if scores is not None else self.scores(scopes)
        known = len(self.graph.knowledge.ties)
        plan = self._proven(self.kept_at(scopes, found), found)
        if self.limits.round_to is not None and len(self.graph.knowledge.ties) > known:
            plan = self._proven(self.kept_at(scopes, found), found)  # now all sizes in step are multiples, too
        return plan

    def draft_counts(self, chooser: Chooser, units: Mapping[str, int], whole: Mapping[str, str] | None = None) -> Plan:
        """Makes a proven plan that keeps given numbers of units.

        Args:
            chooser: What chooses the units (see `chooser`).
            units: Group to the number of units that it keeps.
            whole: Groups that lose none to the reason, for the report; of others it names the limits.

        Returns:
            The plan. Where the program can't express these numbers it has others, and the graph's knowledge says why.
        """
        scores = {name: candidate.scores for name, candidate in chooser.candidates.items()}
        self._spared = {}
        return self._proven(self._settled(chooser, units, units.keys(), whole), scores)

    def _proven(self, kept: Mapping[str, tuple[int, ...]], scores: Mapping[str, torch.Tensor]) -> Plan:
        candidates = self._candidates(scores)

        def reselect(group: str, count: int) -> tuple[int, ...] | None:
            candidate = candidates.get(group)
            if candidate is None or count % candidate.blocks:
                return None
            return candidate.best(count)

        return self.graph.plan_without(self.removal.absent, kept, reselect, keep_names=self._keep_names)

    # -- acting

    @forms_checked
    def step(
        self, interactive: bool = False, *, optimizer: Optimizers | None = None, copies: Iterable[nn.Module] = ()
    ) -> Iterator[Group | BranchGroup] | None:
        """Prunes one step.

        Args:
            interactive: True returns a generator of groups instead; each is pruned by calling ``group.prune()`` (all
                of its units) or ``group.prune(idxs)``, or left alone. Branches that go come first, each a group of one
                unit (`BranchGroup`).
            optimizer: An optimizer that trains the model, or several; their state (momentum, averages) is cut along.
                Not for interactive steps.
            copies: Copies of the model that are cut alike, such as moving averages of its weights. Not for
                interactive steps.

        Returns:
            None, or the generator.

        Raises:
            NothingToPruneError: All steps together find no unit and no branch that may go.
        """
        copies = list(copies)
        if interactive and optimizer is not None:
            raise ArgumentError("An interactive step takes no optimizer.", hint="make a new one after the step")
        if interactive and copies:
            raise ArgumentError("An interactive step takes no copies.", hint="make new ones after the step")
        if interactive:
            return self._interactive()
        if self.current_step < self.iterative_steps:
            self._advance(optimizer, copies)
        return None

    def _advance(self, optimizer: Optimizers | None, copies: Sequence[nn.Module]) -> None:
        with exclusive(self.graph.model):
            self._decide_and_apply(optimizer, copies)

    def _decide_and_apply(self, optimizer: Optimizers | None, copies: Sequence[nn.Module]) -> None:
        plan = self.plan()
        nothing = not (plan.cuts or plan.absent)
        if nothing and self.current_step + 1 == self.iterative_steps and (self.doubts or self._highest_ratio() > 0):
            self.require_something(plan)
        self._apply(plan, self.current_step + 1, optimizer, copies)

    def _apply(
        self, plan: Plan, step: int, optimizer: Optimizers | None = None, copies: Iterable[nn.Module] = ()
    ) -> None:
        """Applies a plan and counts the steps that were made with it."""
        with Transaction() as transaction:
            self.graph.apply_within(transaction, plan, optimizer, copies)
            transaction.entry(vars(self), "current_step", step)
            transaction.commit()

    def adopt(self, model: nn.Module, plan: Plan) -> None:
        """Takes a step that was made elsewhere: goes on with the copy of the model to which its plan was applied.

        Args:
            model: The copy; it may be sharded.
            plan: What `plan` returned for this step.

        Raises:
            PlanError: The plan doesn't lead to the shapes of the model; nothing was changed.
        """
        self.graph.adopt(model, plan)
        self.model = model
        self.current_step += 1

    def resume(
        self, plan: Plan, step: int, *, optimizer: Optimizers | None = None, copies: Iterable[nn.Module] = ()
    ) -> Plan:
        """Brings a fresh model to where an earlier run had come, so that its weights can be loaded and it goes on.

        The units that the plan keeps are cut anew, and the branches that it takes out are, proven like any other cut;
        nothing else of the plan is used.

        Args:
            plan: What an earlier run had applied: its ``pruner.graph.applied``.
            step: How many steps that run had made.
            optimizer, copies: As for `step`.

        Returns:
            The plan that was applied.

        Raises:
            ArgumentError: This pruner has cut something already, or doesn't make so many steps.
            PlanError: The plan was made for another model; nothing was changed.
        """
        if self.current_step or not self.graph.applied.empty:
            raise ArgumentError("This pruner has made steps already.", hint="resume with a fresh model and pruner")
        if not 0 <= step <= self.iterative_steps:
            raise ArgumentError("The pruner makes fewer steps.", why=f"{step} of {self.iterative_steps} can't be done")
        sizes = {name: group.size for name, group in self.graph.analysis.groups.items()}
        for cut in plan.cuts:
            if sizes.get(cut.group) != cut.size:
                why = f"it has {cut.size} units in the plan, and {sizes.get(cut.group, 'none')} in the model"
                raise PlanError("The plan was made for another model.", where=f"group {cut.group}", why=why)
        known = {branch.name for branch in self.graph.branches()} if plan.absent else set()
        strange = next((name for name in plan.absent if name not in known), None)
        if strange is not None:
            raise PlanError("The plan was made for another model.", where=f"branch {strange}", why="it isn't there")
        applied = self.graph.plan_without(plan.absent, plan.kept)
        self._apply(applied, step, optimizer, list(copies))
        return applied

    def _highest_ratio(self) -> float:
        return max((scope.ratio for scope in self.scopes()), default=self.pruning_ratio)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ArgumentError(
            "A pruner can't be copied or pickled.",
            hint="copy the model, and keep plan and step: pruner.resume goes on from them",
        )

    def require_something(self, plan: Plan) -> None:
        """Raises `NothingToPruneError` unless a plan removes anything; the message says what pinned what."""
        if plan.cuts:
            return
        report = self.report()
        reasons = [f"{name}: {why}" for name, why in (*report.left.items(), *report.pinned.items())]
        shown = first_reasons(reasons)
        gaps = [
            f"not understood: {gap.operation} in {gap.module or 'the model'}: {gap.why}"
            for gap in self.graph.analysis.not_understood
            if gap.froze and not any(gap.why in reason for reason in reasons)  # where it says whose rule that is
        ]
        raise NothingToPruneError(
            "Nothing can be pruned.",
            where=type(self.model).__name__,
            why="; ".join(
                (
                    *self.doubts,
                    shown or "the model has no parameters that an operation used",
                    *gaps,
                    *self.registry.broken(),
                )
            ),
            hint="; ".join(
                filter(
                    None,
                    [
                        "inspect the report: prunekit inspect, or graph.report()",
                        outputs_that_pin(self.graph.analysis),
                        WITHOUT if self.settings.demands.kept in report.left.values() else "",
                    ],
                )
            ),
        )

    def _interactive(self) -> Iterator[Group | BranchGroup]:
        if self.current_step >= self.iterative_steps:
            return
        plan = self.plan()
        self.current_step += 1
        before = {cut.group: set(self.graph.remaining(cut.group)) for cut in plan.cuts}
        done: set[str] = set()
        going = [branch for branch in self.graph.branches() if branch.name in plan.absent] if plan.absent else []
        for branch in going:
            if branch.name not in self.graph.applied.absent:
                yield BranchGroup(self.graph, branch, self._keep_names)
        for cut in plan.cuts:
            tie = self.graph.knowledge.tied(cut.group)
            if cut.group in done:
                continue
            done |= tie
            units = {
                other.group: tuple(sorted(before[other.group] - set(other.kept)))
                for other in plan.cuts
                if other.group in tie and before[other.group] - set(other.kept)
            }
            if units:
                yield Group(self.graph, units, None)

    def report(self) -> Report:
        """Tells what was pruned, left on purpose, not understood, and untouched."""
        graph = self.graph
        spared = [
            f"{name} keeps {count} of {graph.analysis.groups[name].size} units: the ratio would have emptied it"
            for name, count in self._spared.items()
        ]
        branches = {} if self.branches is None else self.branches.left
        notes = (*self._notes, *self._scopes.notes, *spared)
        return graph.report({**self._left, **self._scopes.left}, branches, notes)
