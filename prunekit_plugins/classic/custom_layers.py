"""Layer types from pruning objects that users bring: ``customized_pruners`` of a pruner or graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Layout
from prunekit_core.errors import ArgumentError, PluginError
from prunekit_core.modules.copying import shallow_copy
from prunekit_core.modules.edits import is_size
from prunekit_core.modules.tree import named_tensors
from prunekit_core.plugins.hookspecs import hookimpl
from prunekit_core.plugins.layers import LayerType, Resizing
from prunekit_core.plugins.registry import Registry


class CustomizedPruner(Protocol):
    """Prunes layers of one class in place."""

    prune_out_channels: Callable[[nn.Module, Sequence[int]], nn.Module]
    """Removes output channels from a layer: ``(layer, indices) -> layer``."""
    prune_in_channels: Callable[[nn.Module, Sequence[int]], nn.Module]
    """Removes input channels from a layer: ``(layer, indices) -> layer``."""
    get_out_channels: Callable[[nn.Module], int | None]
    get_in_channels: Callable[[nn.Module], int | None]


def with_customized(registry: Registry, pruners: Mapping[Any, CustomizedPruner]) -> Registry:
    """Returns a registry in which customized pruners are the layer types of their classes.

    Args:
        registry: The registry to build on.
        pruners: Module class (or a module of that class) to its pruning object.

    Raises:
        ArgumentError: A key is no module class, or two modules of one class are given different objects.
    """
    found: dict[type[nn.Module], CustomizedPruner] = {}
    for key, pruner in pruners.items():
        cls = type(key) if isinstance(key, nn.Module) else key
        if not isinstance(cls, type) or not issubclass(cls, nn.Module):
            raise ArgumentError("customized_pruners maps module classes to pruning objects.", why=f"got {key!r}")
        if found.setdefault(cls, pruner) is not pruner:
            raise ArgumentError("Two customized pruners are given for one class.", where=cls.__name__)
        for name in ("prune_out_channels", "prune_in_channels", "get_out_channels", "get_in_channels"):
            if not callable(getattr(pruner, name, None)):
                raise ArgumentError("A customized pruner lacks a method.", where=cls.__name__, why=f"no {name}")
    return registry.extended({"customized_pruners": _Customized({c: _layer_type(c, p) for c, p in found.items()})})


class _Customized:
    """A plugin that brings the layer types."""

    def __init__(self, types: Mapping[type[nn.Module], LayerType]) -> None:
        self._types = types

    @hookimpl
    def prunekit_layer_types(self) -> Mapping[type[nn.Module], LayerType]:
        return self._types


def _layer_type(cls: type[nn.Module], pruner: CustomizedPruner) -> LayerType:
    def numbered(size_of: Callable[[nn.Module], int | None], last: bool) -> Any:
        """The channels of a layer are numbered along the parameter dim that has as many positions."""

        def flat(module: nn.Module, own: Mapping[str, tuple[Layout, ...]]) -> Layout | None:
            size = size_of(module)  # a number of now, where layouts are those of the model as it was analysed
            shapes = {name: tensor.shape for name, tensor in _own_tensors(module).items()}
            dims = [pair for name, layout in own.items() for pair in _sided(layout, shapes[name], last)]
            fitting = [dim for dim, now in dims if now == size]
            live = [dim for dim in fitting if layouts.groups_of(dim)]
            return next(iter(live or fitting), None)

        return flat

    def attributes(module: nn.Module, resizing: Resizing) -> Mapping[str, Any]:
        return _probed(module, resizing, pruner, flat_out, flat_in)

    flat_out = numbered(pruner.get_out_channels, last=False)
    flat_in = numbered(pruner.get_in_channels, last=True)
    return LayerType(
        f"customized {cls.__name__}",
        prune_out=pruner.prune_out_channels,
        prune_in=pruner.prune_in_channels,
        flat_out=flat_out,
        flat_in=flat_in,
        attributes=attributes,
    )


def _own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers that a module itself holds."""
    return {name: t for name, t in (*module._parameters.items(), *module._buffers.items()) if t is not None}


def _sided(layout: tuple[Layout, ...], shape: Sequence[int], last: bool) -> list[tuple[Layout, int]]:
    """Pairs the layouts of a tensor's dims with their present sizes, the first or the last dim first."""
    pairs = list(zip(layout, shape, strict=True))
    return pairs[::-1] if last else pairs


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
    return nn.Parameter(zeros, requires_grad=False) if isinstance(tensor, nn.Parameter) else zeros


def _probed(
    module: nn.Module, resizing: Resizing, pruner: CustomizedPruner, flat_out: Any, flat_in: Any
) -> dict[str, Any]:
    """Finds which attributes a customized pruner changes, by letting it prune a stand-in of zeros."""
    own = dict(resizing.layouts)
    probe = shallow_copy(module, {id(tensor): _zeros(tensor) for tensor in named_tensors(module).values()})
    out, into = flat_out(module, own), flat_in(module, own)
    ways = [(out, pruner.prune_out_channels)]
    if into is not out:
        ways.append((into, pruner.prune_in_channels))
    for layout, prune in ways:
        if layout is None:
            continue
        stay = set(layouts.kept_positions(layout, resizing.kept).tolist())
        gone = [position for position in range(layout.size) if position not in stay]
        if gone:
            probe = prune(probe, gone)
    for name in own:
        made = probe._parameters.get(name) if name in probe._parameters else probe._buffers.get(name)
        shape = None if made is None else tuple(made.shape)
        if shape != resizing.shape(name):
            raise PluginError(
                "A customized pruner contradicts the program.",
                where=f"{type(module).__name__}.{name}",
                why=f"it leaves shape {shape}, the forward pass needs {resizing.shape(name)}",
                hint="leave the class out of customized_pruners, or correct its prune functions",
            )
    before, after = vars(module), vars(probe)
    return {
        name: value
        for name, value in after.items()
        if is_size(value) and name in before and is_size(before[name]) and value != before[name]
    }
