"""The base pruner with the arguments and methods of Torch-Pruning's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.compat.torch_pruning import ops
from prunekit_plugins.compat.torch_pruning.dependency import DependencyGraph, Group
from prunekit_plugins.compat.torch_pruning.dependency.graph import root_types
from prunekit_plugins.compat.torch_pruning.pruner.algorithms.scheduler import linear_scheduler

_ROOTS = (ops.TORCH_CONV, ops.TORCH_LINEAR, ops.TORCH_LSTM)
_BELOW_ONE = 1 - 2.0**-30
"""What a ratio of 1 means: everything but one unit per group (of up to a billion)."""


class BasePruner(pk.BasePruner):
    """Prunes a model step by step, in place; `prunekit.BasePruner` with Torch-Pruning's arguments.

    Args:
        model: The model.
        example_inputs: A tensor, a tuple or list of positional inputs, or a dict of keyword inputs.
        importance: A criterion.
        global_pruning: False: every group loses the same fraction of its units. True: all units are ranked together.
        pruning_ratio: Fraction of units to remove, in [0, 1]; at 1 one unit per group stays.
        pruning_ratio_dict: Ratios for single layers; a tuple of layers is a scope of its own.
        max_pruning_ratio: Largest fraction that any group loses, over all steps.
        iterative_steps: In how many steps the ratio is reached.
        iterative_pruning_ratio_scheduler: ``(ratio, steps) -> steps + 1`` cumulative ratios.
        ignored_layers: Layers whose outputs are left alone; parameters in the list, too.
        round_to: Sizes are kept at multiples of this.
        isomorphic: With ``global_pruning``: units are ranked only with those of groups of the same structure.
        in_channel_groups, out_channel_groups: Layer to a number of groups that its channels form.
        num_heads: Layer to its number of attention heads; heads are found without it, a wrong number is an error.
        prune_num_heads: Whether whole heads are removed, by ``head_pruning_ratio``.
        prune_head_dims: Whether the dims within heads are removed, in all heads alike.
        head_pruning_ratio: Fraction of heads to remove, in [0, 1].
        head_pruning_ratio_dict: The same for single layers.
        customized_pruners: Module class to its pruning object.
        unwrapped_parameters: Parameters that no layer owns, to the dim that holds channels.
        root_module_types: Only groups that a layer of these types produces lose units. Attention modules count where
            linear layers do.
        forward_fn: Called as ``forward_fn(model, example_inputs)`` instead of the model.
        output_transform: Called on the outputs; tensors in its result count as outputs.
        channel_groups, ch_sparsity, ch_sparsity_dict: Former names, taken with a warning.

    Attributes:
        DG: The graph, with Torch-Pruning's interface.

    Raises:
        ArgumentError: An argument is wrong.
        UnsupportedModelError, RecordingError: The model can't be analysed.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        importance: Any,
        global_pruning: bool = False,
        pruning_ratio: float = 0.5,
        pruning_ratio_dict: Mapping[Any, float] | None = None,
        max_pruning_ratio: float = 1.0,
        iterative_steps: int = 1,
        iterative_pruning_ratio_scheduler: Callable[[float, int], Sequence[float]] | str = linear_scheduler,
        ignored_layers: Sequence[Any] | None = None,
        round_to: int | None = None,
        isomorphic: bool = False,
        in_channel_groups: Mapping[nn.Module, int] | None = None,
        out_channel_groups: Mapping[nn.Module, int] | None = None,
        num_heads: Mapping[nn.Module, int] | None = None,
        prune_num_heads: bool = False,
        prune_head_dims: bool = True,
        head_pruning_ratio: float = 0.0,
        head_pruning_ratio_dict: Mapping[Any, float] | None = None,
        customized_pruners: Mapping[Any, Any] | None = None,
        unwrapped_parameters: Any = None,
        root_module_types: Sequence[type[Any]] = _ROOTS,
        forward_fn: Callable[[nn.Module, Any], Any] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        channel_groups: Mapping[nn.Module, int] | None = None,
        ch_sparsity: float | None = None,
        ch_sparsity_dict: Mapping[Any, float] | None = None,
    ) -> None:
        former: dict[str, Any] = {
            "channel_groups": channel_groups or None,
            "ch_sparsity": None if ch_sparsity is None else _below_one(ch_sparsity),
            "ch_sparsity_dict": None if ch_sparsity_dict is None else _all_below_one(ch_sparsity_dict),
        }
        self.ignored_params = [layer for layer in ignored_layers or () if isinstance(layer, nn.Parameter)]
        self.ignored_layers = [layer for layer in ignored_layers or () if not isinstance(layer, nn.Parameter)]
        declared = {"unwrapped_parameters": unwrapped_parameters, "customized_pruners": customized_pruners}
        traced = {"forward_fn": forward_fn, "output_transform": output_transform, **declared}
        if self.ignored_params:
            graph = DependencyGraph().build_dependency(model, example_inputs, verbose=False, **traced)
            self.ignored_layers += producers_of(graph, self.ignored_params)
        super().__init__(
            model,
            example_inputs,
            importance,
            global_pruning=global_pruning,
            pruning_ratio=_below_one(pruning_ratio),
            pruning_ratio_dict=_all_below_one(pruning_ratio_dict or {}),
            max_pruning_ratio=max_pruning_ratio,
            iterative_steps=iterative_steps,
            iterative_pruning_ratio_scheduler=iterative_pruning_ratio_scheduler,
            ignored_layers=self.ignored_layers,
            round_to=round_to,
            isomorphic=isomorphic,
            in_channel_groups=in_channel_groups,
            out_channel_groups=out_channel_groups,
            num_heads=num_heads,
            prune_num_heads=prune_num_heads,
            prune_head_dims=prune_head_dims,
            head_pruning_ratio=_below_one(head_pruning_ratio),
            head_pruning_ratio_dict=_all_below_one(head_pruning_ratio_dict or {}),
            root_module_types=root_types(root_module_types),
            **traced,
            **{name: value for name, value in former.items() if value is not None},
        )
        self._declared_heads = dict(num_heads or {})

    def make_graph(self, registry: pk.Registry | None) -> DependencyGraph:
        """Makes a graph with Torch-Pruning's interface."""
        return DependencyGraph()

    @property
    def DG(self) -> DependencyGraph:  # noqa: N802 - the name is part of the interface
        """The graph."""
        assert isinstance(self.graph, DependencyGraph)
        return self.graph

    @property
    def num_heads(self) -> dict[nn.Module, int]:
        """The declared layers with their numbers of heads now."""
        return {layer: self._heads_now(layer, count) for layer, count in self._declared_heads.items()}

    def _heads_now(self, layer: nn.Module, count: int) -> int:
        paths = {path for path, module in self.model.named_modules(remove_duplicate=False) if module is layer}
        for group in self.graph.groups():
            if group.kind in (pk.Kind.HEADS, pk.Kind.QUERIES_PER_HEAD) and any(
                member.module in paths and member.role is pk.Role.OUT for member in group.members
            ):
                count = count * len(self.graph.remaining(group.name)) // group.size
        return count

    @property
    def per_step_pruning_ratio(self) -> list[float]:
        """The cumulative ratios of all steps."""
        return self._schedule(self.pruning_ratio)

    def estimate_importance(self, group: Group) -> torch.Tensor | None:
        """Scores a group; subclasses may override it.

        Args:
            group: The group.

        Returns:
            One score per channel of the root layer, or per unit; None to leave the group whole.
        """
        scores: torch.Tensor | None = self.importance(group)
        return scores

    def unchecked_scores(self, group: str, shared: dict[Any, torch.Tensor] | None = None) -> torch.Tensor | None:
        """Calls the criterion; scores per channel of the root layer are averaged over the channels of a unit."""
        whole = Group(self.graph, {group: self.graph.remaining(group)}, None, shared)
        scores = self.estimate_importance(whole)
        if not isinstance(scores, torch.Tensor) or scores.dim() != 1:
            return scores
        size = whole.size()
        if len(scores) != size and len(scores) == len(whole[0].idxs):
            units = torch.tensor(whole.root_units(), device=scores.device)
            counts = torch.bincount(units, minlength=size)
            scores = scores.new_zeros(size).index_add_(0, units, scores) / counts
        return scores

    def step(
        self,
        interactive: bool = False,
        *,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        copies: Iterable[nn.Module] = (),
    ) -> Iterator[Any] | None:
        """Prunes one step.

        Args:
            interactive: True returns a generator of groups instead; each is pruned by calling ``group.prune()``.
            optimizer: Not in Torch-Pruning: an optimizer whose state is cut along, or several.
            copies: Not in Torch-Pruning: copies of the model that are cut alike.

        Returns:
            None, or the generator.

        Raises:
            NothingToPruneError: The last step finds that no unit may go at all.
        """
        groups = super().step(interactive, optimizer=optimizer, copies=copies)
        if groups is None:
            return None
        return (Group(self.graph, group.units) for group in groups if isinstance(group, pk.Group))

    def pruning_history(self) -> list[Any]:
        """Lists what was removed so far as plain data; see `DependencyGraph.pruning_history`."""
        return list(self.DG.pruning_history())

    def load_pruning_history(self, pruning_history: Sequence[Sequence[Any]]) -> pk.Plan:
        """Removes everything that a history lists; see ``prunekit.DependencyGraph.load_pruning_history``."""
        return super().load_pruning_history(pruning_history)

    def reset(self) -> None:
        """Starts counting steps anew. Ratios stay relative to the sizes at construction."""
        self.current_step = 0

    def regularize(self, model: nn.Module, loss: Any) -> Any:
        """Called by programs in every training step; a pruner without sparse training has nothing to do."""

    def update_regularizer(self) -> None:
        """Called by programs after a step; a pruner without sparse training has nothing to do."""

    def get_target_pruning_ratio(self, module: nn.Module, step: int = -1) -> float:
        """Returns the cumulative ratio of the groups that a layer produces, at a step (-1: the current one)."""
        return self._ratio_of(module, self.current_step if step < 0 else step, heads=False)

    def get_target_head_pruning_ratio(self, module: nn.Module) -> float:
        """Returns the cumulative ratio of the heads that a layer produces, at the current step."""
        return self._ratio_of(module, self.current_step, heads=True)

    def _ratio_of(self, module: nn.Module, step: int, *, heads: bool) -> float:
        paths = {path for path, own in self.model.named_modules(remove_duplicate=False) if own is module}
        kinds = (pk.Kind.HEADS, pk.Kind.QUERIES_PER_HEAD)
        for group in self.graph.groups():
            if (group.kind in kinds) is heads and any(member.module in paths for member in group.producers()):
                for scope in self.scopes(step):
                    if group.name in scope.groups:
                        return min(scope.ratio, self.limits.max_ratio)
        return 0.0

    def manual_prune_width(
        self, layer: nn.Module, pruning_fn: Any, pruning_ratios_or_idxs: float | Sequence[int]
    ) -> None:
        """Prunes one layer, and what depends on it.

        Args:
            layer: The layer.
            pruning_fn: What to prune of it.
            pruning_ratios_or_idxs: The channels to remove, or the fraction of the channels that are there now; the
                criterion then chooses.

        Raises:
            ArgumentError: The ratio lies outside of [0, 1).
            UnitsError: The channels can't be removed.
        """
        if not isinstance(pruning_ratios_or_idxs, int | float):
            self.DG.get_pruning_group(layer, pruning_fn, pruning_ratios_or_idxs).prune()
            return
        ratio = float(pruning_ratios_or_idxs)
        if not 0 <= ratio < 1:
            raise pk.ArgumentError("A ratio must lie in [0, 1).", why=f"got {pruning_ratios_or_idxs!r}")
        out = self.DG.is_out_channel_pruning_fn(pruning_fn)
        size = self.DG.get_out_channels(layer) if out else self.DG.get_in_channels(layer)
        group = self.DG.get_pruning_group(layer, pruning_fn, range(size or 0))
        removed: dict[str, tuple[int, ...]] = {}
        for name, units in group.units.items():
            scores = self.score(name)
            count = math.floor(len(units) * ratio + 1e-9)
            if scores is not None and count:
                order = torch.argsort(scores.detach().flip(0), stable=True)[:count]
                removed[name] = tuple(units[len(units) - 1 - place] for place in sorted(order.tolist(), reverse=True))
        if removed:
            Group(self.graph, removed).prune()


