"""Loads plugins and calls their hooks. Whatever is wrong with one of them is that plugin's defect, not an error of all.

A plugin with a defect contributes nothing: what a user gets is never half a plugin. What it would have registered is
kept apart, so that whoever names it gets an error that says why it isn't there.
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from types import FunctionType, ModuleType
from typing import Any

import attrs
import pluggy

from prunekit_core.arguments import is_count
from prunekit_core.errors import nearest
from prunekit_core.plugins import hookspecs
from prunekit_core.plugins.blame import STOPS, describe_error, is_absent, module_of, site_of
from prunekit_core.plugins.entries import (
    BUILT_IN_RANK,
    GIVEN_RANK,
    NO_PLUGINS_VARIABLE,
    THIRD_PARTY_RANK,
    Claim,
    Defect,
    Entry,
    Plugin,
    entry_defects,
    key_text,
    normal_name,
)
from prunekit_core.plugins.hookspecs import DEPRECATED, HOOKS, INTERFACE, INTERFACE_NAME

ENTRY_POINT_GROUP = "prunekit"
BUILT_IN = "prunekit"
SETTINGS = "prunekit_settings"
PREFIX = "prunekit_"
ALMOST = 0.8
"""How like the name of a hook one must be to be taken for it: ``importence`` is (0.9), ``import`` isn't (0.75)."""


class _DefectError(Exception):
    """Carries a defect to where the plugin is put on the list."""

    def __init__(self, defect: Defect) -> None:
        super().__init__(defect.headline)
        self.defect = defect


@attrs.frozen
class _Hook:
    """One implementation of a hook."""

    name: str
    function: Callable[[], Any]

    @property
    def site(self) -> str:
        return site_of(self.function)


class Loading:
    """Plugins as they were found, with what they registered, in the order in which they were added.

    Attributes:
        plugins: All of them by name: loaded, blocked and broken ones.
        claims: What the loaded ones registered.
        lost: What the broken ones would have registered, as far as it is known.
    """

    def __init__(self, *, strict: bool) -> None:
        self.plugins: dict[str, Plugin] = {}
        self.claims: list[Claim] = []
        self.lost: list[Claim] = []
        self._strict = strict
        self._manager = pluggy.PluginManager("prunekit")
        self._manager.add_hookspecs(hookspecs)

    def block(self, plugin: Plugin, by: str) -> None:
        """Puts a plugin that isn't loaded on the list, with who says so."""
        self.plugins[plugin.name] = attrs.evolve(plugin, blocked_by=by)

    def add(self, plugin: Plugin, load: Callable[[], object], source: str, declared: Callable[[], str]) -> None:
        """Loads a plugin and calls its hooks.

        Args:
            plugin: Its name and rank.
            load: Imports it: returns the module or object with the hooks.
            source: What is imported: dotted name of a module, or ``"module:object"``.
            declared: Returns file and line of where somebody says that this is a plugin.

        Raises:
            PluginError: It has a defect, and is given as an argument, or the loading is strict.
        """
        errors: list[_DefectError] = []
        notes: list[str] = []
        hooks: list[_Hook] = []
        try:
            loaded = _loaded(load, source, declared)
            _check_interface(loaded)
            hooks = self._hooks(plugin, loaded, declared, errors, notes)
        except _DefectError as error:
            errors.insert(0, error)
        except STOPS as error:  # its attributes are computed, and raise
            why = describe_error(error, source)
            errors.insert(0, _DefectError(Defect("A plugin can't be registered.", declared(), why)))
        found = [entry for hook in hooks for entry in _answer(hook, errors)]
        errors.extend(_twice(found))
        old = [hook for hook in hooks if hook.name in DEPRECATED]
        notes.extend(f"{hook.name} is deprecated: {DEPRECATED[hook.name]} ({hook.site})" for hook in old)
        self._settle(attrs.evolve(plugin, notes=tuple(notes)), found, errors)
        for hook in old:
            _warn(plugin, hook)

    def _settle(self, plugin: Plugin, found: list[tuple[str, Any, Any, str]], errors: list[_DefectError]) -> None:
        """Puts a plugin on the list, and what it registered, or would have registered, too."""
        if errors:
            plugin = attrs.evolve(plugin, defect=errors[0].defect)
            if self._manager.has_plugin(plugin.name):
                self._manager.unregister(name=plugin.name)
            if self._strict or plugin.rank == GIVEN_RANK:
                raise plugin.problem() from errors[0].__cause__
        self.plugins[plugin.name] = plugin
        claims = [Claim(hook, key, Entry(value, plugin, site=site)) for hook, key, value, site in found]
        (self.lost if errors else self.claims).extend(claims)

    def _hooks(
        self,
        plugin: Plugin,
        loaded: object,
        declared: Callable[[], str],
        errors: list[_DefectError],
        notes: list[str],
    ) -> list[_Hook]:
        """Lists the hooks that a plugin implements; one that doesn't exist is a defect, or a note if it is optional."""
        known = []
        implemented = self._registered(plugin, loaded, declared)
        for hook, spec, optional in implemented:
            if spec:
                known.append(hook)
            elif optional:
                notes.append(f"{hook.name} is a hook of another prunekit, marked optional: not used ({hook.site})")
            else:
                errors.append(_unknown(hook))
        if not implemented:
            raise _DefectError(_no_hook(loaded, declared))
        errors.extend(_unmarked(loaded, {hook.name for hook, _, _ in implemented}))
        return sorted(known, key=lambda hook: HOOKS.index(hook.name))

    def _registered(
        self, plugin: Plugin, loaded: object, declared: Callable[[], str]
    ) -> list[tuple[_Hook, bool, bool]]:
        """Registers a plugin with pluggy: returns its hooks, whether each is specified, and whether it is optional."""
        try:
            other = self._manager.get_name(loaded)
            if other:
                why = f"it is registered already, as {other}"
                raise _DefectError(Defect("A plugin can't be registered.", _site(loaded, declared), why))
            self._manager.register(loaded, name=plugin.name)
            callers = self._manager.get_hookcallers(loaded) or []
        except pluggy.PluginValidationError as error:
            site, why = _takes_arguments(loaded) or (_site(loaded, declared), " ".join(str(error).split()))
            raise _DefectError(Defect("A plugin can't be registered.", site, why)) from error
        return [
            (_Hook(caller.name, implementation.function), caller.has_spec(), implementation.optionalhook)
            for caller in callers
            for implementation in caller.get_hookimpls()
            if implementation.plugin is loaded
        ]


