"""The registry: what plugins brought, frozen into tables.

A `Registry` is a value that an application may build for itself; two of them never meet. `default_registry` is the one
that the short functions use. Importing this module loads no plugin.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import pluggy
from torch import nn

from prunekit_core.collector import collection_paused
from prunekit_core.errors import ArgumentError, PluginError, nearest
from prunekit_core.plugins import hookspecs
from prunekit_core.plugins.blame import describe_error, site_of
from prunekit_core.plugins.config import SEARCHED, Config, find_config, read_config
from prunekit_core.plugins.entries import BLOCK_VARIABLE, Entry, Plugin, RuleOrigin, check_entry
from prunekit_core.plugins.layers import LayerType, Replacement
from prunekit_core.plugins.opaque import Opaque
from prunekit_core.program.rules import ModuleOp, RuleTable, as_rule

ENTRY_POINT_GROUP = "prunekit"
BUILT_IN = "prunekit"
WEIGHTS = "safetensors"
"""The plugin that opens weights whose path has no suffix that is registered: folders, and indexes of shards."""
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
    "prunekit_allocators",
    "prunekit_weights",
    "prunekit_commands",
)


class Registry:
    """Everything that plugins registered.

    Args:
        block: Plugins to leave out, by name (``"distribution:entry point"``), distribution or entry point.
        extra: Further plugins (modules or objects with ``hookimpl`` functions), by name; they win over all others.
        entry_points: Whether installed plugins are loaded. Those that the environment variable ``PRUNEKIT_BLOCK``
            names (with commas between them) are left out then, too.
        config: The settings of a project; `from_config` reads them from a file.

    Raises:
        PluginError: A plugin misspells a hook, returns no mapping or the wrong things in it, or claims a key that
            another one claims.
        ArgumentError: The settings name something that no plugin registered.
    """

    def __init__(
        self,
        *,
        block: Iterable[str] = (),
        extra: Mapping[str, object] | None = None,
        entry_points: bool = True,
        config: Config | None = None,
    ) -> None:
        with collection_paused():
            self._fill(block, extra, entry_points, config)

    def _fill(
        self, block: Iterable[str], extra: Mapping[str, object] | None, entry_points: bool, config: Config | None
    ) -> None:
        self._block, self._extra, self._entry_points = tuple(block), dict(extra or {}), entry_points
        self.config = config or Config()
        self._manager = pluggy.PluginManager("prunekit")
        self._manager.add_hookspecs(hookspecs)
        self._found: dict[str, Plugin] = {}
        self._unused: dict[str, str] = {}
        if entry_points:
            blocked = self._blocked()
            self._unused = dict(blocked)
            for point in sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=_point_order):
                self._load(point, blocked)
        for name, plugin in self._extra.items():
            self._register(Plugin(name, rank=2), plugin)
        self._check_hook_names()
        self._tables = {hook: self._collect(hook) for hook in HOOKS}
        self.op_rules = RuleTable({key: entry.value for key, entry in self._tables["prunekit_op_rules"].items()})
        self._check_config()

    @classmethod
    def from_config(
        cls,
        path: str | os.PathLike[str],
        *,
        search: bool = False,
        block: Iterable[str] = (),
        extra: Mapping[str, object] | None = None,
    ) -> Registry:
        """Makes a registry with the settings of a project; `options` returns them as arguments of ``prune``.

        Args:
            path: A ``pyproject.toml`` with a table ``[tool.prunekit]``, or a TOML file with the settings at its top
                level, such as ``prunekit.toml``.
            search: Take ``path`` as a folder and read the nearest of these files in it or above it; where there is
                none, nothing is set.
            block: Further plugins to leave out.
            extra: See `Registry`.

        Raises:
            ArgumentError: There is no such file, or it holds a setting that doesn't exist or is wrong.
            PluginError: See `Registry`.
        """
        config = find_config(Path(path)) if search else read_config(Path(path))
        return cls(block=block, extra=extra, config=config)

    def _blocked(self) -> dict[str, str]:
        """Names to leave out, with who says so."""
        listed = os.environ.get(BLOCK_VARIABLE, "").replace(",", " ").split()
        file = self.config.path.name if self.config.path else "the configuration"
        return {
            **dict.fromkeys(self.config.block, file),
            **dict.fromkeys(listed, BLOCK_VARIABLE),
            **dict.fromkeys(self._block, "an argument"),
        }

    def _check_config(self) -> None:
        """Raises `ArgumentError` unless plugins registered what the settings name."""
        config, where = self.config, str(self.config.path)
        named = [("prunekit_importance", config.importance)] if config.importance else []
        named += [("prunekit_budgets", name) for name in config.options.get("target", ())]
        methods = config.options.get("compensation", ())
        named += [("prunekit_compensators", n) for n in ([methods] if isinstance(methods, str) else methods)]
        checks = [functools.partial(self.named, hook, name) for hook, name in named]
        if "allocation" in config.options:
            checks.append(functools.partial(self.allocator, config.options["allocation"]))
        for check in checks:
            try:
                check()
            except ArgumentError as error:
                error.where = where
                raise
        if config.importance_arguments:
            _check_arguments(config, self.named("prunekit_importance", config.importance))

    def options(self, **given: Any) -> dict[str, Any]:
        """Returns the settings of the project as keyword arguments of ``prune``, this registry among them.

        Args:
            given: Arguments that win over the settings; None where there is nothing to say. A ratio also wins over a
                target that is set, with its allocation, and the other way round; so do ``round_to`` and ``align``.

        Raises:
            ArgumentError: The criterion can't be made with the arguments that are set.
        """
        said = {name: value for name, value in given.items() if value is not None}
        found: dict[str, Any] = {"registry": self, **self.config.options}
        if said.keys() & {"ratio", "target"}:
            found = {name: value for name, value in found.items() if name not in ("ratio", "target")}
        if "ratio" in said and "target" in self.config.options:
            found.pop("allocation", None)
        if said.keys() & {"round_to", "align"}:
            found = {name: value for name, value in found.items() if name not in ("round_to", "align")}
        if self.config.importance and "importance" not in said:
            found["importance"] = self._criterion()
        return {**found, **said}

    def _criterion(self) -> Any:
        """Makes the criterion that is set; without arguments its name will do."""
        name, arguments = self.config.importance, self.config.importance_arguments
        if not arguments:
            return name
        try:
            return self.named("prunekit_importance", name)(**arguments)
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"The criterion {name!r} can't be made with these arguments.",
                where=str(self.config.path),
                why=" ".join(str(error).split()),
            ) from error

    def _load(self, point: metadata.EntryPoint, blocked: Mapping[str, str]) -> None:
        distribution = point.dist.name if point.dist else ""
        name = f"{distribution}:{point.name}"
        plugin = Plugin(
            name, distribution, point.dist.version if point.dist else "", 0 if distribution == BUILT_IN else 1
        )
        if name in self._found:
            return
        by = [key for key in (name, distribution, point.name) if key in blocked]
        if by:
            self._found[name] = attrs.evolve(plugin, blocked_by=blocked[by[0]])
            for key in by:
                self._unused.pop(key, None)
            return
        try:
            loaded = point.load()
        except Exception as error:  # a stranger's module may fail in any way; it is reported, the others still load
            self._found[name] = attrs.evolve(plugin, error=f"{point.value}: {describe_error(error, point.value)}")
            return
        self._register(plugin, loaded)

    def _register(self, plugin: Plugin, loaded: object) -> None:
        try:
            self._manager.register(loaded, name=plugin.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            where, other = f"{plugin.name} ({site_of(loaded)})", self._manager.get_name(loaded)
            why = f"it is registered already, as {other}" if other else str(error)
            raise PluginError("A plugin can't be registered.", where=where, why=why) from error
        self._found[plugin.name] = plugin

    def _check_hook_names(self) -> None:
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            name = self._manager.get_name(error.plugin) or "?"
            wrong = str(error).split("'")[1] if "'" in str(error) else str(error)
            raise PluginError(
                "A plugin implements a hook that doesn't exist.",
                where=f"{wrong} in {name} ({site_of(getattr(error.plugin, wrong, error.plugin))})",
                hint=nearest(wrong, HOOKS),
            ) from error

    def _collect(self, hook: str) -> dict[Any, Entry]:
        table: dict[Any, Entry] = {}
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        ranked = sorted(implementations, key=lambda i: (self._found[i.plugin_name].rank, i.plugin_name))
        for implementation in ranked:
            owner = self._found[implementation.plugin_name]
            site = f"{owner.name} ({site_of(implementation.function)})"
            try:
                entries = implementation.function()
            except Exception as error:  # reported with its owner; the other plugins still load
                module = getattr(implementation.function, "__module__", "")
                self._found[owner.name] = attrs.evolve(owner, error=f"{hook}: {describe_error(error, module)}")
                continue
            if not isinstance(entries, Mapping):
                raise PluginError(
                    f"A plugin's {hook} returned no mapping.", where=site, why=f"it returned {type(entries).__name__}"
                )
            for key, value in entries.items():
                check_entry(hook, key, value, site)
                table[key] = self._claim(hook, key, value, owner, site, table.get(key))
        return table

    def _claim(self, hook: str, key: Any, value: Any, owner: Plugin, site: str, present: Entry | None) -> Entry:
        if present is None:
            return Entry(value, owner)
        if present.owner.rank == owner.rank:
            other = self._manager.get_plugin(present.owner.name)
            raise PluginError(
                f"Two plugins claim the same key {key!r}.",
                where=f"{hook}: {present.owner.name} ({site_of(getattr(other, hook, other))}) and {site}",
                hint="block one of them",
            )
        return Entry(value, owner, (*present.overrides, present.owner.name))

    def extended(self, extra: Mapping[str, object]) -> Registry:
        """Returns another registry with the same plugins and further ones (see ``extra``)."""
        return Registry(
            block=self._block, extra={**self._extra, **extra}, entry_points=self._entry_points, config=self.config
        )

    def rule_origin(self, op: Any) -> RuleOrigin | None:
        """Tells where the rule of a ``torch._ops.OpOverload`` or a `ModuleOp` comes from; None where it has none."""
        if isinstance(op, ModuleOp):
            name = op.name.removeprefix("opaque::")
            types = self._tables["prunekit_layer_types"].items()
            entry = next(entry for cls, entry in types if class_name(cls) == name)
            return RuleOrigin(op.name, entry.owner, site_of(entry.value.opaque.rule.ties), entry.overrides)
        key = self.op_rules.key(op)
        if key is None:
            return None
        entry = self._tables["prunekit_op_rules"][key]
        return RuleOrigin(key, entry.owner, site_of(as_rule(entry.value).ties), entry.overrides)

    def unused_blocks(self) -> Mapping[str, str]:
        """Returns what was to be blocked but matches no installed plugin, with who asked for it."""
        return self._unused

    def broken(self) -> list[str]:
        """Says of which plugins nothing is used, as they raise when they are loaded or asked."""
        return [
            f"the plugin {plugin.name} is broken, and nothing of it is used: {plugin.error}"
            for plugin in self._found.values()
            if plugin.error
        ]

    def plugins(self) -> list[Plugin]:
        """Lists all plugins found, in order of loading: loaded, blocked and broken ones."""
        return list(self._found.values())

    def entries(self, hook: str) -> Mapping[Any, Entry]:
        """Returns everything registered through a hook, with owners."""
        return self._tables[hook]

    def named(self, hook: str, name: str) -> Any:
        """Returns what is registered under a name.

        Raises:
            ArgumentError: Nothing is; the message gives the nearest names, and the plugins that are broken or blocked.
        """
        table = self._tables[hook]
        if name not in table:
            noun = hook.removeprefix("prunekit_").replace("_", " ").rstrip("s")
            broken = [f"{plugin.name} could not be loaded: {plugin.error}" for plugin in self.plugins() if plugin.error]
            blocked = [
                f"{plugin.name} is blocked by {plugin.blocked_by}" for plugin in self.plugins() if plugin.blocked
            ]
            raise ArgumentError(
                f"No {noun} is registered as {name!r}.", why="; ".join(broken + blocked), hint=nearest(name, table)
            )
        return table[name].value

    def allocator(self, name: str) -> Any:
        """Returns the allocator of a name; None where a search for the ratio decides.

        Raises:
            ArgumentError: None is registered under that name.
        """
        known = self._tables["prunekit_allocators"]
        if name in SEARCHED:
            return None
        if name not in known:
            hint = nearest(name, (*SEARCHED, *known))
            raise ArgumentError(f"There is no allocation called {name!r}.", hint=hint)
        return known[name].value

    def weights(self, path: str | os.PathLike[str], model: nn.Module) -> Any:
        """Opens the weights of a model on disk, by the plugin whose name is the suffix of the path.

        Raises:
            ArgumentError: No plugin is registered for files of this kind.
        """
        suffix = Path(path).suffix.removeprefix(".")
        known = self._tables["prunekit_weights"]
        return self.named("prunekit_weights", suffix if suffix in known else WEIGHTS)(path, model)

    def layer_type(self, module: nn.Module) -> LayerType | None:
        """Returns the layer type of a module: that of the most specific class registered."""
        found = self._layer_entry(module)
        return None if found is None else found[1].value

    def layer_owner(self, module: nn.Module) -> str:
        """Names the plugin that brought the layer type of a module; empty where it has none."""
        found = self._layer_entry(module)
        return "" if found is None else found[1].owner.name

    def opaque(self, module: nn.Module) -> tuple[str, Opaque] | None:
        """Returns what is declared about a module that isn't to be looked into, with the dotted name of its class."""
        found = self._layer_entry(module)
        if found is None or found[1].value.opaque is None:
            return None
        return class_name(found[0]), found[1].value.opaque

    def same_in_training(self, module: nn.Module) -> bool:
        """Tells whether a module's layer type says that its program ties the same axes in every mode.

        A subclass with a forward of its own is another program, about which the layer type says nothing.
        """
        found = self._layer_entry(module)
        return found is not None and found[1].value.same_in_training and type(module).forward is found[0].forward

    def _layer_entry(self, module: nn.Module) -> tuple[type[nn.Module], Entry] | None:
        table = self._tables["prunekit_layer_types"]
        for cls in type(module).__mro__:
            entry = table.get(cls) or table.get(class_name(cls))
            if entry is not None:
                return cls, entry
        return None

    def replacement(self, module: nn.Module) -> Replacement | None:
        """Returns the replacement for exactly this module's class, if one is registered."""
        for entry in self._tables["prunekit_replacements"].values():
            if type(module) is entry.value.source:
                found: Replacement = entry.value
                return found
        return None


def class_name(cls: object) -> str:
    """Returns the dotted name of a class; a name as it is."""
    return f"{cls.__module__}.{cls.__qualname__}" if isinstance(cls, type) else str(cls)


def _point_order(point: metadata.EntryPoint) -> tuple[str, str]:
    return (point.dist.name if point.dist else "", point.name)


def _check_arguments(config: Config, make: Any) -> None:
    """Raises `ArgumentError` if the criterion takes no argument of a name that is set."""
    try:
        known = inspect.signature(make).parameters
    except (TypeError, ValueError):  # builtins may have none; making the criterion will tell
        return
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in config.importance_arguments:
        if name not in known:
            raise ArgumentError(
                f"The criterion {config.importance!r} has no argument {name!r}.",
                where=str(config.path),
                hint=nearest(name, known),
            )


_DEFAULT: dict[str, Registry] = {}


def default_registry() -> Registry:
    """The registry of all installed plugins, made at the first call; it reads no configuration file."""
    # setdefault is atomic: threads that come first together make two, and all of them get the same one
    return _DEFAULT.get("default") or _DEFAULT.setdefault("default", Registry())
