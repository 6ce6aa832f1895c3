"""Doors: modules that show names of other modules, which are imported when a name is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from prunekit_core.collector import collection_paused


def open_door(module: str, homes: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Makes ``__all__``, ``__getattr__`` and ``__dir__`` of a module (PEP 562).

    Args:
        module: Its ``__name__``.
        homes: Module to the names that come from there, separated by spaces.
    """
    places = {name: home for home, names in homes.items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        with collection_paused():
            value = getattr(importlib.import_module(places[name]), name)
        setattr(sys.modules[module], name, value)  # it is asked for once
        return value

    return sorted(places), find, lambda: sorted(places)
