"""The dependency graph in two phases, as users of Torch-Pruning know it: made empty, then built for a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunekit_core.errors import ArgumentError
from prunekit_core.graph.graph import Graph
from prunekit_core.graph.group import Group
from prunekit_core.graph.recording_settings import RecordingSettings
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.layers import PruningFunction
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.record.recorder import check_recordable
from prunekit_plugins.classic.custom_layers import CustomizedPruner, with_customized
from prunekit_plugins.classic.history import Removal, branches_in, removals, resolve
from prunekit_plugins.classic.unwrapped import Unwrapped, check_unwrapped, unwrapped_notes


class DependencyGraph(Graph):
    """Groups of parameter slices that must shrink together, found by recording a forward pass.

    Call `build_dependency` first. The graph follows the cuts that are made through it: groups that were pruned have
    fewer units afterwards, and indices always count the units that are there now.

    Args:
        registry: Where rules and layer types are found; None for the default registry.
    """

    def __init__(self, registry: Registry | None = None) -> None:
        self._given = registry

    def __getattr__(self, name: str) -> Any:
        """Refuses what only a graph that was built has; that is why it isn't there."""
        if name.startswith("__") or "analysis" in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise ArgumentError("The graph is empty.", hint="call build_dependency(model, example_inputs) first")

    def build_dependency(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        more_inputs: Iterable[Any] = (),
        forward_fn: Callable[[nn.Module, Any], Any] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        modes: Sequence[bool | None] = (False, True),
        unwrapped_parameters: Unwrapped | None = None,
        customized_pruners: Mapping[Any, CustomizedPruner] | None = None,
        free_outputs: Sequence[str] = (),
        momentum_copies: Mapping[str, str] | None = None,
    ) -> DependencyGraph:
        """Records the model and finds its groups; the model is not touched.

        Args:
            model: Any module whose forward runs.
            example_inputs: A tensor, a tuple or list of positional inputs, or a dict of keyword inputs.
            more_inputs, forward_fn, output_transform, modes, free_outputs, momentum_copies: See `Graph.of`.
            unwrapped_parameters: Parameters that no layer owns, to the dim that holds their units. They are found
                without it; what is listed is checked, and the report says where a listed dim can't shrink.
            customized_pruners: Module class to an object with ``prune_out_channels(layer, idxs)``,
                ``prune_in_channels(layer, idxs)``, ``get_out_channels(layer)`` and ``get_in_channels(layer)``: it is
                the layer type of that class in this graph.

        Returns:
            The graph itself.

        Raises:
            ArgumentError: What is said about unwrapped parameters or customized pruners is wrong, and nothing was
                traced; or no output has a name in ``free_outputs``.
            UnsupportedModelError: The model can't be analysed at all.
            RecordingError: Its forward raised; the exception is the cause.
        """
        target, registry = check_recordable(model), self._given or default_registry()
        unwrapped = check_unwrapped(target, unwrapped_parameters or {})
        if customized_pruners:
            registry = with_customized(registry, customized_pruners)
        way = RecordingSettings(more_inputs, forward_fn, output_transform, modes, free_outputs, momentum_copies)
        analysis = way.analysis(target, example_inputs, registry)
        super().__init__(target, analysis, registry, unwrapped_notes(analysis, unwrapped))
        return self

    def get_pruning_group(
        self, layer: nn.Module, pruning_fn: PruningFunction, idxs: Sequence[int] | torch.Tensor
    ) -> Group:
        """Returns the group of everything that must leave with some channels of a layer.

        Args:
            layer: A layer of the model.
            pruning_fn: What to prune of it, such as ``prune_conv_out_channels``.
            idxs: Channels to remove, as numbered in the layer now.

        Raises:
            ArgumentError: The layer isn't in the model, or the function isn't for it.
            UnitsError: The channels are out of range, repeated, pinned, or not whole units.
        """
        return self.group_by(layer, pruning_fn, idxs)

    def pruning_history(self) -> list[Removal]:
        """Lists what was removed so far as ``(layer, is_out, channels)``, each entry as numbered when its turn came.

        A branch is ``("branch:<name>", True, [])``.

        A history is plain data; `load_pruning_history` removes the same from an unpruned copy of the model.
        """
        return history_of(self)

    def load_pruning_history(self, history: Sequence[Sequence[Any]]) -> Plan:
        """Removes everything that a history lists, in one proven cut.

        Args:
            history: What `pruning_history` returned for a model of the same architecture.

        Returns:
            The plan from the model as it was at analysis.

        Raises:
            ArgumentError: It is no history, or names a layer that the model doesn't have.
            UnitsError: The channels are out of range or no whole units.
            RehearsalError: The program can't express the cut.
        """
        return load_history(self, history)


def history_of(graph: Graph) -> list[Removal]:
    """Lists what was removed through a graph so far; see `DependencyGraph.pruning_history`."""
    flat = graph.flat_layouts()
    found: list[Removal] = []
    before = Plan()
    for plan in graph.steps:
        found += removals(graph.analysis, flat, before.kept, plan.kept)
        found += [Removal.of_branch(name) for name in plan.absent if name not in before.absent]
        before = plan
    return found


def load_history(graph: Graph, history: Sequence[Sequence[Any]]) -> Plan:
    """Removes everything that a history lists; see `DependencyGraph.load_pruning_history`."""
    branches = branches_in(history)
    known = {branch.name for branch in graph.branches()} if branches else set()
    strange = next((name for name in branches if name not in known), None)
    if strange is not None:
        raise ArgumentError("The history was made for another model.", where=strange, why="it has no such branch")
    kept = resolve(history, graph.analysis, graph.flat_layouts(), graph.applied.kept)
    return graph.apply(graph.plan_without(branches, kept))
