"""Module trees: modules and tensors by name, and how users point at layers."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from prunekit_core.arguments import shown
from prunekit_core.errors import ArgumentError, nearest

Layer = nn.Module | type[nn.Module] | str
"""A layer as a user points at it; a container means what it contains."""


def modules_in(model: nn.Module) -> dict[str, nn.Module]:
    """Returns every module once, by its first dotted path, in the order of ``named_modules``."""
    found = {"": model}
    seen = {id(model)}

    def visit(prefix: str, module: nn.Module) -> None:
        for name, child in module._modules.items():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                path = prefix + name
                found[path] = child
                if child._modules:
                    visit(path + ".", child)

    visit("", model)
    return found


def tensors_in(modules: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Returns every parameter, then every buffer, of some modules once, under its canonical (first) dotted name."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for kind in ("_parameters", "_buffers"):
        for path, module in modules.items():
            table: dict[str, torch.Tensor | None] = module.__dict__[kind]
            if table:
                for leaf, tensor in table.items():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))
                        found[f"{path}.{leaf}" if path else leaf] = tensor
    return found


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns every parameter, then every buffer, of a model once, under its canonical (first) dotted name."""
    return tensors_in(modules_in(model))


class ModelTree:
    """The modules and tensors of a model as they are at one moment, each collected once and when it is asked for.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @functools.cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every module once, by its first dotted path."""
        return modules_in(self.model)

    @functools.cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Every parameter, then every buffer, once, under its canonical (first) dotted name."""
        return tensors_in(self.modules)

    @functools.cached_property
    def names(self) -> dict[int, str]:
        """Canonical names of parameters and buffers, by identity."""
        return {id(tensor): name for name, tensor in self.tensors.items()}

    @functools.cached_property
    def paths(self) -> dict[int, str]:
        """Dotted paths of modules, by identity."""
        return {id(module): path for path, module in self.modules.items()}

    @functools.cached_property
    def aliases(self) -> dict[str, str]:
        """Every dotted name of every parameter and buffer, shared ones included, with the canonical name."""
        every = [
            *self.model.named_parameters(remove_duplicate=False),
            *self.model.named_buffers(remove_duplicate=False),
        ]
        return {name: self.names[id(tensor)] for name, tensor in every}

    def other_names(self) -> dict[str, tuple[str, ...]]:
        """Returns the further dotted names of every parameter and buffer that has several, by canonical name."""
        found: dict[str, tuple[str, ...]] = {}
        for name, canonical in self.aliases.items():
            if name != canonical:
                found[canonical] = (*found.get(canonical, ()), name)
        return found

    def path_of(self, layer: nn.Module) -> str:
        """Returns the dotted path of a module.

        Raises:
            ArgumentError: It isn't in the model.
        """
        if not isinstance(layer, nn.Module):
            raise ArgumentError(
                "A layer is given as a module here.", why=f"got {shown(layer)}", hint="model.get_submodule(name)"
            )
        if id(layer) not in self.paths:
            raise ArgumentError(
                "The layer is not part of the model.",
                where=type(layer).__name__,
                hint="after a model is copied or a module exchanged, take the layer from the model anew",
            )
        return self.paths[id(layer)]

    def paths_of(self, layers: Iterable[Layer]) -> set[str]:
        """Returns the paths of some modules and of everything they contain.

        Raises:
            ArgumentError: A module isn't in the model, no module has that name or type, or something else was given.
        """
        return {
            path
            for layer in layers
            for root in self._roots(layer)
            for path in self.modules
            if not root or path == root or path.startswith(root + ".")
        }

    def _roots(self, layer: Layer) -> list[str]:
        """Paths of the modules that a user points at."""
        if isinstance(layer, str):
            if layer not in self.modules:
                names = filter(None, self.modules)
                raise ArgumentError(f"The model has no module named {layer!r}.", hint=nearest(layer, names))
            return [layer]
        if isinstance(layer, nn.Module):
            return [self.path_of(layer)]
        if isinstance(layer, type):
            roots = [path for path, module in self.modules.items() if isinstance(module, layer)]
            if not roots:
                raise ArgumentError(f"The model has no {layer.__name__}.")
            return roots
        raise ArgumentError("Layers are given as modules, types or dotted names.", why=f"got {shown(layer)}")