def load_installed(loading: Loading, blocked: Mapping[str, str]) -> dict[str, str]:
    """Loads the plugins that installed distributions declare.

    Args:
        loading: Where they go.
        blocked: Plugins to leave out (their names, distributions or entry points), with who says so.

    Returns:
        What of ``blocked`` matches no installed plugin.
    """
    names = {normal_name(name): by for name, by in blocked.items()}
    matched: set[str] = set()
    for plugin, point in _installed():
        if plugin.name in loading.plugins:
            continue
        keys = [key for key in map(normal_name, (plugin.name, plugin.distribution, point.name)) if key in names]
        matched.update(keys)
        if keys:
            loading.block(plugin, names[keys[0]])
        elif plugin.rank != BUILT_IN_RANK and third_parties_are_off():
            loading.block(plugin, NO_PLUGINS_VARIABLE)
        else:
            loading.add(plugin, point.load, point.value, lambda point=point: declared_at(point))  # type: ignore[misc]
    return {name: by for name, by in blocked.items() if normal_name(name) not in matched}


def third_parties_are_off() -> bool:
    """Tells whether the environment keeps third-party plugins from being loaded."""
    return os.environ.get(NO_PLUGINS_VARIABLE, "0") not in ("", "0")


def declared_at(point: metadata.EntryPoint) -> str:
    """Returns file and line where a distribution declares an entry point; its folder where the file isn't known."""
    files = (point.dist.files or ()) if point.dist else ()
    path = next((file.locate() for file in files if file.name == "entry_points.txt"), None)
    if path is None:
        return str(point.dist.locate_file("")) if point.dist else point.value
    with open(path, encoding="utf-8") as file:
        names = [line.partition("=")[0].strip() for line in file]
    return f"{os.fspath(path)}:{names.index(point.name) + 1 if point.name in names else 1}"


