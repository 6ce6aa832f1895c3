"""What a layer type claims about roles, channels and functions, held against the groups of a layer on its bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from prunekit_core.algebra.layout import Layout, groups_of, placements
from prunekit_core.graph.graph import Graph
from prunekit_core.groups.unit_group import Member, UnitGroup
from prunekit_core.plugins.layer_facts import channels_by_type
from prunekit_core.plugins.layers import Flat, LayerType, PruningFunction
from prunekit_core.program.op_call import Role

LAYER, SOURCE, READER = "layer", "source", "reader"
"""Names on the bench: the layer, the parameters that it reads, and those that its outputs are multiplied by."""


def in_layer(path: str) -> bool:
    """Tells whether a module on the bench is the layer, or is in it."""
    return path == LAYER or path.startswith(f"{LAYER}.")


def check_roles(graph: Graph, kind: LayerType) -> None:
    """Holds what is said about the dims of parameters against where their units come from and go to.

    Raises:
        AssertionError: A role is for a parameter that isn't there; what is numbered as inputs isn't consumed, or what
            is numbered as outputs is; or units only come in along a dim that is said to produce them, or only go out
            along one that is said to consume them.
    """
    layer = graph.model.get_submodule(LAYER)
    unknown = [name for name in kind.roles if not hasattr(layer, name)]
    assert not unknown, f"{kind.name}.roles: there is no parameter {', '.join(unknown)}"
    own = graph.current.own_layouts(layer)
    into, out = (channels_by_type(graph.registry, layer, flat, own) for flat in (kind.flat_in, kind.flat_out))
    if into != out:
        _check_channels(graph, kind, own, into, out)
    for group in graph.groups():
        _check_flow(group, kind)


def _local(member: Member) -> str:
    return member.parameter.rpartition(".")[2]


def _check_channels(
    graph: Graph, kind: LayerType, own: Mapping[str, tuple[Layout, ...]], into: Layout | None, out: Layout | None
) -> None:
    """Inputs must be consumed, which is how a group knows the function that removes them, and outputs must go out."""
    for group in graph.groups():
        goes = any(member.parameter.startswith(READER) for member in group.members)
        for member in group.members:
            if member.module != LAYER:
                continue
            place, layout = f"{_local(member)}[{member.dim}]", own[_local(member)][member.dim]
            hint = "say what the parameter does in LayerType(roles=...)"
            assert into is None or layout != into or member.role is Role.IN, (
                f"{kind.name}: flat_in says that the inputs lie along {place}, whose role is {member.role.name}: {hint}"
            )
            assert layout != out or kind.prune_out is None or goes or member.role is not Role.IN, (
                f"{kind.name}: flat_out says that the outputs lie along {place}, whose role is IN: number the dim that "
                f"produces them, or {hint}"
            )


def _check_flow(group: UnitGroup, kind: LayerType) -> None:
    """Units that come in with the inputs and go no further are consumed; units that only go out are produced."""
    comes = any(member.parameter.startswith(SOURCE) for member in group.members)
    goes = any(member.parameter.startswith(READER) for member in group.members)
    own = {f"{_local(m)}[{m.dim}]": m.role for m in group.members if m.module == LAYER}
    roles = {*own.values()}
    if comes and not goes and Role.OUT in roles and Role.IN not in roles:
        where, said, right = "come in with the inputs and go no further", Role.OUT, Role.IN
    elif goes and not comes and Role.IN in roles and Role.OUT not in roles:
        where, said, right = "only go out with the outputs", Role.IN, Role.OUT
    else:
        return
    places = ", ".join(place for place, role in own.items() if role is said)
    raise AssertionError(
        f"{kind.name}: the units along {places} {where}, but the role there is {said.name}, not {right.name}: "
        "are the roles swapped?"
    )


def declared(kind: LayerType) -> dict[str, tuple[PruningFunction, Flat]]:
    """Returns the pruning functions of a layer type with what numbers their channels, by ``"out"`` and ``"in"``.

    Raises:
        AssertionError: One of the two is declared without the other, so that nobody calls it.
    """
    pairs: dict[str, tuple[PruningFunction | None, Flat | None, tuple[PruningFunction, ...]]] = {
        "out": (kind.prune_out, kind.flat_out, kind.also_out),
        "in": (kind.prune_in, kind.flat_in, kind.also_in),
    }
    found: dict[str, tuple[PruningFunction, Flat]] = {}
    for way, (function, flat, further) in pairs.items():
        assert flat is not None or function is None, (
            f"{kind.name}: prune_{way} is declared without flat_{way}, so that nobody calls it: say along which "
            "parameter dim the channels lie"
        )
        assert flat is None or function is not None or further, (
            f"{kind.name}: flat_{way} is declared without prune_{way}, so that nobody calls it"
        )
        if function is not None and flat is not None:
            found[way] = (function, flat)
    return found


def unit_of(graph: Graph, kind: LayerType, way: str, flat: Flat) -> list[int] | None:
    """Returns the channels of the first unit that a layer type numbers; None where the layer has no such channels.

    Raises:
        AssertionError: None of the channels can be removed from this layer.
    """
    layer = graph.model.get_submodule(LAYER)
    layout = channels_by_type(graph.registry, layer, flat, graph.current.own_layouts(layer))
    if layout is None:
        return None
    names = groups_of(layout)
    assert names, (
        f"{kind.name}: prune_{way} was never called: none of the channels that flat_{way} numbers can be removed from "
        "this layer; try it on one where they can"
    )
    positions, units = placements(layout, {})[names[0]]
    return [int(position) for position in positions[units == 0]]


def name_of(function: Callable[..., nn.Module]) -> str:
    """Names a function in messages."""
    return getattr(function, "__name__", str(function))
