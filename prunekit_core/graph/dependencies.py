"""Which layers lose something together with some units, and at which of their channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prunekit_core.graph.current import CurrentModel
from prunekit_core.graph.group import Dependency, MemberView
from prunekit_core.plugins.layer_facts import channels_by_type
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.op_call import Role


def dependencies(
    current: CurrentModel, registry: Registry, removed: Mapping[str, Sequence[int]]
) -> list[tuple[Dependency, list[int], list[int]]]:
    """Lists the layers that lose something with some units: (dependency, flat positions, which unit each is).

    Args:
        current: The model as it is now.
        registry: Where layer types are found.
        removed: Units per group, as numbered at analysis; the n-th unit of all groups together is number n.
    """
    result: dict[tuple[str, bool], tuple[Dependency, list[int], list[int]]] = {}
    offset = 0
    for name, units in removed.items():
        place = {unit: offset + number for number, unit in enumerate(units)}
        offset += len(units)
        remaining = current.remaining(name)
        for view in current.views(name, {}):
            key = (view.path, view.role is Role.IN)
            if key in result and view.name != "weight":
                continue
            positions, roots = [], []
            for position, unit in zip(view.positions.tolist(), view.units.tolist(), strict=True):
                if remaining[unit] in place:
                    positions.append(position)
                    roots.append(place[remaining[unit]])
            if key in result and offset > len(units):
                known = result[key]
                merged = dict(zip(known[1], known[2], strict=True)) | dict(zip(positions, roots, strict=True))
                positions, roots = sorted(merged), [merged[position] for position in sorted(merged)]
            result[key] = (_dependency(current, registry, view), positions, roots)
    return list(result.values())


def _dependency(current: CurrentModel, registry: Registry, view: MemberView) -> Dependency:
    """Finds the function of the layer's type that prunes what a view holds; None where its type has no such one."""
    kind = registry.layer_type(view.module)
    function = None
    if kind is not None:
        into = view.role is Role.IN
        flat = kind.flat_in if into else kind.flat_out
        own = current.own_layouts(view.module)
        if channels_by_type(registry, view.module, flat, own) == own[view.name][view.dim]:
            function = kind.prune_in if into else kind.prune_out
    return Dependency(view.module, view.path, view.role, function, view.name)