def _installed() -> list[tuple[Plugin, metadata.EntryPoint]]:
    """Lists the plugins that distributions declare, by the names of distributions and entry points."""
    known: dict[int, tuple[str, str]] = {id(None): ("", "")}
    found = []
    for point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        if id(point.dist) not in known and point.dist is not None:  # both properties parse its file
            known[id(point.dist)] = (point.dist.name, point.dist.version)
        distribution, version = known[id(point.dist)]
        rank = BUILT_IN_RANK if normal_name(distribution) == BUILT_IN else THIRD_PARTY_RANK
        found.append((Plugin(f"{distribution}:{point.name}", distribution, version, rank), point))
    return sorted(found, key=lambda pair: (pair[0].distribution, pair[1].name))


def _loaded(load: Callable[[], object], source: str, declared: Callable[[], str]) -> object:
    try:
        return load()
    except STOPS as error:
        defect = Defect("A plugin can't be loaded.", declared(), _why_not_loaded(error, source), _newer(error))
        raise _DefectError(defect) from error


def _why_not_loaded(error: BaseException, source: str) -> str:
    module, _, name = source.partition(":")
    if is_absent(error, module):
        return f"there is no module {error.name!r}"
    found = sys.modules.get(module)
    if isinstance(error, AttributeError) and found is not None and name and not hasattr(found, name.split(".")[0]):
        return f"the module {module} ({site_of(found)}) has no {name}"
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}:{error.lineno})"
    return describe_error(error, source)


def _newer(error: BaseException) -> str:
    """Words the hint for a plugin that imports from prunekit what isn't there."""
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == BUILT_IN:
        return f"if it is written for another prunekit, install that one: this is {metadata.version(BUILT_IN)}"
    return ""


def _check_interface(loaded: object) -> None:
    """Raises if a plugin needs another version of the interface than this one."""
    needed = getattr(loaded, INTERFACE_NAME, 1)
    if not is_count(needed):
        why = f"{INTERFACE_NAME} must be a positive whole number, and is {needed!r}"
        raise _DefectError(Defect("A plugin declares a wrong interface.", _line_of(loaded, INTERFACE_NAME), why))
    if needed > INTERFACE:
        own = f"prunekit {metadata.version(BUILT_IN)} has version {INTERFACE}"
        why = f"it needs version {needed} of the plugin interface, and {own}"
        defect = Defect("A plugin needs a newer prunekit.", _line_of(loaded, INTERFACE_NAME), why, "upgrade prunekit")
        raise _DefectError(defect)


def _line_of(loaded: object, name: str) -> str:
    """Returns file and line on which a plugin sets a name; of the plugin where that isn't found."""
    place = loaded if isinstance(loaded, ModuleType | type) else type(loaded)
    try:
        lines, first = inspect.getsourcelines(place)
        return f"{inspect.getfile(place)}:{max(first, 1) + [line.split()[:1] for line in lines].index([name])}"
    except (OSError, TypeError, ValueError):
        return site_of(loaded)


def _site(loaded: object, declared: Callable[[], str]) -> str:
    """Returns file and line of a plugin, or of where it is declared if it is no module, class or function."""
    found = site_of(loaded)
    if isinstance(loaded, ModuleType):
        return f"{found}:1"
    return found if isinstance(loaded, type | FunctionType) else declared()


def _unknown(hook: _Hook) -> _DefectError:
    hint = f"{nearest(hook.name, HOOKS)}; a hook of a newer prunekit is marked hookimpl(optionalhook=True)"
    why = f"there is no hook {hook.name}"
    return _DefectError(Defect("A plugin implements a hook that doesn't exist.", hook.site, why, hint))


def _no_hook(loaded: object, declared: Callable[[], str]) -> Defect:
    named = next(_unmarked(loaded, set()), None)
    if named is not None:
        return named.defect
    what = f"the module {loaded.__name__}" if isinstance(loaded, ModuleType) else f"{loaded!r:.80}"
    hint = "name a module or an object whose functions are marked with prunekit.plugin.hookimpl"
    return Defect("A plugin implements no hook.", _site(loaded, declared), f"{what} has no marked function", hint)


