"""Keys of plugins that match nothing: rules for operations, and layer types for classes, that don't exist.

Only what is imported now can be looked at, so of a library that isn't imported nothing is said: an operator may be
registered later, by the library that brings it.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

from prunekit_core.plugins.entries import BUILT_IN_RANK, Entry, key_text
from prunekit_core.torch_private.operators import overloads


def unmatched_keys(tables: Mapping[str, Mapping[Any, Entry]]) -> list[str]:
    """Says which keys of plugins that aren't built in match nothing that is there now.

    Built-in rules are for operators of several versions of PyTorch.

    Args:
        tables: Hook to key to entry.

    Returns:
        For each key a line with plugin, file and line.
    """
    rules, types = (_own(tables[hook]) for hook in ("prunekit_op_rules", "prunekit_layer_types"))
    known = overloads() if rules else {}
    said = [(entry, _no_operator(name, known)) for name, entry in rules.items()]
    said += [(entry, _no_class(name)) for name, entry in types.items()]
    return [f"{entry.owner.title}: {text} ({entry.site})" for entry, text in said if text]


def _own(table: Mapping[Any, Entry]) -> dict[str, Entry]:
    return {key: e for key, e in table.items() if isinstance(key, str) and e.owner.rank != BUILT_IN_RANK}


def _no_operator(key: str, known: Mapping[str, Collection[str]]) -> str:
    """Says what is wrong with the name of an operation; nothing where its namespace has no operators (yet)."""
    name, _, overload = key.partition(".")
    namespace = name.partition("::")[0]
    if name in known:
        has = sorted(known[name])
        return "" if not overload or overload in has else f"{name} has no overload {overload!r}, only {', '.join(has)}"
    others = [other for other in known if other.startswith(f"{namespace}::")]
    if not others:
        return ""
    return f"a rule for {key}, and no operator of this name is registered now{_meant(name, others)}"


def _no_class(key: str) -> str:
    """Says what is wrong with the dotted name of a class; nothing where its module isn't imported (yet)."""
    place, _, name = key.rpartition(".")
    module = sys.modules.get(place)
    if module is None:
        return ""
    found = vars(module).get(name)
    if isinstance(found, type):
        own = key_text(found)
        return "" if own == key else f"a layer type for {key}, which never matches: the class is {own}"
    if found is not None or type(module) is not ModuleType or "__getattr__" in vars(module):  # it may come later
        return ""
    classes = [other for other, value in vars(module).items() if isinstance(value, type)]
    return f"a layer type for {key}, and the module has no such class{_meant(name, classes)}"


def _meant(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
