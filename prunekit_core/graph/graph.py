"""The dependency graph: a model, its groups, and everything that may be asked of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Layout
from prunekit_core.branches.branch import Branch, named_branches
from prunekit_core.branches.surgery import obstacles
from prunekit_core.branches.without import without
from prunekit_core.collector import collection_paused
from prunekit_core.errors import ArgumentError, PlanError, UnitsError
from prunekit_core.graph.channels import check_groups, check_indices, check_units, flat_layout, not_whole, whole_units
from prunekit_core.graph.current import CurrentModel
from prunekit_core.graph.dependencies import dependencies
from prunekit_core.graph.group import Dependency, Group, MemberView
from prunekit_core.graph.recording_settings import RecordingSettings
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.costs import PreviewedCosts
from prunekit_core.groups.report import Explanation, Report
from prunekit_core.groups.unit_group import UnitGroup
from prunekit_core.modules.transaction import Transaction
from prunekit_core.modules.tree import Layer
from prunekit_core.plans.optimizers import Optimizers
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.layers import PruningFunction
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.program.op_call import Role
from prunekit_core.record.recorder import check_recordable
from prunekit_core.rehearse.knowledge import Knowledge
from prunekit_core.rehearse.make_plan import Drafts
from prunekit_core.rehearse.removals import analysis_after, draft_blaming
from prunekit_core.rehearse.ties import Reselect

Reasons = Mapping[str, str] | None
"""Name of something that stays to the reason."""


class Graph:
    """Groups of parameter slices that must shrink together, found by recording a forward pass.

    `of` makes it. The graph follows the cuts that are made through it: groups that were pruned have fewer units
    afterwards, and indices always count the units that are there now. Names are those of the model as it was at
    analysis: of groups, branches, parameters and layers, also where a layer has another number since.

    Args:
        model: The model.
        analysis: What was found about it.
        registry: Where rules and layer types are found.
        notes: Lines for the report.
    """

    def __init__(self, model: nn.Module, analysis: Analysis, registry: Registry, notes: Iterable[str] = ()) -> None:
        self.model, self.analysis, self.registry = model, analysis, registry
        self.current = CurrentModel(analysis, model, Plan())
        self.drafts = Drafts(analysis, registry)
        self.notes = [*notes, *registry.broken()]
        self._steps: list[Plan] = []

    def __repr__(self) -> str:
        if "analysis" not in vars(self):
            return f"{type(self).__name__}(empty)"
        return f"{type(self).__name__}({type(self.model).__name__}: {len(self.analysis.groups)} groups)"

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example_inputs: Any,
        *,
        more_inputs: Iterable[Any] = (),
        forward_fn: Callable[[nn.Module, Any], Any] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        modes: Sequence[bool | None] = (False, True),
        free_outputs: Sequence[str] = (),
        momentum_copies: Mapping[str, str] | None = None,
        registry: Registry | None = None,
    ) -> Graph:
        """Records a model and finds its groups; the model is not touched.

        Args:
            model: Any module whose forward runs.
            example_inputs: A tensor, a tuple or list of positional inputs, or a dict of keyword inputs.
            more_inputs: Further example inputs (an encoder alone, a decoding step), recorded as well.
            forward_fn: Called as ``forward_fn(model, example_inputs)`` instead of calling the model.
            output_transform: Called on the outputs; its result's tensors count as outputs, too.
            modes: Training flags to record in: False for eval, True for train, None for as it is.
            free_outputs: Outputs that may lose units, by their key path or by patterns of it (``"cache"``,
                ``"hidden_states.*"``); a path names all that lies in it. Every other output keeps its size.
            momentum_copies: Path of a submodule that follows another one by a moving average (a target network, a
                teacher) to the path of that one: ``{"teacher": "student"}``. It loses the same units. Copies that the
                forward never runs are found without it.
            registry: Where rules and layer types are found; None for the default registry.

        Raises:
            ArgumentError: No output has a name in ``free_outputs``.
            UnsupportedModelError: The model can't be analysed at all.
            RecordingError: Its forward raised; the exception is the cause.
        """
        found, target = registry or default_registry(), check_recordable(model)
        way = RecordingSettings(more_inputs, forward_fn, output_transform, modes, free_outputs, momentum_copies)
        return cls(target, way.analysis(target, example_inputs, found), found)

    def read_values_from(self, path: str | os.PathLike[str]) -> None:
        """Lets criteria read the values of tensors on the meta device from a checkpoint, one parameter at a time.

        Args:
            path: A file or a folder with the weights of the model as it was at analysis, in a form that a plugin reads
                (see `prunekit_weights`): safetensors, for one.

        Raises:
            ArgumentError: The model has values of its own.
            CheckpointError: The checkpoint can't be read, or is for another model.
        """
        self.current.stored = self.registry.weights(path, self.model)

    @property
    def knowledge(self) -> Knowledge:
        """What rehearsals have found out so far."""
        return self.drafts.knowledge

    @property
    def applied(self) -> Plan:
        """The plan from the model as it was at analysis to the model as it is now."""
        return self.current.plan

    @property
    def steps(self) -> Sequence[Plan]:
        """The plans that were applied, in order, each from the model as it was at analysis."""
        return self._steps

    # -- units

    def remaining(self, group: str) -> tuple[int, ...]:
        """Returns the units of a group that are still there, as numbered at analysis."""
        return self.current.remaining(group)

    def groups(self) -> list[UnitGroup]:
        """Lists all groups as found at analysis, but for those of which removed branches left nothing."""
        groups = self.analysis.groups.values()
        return [group for group in groups if self.current.is_left(group.name)] if self.applied.gone else list(groups)

    @property
    def branch_analysis(self) -> Analysis:
        """The analysis that branches are found in: `analysis`, or where the model returns a cache one with decoding.

        Its first recordings are those of `analysis`, less the cache among their results.
        """
        return self.drafts.for_branches().analysis

    def branches(self) -> tuple[Branch, ...]:
        """Lists the branches as found at analysis, in the order of the program, with the reason for those that stay."""
        return self.drafts.for_branches().branches()

    def branch_obstacles(self) -> dict[str, str]:
        """Says, by name, why branches can't go, each alone, as far as that is known without a run of what is left."""
        return obstacles(self.branch_analysis, self.registry.op_rules, self.branches())

    def costs_without(self, branches: Iterable[str]) -> dict[str, tuple[float, float]]:
        """Computes what the model as it is now costs with some branches and without them.

        Args:
            branches: Their names.

        Returns:
            Name of each cost model that previews show to (with, without).

        Raises:
            ArgumentError: The model has no such branch.
        """
        analysis, skipped, gone = self.branch_analysis, self.knowledge.skipped_costs, self.applied.absent
        sizes = {name: len(units) for name, units in self.applied.kept.items()}
        before, after = (
            PreviewedCosts(self.registry, without(analysis, named_branches(self.branches(), names)), skipped).at(sizes)
            for names in (gone, (*gone, *([branches] if isinstance(branches, str) else branches)))
        )
        return {name: (before[name][0], after[name][0]) for name in before if name in after}

    def plan_without(
        self,
        branches: Iterable[str],
        kept: Mapping[str, tuple[int, ...]] | None = None,
        reselect: Reselect | None = None,
        *,
        keep_names: bool = False,
    ) -> Plan:
        """Makes a proven plan without some branches, from the model as it was at analysis; see `draft`.

        A layer that loses all its branches leaves its ``ModuleList`` or ``Sequential`` if the program goes on without
        it, and those behind it are numbered anew; else a module that hands on what it is given stands in its place.

        Args:
            branches: Their names; those that are gone already stay so.
            kept: Kept units per group, as numbered at analysis, a subset of those still there.
            reselect: Chooses units anew when the program needs another number; None if the choice is fixed.
            keep_names: Whether layers stay in their lists, so that all others keep their names.

        Raises:
            ArgumentError: The model has no such branch, or no such group.
            RehearsalError: The program can't go on without them, with those at fault, or can't express the cut.
        """
        check_groups(kept or (), self.analysis.groups)
        return draft_blaming(self.model, self.drafts, self.applied, branches, kept, reselect, keep_names=keep_names)

    def analysis_after(self, plan: Plan) -> Analysis:
        """Returns what is known about the model without the branches that a plan of this graph removes."""
        return analysis_after(self.drafts, plan)

    def views(self, group: str, shared: dict[Any, torch.Tensor] | None = None) -> list[MemberView]:
        """Lists, for every parameter and buffer dim of a group, the tensor and which unit each position holds.

        Units are numbered by their place among the units that are there now.

        Args:
            group: Name of the group.
            shared: Intermediate results to share between the views; None for a new store.
        """
        return self.current.views(group, {} if shared is None else shared)

    def whole_group(self, group: str, shared: dict[Any, torch.Tensor] | None = None) -> Group:
        """Returns the `Group` that holds all units of a group that are there now.

        Args:
            group: Name of the group.
            shared: Intermediate results to share with other groups scored in the same pass.
        """
        return Group(self, {group: self.remaining(group)}, None, shared)

    def get_all_groups(
        self,
        ignored_layers: Iterable[Layer] = (),
        root_module_types: Iterable[type[nn.Module]] | None = None,
    ) -> Iterator[Group]:
        """Yields every group with all its units.

        Args:
            ignored_layers: Layers (modules, types or dotted names) whose outputs are left alone.
            root_module_types: Only groups that start at a layer of these types.
        """
        ignored = self.protected_groups(ignored_layers)
        for group in self.groups():
            if group.name in ignored:
                continue
            whole = self.whole_group(group.name)
            if root_module_types is None or isinstance(whole.root.layer, tuple(root_module_types)):
                yield whole

    def group(self, layer: nn.Module, side: str, channels: Sequence[int] | torch.Tensor) -> Group:
        """Returns the group of everything that must leave with some channels of a layer.

        Args:
            layer: A layer of the model.
            side: ``"out"`` for channels that it produces, ``"in"`` for those that it reads.
            channels: Channels to remove, as numbered in the layer now.

        Raises:
            ArgumentError: The layer isn't in the model, or has no such channels.
            UnitsError: The channels are out of range, repeated, pinned, or not whole units.
        """
        kind = self.registry.layer_type(layer)
        function = None if kind is None else {"out": kind.prune_out, "in": kind.prune_in}.get(side)
        if function is None:
            known = "no layer type is registered for it" if kind is None else 'it has "out" and "in", where it has both'
            raise ArgumentError(
                f"This layer has no channels on the side {side!r}.", where=self.current.tree.path_of(layer), why=known
            )
        return self.group_by(layer, function, channels)

    def group_by(self, layer: nn.Module, function: PruningFunction, channels: Sequence[int] | torch.Tensor) -> Group:
        """Returns the group of everything that must leave with the channels that a layer type's function removes.

        Args:
            layer: A layer of the model.
            function: What to prune of it, such as ``prune_conv_out_channels``.
            channels: Channels to remove, as numbered in the layer now.

        Raises:
            ArgumentError: The layer isn't in the model, or the function isn't for it.
            UnitsError: The channels are out of range, repeated, pinned, or not whole units.
        """
        path = self.current.tree.path_of(layer)
        where = f"{path} ({type(layer).__name__})"
        layout = flat_layout(layer, self.registry, self.current.own_layouts(layer), function, where)
        kept = self.applied.kept
        positions = layouts.kept_positions(layout, kept)
        numbers = check_indices(channels, len(positions), where)
        if not numbers:
            raise UnitsError("No units were chosen.", where=where)
        flat = set(positions[numbers].tolist())
        removed, covered = whole_units(layout, flat, kept)
        if flat - covered:
            raise not_whole(layout, min(flat - covered), where, self.current.pins(path))
        for name, units in removed.items():
            if len(units) == len(self.remaining(name)):
                raise UnitsError(
                    "All units of a group can't be removed.", where=where, why=f"group {name} would be empty"
                )
        return Group(self, removed, (layer, path, function, numbers))

    def dependencies(self, removed: Mapping[str, Sequence[int]]) -> list[tuple[Dependency, list[int], list[int]]]:
        """Lists the layers that lose something with some units: (dependency, flat positions, which unit each is)."""
        return dependencies(self.current, self.registry, removed)

    def protected_groups(self, layers: Iterable[Layer]) -> dict[str, str]:
        """Finds the groups whose units some layers (or what containers contain) produce or carry.

        Returns:
            Group name to the layer that protects it.

        Raises:
            ArgumentError: A layer isn't in the model, or no layer has that name or type.
        """
        chosen = self.module_paths(layers)
        found: dict[str, str] = {}
        for group in self.groups():
            for member in group.members:
                if member.role is not Role.IN and member.module in chosen:
                    found.setdefault(group.name, member.module)
        return found

    def module_paths(self, layers: Iterable[Layer]) -> set[str]:
        """Returns the paths at analysis of some modules, and of everything they contain, that are left.

        Raises:
            ArgumentError: A layer isn't in the model, or no layer has that name (at analysis) or type.
        """
        return self.current.paths_of(layers)

    # -- plans

    def draft(self, kept: Mapping[str, tuple[int, ...]], reselect: Reselect | None = None) -> Plan:
        """Makes a proven plan, from the model as it was at analysis, by rehearsing on the shadow.

        Args:
            kept: Kept units per group, as numbered at analysis, a subset of those still there.
            reselect: Chooses units anew when the program needs another number; None if the choice is fixed.

        Raises:
            RehearsalError: The program can't express the cut.
        """
        return self.plan_without((), kept, reselect)

    def apply(self, plan: Plan, optimizer: Optimizers | None = None, copies: Iterable[nn.Module] = ()) -> Plan:
        """Applies a plan that this graph drafted to the model, on top of what was applied before.

        Args:
            plan: The plan, from the model as it was at analysis.
            optimizer: An optimizer that trains the model, or several; their state is cut along.
            copies: Copies of the model as it is now that are cut alike.

        Returns:
            The plan from the model as it was at analysis to the model as it is now.

        Raises:
            PlanError: The model or a copy was changed otherwise since, or the optimizer's state can't be cut.
        """
        with collection_paused(), Transaction() as transaction:
            self.apply_within(transaction, plan, optimizer, copies)
        return plan

    def step_to(self, plan: Plan) -> Plan:
        """Returns the plan from the model as it is now to where a plan from the model at analysis leads."""
        return plan if self.applied.empty else plan.since(self.applied)

    def apply_within(
        self,
        transaction: Transaction,
        plan: Plan,
        optimizer: Optimizers | None = None,
        copies: Iterable[nn.Module] = (),
        values: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Does what `apply` does, as part of a larger transaction.

        Args:
            transaction: What else is done with it.
            plan: See `apply`.
            optimizer: See `apply`.
            copies: See `apply`.
            values: Values that tensors of the model have afterwards; see `Plan.apply_within`.
        """
        step = self.step_to(plan)
        if plan.stubs:
            self.drafts.names(self.model)  # later plans say what everything was called before this
        try:
            step.apply_within(
                transaction, self.model, registry=self.registry, optimizer=optimizer, copies=copies, values=values
            )
        except PlanError as error:
            if error.misfit:
                error.hint = "the model was changed since it was analysed: build the graph anew"
            raise
        current = CurrentModel(self.analysis, self.model, plan, self.current.stored)
        transaction.entry(vars(self), "current", current)
        transaction.entry(vars(self), "_steps", [*self._steps, plan])
        transaction.commit()

    def adopt(self, model: nn.Module, plan: Plan) -> None:
        """Goes on with another copy of the model, to which a plan of this graph was applied elsewhere.

        Args:
            model: The copy; it may be sharded.
            plan: The plan that was applied to it, from the model as it was at analysis.

        Raises:
            PlanError: Its parameters don't have the shapes that the plan leads to; nothing was changed.
        """
        current = CurrentModel(self.analysis, model, plan, self.current.stored)
        current.check()
        self.model, self.current = model, current
        self._steps.append(plan)

    def remove(self, removed: Mapping[str, Sequence[int]]) -> Plan:
        """Removes exactly these units (numbered as at analysis) from the model, proven first.

        Raises:
            ArgumentError: The model has no such group.
            UnitsError: They are no integers, out of range or repeated.
            RehearsalError: The program can't express the cut; the model is untouched.
        """
        gone = check_units(removed, self.analysis.groups)
        kept = {name: tuple(u for u in self.remaining(name) if u not in units) for name, units in gone.items()}
        return self.apply(self.draft(kept))

    def flat_layouts(self) -> dict[str, tuple[Layout | None, Layout | None]]:
        """How the output and the input channels of every layer are made of units, by path at analysis."""
        return self.current.flat_layouts(self.registry)

    # -- answers

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ArgumentError(
            "An analysed model can't be copied or pickled.",
            hint="copy the model, and keep the plan, which is data (result.plan)",
        )

    def report(self, left: Reasons = None, branches: Reasons = None, notes: Iterable[str] = ()) -> Report:
        """Tells what was pruned, left on purpose, not understood, and untouched.

        Args:
            left, branches: Names of groups and of branches to the reasons why they stay, where more is known than here.
            notes: Further lines.
        """
        known, done = self.knowledge, self.applied
        lines = (*self.notes, *notes, *known.notes(), *done.lines())
        found = Report.of(self.analysis, done.kept, known.restored, left or {}, lines, known.means)
        if done.absent and not branches:
            branches = {b.name: b.reason or "not asked for" for b in self.branches() if b.name not in done.absent}
        return found.without(done.absent, branches or {}, done.gone, self.analysis)

    def explain(self, layer: nn.Module | str) -> Explanation:
        """Tells what the channels of a layer are tied to, by which operations, and what pins them.

        Args:
            layer: A module of the model, or its dotted name as at analysis.

        Raises:
            ArgumentError: The model has no such module.
        """
        if isinstance(layer, str):
            self.module_paths([layer])
            path = layer
        else:
            path = self.applied.renaming.before(self.current.tree.path_of(layer))
        return Explanation.of(self.analysis, path)