def _unmarked(loaded: object, implemented: set[str]) -> Iterator[_DefectError]:
    """Finds functions of a plugin with the name of a hook, or nearly so, that lack the mark: nobody calls them."""
    for name, value in _attributes(loaded).items():
        function = getattr(value, "__func__", value)
        if name in implemented or not isinstance(function, FunctionType):
            continue
        if isinstance(loaded, ModuleType) and function.__module__ != loaded.__name__:  # imported from elsewhere
            continue
        hook = _meant(name)
        if not hook:
            continue
        hint, why = "mark it with prunekit.plugin.hookimpl", f"{name} has the name of a hook, and no mark"
        if name != hook:
            hint, why = f"call it {hook} and {hint}", f"{name} has almost the name of a hook, {hook}, and no mark"
        yield _DefectError(Defect("A plugin has a hook that isn't marked.", site_of(function), why, hint))


def _attributes(loaded: object) -> dict[str, Any]:
    """Lists the attributes of a plugin; of an object, those of its classes too."""
    classes = () if isinstance(loaded, ModuleType | type) else type(loaded).__mro__
    return {
        name: value for place in (*reversed(classes), loaded) for name, value in getattr(place, "__dict__", {}).items()
    }


def _meant(name: str) -> str:
    """Returns the hook that a function of a plugin is probably meant to be; empty where it is something else."""
    if not name.startswith(PREFIX):  # most names, and most of them are close to nothing
        return ""
    hooks = {hook.removeprefix(PREFIX): hook for hook in HOOKS}
    close = difflib.get_close_matches(name.removeprefix(PREFIX), hooks, n=1, cutoff=ALMOST)
    return hooks[close[0]] if close else ""


def _takes_arguments(loaded: object) -> tuple[str, str] | None:
    """Finds a hook of a plugin that takes arguments, with file and line."""
    for name in HOOKS:
        function = getattr(loaded, name, None)
        code = getattr(function, "__code__", None)
        taken = [] if code is None else [n for n in code.co_varnames[: code.co_argcount] if n != "self"]
        if taken:
            return site_of(function), f"{name} takes {', '.join(taken)}, and hooks take no arguments"
    return None


def _answer(hook: _Hook, errors: list[_DefectError]) -> list[tuple[str, Any, Any, str]]:
    """Calls a hook: returns its entries (hook, key, value, file and line), those with a wrong value among them."""
    try:
        entries = hook.function()
        if not isinstance(entries, Mapping):
            why = f"it returned {type(entries).__name__}"
            raise _DefectError(Defect(f"A plugin's {hook.name} returned no mapping.", hook.site, why))
        name, site = hook.name, hook.site
        found = [(name, key, value, site) for key, value in entries.items()]
        defects = entry_defects(name, entries, site) or _unmade(name, entries)
    except _DefectError as error:
        errors.append(error)
        return []
    except STOPS as error:
        why = describe_error(error, module_of(hook.function))
        raised = _DefectError(Defect(f"A plugin's {hook.name} raised.", hook.site, why))
        raised.__cause__ = error
        errors.append(raised)
        return []
    errors.extend(map(_DefectError, defects))
    return found


def _unmade(hook: str, entries: Mapping[Any, Any]) -> list[Defect]:
    """Finds classes of settings that refuse their own defaults, which every registry makes settings of."""
    found = []
    for key, kind in entries.items() if hook == SETTINGS else ():
        try:
            kind()
        except STOPS as error:
            why = f"{key!r}: {describe_error(error, module_of(kind))}"
            hint = "every default must be a value that the class takes"
            found.append(Defect("A plugin's settings refuse their own defaults.", site_of(kind), why, hint))
    return found


def _twice(found: list[tuple[str, Any, Any, str]]) -> Iterator[_DefectError]:
    """Finds keys that a plugin itself claims twice: by two functions, or a layer by its class and by its name."""
    seen: dict[tuple[str, str], list[Any]] = {}
    for hook, key, _, site in found:
        same = seen.setdefault((hook, key_text(key)), [])
        if any(other == key or isinstance(other, str) != isinstance(key, str) for other in same):
            why = f"it has {key_text(key)!r} twice"
            yield _DefectError(Defect(f"A plugin's {hook} returned a wrong key.", site, why, "leave one out"))
        same.append(key)


def _warn(plugin: Plugin, hook: _Hook) -> None:
    """Warns of a hook that a later release removes, at the plugin's own line."""
    code = hook.function.__code__
    text = f"{plugin.title} implements {hook.name}, which is deprecated: {DEPRECATED[hook.name]}"
    warnings.warn_explicit(text, DeprecationWarning, code.co_filename, code.co_firstlineno)
