"""What layer types state about a layer, asked for and checked: a mistake is an error of the plugin that made it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from prunekit_core.algebra.axes import Axis
from prunekit_core.algebra.layout import Layout
from prunekit_core.errors import PluginError
from prunekit_core.modules.edits import is_size
from prunekit_core.plugins.blame import blamed, site_of
from prunekit_core.plugins.layers import Flat, LayerType, Resizing
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.op_call import Role


def sizes_by_type(registry: Registry, module: nn.Module, resizing: Resizing) -> dict[str, Any]:
    """Returns the attributes that a layer's type states for new shapes; none without a layer type.

    Raises:
        PluginError: The function raises, returns no mapping, or names what is no size of the layer.
    """
    kind = registry.layer_type(module)
    if kind is None:
        return {}
    found: dict[str, Any] = _called(
        registry, module, kind, "attributes", lambda: dict(kind.attributes(module, resizing))
    )
    for name, value in found.items():
        if not hasattr(module, name) or (is_size(getattr(module, name)) and not is_size(value)):
            raise _wrong(
                registry, module, kind, "attributes", f"it gives {name} = {value!r}, which is no size of the layer"
            )
    return found


def channels_by_type(
    registry: Registry, module: nn.Module, flat: Flat | None, own: Mapping[str, tuple[Layout, ...]]
) -> Layout | None:
    """Returns how the channels of a layer are made of units, by a function of its layer type (``flat_out``, say).

    Raises:
        PluginError: The function raises, or returns something else.
    """
    kind = registry.layer_type(module)
    if kind is None or flat is None:
        return None
    what = "flat_in" if flat is kind.flat_in else "flat_out"
    found = _called(registry, module, kind, what, lambda: flat(module, own))
    if found is not None and not isinstance(found, Layout):
        raise _wrong(registry, module, kind, what, f"it returned {found!r}, which is no layout")
    return found


def roles_by_type(
    registry: Registry, modules: Mapping[str, nn.Module], parameters: Mapping[str, Sequence[Axis]]
) -> dict[tuple[str, int], Role]:
    """Collects what layer types say about the dims of their layers' parameters.

    Raises:
        PluginError: There aren't as many roles as dims, or they are no roles.
    """
    found: dict[tuple[str, int], Role] = {}
    for path, module in modules.items():
        kind = registry.layer_type(module)
        if kind is None or not kind.roles:
            continue
        for own, said in _called(registry, module, kind, "roles", functools.partial(_tuples, kind)).items():
            name = f"{path}.{own}" if path else own
            dims = parameters.get(name)
            if dims is None:
                continue
            if len(said) != len(dims):
                raise _wrong(registry, module, kind, "roles", f"{len(said)} roles for the {len(dims)} dims of {name}")
            if not all(isinstance(role, Role) for role in said):
                raise _wrong(registry, module, kind, "roles", f"{said!r} for {own} are no roles")
            found.update(((name, dim), role) for dim, role in enumerate(said))
    return found


def _tuples(kind: LayerType) -> dict[str, tuple[Role, ...]]:
    return {name: tuple(roles) for name, roles in kind.roles.items()}


def _called(registry: Registry, module: nn.Module, kind: LayerType, what: str, question: Callable[[], Any]) -> Any:
    with blamed(functools.partial(_wrong, registry, module, kind, what), getattr(kind, what)):
        return question()


def _wrong(registry: Registry, module: nn.Module, kind: LayerType, what: str, why: str) -> PluginError:
    site = getattr(kind, what)
    place = f"{registry.layer_owner(module)} ({site_of(site)})" if callable(site) else registry.layer_owner(module)
    return PluginError(
        "A layer type is wrong.", where=f"{what} of {kind.name!r} for {type(module).__name__}, from {place}", why=why
    )
