"""The registry: what plugins brought, frozen into tables.

A `Registry` is a value that an application may build for itself; two of them never meet. `default_registry` is the one
that the command line and the short functions use. Importing this module loads no plugin.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any

import attrs
import pluggy
from torch import nn

from prunekit_core import hookspecs
from prunekit_core.errors import ArgumentError, PluginError, nearest
from prunekit_core.layers import LayerType, Replacement
from prunekit_core.rules import RuleTable

ENTRY_POINT_GROUP = "prunekit"
BUILT_IN = "prunekit"
HOOKS = (
    "prunekit_op_rules",
    "prunekit_layer_types",
    "prunekit_importance",
    "prunekit_regularizers",
    "prunekit_schedules",
    "prunekit_pruners",
    "prunekit_budgets",
    "prunekit_compensators",
    "prunekit_replacements",
    "prunekit_commands",
)


@attrs.frozen
class Plugin:
    """A plugin as it was found.

    Attributes:
        name: ``"distribution:entry point"``, or what ``extra`` called it.
        distribution: The distribution that brought it; empty for an extra.
        version: Its version; empty for an extra.
        rank: Precedence: 0 built in, 1 third party, 2 given as an argument.
        error: Why it could not be loaded; empty when it was.
        blocked: Whether it was blocked.
    """

    name: str
    distribution: str = ""
    version: str = ""
    rank: int = 1
    error: str = ""
    blocked: bool = False


@attrs.frozen
class Entry:
    """One registered thing: its value, who owns it, and whose entry it overrides."""

    value: Any
    owner: Plugin
    overrides: tuple[str, ...] = ()


class Registry:
    """Everything that plugins registered.

    Args:
        block: Plugins to leave out, by name (``"distribution:entry point"``), distribution or entry point.
        extra: Further plugins (modules or objects with ``hookimpl`` functions), by name; they win over all others.
        entry_points: Whether installed plugins are loaded.

    Raises:
        PluginError: A plugin misspells a hook, returns no mapping, or claims a key that another one claims.
    """

    def __init__(
        self, *, block: Iterable[str] = (), extra: Mapping[str, object] | None = None, entry_points: bool = True
    ) -> None:
        self._block, self._extra, self._entry_points = tuple(block), dict(extra or {}), entry_points
        self._manager = pluggy.PluginManager("prunekit")
        self._manager.add_hookspecs(hookspecs)
        self._found: dict[str, Plugin] = {}
        blocked = frozenset(self._block)
        if entry_points:
            for point in sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=_point_order):
                self._load(point, blocked)
        for name, plugin in self._extra.items():
            self._register(Plugin(name, rank=2), plugin)
        self._check_hook_names()
        self._tables = {hook: self._collect(hook) for hook in HOOKS}
        self.op_rules = RuleTable({key: entry.value for key, entry in self._tables["prunekit_op_rules"].items()})

    def _load(self, point: metadata.EntryPoint, blocked: frozenset[str]) -> None:
        distribution = point.dist.name if point.dist else ""
        name = f"{distribution}:{point.name}"
        plugin = Plugin(
            name, distribution, point.dist.version if point.dist else "", 0 if distribution == BUILT_IN else 1
        )
        if name in self._found:
            return
        if blocked & {name, distribution, point.name}:
            self._found[name] = attrs.evolve(plugin, blocked=True)
            return
        try:
            loaded = point.load()
        except Exception as error:  # a stranger's module may fail in any way; it is reported, the others still load
            self._found[name] = attrs.evolve(plugin, error=f"{point.value}: {type(error).__name__}: {error}")
            return
        self._register(plugin, loaded)

    def _register(self, plugin: Plugin, loaded: object) -> None:
        try:
            self._manager.register(loaded, name=plugin.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError("A plugin can't be registered.", where=plugin.name, why=str(error)) from error
        self._found[plugin.name] = plugin

    def _check_hook_names(self) -> None:
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            name = self._manager.get_name(error.plugin) or "?"
            wrong = str(error).split("'")[1] if "'" in str(error) else str(error)
            raise PluginError(
                "A plugin implements a hook that doesn't exist.",
                where=f"{wrong} in {name} ({_site(getattr(error.plugin, wrong, error.plugin))})",
                hint=nearest(wrong, HOOKS),
            ) from error

    def _collect(self, hook: str) -> dict[Any, Entry]:
        table: dict[Any, Entry] = {}
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        ranked = sorted(implementations, key=lambda i: (self._found[i.plugin_name].rank, i.plugin_name))
        for implementation in ranked:
            owner = self._found[implementation.plugin_name]
            site = f"{owner.name} ({_site(implementation.function)})"
            try:
                entries = implementation.function()
            except Exception as error:  # reported with its owner; the other plugins still load
                self._found[owner.name] = attrs.evolve(owner, error=f"{hook}: {type(error).__name__}: {error}")
                continue
            if not isinstance(entries, Mapping):
                raise PluginError(
                    f"A plugin's {hook} returned no mapping.", where=site, why=f"it returned {type(entries).__name__}"
                )
            for key, value in entries.items():
                table[key] = self._claim(hook, key, value, owner, site, table.get(key))
        return table

    def _claim(self, hook: str, key: Any, value: Any, owner: Plugin, site: str, present: Entry | None) -> Entry:
        if present is None:
            return Entry(value, owner)
        if present.owner.rank == owner.rank:
            other = self._manager.get_plugin(present.owner.name)
            raise PluginError(
                f"Two plugins claim the same key {key!r}.",
                where=f"{hook}: {present.owner.name} ({_site(getattr(other, hook, other))}) and {site}",
                hint="block one of them",
            )
        return Entry(value, owner, (*present.overrides, present.owner.name))

    def extended(self, extra: Mapping[str, object]) -> Registry:
        """Returns another registry with the same plugins and further ones (see ``extra``)."""
        return Registry(block=self._block, extra={**self._extra, **extra}, entry_points=self._entry_points)

    def plugins(self) -> list[Plugin]:
        """Lists all plugins found, in order of loading: loaded, blocked and broken ones."""
        return list(self._found.values())

    def entries(self, hook: str) -> Mapping[Any, Entry]:
        """Returns everything registered through a hook, with owners."""
        return self._tables[hook]

    def named(self, hook: str, name: str) -> Any:
        """Returns what is registered under a name.

        Raises:
            ArgumentError: Nothing is; the message gives the nearest names.
        """
        table = self._tables[hook]
        if name not in table:
            noun = hook.removeprefix("prunekit_").replace("_", " ").rstrip("s")
            broken = [f"{plugin.name} could not be loaded: {plugin.error}" for plugin in self.plugins() if plugin.error]
            raise ArgumentError(
                f"No {noun} is registered as {name!r}.", why="; ".join(broken), hint=nearest(name, table)
            )
        return table[name].value

    def layer_type(self, module: nn.Module) -> LayerType | None:
        """Returns the layer type of a module: that of the most specific class registered."""
        table = self._tables["prunekit_layer_types"]
        for cls in type(module).__mro__:
            entry = table.get(cls) or table.get(f"{cls.__module__}.{cls.__qualname__}")
            if entry is not None:
                found: LayerType = entry.value
                return found
        return None

    def replacement(self, module: nn.Module) -> Replacement | None:
        """Returns the replacement for exactly this module's class, if one is registered."""
        for entry in self._tables["prunekit_replacements"].values():
            if type(module) is entry.value.source:
                found: Replacement = entry.value
                return found
        return None


def _point_order(point: metadata.EntryPoint) -> tuple[str, str]:
    return (point.dist.name if point.dist else "", point.name)


def _site(function: object) -> str:
    try:
        if isinstance(function, Callable):  # type: ignore[arg-type]
            code = inspect.unwrap(function).__code__  # type: ignore[arg-type]
            return f"{code.co_filename}:{code.co_firstlineno}"
        return inspect.getfile(function)  # type: ignore[arg-type]
    except (AttributeError, TypeError):
        return type(function).__name__


@functools.cache
def default_registry() -> Registry:
    """The registry of all installed plugins, made at the first call."""
    return Registry()
