"""What layer types state about a layer, asked for and checked: a mistake is an error of the plugin that made it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from prunekit_core.algebra.axes import Axis
from prunekit_core.algebra.layout import Layout
from prunekit_core.errors import PrunekitError
from prunekit_core.modules.edits import is_size, normal_size
from prunekit_core.plugins.blame import Blame
from prunekit_core.plugins.layers import Flat, LayerType, Resizing
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.op_call import Role

_HEADLINE = "A layer type is wrong."


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


def check_present_sizes(registry: Registry, module: nn.Module, own: Mapping[str, tuple[Layout, ...]]) -> None:
    """Compares what a layer's type states for the shapes that the layer has with what the layer holds.

    Layer types that are built in aren't asked: theirs are tested, and an attribute that somebody left behind when they
    exchanged a weight is no reason to refuse a cut, which sets it right.

    Args:
        registry: Where layer types are found.
        module: The layer, uncut.
        own: Layouts of its own parameters and buffers, by local name.

    Raises:
        PluginError: An attribute is another one, so that the one for new shapes would be wrong as well.
    """
    kind = registry.layer_type(module)
    if kind is None or registry.owners.blame("prunekit_layer_types", kind).built_in:
        return
    for name, value in sizes_by_type(registry, module, Resizing(own, {})).items():
        present = getattr(module, name)
        if is_size(present) and normal_size(present) != normal_size(value):
            raise _wrong(
                registry,
                module,
                kind,
                "attributes",
                f"it gives {name} = {value!r} for the shapes that the layer has, and the layer holds {present!r}",
                "compute it from the dim that the attribute counts; or set the attribute of the layer right",
            )


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
    with _blame(registry, module, kind, what).blamed(_HEADLINE):
        return question()


def _wrong(
    registry: Registry, module: nn.Module, kind: LayerType, what: str, why: str, hint: str = ""
) -> PrunekitError:
    return _blame(registry, module, kind, what).error(_HEADLINE, why, hint=hint)


def _blame(registry: Registry, module: nn.Module, kind: LayerType, what: str) -> Blame:
    function = getattr(kind, what)
    noun = f"{what} of {kind.name!r} for {type(module).__name__}"
    blame = registry.owners.blame("prunekit_layer_types", kind)
    return attrs.evolve(blame, noun=noun, thing=function if callable(function) else None)
