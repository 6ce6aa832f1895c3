"""Proving a layer type: prune the layer through a graph, and compare with its own pruning functions."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit_core.check.exactness import check_exact
from prunekit_core.errors import RehearsalError, UnitsError
from prunekit_core.graph.graph import Graph
from prunekit_core.graph.group import Group
from prunekit_core.modules.tree import modules_in, tensors_in
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.layer_facts import sizes_by_type
from prunekit_core.plugins.layers import Flat, LayerType, PruningFunction, Resizing
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.program.calls import tensors_of
from prunekit_plugins.checkpoints.checkpoint import load, save
from prunekit_plugins.testing.failure import failing, require, require_tensors
from prunekit_plugins.testing.layers.claims import (
    LAYER,
    READER,
    SOURCE,
    check_roles,
    declared,
    in_layer,
    name_of,
    unit_of,
)
from prunekit_plugins.testing.layers.opaque_check import check_opaque, check_spoken

READERS = 16
"""Sums that are made of each output. One alone may be near zero by chance, and rounding is large beside it."""


class Bench(nn.Module):
    """Holds a layer between parameters that stand for what comes before and after it, so that its axes are free."""

    def __init__(self, layer: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.count = layer, len(inputs)
        for position, tensor in enumerate(inputs):
            self.register_parameter(
                f"{SOURCE}{position}", nn.Parameter(tensor.detach().clone(), requires_grad=tensor.is_floating_point())
            )
        with torch.no_grad():
            outputs = tensors_of(copy.deepcopy(layer).eval()(*inputs))
        for position, tensor in enumerate(outputs):
            self.register_parameter(
                f"{READER}{position}", nn.Parameter(tensor.new_empty(READERS, *tensor.shape).normal_())
            )

    def forward(self, scale: torch.Tensor) -> torch.Tensor:
        """Reads the outputs of the layer: ``READERS`` weighted sums of each, ``[outputs, READERS]``, times a scale."""
        outputs = tensors_of(self.layer(*(getattr(self, f"{SOURCE}{k}") for k in range(self.count))))
        readers = (getattr(self, f"{READER}{k}") for k in range(len(outputs)))
        letters = "abcdefgh"
        dims = (letters[: tensor.dim()] for tensor in outputs)
        read = [torch.einsum(f"{d},z{d}->z", t, r) for t, r, d in zip(outputs, readers, dims, strict=True)]
        return scale * torch.stack(read)


def check_layer_type(
    module: nn.Module, inputs: torch.Tensor | Sequence[torch.Tensor], *, registry: Registry | None = None
) -> tuple[str, ...]:
    """Proves the layer type of a module.

    Of a layer that is declared opaque, first, the outputs that are declared are compared with those that it returns,
    and its rule must say something about each dim of its parameters. A layer that is said to tie the same axes in both
    modes must do so. Parameters must consume what is numbered as inputs and comes in, and produce what is numbered as
    outputs and goes out. Then half of the units of every group that the layer takes part in are removed in turn, each
    from a fresh copy; of a layer that holds no tensors, those of the groups that run through it. The layer's attributes
    must be those that its type states for the new shapes, the layer must agree with one that its own pruning functions
    pruned, the output must be that of the original with the removed units zeroed, gradients must reach every parameter,
    and the result must survive saving and loading. In the end each pruning function must have been called.

    Args:
        module: A layer whose class has a layer type; it is not touched. Its parameters should differ from each other.
        inputs: What it is called with; several dims of them should be larger than one.
        registry: Where layer types and rules are found; None for the default registry.

    Returns:
        Names of the groups that were tried.

    Raises:
        AssertionError: The class has no layer type, it doesn't run on the inputs, nothing of it can be pruned, or one
            of the above doesn't hold.
        PluginError: A function of the layer type raises, or returns something else than it should.
    """
    registry = registry or default_registry()
    require(isinstance(module, nn.Module), "check_layer_type", "a layer", module)
    kind = registry.layer_type(module)
    assert kind is not None, f"{type(module).__name__} has no layer type"
    given = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    require_tensors("check_layer_type", given)
    bench = bench_of(module, given)
    if kind.opaque is not None:
        with failing("opaque.fake", kind.opaque.fake):
            check_opaque(copy.deepcopy(module), kind.opaque, given)
    like = next((t for t in given if t.is_floating_point()), torch.empty(0))
    scale = torch.full((1,), 1.5, dtype=like.dtype, device=like.device)
    graph = Graph.of(bench, scale, registry=registry)
    _check_attributes(graph, registry, "before pruning")
    if kind.opaque is not None:
        check_spoken(graph.analysis, "layer", kind)
    functions = declared(kind)
    check_roles(graph, kind)
    if kind.same_in_training:
        _check_modes(bench, scale, kind.name, registry)
    bare = not tensors_in(modules_in(module))
    names = [g.name for g in graph.groups() if g.size > 1 and (bare or any(in_layer(m.module) for m in g.members))]
    assert names, f"no unit of {kind.name} can be removed: {graph.report()}"
    called = {function for name in names for function in check_group(bench, scale, name, registry)}
    if type(graph.model.get_submodule(LAYER)) is type(module):  # a stand-in is pruned by functions of its own
        for way, (function, flat) in functions.items():
            if function not in called:
                _check_start(bench, scale, kind, way, function, flat, registry)
    return tuple(names)


def bench_of(module: nn.Module, inputs: Sequence[torch.Tensor]) -> Bench:
    """Puts a copy of a layer on a bench.

    Raises:
        AssertionError: The layer doesn't run on the inputs.
    """
    with failing(f"calling {type(module).__name__} with the inputs", module):
        return Bench(copy.deepcopy(module), inputs)


def _check_modes(bench: Bench, scale: torch.Tensor, name: str, registry: Registry) -> None:
    evaluated, trained = (
        [
            (group.name, group.size, group.kind.value, [(m.parameter, m.dim) for m in group.members])
            for group in Graph.of(copy.deepcopy(bench), scale, modes=[mode], registry=registry).groups()
        ]
        for mode in (False, True)
    )
    assert evaluated == trained, (
        f"{name}.same_in_training: in eval mode the groups are {evaluated}, in train mode {trained}"
    )


def check_group(bench: Bench, scale: torch.Tensor, name: str, registry: Registry) -> set[PruningFunction]:
    """Removes half of the units of a group from a copy of a bench, and looks at everything that must hold then.

    Returns:
        The pruning functions of the layer that were called.

    Raises:
        AssertionError: Something doesn't hold; see `check_layer_type`.
    """
    pruned = copy.deepcopy(bench)
    graph = Graph.of(pruned, scale, registry=registry)
    size = graph.analysis.groups[name].size
    gone = list(range(0, size, 2)) if size > 2 else [0]
    alone = _pruned_alone(bench, graph, Group(graph, {name: gone}, None))
    try:
        plan = graph.remove({name: gone})
    except RehearsalError as error:
        facts = _facts(graph, registry)
        said = ", ".join(f"{path}.{attribute}" for path, attribute in facts) or "none"
        raise AssertionError(
            f"{name}: without {gone} the layer doesn't run: {error.where} (attributes that layer types state: {said})"
        ) from error
    fresh = Graph.of(pruned, scale, registry=registry)
    _check_attributes(fresh, registry, f"after removing {gone} of {name}")
    result = check_exact(bench, pruned, plan, scale, registry=registry)
    assert result, f"{name}: without {gone} the layer isn't the same function: {result}"
    for function, layer in alone.items():
        if layer is not None:
            _check_alone(layer, pruned.layer, fresh, f"{name}: {name_of(function)}")
    _check_gradients(pruned, scale, name)
    _check_round_trip(bench, pruned.eval(), scale, plan, registry)
    return set(alone)


def _pruned_alone(bench: Bench, graph: Graph, group: Group) -> dict[PruningFunction, nn.Module | None]:
    """Prunes copies of the layer with its own functions that the group meets; None where one refuses these units.

    Such are whole groups of a convolution, which take inputs and outputs along: only a graph removes them.
    """
    met = [item for item in group if item.dep.layer is graph.model.layer and item.dep.pruning_fn is not None]
    if type(graph.model.layer) is not type(bench.layer):
        return {}
    found: dict[PruningFunction, nn.Module | None] = {}
    for function, units in {item.dep.pruning_fn: item.idxs for item in reversed(met)}.items():
        assert function is not None
        try:
            with failing(f"{name_of(function)} without {units}", function):
                found[function] = function(copy.deepcopy(bench.layer), units)
        except UnitsError:
            found[function] = None
        else:
            require(isinstance(found[function], nn.Module), name_of(function), "a layer back", found[function])
    return found if len(found) == 1 else dict.fromkeys(found)  # two functions together make the cut, neither alone


def _check_start(
    bench: Bench,
    scale: torch.Tensor,
    kind: LayerType,
    way: str,
    function: PruningFunction,
    flat: Flat,
    registry: Registry,
) -> None:
    """Removes one unit by a pruning function that no group has met, and compares with what a graph removes for it."""
    pruned = copy.deepcopy(bench)
    graph = Graph.of(pruned, scale, registry=registry)
    channels = unit_of(graph, kind, way, flat)
    if channels is None:
        return
    what = f"{name_of(function)} without {channels}"
    try:
        group = graph.group_by(pruned.layer, function, channels)
        with failing(what, function):
            alone = function(copy.deepcopy(bench.layer), channels)
    except UnitsError:  # only a graph removes these
        return
    require(isinstance(alone, nn.Module), name_of(function), "a layer back", alone)
    graph.remove(group.units)
    _check_alone(alone, pruned.layer, Graph.of(pruned, scale, registry=registry), what)


def _check_alone(alone: nn.Module, pruned: nn.Module, graph: Graph, where: str) -> None:
    """Compares a layer that its own function pruned with one that the graph pruned: tensors, sizes, text."""
    for key, tensor in alone.state_dict().items():
        own = pruned.state_dict()[key]
        assert torch.equal(own, tensor), (
            f"{where} leaves {key} {tuple(tensor.shape)}, the graph leaves {tuple(own.shape)}"
        )
    for path, attribute in _facts(graph, graph.registry):
        if path == LAYER:
            mine, its = getattr(alone, attribute), getattr(pruned, attribute)
            assert mine == its, f"{where} leaves {attribute} at {mine}, the graph at {its}"
    assert str(alone) == str(pruned), f"{where} makes {alone}, the graph makes {pruned}"


def _check_gradients(pruned: Bench, scale: torch.Tensor, name: str) -> None:
    pruned.train()
    pruned(scale).sum().backward()
    for key, parameter in pruned.layer.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, f"{name}: no gradient reaches {key}"
        assert bool(gradient.isfinite().all()), f"{name}: the gradient of {key} is not finite"


def _check_attributes(graph: Graph, registry: Registry, when: str) -> None:
    for (path, attribute), value in _facts(graph, registry).items():
        module = graph.model.get_submodule(path)
        kind, own = registry.layer_type(module), getattr(module, attribute)
        assert kind is not None
        assert own == value, f"{when}: {kind.name}.{attribute} is {own}, its parameters say {value}"


def _facts(graph: Graph, registry: Registry) -> dict[tuple[str, str], Any]:
    """Returns the attributes that the layer types of the layer, and of those in it, state for the present shapes."""
    found: dict[tuple[str, str], Any] = {}
    for path, module in graph.model.named_modules():
        kind = registry.layer_type(module)
        if kind is None or not in_layer(path):
            continue
        layouts = {
            name: graph.analysis.parameters[f"{path}.{name}"].dims
            for name in [*module._parameters, *module._buffers]
            if f"{path}.{name}" in graph.analysis.parameters
        }
        facts = sizes_by_type(registry, module, Resizing(layouts, {}))
        found.update(((path, attribute), value) for attribute, value in facts.items())
    return found


def _check_round_trip(bench: Bench, pruned: Bench, scale: torch.Tensor, plan: Plan, registry: Registry) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.safetensors"
        save(pruned, path, plan=plan)
        loaded = load(copy.deepcopy(bench), path, registry=registry).eval()
    with torch.no_grad():
        assert torch.equal(loaded(scale), pruned(scale)), "saving and loading changes the outputs"
    assert str(loaded) == str(pruned), f"saving and loading changes the layer: {loaded.layer}, not {pruned.layer}"
