"""Settings of single plugins: what each declares, read from the project's file, and handed to what it registered."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from prunekit_core.arguments import is_number
from prunekit_core.errors import ArgumentError, PluginError, nearest
from prunekit_core.plugins.blame import STOPS, describe_error, module_of, site_of
from prunekit_core.plugins.entries import Entry
from prunekit_core.projects.config import Config

PARAMETER = "settings"
"""The keyword-only argument by which a function or class that a plugin registered gets the plugin's settings."""
HANDED_TO = (
    "prunekit_importance",
    "prunekit_regularizers",
    "prunekit_schedules",
    "prunekit_budgets",
    "prunekit_compensators",
    "prunekit_allocators",
)
"""Hooks whose entries are functions and classes that prunekit calls."""
_WORDS: Mapping[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def made_settings(
    config: Config, declared: Mapping[str, Entry], refused: Mapping[str, PluginError], *, lenient: bool
) -> dict[str, Any]:
    """Makes the settings of all plugins that declare any, with the defaults of what the project doesn't set.

    Args:
        config: The settings of the project.
        declared: What is registered through `prunekit_settings`.
        refused: Names that nobody gets, with the error that says why.
        lenient: Whether a plugin is broken or blocked, so that a table may be one's that isn't there.

    Raises:
        ArgumentError: A table is no plugin's, or holds a setting that doesn't exist or is wrong.
        PluginError: A table is that of a broken plugin.
    """
    where = str(config.path)
    for name in config.tables:
        if name in refused:
            raise refused[name]
        if name not in declared and not lenient:
            raise ArgumentError(f"No plugin has settings called {name!r}.", where=where, hint=nearest(name, declared))
    return {name: _made(name, entry, config.tables.get(name, {}), where) for name, entry in declared.items()}


def _made(name: str, entry: Entry, table: Mapping[str, Any], where: str) -> Any:
    """Makes the settings of one plugin from its table."""
    kind: type[Any] = entry.value
    known, values = _fields(kind), {}
    for key, value in table.items():
        if key not in known:
            headline = f"The plugin {name!r} has no setting {key!r}."
            raise ArgumentError(headline, where=where, hint=nearest(key, known))
        hint = known[key]
        if not _fits(value, hint):
            words = _WORDS.get(hint) or f"of the type {hint.__name__ if isinstance(hint, type) else hint}"
            headline = f"The setting {key!r} of the plugin {name!r} must be {words}."
            raise ArgumentError(headline, where=where, why=f"got {value!r}")
        values[key] = tuple(value) if (typing.get_origin(hint) or hint) is tuple else value
    try:
        return kind(**values)
    except STOPS as error:  # it took its defaults when it was loaded, so these values are what it refuses
        raise _refused(name, entry, where, error) from error


def _refused(name: str, entry: Entry, where: str, error: BaseException) -> ArgumentError:
    kind, owner = entry.value, entry.owner
    why = f"{owner.title}: {' '.join(describe_error(error, module_of(kind)).split())}"
    hint = f"give [plugin.{name}] values that {kind.__qualname__} takes ({site_of(kind)})"
    return ArgumentError(f"The plugin {name!r} refuses its settings.", where=where, why=why, hint=hint)


def _fields(kind: type[Any]) -> dict[str, Any]:
    """Lists the settings that an attrs class or a dataclass stands for, with their types; Any for an unknown one."""
    try:
        hints = typing.get_type_hints(kind)
    except Exception:  # something that is imported for type checkers only, or annotations that can't be computed
        hints = {}
    if attrs.has(kind):
        return {field.alias or field.name: hints.get(field.name, Any) for field in attrs.fields(kind) if field.init}
    return {field.name: hints.get(field.name, Any) for field in dataclasses.fields(kind) if field.init}


def _fits(value: Any, hint: Any) -> bool:
    """Tells whether a value of a TOML file has a type. A type that TOML doesn't have is left to the class."""
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint is float:
        return is_number(value)
    if hint in (bool, int, str):
        return type(value) is hint
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(one, arguments[1]) for one in value.values() if arguments)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list) and all(_fits(one, arguments[0]) for one in value if arguments)
    return hint is not type(None)


def handed(
    tables: Mapping[str, Mapping[Any, Entry]],
    declared: Mapping[str, Entry],
    settings: Mapping[str, Any],
    config: Config,
) -> dict[str, Mapping[Any, Entry]]:
    """Gives what plugins registered the settings of their plugins, where it has a keyword-only argument for them.

    Args:
        tables: Hook to what is registered.
        declared: What is registered through `prunekit_settings`.
        settings: The settings by the same names. Of a plugin with several, an entry gets those of its own name, or
            else the first.
        config: The settings of the project.
    """
    owned: dict[str, list[str]] = {}
    for name, entry in declared.items():
        owned.setdefault(entry.owner.name, []).append(name)
    found = dict(tables)
    for hook in HANDED_TO:
        changed = {}
        for key, entry in tables[hook].items():
            own = owned.get(entry.owner.name, [])
            for table in [key] if key in own else own[:1]:
                if _asks(entry.value, needs_it=table not in config.tables):
                    changed[key] = attrs.evolve(entry, value=_with(entry.value, settings[table]))
        found[hook] = {**tables[hook], **changed}
    return found


def _asks(value: Any, *, needs_it: bool) -> bool:
    """Tells whether something has the keyword-only argument `PARAMETER`; if it must need it, without a default."""
    try:
        known = inspect.signature(value).parameters
    except (TypeError, ValueError):  # builtins may have none
        return False
    asked = known.get(PARAMETER)
    if asked is None or asked.kind is not inspect.Parameter.KEYWORD_ONLY:
        return False
    return asked.default is inspect.Parameter.empty or not needs_it


def _with(value: Callable[..., Any], settings: Any) -> Callable[..., Any]:
    return functools.partial(value, **{PARAMETER: settings})