def producers_of(graph: DependencyGraph, parameters: Sequence[nn.Parameter]) -> list[nn.Module]:
    """Lists the layers that produce the units that some parameters hold: protecting them protects the parameters."""
    names = {name for parameter in parameters for name in graph.groups_of_parameter(parameter)}
    modules = dict(graph.model.named_modules(remove_duplicate=False))
    layers = [modules[member.module] for g in graph.groups() if g.name in names for member in g.producers()]
    return list(dict.fromkeys(layer for layer in layers if layer is not graph.model))


def _below_one(ratio: float) -> float:
    return _BELOW_ONE if ratio == 1 else ratio


def _all_below_one(ratios: Mapping[Any, float]) -> dict[Any, float]:
    return {layer: _below_one(ratio) for layer, ratio in ratios.items()}


_ARGUMENTS = list(inspect.signature(BasePruner).parameters.values())
_SHARED = [argument for argument in _ARGUMENTS if argument.name not in ("model", "example_inputs", "importance")]


def shared_arguments(given: Sequence[Any]) -> dict[str, Any]:
    """Names the positional arguments that come after those of a pruner's own: ``global_pruning`` and so on.

    Raises:
        TypeError: There are too many.
    """
    if len(given) > len(_SHARED):
        raise TypeError(f"{len(given) - len(_SHARED)} positional arguments too many")
    return {argument.name: value for argument, value in zip(_SHARED, given, strict=False)}


def full_signature(function: Callable[..., Any]) -> inspect.Signature:
    """Returns the signature of a pruner class whose constructor takes ``*shared`` arguments, with all names."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return inspect.Signature([*own, *_SHARED])
