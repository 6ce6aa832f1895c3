"""Loads code that is named where it is used, without a package: plugins of a project, and single classes."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from prunekit_core.errors import ArgumentError, PluginError, PrunekitError, nearest
from prunekit_core.plugins.blame import STOPS, describe_error, is_absent, site_of
from prunekit_core.plugins.entries import GIVEN_RANK, NO_PLUGINS_VARIABLE, Plugin, entry_defects
from prunekit_core.plugins.loading import Loading, third_parties_are_off
from prunekit_core.projects.code_names import anchored
from prunekit_core.projects.config import Config

HOOKS_WITH_CODE = (
    "prunekit_importance",
    "prunekit_regularizers",
    "prunekit_schedules",
    "prunekit_pruners",
    "prunekit_compensators",
    "prunekit_allocators",
)
"""Hooks in whose place code may be named. Names of the others are read from files that may come from strangers
(a plan names replacements), or have to be registered because reports list them all (cost models)."""


def search_first(folder: Path) -> None:
    """Puts a folder first on the path on which modules are searched for, unless it is there."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def load_plugins(loading: Loading, config: Config, given: Sequence[str], blocked: Mapping[str, str]) -> tuple[str, ...]:
    """Loads the modules and files that are named as plugins.

    Args:
        loading: Where they go.
        config: The settings of the project. Paths among them start from the folder of their file, in which the modules
            that they name are searched for first.
        given: Further ones; their paths start from the working directory.
        blocked: Plugins to leave out, with who says so.

    Returns:
        All of them, files by their absolute paths.

    Raises:
        ArgumentError: There is no such file.
        PluginError: One has a defect.
    """
    off = NO_PLUGINS_VARIABLE if third_parties_are_off() else ""
    if config.code() and not off:
        search_first(config.folder)
    found = {place: anchored(place, config.folder) for place in config.plugins}
    for place in given:
        if anchored(place, Path.cwd()) not in found.values():
            found[place] = anchored(place, Path.cwd())
    for place, source in found.items():
        plugin, site = Plugin(place, rank=GIVEN_RANK, named=True), functools.partial(config.site_of, place)
        if place in blocked or off:
            loading.block(plugin, blocked.get(place, off))
            continue
        if source.endswith(".py") and not Path(source).is_file():
            hint = f"correct the path, or leave the plugin out: {plugin.leave_out}"
            raise ArgumentError(f"There is no file {source!r}.", where=site(), hint=hint)
        loading.add(plugin, functools.partial(_imported, source), source, site)
    return tuple(found.values())


def load_place(place: str) -> ModuleType:
    """Imports a module by its dotted name, or a file by its path, which ends in ``.py``.

    Raises:
        ArgumentError: There is no such module or file.
    """
    source = anchored(place, Path.cwd())
    if source.endswith(".py") and not Path(source).is_file():
        raise ArgumentError(f"There is no file {source!r}.")
    try:
        return _imported(source)
    except ModuleNotFoundError as error:
        if not is_absent(error, source):
            raise  # something that it imports
        hint = "name it as in an import, or a file by its path"
        raise ArgumentError(f"There is no module {place!r}.", why=str(error), hint=hint) from error


def _imported(source: str) -> ModuleType:
    """Imports a module by its name, or a file once: under the name that other modules import it by, if it has one."""
    if not source.endswith(".py"):
        return importlib.import_module(source)
    path = Path(source)
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("__file__") == str(path):
            return module
    name = _import_name(path)
    if name:
        return importlib.import_module(name)
    name = f"prunekit_file_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_name(path: Path) -> str:
    """Returns the dotted name by which an import finds a file, so that its classes are there once; else nothing."""
    for folder in (Path(entry).resolve() for entry in sys.path):
        if path.is_relative_to(folder):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join(parts)
            if all(map(str.isidentifier, parts)) and name not in sys.modules and _origin(parts) == str(path):
                return name
    return ""


def _origin(parts: Sequence[str]) -> str | None:
    """Returns the file that an import of a dotted name would run, without running anything."""
    places: Any = None
    origin = None
    for count in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), places)
        if spec is None or (spec.submodule_search_locations is None and count < len(parts)):
            return None
        places, origin = spec.submodule_search_locations, spec.origin
    return origin


def load_code(hook: str, name: str) -> Any:
    """Returns what a name for code stands for, which is what the hook would have registered.

    Args:
        hook: The hook.
        name: The name, see `is_code`.

    Raises:
        ArgumentError: There is no such module, file, or thing in it; or it isn't what the hook asks for.
        PluginError: The module raised while it was imported.
    """
    if third_parties_are_off():
        raise ArgumentError(f"{name!r} isn't loaded.", why=f"{NO_PLUGINS_VARIABLE} is set")
    place, _, attribute = name.rpartition(":")
    try:
        module = load_place(place)
    except PrunekitError:
        raise
    except STOPS as error:  # the user's module may fail in any way
        why = describe_error(error, anchored(place, Path.cwd()))
        raise PluginError("Code can't be loaded.", where=name, why=why) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            own = [key for key, value in vars(module).items() if inspect.getmodule(value) is module]
            raise ArgumentError(f"There is no {attribute!r} in {site_of(module)}.", hint=nearest(attribute, own))
        found = getattr(found, part)
    site = site_of(found) if callable(found) else site_of(module)
    for defect in entry_defects(hook, {name: found}, site):
        raise ArgumentError(f"{name!r} can't be used like this.", where=defect.site, why=defect.why)
    return found
