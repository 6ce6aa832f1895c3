"""The dependency graph with the arguments and methods of Torch-Pruning's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.compat.torch_pruning import layer_pruners as function, ops
from prunekit_plugins.compat.torch_pruning.dependency.group import Group
from prunekit_plugins.compat.torch_pruning.dependency.node import Node, nodes_of


class UnwrappedParameter(NamedTuple):
    """A parameter that no layer owns, and the dim that holds channels."""

    parameters: nn.Parameter
    pruning_dim: int


def declared_dims(declared: Any) -> dict[int, int]:
    """Reads what a user said about free parameters: identity of the parameter to its dim."""
    pairs = declared.items() if isinstance(declared, Mapping) else declared or ()
    return {id(parameter): dim % parameter.dim() for parameter, dim in pairs}


class DependencyGraph(pk.DependencyGraph):
    """``prunekit.DependencyGraph`` with Torch-Pruning's arguments; see `build_dependency`.

    Attributes:
        REGISTERED_PRUNERS: Kind of layer to its pruning object.
        CUSTOMIZED_PRUNERS: What `register_customized_layer` and ``customized_pruners`` brought.
        verbose: Whether notes about declared parameters are given as warnings.
    """

    def __init__(self) -> None:
        super().__init__()
        self.REGISTERED_PRUNERS = dict(function.PrunerBox)
        self.CUSTOMIZED_PRUNERS: dict[Any, Any] = {}
        self.verbose = True
        self._shut: dict[str, str] = {}
        self._declared: dict[int, int] = {}
        self._nodes: dict[Any, Node] | None = None
        self._record: Callable[[Sequence[str]], None] = lambda outputs: None
        self._released: dict[str, str] = {}
        self._outputs: tuple[str, ...] = ()
        self._earlier: list[Any] = []

    def register_customized_layer(self, layer_type_or_instance: Any, layer_pruner: Any) -> None:
        """Registers a pruning object for a class of layers (or the class of an instance), for `build_dependency`.

        Args:
            layer_type_or_instance: A module class, or a module of that class.
            layer_pruner: A `function.BasePruningFunc`.

        Raises:
            ArgumentError: The graph is built already.
        """
        if "analysis" in vars(self):
            raise pk.ArgumentError(
                "Customized layers are registered before build_dependency.",
                hint="pass customized_pruners to build_dependency",
            )
        self.CUSTOMIZED_PRUNERS[layer_type_or_instance] = layer_pruner

    def build_dependency(
        self,
        model: nn.Module,
        example_inputs: Any,
        forward_fn: Callable[[nn.Module, Any], Any] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        unwrapped_parameters: Any = None,
        customized_pruners: Mapping[Any, Any] | None = None,
        ignored_layers: Iterable[Any] | None = None,
        ignored_params: Iterable[nn.Parameter] | None = None,
        verbose: bool = True,
        *,
        more_inputs: Iterable[Any] = (),
        modes: Sequence[bool | None] = (False, True),
        free_outputs: Sequence[str] = (),
        momentum_copies: Mapping[str, str] | None = None,
    ) -> DependencyGraph:
        """Records the model and finds its groups; the model is not touched.

        Args:
            model: Any module whose forward runs.
            example_inputs: A tensor, a tuple or list of positional inputs, or a dict of keyword inputs.
            forward_fn: Called as ``forward_fn(model, example_inputs)`` instead of the model.
            output_transform: Called on the outputs; tensors in its result count as outputs.
            unwrapped_parameters: Parameters that no layer owns, to the dim that holds channels. They are found
                without it; what is listed is checked.
            customized_pruners: Module class to its pruning object.
            ignored_layers: Layers whose outputs can't be pruned through this graph.
            ignored_params: Parameters that can't be pruned through this graph.
            verbose: Whether a listed parameter that can't shrink is told by a warning.
            more_inputs: Further example inputs, recorded as well.
            modes: Training flags to record in.
            free_outputs: Outputs that may lose units.
            momentum_copies: Submodules that follow others by a moving average, with those.

        Returns:
            The graph itself.

        Raises:
            ArgumentError: An argument is wrong; nothing was traced.
            UnsupportedModelError, RecordingError: The model can't be analysed.
        """
        self.CUSTOMIZED_PRUNERS.update(customized_pruners or {})

        def record(outputs: Sequence[str]) -> None:
            self._nodes = None
            super(DependencyGraph, self).build_dependency(
                model,
                example_inputs,
                more_inputs=more_inputs,
                forward_fn=forward_fn,
                output_transform=output_transform,
                modes=modes,
                unwrapped_parameters=unwrapped_parameters,
                customized_pruners=self.CUSTOMIZED_PRUNERS,
                free_outputs=[*free_outputs, *outputs],
                momentum_copies=momentum_copies,
            )
            self._shut = self.protected_groups(ignored_layers or ())
            for parameter in ignored_params or ():
                self._shut.update(dict.fromkeys(self.groups_of_parameter(parameter), "an ignored parameter"))

        more_inputs = tuple(more_inputs)
        record(())
        self.verbose, self._record = verbose, record
        self._released, self._outputs, self._earlier = {}, (), []
        self._declared = declared_dims(unwrapped_parameters)
        if verbose:
            for note in self.notes:
                warnings.warn(note, stacklevel=2)
        return self

    def _release_outputs(self, module: Any) -> bool:
        """Records the model anew with those outputs free that pin a layer: a group is to start there on purpose.

        Other ways to groups (`get_all_groups`) go on to leave them alone. Returns whether there are such outputs.
        """
        inside = {id(tensor) for tensor in ([module] if isinstance(module, nn.Parameter) else module.parameters())}
        own = [name for name, tensor in self.model.named_parameters() if id(tensor) in inside]
        reasons = [reason for name in own for reason in self.analysis.parameters[name].reasons if reason is not None]
        found = {reason.output for reason in reasons if reason.output is not None} - set(self._outputs)
        if not found:
            return False
        before = set(self.analysis.groups)
        self._earlier = self.pruning_history()
        self._outputs = (*self._outputs, *sorted(found))
        self._record(self._outputs)
        self._released.update(dict.fromkeys(self.analysis.groups.keys() - before, "an output of the model"))
        self.notes.extend(f"the output {name or 'of the model'} may lose channels, as was asked" for name in found)
        return True

    def groups_of_parameter(self, parameter: nn.Parameter) -> list[str]:
        """Lists the groups whose units a parameter holds along any dim.

        Raises:
            ArgumentError: The parameter isn't in the model.
        """
        names = {name for name, own in self.model.named_parameters(remove_duplicate=False) if own is parameter}
        if not names:
            raise pk.ArgumentError("The parameter is not part of the model.")
        return [group.name for group in self.groups() if any(member.parameter in names for member in group.members)]

    # -- groups

    def whole_group(self, group: str, shared: dict[Any, torch.Tensor] | None = None) -> Group:
        """Returns the `Group` that holds all units of a group that are there now."""
        return Group(self, {group: self.remaining(group)}, None, shared)

    def get_all_groups(
        self,
        ignored_layers: Iterable[Any] = (),
        root_module_types: Iterable[type[Any]] | None = (ops.TORCH_CONV, ops.TORCH_LINEAR),
    ) -> Iterator[Group]:
        """Yields every group that may lose channels, with all its units.

        Args:
            ignored_layers: Layers whose outputs are left alone.
            root_module_types: Only groups that a layer of these types produces; None for all.
        """
        protected = {**self.protected_groups(ignored_layers), **self._shut, **self._released}
        types = None if root_module_types is None else root_types(root_module_types)
        modules = dict(self.model.named_modules(remove_duplicate=False))
        for group in self.groups():
            producers = [modules[member.module] for member in group.producers()]
            if group.name in protected or len(self.remaining(group.name)) < 1:
                continue
            if types is None or any(isinstance(producer, types) for producer in producers):
                yield self.whole_group(group.name)

    def get_pruning_group(self, module: Any, pruning_fn: Any, idxs: Sequence[int] | torch.Tensor) -> Group:
        """Returns the group of everything that must leave with some channels of a layer, or positions of a parameter.

        A group may start at a layer whose channels are an output of the model: that output is smaller then.

        Args:
            module: A layer of the model, or a parameter that no layer owns.
            pruning_fn: What to prune of it, such as ``prune_conv_out_channels``.
            idxs: Channels, as numbered in the layer now; all of them may be given to look at the whole group.

        Raises:
            ArgumentError: The layer isn't in the model, or the function isn't for it.
            UnitsError: The channels are out of range, repeated, pinned, not whole units, or ignored.
        """
        try:
            group = self._group_from(module, pruning_fn, idxs)
        except pk.UnitsError:
            if not self._release_outputs(module):
                raise
            group = self._group_from(module, pruning_fn, idxs)
        for name in group.units:
            if name in self._shut:
                raise pk.UnitsError("These channels are ignored in this graph.", where=name, why=self._shut[name])
        return group

    def group_by(self, layer: Any, function: Any, channels: Sequence[int] | torch.Tensor) -> Group:
        """Does what `get_pruning_group` does."""
        return self.get_pruning_group(layer, function, channels)

    def _group_from(self, module: Any, pruning_fn: Any, idxs: Any) -> Group:
        start = self._parameter_group if isinstance(module, nn.Parameter) else self._layer_group
        return start(module, pruning_fn, idxs)

    def _layer_group(self, layer: nn.Module, pruning_fn: Any, idxs: Any) -> Group:
        out = self.is_out_channel_pruning_fn(pruning_fn)
        size = self.get_out_channels(layer) if out else self.get_in_channels(layer)
        numbers = list(idxs)
        if size and set(map(int, numbers)) == set(range(size)):
            side = pk.Role.OUT if out else pk.Role.IN
            roles = {view.role for group in self.groups() for view in self.views(group.name) if view.module is layer}
            wanted = side if side in roles else pk.Role.ALONG  # of norms and embeddings both sides lie along the same
            units = self._units_in(lambda view: view.module is layer and view.role is wanted)
        else:
            units = super().group_by(layer, pruning_fn, idxs).units
        paths = (path for path, module in self.model.named_modules(remove_duplicate=False) if module is layer)
        return Group(self, units, (layer, next(paths, ""), pruning_fn, [int(number) for number in numbers]))

    def _parameter_group(self, parameter: nn.Parameter, pruning_fn: Any, idxs: Any) -> Group:
        if not isinstance(getattr(pruning_fn, "__self__", None), function.ParameterPruner):
            raise pk.ArgumentError("This function doesn't prune parameters.", hint="use prune_parameter_out_channels")
        held = {dim for own, dim in self.unwrapped_parameters if own is parameter}
        name = next((name for name, own in self.model.named_parameters() if own is parameter), None)
        if name is None or not held:
            raise pk.ArgumentError(
                "No channels lie along this parameter.", where=name or "", hint="graph.explain(layer) says why"
            )
        dim = min(held)
        numbers = plugin.check_indices(idxs, parameter.shape[dim], name)
        units = self._units_in(lambda view: view.tensor is parameter and view.dim == dim, set(numbers), name)
        return Group(self, units, (parameter, name, pruning_fn, numbers))

    def _units_in(
        self, chosen: Callable[[plugin.MemberView], bool], wanted: set[int] | None = None, where: str = ""
    ) -> dict[str, tuple[int, ...]]:
        """Finds the units that lie at some positions (None: all) of the first parameter dim that is chosen."""
        views = [(group.name, view) for group in self.groups() for view in self.views(group.name) if chosen(view)]
        found: dict[str, tuple[int, ...]] = {}
        covered: set[int] = set()
        for name, view in views:
            if view.tensor is not views[0][1].tensor or view.dim != views[0][1].dim:
                continue
            holders: dict[int, set[int]] = {}
            for position, unit in zip(view.positions.tolist(), view.units.tolist(), strict=True):
                holders.setdefault(unit, set()).add(position)
            whole = {unit: held for unit, held in holders.items() if wanted is None or held <= wanted}
            reached = set().union(*whole.values())
            if reached - covered:
                present = self.remaining(name)
                found[name] = tuple(present[unit] for unit in sorted(whole))
                covered |= reached
        if not found or (wanted is not None and covered != wanted):
            raise pk.UnitsError(
                "These channels are pinned or not whole units.", where=where, hint="graph.explain(layer) says why"
            )
        return found

    @property
    def unwrapped_parameters(self) -> list[UnwrappedParameter]:
        """Parameters that no layer type owns, with the dim that holds channels: the declared one, else the last."""
        found: dict[int, UnwrappedParameter] = {}
        for group in self.groups():
            for view in self.views(group.name):
                if isinstance(view.tensor, nn.Parameter) and self.registry.layer_type(view.module) is None:
                    declared = self._declared.get(id(view.tensor))
                    known = found.get(id(view.tensor))
                    dim = view.dim if known is None else max(view.dim, known.pruning_dim)
                    found[id(view.tensor)] = UnwrappedParameter(view.tensor, dim if declared is None else declared)
        return list(found.values())

    # -- questions

    def pruning_history(self) -> list[Any]:
        """Lists what was removed so far: tuples ``(name of the layer, whether these are output channels, channels)``.

        It is plain data, which ``torch.save`` and a weights-only ``torch.load`` give back.
        """
        return [*self._earlier, *map(tuple, super().pruning_history())]

    def load_pruning_history(self, pruning_history: Sequence[Sequence[Any]]) -> pk.Plan:
        """Removes everything that a history lists; see ``prunekit.DependencyGraph.load_pruning_history``."""
        return super().load_pruning_history(pruning_history)

    def check_pruning_group(self, group: pk.Group) -> bool:
        """Tells whether every layer keeps at least one channel when a group is pruned."""
        return all(len(units) < len(self.remaining(name)) for name, units in group.units.items())

    def get_pruner_of_module(self, module: Any) -> Any:
        """Returns the pruning object of a layer or parameter; customized ones come first."""
        for key in (module, *type(module).__mro__):
            if any(key is known for known in self.CUSTOMIZED_PRUNERS):
                return self.CUSTOMIZED_PRUNERS[key]
        return self.REGISTERED_PRUNERS.get(ops.module2type(module), ops.ElementWisePruner())

    def get_out_channels(self, module_or_node: Any) -> int | None:
        """Returns the number of output channels of a layer, parameter or node; None where it has no such number."""
        module = module_or_node.module if isinstance(module_or_node, Node) else module_or_node
        size: int | None = self.get_pruner_of_module(module).get_out_channels(module)
        return size

    def get_in_channels(self, module_or_node: Any) -> int | None:
        """Returns the number of input channels of a layer, parameter or node; None where it has no such number."""
        module = module_or_node.module if isinstance(module_or_node, Node) else module_or_node
        size: int | None = self.get_pruner_of_module(module).get_in_channels(module)
        return size

    def is_out_channel_pruning_fn(self, fn: Any) -> bool:
        """Tells whether a function prunes output channels."""
        return any(fn == pruner.prune_out_channels for pruner in self._pruners())

    def is_in_channel_pruning_fn(self, fn: Any) -> bool:
        """Tells whether a function prunes input channels."""
        return any(fn == pruner.prune_in_channels for pruner in self._pruners())

    def _pruners(self) -> list[Any]:
        return [*self.REGISTERED_PRUNERS.values(), *self.CUSTOMIZED_PRUNERS.values()]

    @property
    def module2node(self) -> dict[Any, Node]:
        """Every layer that an operation uses, with the layers before and after it."""
        if self._nodes is None:
            self._nodes = nodes_of(self)
        return self._nodes


def root_types(types: Iterable[type[Any]]) -> tuple[type[nn.Module], ...]:
    """Returns module types; attention modules count where linear layers do, parameters have no producers."""
    found = [cls for cls in types if isinstance(cls, type) and issubclass(cls, nn.Module)]
    if any(issubclass(cls, nn.Linear) for cls in found):
        found += function.MultiheadAttentionPruner.TARGET_MODULES
    return tuple(found)
