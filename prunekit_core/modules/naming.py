"""Naming modules of a model: users point at layers by module, class or dotted name."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from prunekit_core.arguments import shown
from prunekit_core.errors import ArgumentError, nearest
from prunekit_core.modules.surgery import modules_in

Layer = nn.Module | type[nn.Module] | str
"""A layer as a user points at it; a container means what it contains."""


def path_of(model: nn.Module, layer: nn.Module) -> str:
    """Returns the dotted path of a module in a model.

    Raises:
        ArgumentError: It isn't in the model.
    """
    if not isinstance(layer, nn.Module):
        raise ArgumentError(
            "A layer is given as a module here.", why=f"got {shown(layer)}", hint="model.get_submodule(name)"
        )
    for path, module in modules_in(model).items():
        if module is layer:
            return path
    raise ArgumentError(
        "The layer is not part of the model.",
        where=type(layer).__name__,
        hint="after a model is copied or a module exchanged, take the layer from the model anew",
    )


def module_paths(model: nn.Module, layers: Iterable[Layer]) -> set[str]:
    """Returns the paths of some modules and of everything they contain.

    Raises:
        ArgumentError: A module isn't in the model, no module has that name or type, or something else was given.
    """
    paths: set[str] = set()
    modules = modules_in(model)
    for layer in layers:
        if isinstance(layer, str):
            if layer not in modules:
                names = filter(None, modules)
                raise ArgumentError(f"The model has no module named {layer!r}.", hint=nearest(layer, names))
            roots = [layer]
        elif isinstance(layer, nn.Module):
            roots = [path_of(model, layer)]
        elif isinstance(layer, type):
            roots = [path for path, module in modules.items() if isinstance(module, layer)]
            if not roots:
                raise ArgumentError(f"The model has no {layer.__name__}.")
        else:
            raise ArgumentError("Layers are given as modules, types or dotted names.", why=f"got {shown(layer)}")
        for root in roots:
            paths.update(p for p in modules if not root or p == root or p.startswith(root + "."))
    return paths
