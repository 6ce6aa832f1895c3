"""Pruning a model in steps: scores in scopes, a proven plan, and its application."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import attrs
import torch
from torch import nn

from prunekit_core.arguments import check_keywords, forms_checked, keywords_of
from prunekit_core.choose.alignment import multiple_of
from prunekit_core.choose.candidates import Candidate, Limits, Scope, check_ratio
from prunekit_core.choose.chooser import Chooser
from prunekit_core.choose.criterion import Criterion, checked_scores, criterion_of
from prunekit_core.choose.schedule import Schedule, bound_schedule, check_steps, linear_scheduler
from prunekit_core.choose.scopes import Ratios, Scopes, Wishes, is_heads
from prunekit_core.errors import ArgumentError, NothingToPruneError, PlanError
from prunekit_core.graph.declarations import channel_blocks, check_heads
from prunekit_core.graph.graph import DependencyGraph
from prunekit_core.graph.group import Group
from prunekit_core.graph.history import Removal
from prunekit_core.graph.unwrapped import Unwrapped
from prunekit_core.groups.report import Report, outputs_that_pin
from prunekit_core.modules.exclusive import exclusive
from prunekit_core.modules.naming import Layer
from prunekit_core.modules.transaction import Transaction
from prunekit_core.plans.optimizers import Optimizers
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.custom_layers import CustomizedPruner
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.record.recorder import check_recordable

_RENAMED = {
    "ch_sparsity": ("pruning_ratio",),
    "ch_sparsity_dict": ("pruning_ratio_dict",),
    "channel_groups": ("in_channel_groups", "out_channel_groups"),
}


class BasePruner:
    """Prunes a model step by step, in place.

    Args:
        model: The model.
        example_inputs: A tensor, a tuple or list of positional inputs, or a dict of keyword inputs.
        importance: A criterion: a callable on a `Group`, or its registered name.
        global_pruning: False: every group loses the same fraction of its units. True: all units are ranked together.
        pruning_ratio: Fraction of units to remove, in [0, 1). Not a fraction of parameters: removing ``r`` of all
            channels leaves about ``(1 - r)^2`` of the weights.
        pruning_ratio_dict: Ratios for single layers (modules, names or types; containers mean what they contain). A
            tuple of layers is a scope of its own, ranked together.
        max_pruning_ratio: Largest fraction that any group loses, over all steps.
        iterative_steps: In how many steps the ratio is reached.
        iterative_pruning_ratio_scheduler: ``(ratio, steps) -> steps + 1`` cumulative ratios, or a registered name.
        ignored_layers: Layers (modules, names or types) whose outputs are left alone.
        round_to: Sizes are kept at multiples of this; numbers of heads are not.
        align: ``"auto"`` finds out the multiple that suits the device and dtype of the model.
        isomorphic: With ``global_pruning``: units are ranked only with those of groups of the same structure (Fang et
            al., Isomorphic Pruning, ECCV 2024).
        uniform: Groups of the same structure at sibling layers keep the same number of units, so that one number in a
            configuration can say it; so do head dims, and heads, of attention modules of one class.
        in_channel_groups: Layer to a number of groups that its input channels form; the same channels leave all.
        out_channel_groups: The same for output channels.
        num_heads: Layer to its number of attention heads. Heads are found without it; a wrong number is an error.
        prune_num_heads: Whether whole heads are removed (see ``head_pruning_ratio``). In grouped-query attention these
            are key-value heads with their queries.
        prune_head_dims: Whether the dims within heads are removed, in all heads alike.
        head_pruning_ratio: Fraction of heads to remove, in [0, 1), whatever a target asks for; None for the ratio that
            other units have: ``pruning_ratio``, or what reaches the target.
        head_pruning_ratio_dict: Like ``pruning_ratio_dict``, for heads.
        customized_pruners, unwrapped_parameters, free_outputs, momentum_copies: See `DependencyGraph.build_dependency`.
        root_module_types: Only groups with a producer of one of these types lose units; None for all.
        forward_fn: Called as ``forward_fn(model, example_inputs)`` instead of the model.
        output_transform: Called on the outputs; tensors in its result count as outputs.
        modes: Training flags to record in.
        weights: A checkpoint on disk with the weights of a model on the meta device, for criteria that read them: a
            safetensors file or a folder. One parameter at a time is in memory.
        registry: Where criteria, rules and layer types are found; None for the default registry.
        renamed: ``ch_sparsity``, ``ch_sparsity_dict`` and ``channel_groups``: former names, taken with a warning.

    Raises:
        ArgumentError: An argument is wrong; nothing was traced (but for ``num_heads`` and channel groups, which are
            compared with what was found).
        UnsupportedModelError, RecordingError: The model can't be analysed.
    """

    @forms_checked
    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        importance: Criterion | str = "magnitude",
        *,
        global_pruning: bool = False,
        pruning_ratio: float = 0.5,
        pruning_ratio_dict: Ratios | None = None,
        max_pruning_ratio: float = 1.0,
        iterative_steps: int = 1,
        iterative_pruning_ratio_scheduler: Schedule | str = linear_scheduler,
        ignored_layers: Sequence[Layer] | None = None,
        round_to: int | None = None,
        align: str | None = None,
        isomorphic: bool = False,
        uniform: bool = False,
        in_channel_groups: Mapping[nn.Module, int] | None = None,
        out_channel_groups: Mapping[nn.Module, int] | None = None,
        num_heads: Mapping[nn.Module, int] | None = None,
        prune_num_heads: bool = False,
        prune_head_dims: bool = True,
        head_pruning_ratio: float | None = None,
        head_pruning_ratio_dict: Ratios | None = None,
        customized_pruners: Mapping[Any, CustomizedPruner] | None = None,
        unwrapped_parameters: Unwrapped | None = None,
        root_module_types: Sequence[type[nn.Module]] | None = None,
        forward_fn: Callable[[nn.Module, Any], Any] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        free_outputs: Sequence[str] = (),
        momentum_copies: Mapping[str, str] | None = None,
        modes: Sequence[bool | None] = (False, True),
        weights: str | os.PathLike[str] | None = None,
        registry: Registry | None = None,
        **renamed: Any,
    ) -> None:
        former = _renamed(renamed)
        pruning_ratio = former.get("pruning_ratio", pruning_ratio)
        pruning_ratio_dict = former.get("pruning_ratio_dict", pruning_ratio_dict)
        in_channel_groups = former.get("in_channel_groups", in_channel_groups)
        out_channel_groups = former.get("out_channel_groups", out_channel_groups)
        self.registry = registry or default_registry()
        self.importance = criterion_of(importance, self.registry)
        self.pruning_ratio = check_ratio(pruning_ratio, "pruning_ratio")
        target = check_recordable(model)
        multiple, aligned = multiple_of(round_to, align, target)
        self.limits = Limits(check_ratio(max_pruning_ratio, "max_pruning_ratio", closed=True), multiple)
        self.iterative_steps = check_steps(iterative_steps)
        self._schedule = bound_schedule(iterative_pruning_ratio_scheduler, self.iterative_steps, self.registry)
        self._schedule(self.pruning_ratio)
        if isomorphic and not global_pruning:
            raise ArgumentError(
                "isomorphic needs global_pruning=True.",
                why="groups of the same structure are ranked together; local pruning ranks each group by itself",
            )
        self.global_pruning = global_pruning
        wishes = Wishes(
            self.pruning_ratio,
            _checked(pruning_ratio_dict, "a ratio in pruning_ratio_dict"),
            None if head_pruning_ratio is None else check_ratio(head_pruning_ratio, "head_pruning_ratio"),
            _checked(head_pruning_ratio_dict, "a ratio in head_pruning_ratio_dict"),
            global_pruning=global_pruning,
            isomorphic=isomorphic,
            uniform=uniform,
            prune_num_heads=prune_num_heads,
            prune_head_dims=prune_head_dims,
            ignored_layers=tuple(ignored_layers or ()),
            root_module_types=None if root_module_types is None else tuple(root_module_types),
        )
        self.model = model
        wishes.check_layers(target)
        self.graph = self.make_graph().build_dependency(
            model,
            example_inputs,
            forward_fn=forward_fn,
            output_transform=output_transform,
            free_outputs=free_outputs,
            momentum_copies=momentum_copies,
            modes=modes,
            unwrapped_parameters=unwrapped_parameters,
            customized_pruners=customized_pruners,
        )
        if weights is not None:
            self.graph.read_values_from(weights)
        self.current_step = 0
        self._scopes = Scopes(self.graph, wishes, self._schedule)
        self._notes = [*aligned, *check_heads(self.graph, num_heads or {})]
        self._blocks = channel_blocks(self.graph, out_channel_groups or {}, in_channel_groups or {})
        self._left: dict[str, str] = {}
        self._spared: dict[str, int] = {}

    def make_graph(self) -> DependencyGraph:
        """Makes the empty graph that the constructor builds; a subclass may return one of another class."""
        return DependencyGraph(self.registry)

    # -- deciding

    def scopes(self, step: int | None = None) -> list[Scope]:
        """Lists the scopes that units are ranked in, with their ratios at a step (None: the last one)."""
        return self._scopes.at(self.iterative_steps if step is None else step)

    def score(self, group: str, shared: dict[Any, torch.Tensor] | None = None) -> torch.Tensor | None:
        """Scores the units of a group that are there now.

        Args:
            group: Name of the group.
            shared: Intermediate results to share with other groups scored in the same pass.

        Returns:
            Tensor ``[units]``, or None when the criterion has nothing to say about the group.

        Raises:
            PluginError: The criterion returned something else, or values that are not numbers.
        """
        return checked_scores(self.importance, self.graph.whole_group(group, shared), group)

    def scores(self, scopes: Sequence[Scope]) -> dict[str, torch.Tensor]:
        """Scores all groups of some scopes that the criterion has something to say about."""
        shared: dict[Any, torch.Tensor] = {}
        scores: dict[str, torch.Tensor] = {}
        for scope in scopes:
            for group in scope.groups:
                found = self.score(group, shared)
                if found is None:
                    self._left[group] = "the criterion has nothing to say about it"
                else:
                    scores[group] = found
        return scores

    def kept_at(self, scopes: Sequence[Scope], scores: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """Chooses the units that stay, for given scopes and scores."""
        chooser = self.chooser(scores)
        counts = chooser.counts(scopes)
        self._spared = {name: counts.units[name] for name in counts.spared}
        return self._settled(chooser, counts.units, {name for scope in scopes if scope.ratio for name in scope.groups})

    def chooser(self, scores: Mapping[str, torch.Tensor]) -> Chooser:
        """Makes what chooses counts and units by some scores, within the limits and ties known by now."""
        return Chooser(self._candidates(scores), self.graph.knowledge.ties)

    def _settled(
        self, chooser: Chooser, units: Mapping[str, int], asked: Collection[str]
    ) -> dict[str, tuple[int, ...]]:
        """Chooses the units that stay, and notes which groups stay whole although units of theirs were asked for."""
        for name, count in units.items():
            if name in asked and count == len(self.graph.remaining(name)):
                size = self.graph.analysis.groups[name].size
                share = f"all {size}" if count == size else f"{count} of {size}"
                self._left.setdefault(name, f"{share} units stay at this ratio{self.limits}")
        return chooser.kept(units)

    def _candidates(self, scores: Mapping[str, torch.Tensor]) -> dict[str, Candidate]:
        groups = self.graph.analysis.groups
        found = {}
        for name, values in scores.items():
            whole_heads = Limits(self.limits.max_ratio)
            limits = attrs.evolve(whole_heads if is_heads(groups[name]) else self.limits, least=groups[name].least)
            present = self.graph.remaining(name)
            found[name] = Candidate.of(groups[name].size, present, values, limits, self._blocks.get(name, 1))
        return found

    def plan(self) -> Plan:
        """Decides the next step without touching anything.

        Returns:
            A proven plan from the model as it was at construction.
        """
        with exclusive(self.graph.model):
            return self.draft(self.scopes(min(self.current_step + 1, self.iterative_steps)))

    def draft(self, scopes: Sequence[Scope], scores: Mapping[str, torch.Tensor] | None = None) -> Plan:
        """Makes a proven plan for given scopes (see `scopes`)."""
        found = dict(scores) if scores is not None else self.scores(scopes)
        known = len(self.graph.knowledge.ties)
        plan = self._proven(self.kept_at(scopes, found), found)
        if self.limits.round_to is not None and len(self.graph.knowledge.ties) > known:
            plan = self._proven(self.kept_at(scopes, found), found)  # now all sizes in step are multiples, too
        return plan

    def draft_counts(self, chooser: Chooser, units: Mapping[str, int]) -> Plan:
        """Makes a proven plan that keeps given numbers of units.

        Args:
            chooser: What chooses the units (see `chooser`).
            units: Group to the number of units that it keeps.

        Returns:
            The plan. Where the program can't express these numbers it has others, and the graph's knowledge says why.
        """
        scores = {name: candidate.scores for name, candidate in chooser.candidates.items()}
        self._spared = {}
        return self._proven(self._settled(chooser, units, units.keys()), scores)

    def _proven(self, kept: Mapping[str, tuple[int, ...]], scores: Mapping[str, torch.Tensor]) -> Plan:
        candidates = self._candidates(scores)

        def reselect(group: str, count: int) -> tuple[int, ...] | None:
            candidate = candidates.get(group)
            if candidate is None or count % candidate.blocks:
                return None
            return candidate.best(count)

        return self.graph.draft(kept, reselect)

    # -- acting

    @forms_checked
    def step(
        self, interactive: bool = False, *, optimizer: Optimizers | None = None, copies: Iterable[nn.Module] = ()
    ) -> Iterator[Group] | None:
        """Prunes one step.

        Args:
            interactive: True returns a generator of groups instead; each is pruned by calling ``group.prune()`` (all
                of its units) or ``group.prune(idxs)``, or left alone.
            optimizer: An optimizer that trains the model, or several; their state (momentum, averages) is cut along.
                Not for interactive steps.
            copies: Copies of the model that are cut alike, such as moving averages of its weights. Not for
                interactive steps.

        Returns:
            None, or the generator.

        Raises:
            NothingToPruneError: The first step finds no unit that may go.
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
        if not plan.cuts and self.current_step + 1 == self.iterative_steps and self._highest_ratio() > 0:
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

        The units that the plan keeps are cut anew, proven like any other cut; nothing else of the plan is used.

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
        if self.current_step or self.graph.applied.cuts:
            raise ArgumentError("This pruner has made steps already.", hint="resume with a fresh model and pruner")
        if not 0 <= step <= self.iterative_steps:
            raise ArgumentError("The pruner makes fewer steps.", why=f"{step} of {self.iterative_steps} can't be done")
        sizes = {name: group.size for name, group in self.graph.analysis.groups.items()}
        for cut in plan.cuts:
            if sizes.get(cut.group) != cut.size:
                why = f"it has {cut.size} units in the plan, and {sizes.get(cut.group, 'none')} in the model"
                raise PlanError("The plan was made for another model.", where=f"group {cut.group}", why=why)
        applied = self.graph.draft(plan.kept)
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
        shown = "; ".join(reasons[:8]) + (f"; and {len(reasons) - 8} more" if len(reasons) > 8 else "")
        raise NothingToPruneError(
            "Nothing can be pruned.",
            where=type(self.model).__name__,
            why=shown or "the model has no parameters that an operation used",
            hint="; ".join(
                filter(
                    None,
                    ["inspect the report: prunekit inspect, or graph.report()", outputs_that_pin(self.graph.analysis)],
                )
            ),
        )

    def _interactive(self) -> Iterator[Group]:
        if self.current_step >= self.iterative_steps:
            return
        plan = self.plan()
        self.current_step += 1
        before = {cut.group: set(self.graph.remaining(cut.group)) for cut in plan.cuts}
        done: set[str] = set()
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

    def pruning_history(self) -> list[Removal]:
        """Lists what was removed so far; see `DependencyGraph.pruning_history`."""
        return self.graph.pruning_history()

    def load_pruning_history(self, history: Sequence[Sequence[Any]]) -> Plan:
        """Removes what a history lists; see `DependencyGraph.load_pruning_history`."""
        return self.graph.load_pruning_history(history)

    def report(self) -> Report:
        """Tells what was pruned, left on purpose, not understood, and untouched."""
        graph = self.graph
        spared = [
            f"{name} keeps {count} of {graph.analysis.groups[name].size} units: the ratio would have emptied it"
            for name, count in self._spared.items()
        ]
        notes = (*graph.notes, *self._notes, *spared, *graph.knowledge.effort_notes(), *graph.applied.notes)
        left = {**self._left, **self._scopes.left}
        known = graph.knowledge
        return Report.of(graph.analysis, graph.applied.kept, known.given_back, left, notes, known.means)


def _renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Takes arguments under former names, with a warning."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        check_keywords([name], (*_RENAMED, *_ARGUMENTS), "BasePruner")
        new = " and ".join(_RENAMED[name])
        warnings.warn(f"{name} was renamed: use {new}.", DeprecationWarning, stacklevel=3)
        found.update(dict.fromkeys(_RENAMED[name], value))
    return found


def _checked(ratios: Ratios | None, name: str) -> Ratios:
    return {key: check_ratio(ratio, name) for key, ratio in (ratios or {}).items()}


_ARGUMENTS = keywords_of(BasePruner)
