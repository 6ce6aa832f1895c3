"""The pruner: scores groups, decides what goes, step by step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunekit_core.errors import ArgumentError, NothingToPruneError, PluginError, nearest
from prunekit_core.graph import DependencyGraph
from prunekit_core.group import Group
from prunekit_core.plan import Plan
from prunekit_core.registry import Registry, default_registry
from prunekit_core.report import Report
from prunekit_core.selection import (
    Limits,
    Scope,
    best_units,
    check_ratio,
    choose_counts,
    keep_in_step,
    linear_scheduler,
)

Layer = nn.Module | type[nn.Module] | str
Criterion = Callable[[Group], "torch.Tensor | None"]


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
        round_to: Sizes are kept at multiples of this.
        forward_fn: Called as ``forward_fn(model, example_inputs)`` instead of the model.
        output_transform: Called on the outputs; tensors in its result count as outputs.
        modes: Training flags to record in.
        registry: Where criteria, rules and layer types are found; None for the default registry.

    Raises:
        ArgumentError: An argument is wrong; nothing was traced.
        UnsupportedModelError, RecordingError: The model can't be analysed.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        importance: Criterion | str = "magnitude",
        *,
        global_pruning: bool = False,
        pruning_ratio: float = 0.5,
        pruning_ratio_dict: Mapping[Layer | tuple[Layer, ...], float] | None = None,
        max_pruning_ratio: float = 1.0,
        iterative_steps: int = 1,
        iterative_pruning_ratio_scheduler: Callable[[float, int], Sequence[float]] | str = linear_scheduler,
        ignored_layers: Sequence[Layer] | None = None,
        round_to: int | None = None,
        forward_fn: Callable[[nn.Module, Any], Any] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        modes: Sequence[bool | None] = (False, True),
        registry: Registry | None = None,
    ) -> None:
        self.registry = registry or default_registry()
        self.importance = self._criterion(importance)
        self.pruning_ratio = check_ratio(pruning_ratio, "pruning_ratio")
        ratios = {key: check_ratio(r, "a ratio in pruning_ratio_dict") for key, r in (pruning_ratio_dict or {}).items()}
        self.limits = Limits(check_ratio(max_pruning_ratio, "max_pruning_ratio", closed=True), _round_to(round_to))
        self.iterative_steps = _steps(iterative_steps)
        self._schedule = self._check_schedule(iterative_pruning_ratio_scheduler)
        self.global_pruning = global_pruning
        self.model = model
        self.graph = DependencyGraph(self.registry).build_dependency(
            model, example_inputs, forward_fn=forward_fn, output_transform=output_transform, modes=modes
        )
        self.current_step = 0
        self._left: dict[str, str] = {}
        self._protected = self.graph.protected_groups(ignored_layers or ())
        self._ratios = [(self._ratio_paths(key), isinstance(key, tuple), r) for key, r in ratios.items()]

    def _criterion(self, importance: Criterion | str) -> Criterion:
        if isinstance(importance, str):
            made: Criterion = self.registry.named("prunekit_importance", importance)()
            return made
        if not callable(importance):
            raise ArgumentError(
                "The importance must be a callable on groups, or the name of a registered criterion.",
                why=f"got {importance!r}",
                hint=nearest(str(importance), self.registry.entries("prunekit_importance")),
            )
        return importance

    def _check_schedule(
        self, scheduler: Callable[[float, int], Sequence[float]] | str
    ) -> Callable[[float], list[float]]:
        if isinstance(scheduler, str):
            scheduler = self.registry.named("prunekit_schedules", scheduler)
        function: Any = scheduler
        if not callable(function):
            raise ArgumentError(
                "The schedule must be a function (ratio, steps) -> cumulative ratios.", why=f"{scheduler!r}"
            )

        def ratios(ratio: float) -> list[float]:
            found = [float(value) for value in function(ratio, self.iterative_steps)]
            if len(found) != self.iterative_steps + 1 or any(b < a - 1e-12 for a, b in itertools.pairwise(found)):
                raise ArgumentError(
                    "The schedule must return ascending cumulative ratios, one more than there are steps.",
                    why=f"got {found} for {self.iterative_steps} steps",
                )
            return [check_ratio(value, "a scheduled ratio") for value in found]

        ratios(self.pruning_ratio)
        return ratios

    def _ratio_paths(self, key: Layer | tuple[Layer, ...]) -> set[str]:
        return self.graph.module_paths(key if isinstance(key, tuple) else (key,))

    # -- deciding

    def scopes(self, step: int | None = None) -> list[Scope]:
        """Lists the scopes that units are ranked in, with their ratios at a step (None: the last one)."""
        step = self.iterative_steps if step is None else step
        own: dict[int, list[str]] = {}
        rest: list[str] = []
        for group in self._candidates():
            home = self._home(group)
            if home is None:
                rest.append(group)
            else:
                own.setdefault(home, []).append(group)
        scopes = []
        for position, names in own.items():
            _, ranked, ratio = self._ratios[position]
            at_step = self._schedule(ratio)[step]
            scopes.append(Scope(f"pruning_ratio_dict[{position}]", tuple(names), at_step, ranked))
        if rest:
            at_step = self._schedule(self.pruning_ratio)[step]
            name = "global" if self.global_pruning else "local"
            scopes.append(Scope(name, tuple(rest), at_step, self.global_pruning))
        return scopes

    def _home(self, group: str) -> int | None:
        """Finds the entry of pruning_ratio_dict that a group falls under: by its first producer that has one."""
        for member in self.graph.analysis.groups[group].producers():
            for position, (paths, _, _) in enumerate(self._ratios):
                if member.module in paths:
                    return position
        return None

    def _candidates(self) -> list[str]:
        found = []
        for group in self.graph.groups():
            if group.name in self._protected:
                self._left[group.name] = f"ignored layer {self._protected[group.name] or 'the model'}"
            elif group.outer:
                self._left[group.name] = f"whole {group.kind.value} are left alone by default"
            elif group.name not in self.graph.knowledge.given_back:
                found.append(group.name)
        return found

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
        whole = self.graph.whole_group(group, shared)
        scores = self.importance(whole)
        if scores is None:
            return None
        where = f"{type(self.importance).__name__} on group {group}"
        if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != (whole.size(),):
            shape = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
            raise PluginError(
                "A criterion must return one score per unit.", where=where, why=f"{whole.size()} units, got {shape}"
            )
        if not bool(torch.isfinite(scores).all()):
            raise PluginError("A criterion returned values that are not finite.", where=where)
        return scores

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
        sizes = {name: group.size for name, group in self.graph.analysis.groups.items()}
        counts: dict[str, int] = {}
        for scope in scopes:
            names = tuple(name for name in scope.groups if name in scores)
            ranked = Scope(scope.name, names, scope.ratio, scope.ranked)
            if names:
                counts.update(choose_counts(ranked, sizes, scores, self.limits))
        ties = [tie & scores.keys() for tie in self.graph.knowledge.ties]
        counts = keep_in_step(counts, [tie for tie in ties if len(tie) > 1], sizes)
        kept = {}
        for name, count in counts.items():
            present = self.graph.remaining(name)
            if count < len(present):
                kept[name] = best_units(scores[name], present, count)
            elif scopes and any(scope.ratio for scope in scopes if name in scope.groups):
                self._left.setdefault(name, f"{count} of {sizes[name]} units stay at this ratio")
        return kept

    def plan(self) -> Plan:
        """Decides the next step without touching anything.

        Returns:
            A proven plan from the model as it was at construction.
        """
        return self.draft(self.scopes(min(self.current_step + 1, self.iterative_steps)))

    def draft(self, scopes: Sequence[Scope], scores: Mapping[str, torch.Tensor] | None = None) -> Plan:
        """Makes a proven plan for given scopes (see `scopes`)."""
        found = dict(scores) if scores is not None else self.scores(scopes)
        kept = self.kept_at(scopes, found)

        def reselect(group: str, count: int) -> tuple[int, ...] | None:
            present = self.graph.remaining(group)
            if group not in found:
                return None
            return best_units(found[group], present, min(count, len(present)))

        return self.graph.draft(kept, reselect)

    # -- acting

    def step(self, interactive: bool = False) -> Iterator[Group] | None:
        """Prunes one step.

        Args:
            interactive: True returns a generator of groups instead; each is pruned by calling ``group.prune()`` (all
                of its units) or ``group.prune(idxs)``, or left alone.

        Returns:
            None, or the generator.

        Raises:
            NothingToPruneError: The first step finds no unit that may go.
        """
        if interactive:
            return self._interactive()
        if self.current_step < self.iterative_steps:
            self._advance()
        return None

    def _advance(self) -> None:
        plan = self.plan()
        self.current_step += 1
        if not plan.cuts and self.pruning_ratio_reached() > 0 and self.current_step == self.iterative_steps:
            self.require_something(plan)
        self.graph.apply(plan)

    def pruning_ratio_reached(self) -> float:
        """Returns the largest ratio asked for up to the current step."""
        return max((scope.ratio for scope in self.scopes(self.current_step)), default=self.pruning_ratio)

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
            hint="inspect the report: prunekit inspect, or graph.report()",
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

    def report(self) -> Report:
        """Tells what was pruned, left on purpose, not understood, and untouched."""
        graph = self.graph
        return Report.of(
            graph.analysis, graph.applied.kept, graph.knowledge.given_back, self._left, graph.applied.notes
        )


def _round_to(value: int | None) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ArgumentError("round_to must be a positive integer.", why=f"got {value!r}")


def _steps(value: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ArgumentError("iterative_steps must be a positive integer.", why=f"got {value!r}")
