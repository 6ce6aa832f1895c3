"""Groups of the same structure at sibling layers, which can be kept at one size."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from prunekit_core.analysis import Member, UnitGroup
from prunekit_core.rules import Kind

_OF_HEADS = (Kind.HEADS, Kind.QUERIES_PER_HEAD, Kind.HEAD_DIM)


def siblings(model: nn.Module, groups: Iterable[UnitGroup]) -> list[frozenset[str]]:
    """Sorts groups into families that one number can describe.

    Groups are siblings when their members lie at the same places of modules of the same classes: the same layer of
    every block. Heads are siblings of all heads, and head dims of all head dims, in attention modules of one class,
    because one number says how many heads a model has and how wide they are.

    Args:
        model: The model.
        groups: Its groups.

    Returns:
        The families of two and more, in order of their first groups.
    """
    families: dict[tuple[object, ...], list[str]] = {}
    for group in groups:
        if group.kind in _OF_HEADS:
            made = group.producers() or list(group.members)
            key: tuple[object, ...] = (group.kind, frozenset(_around(model, member) for member in made))
        else:
            key = (group.kind, group.size, *sorted(_place(model, member) for member in group.members))
        families.setdefault(key, []).append(group.name)
    return [frozenset(names) for names in families.values() if len(names) > 1]


def _around(model: nn.Module, member: Member) -> str:
    """Returns the class of the module that contains the layer of a member."""
    parent = model.get_submodule(member.module.rpartition(".")[0])
    return f"{type(parent).__module__}.{type(parent).__qualname__}"


def _place(model: nn.Module, member: Member) -> str:
    """Tells where a member lies, whichever block it is in: numbers in its layer's name don't count."""
    name = member.module.rpartition(".")[2]
    layer = "" if name.isdigit() else name
    owner = type(model.get_submodule(member.module)).__qualname__
    leaf = member.parameter.rpartition(".")[2]
    return f"{_around(model, member)} {layer} {owner}.{leaf}[{member.dim}] {member.role.value}"
