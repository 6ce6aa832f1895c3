"""The registry: what plugins brought, frozen into tables.

A `Registry` is a value that an application may build for itself; two of them never meet. `default_registry` is the one
that the short functions use. Importing this module loads no plugin.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from prunekit_core.collector import collection_paused
from prunekit_core.errors import ArgumentError, PluginError, nearest
from prunekit_core.plugins.blame import Blame, site_of
from prunekit_core.plugins.entries import (
    BLOCK_VARIABLE,
    GIVEN_RANK,
    Contest,
    Entry,
    Plugin,
    RuleOrigin,
    key_text,
)
from prunekit_core.plugins.hookspecs import HOOKS
from prunekit_core.plugins.layers import LayerType, Replacement
from prunekit_core.plugins.loading import Loading, load_installed
from prunekit_core.plugins.opaque import Opaque
from prunekit_core.plugins.opened_weights import OpenedWeights
from prunekit_core.plugins.owners import Owners
from prunekit_core.plugins.plugin_settings import handed, made_settings
from prunekit_core.plugins.tables import tables_of
from prunekit_core.plugins.unmatched import unmatched_keys
from prunekit_core.plugins.user_code import HOOKS_WITH_CODE, load_code, load_plugins
from prunekit_core.program.rules import ModuleOp, OpRule, RuleTable, as_rule, rule_keys
from prunekit_core.projects.code_names import code_hint, is_code
from prunekit_core.projects.config import SEARCHED, Config, find_config, read_config
from prunekit_core.projects.making import check_config, options_of, pruner_of, regularizer_of

WEIGHTS = "safetensors"
"""The plugin that opens weights whose path has no suffix that is registered: folders, and indexes of shards."""


class Registry:
    """Everything that plugins registered.

    Args:
        block: Plugins to leave out, by name (``"distribution:entry point"``), distribution or entry point.
        extra: Further plugins (modules or objects with ``hookimpl`` functions), by name; they win over all others.
        entry_points: Whether installed plugins are loaded. Those that the environment variable ``PRUNEKIT_BLOCK``
            names (with commas between them) are left out then, too; ``PRUNEKIT_NO_PLUGINS=1`` leaves out all that
            aren't built in.
        config: The settings of a project; `from_config` reads them from a file. The plugins that they name are loaded.
        plugins: Further plugins that aren't installed: dotted names of modules, or paths of files (``"rules.py"``),
            relative to the working directory. They rank as ``extra`` does, as those of the settings do.
        strict: Whether anything that is wrong with an installed plugin is raised. Otherwise that plugin contributes
            nothing and is listed as broken (`plugins`), and a key that two of them claim is an error for whoever asks
            for it.

    Attributes:
        config: The settings of the project.
        uninstalled: The modules and files that are plugins, files by their absolute paths.

    Raises:
        PluginError: An extra, or another plugin that isn't installed, has a defect (no hook, a misspelt one, one that
            raises or returns the wrong things), or two of them claim one key: whoever passes a plugin holds its code,
            and wants to know at once. With ``strict``, installed plugins raise it as well.
        ArgumentError: The settings name something that no plugin registered, or there is no such file.
    """

    def __init__(
        self,
        *,
        block: Iterable[str] = (),
        extra: Mapping[str, object] | None = None,
        entry_points: bool = True,
        config: Config | None = None,
        plugins: Iterable[str | os.PathLike[str]] = (),
        strict: bool = False,
    ) -> None:
        with collection_paused():
            self._fill(block, extra, entry_points, config, tuple(os.fspath(place) for place in plugins), strict)

    def _fill(
        self,
        block: Iterable[str],
        extra: Mapping[str, object] | None,
        entry_points: bool,
        config: Config | None,
        plugins: tuple[str, ...],
        strict: bool,
    ) -> None:
        self._block, self._extra, self._entry_points = tuple(block), dict(extra or {}), entry_points
        self._strict, self.config = strict, config or Config()
        loading = Loading(strict=strict)
        unused = load_installed(loading, self._blocked()) if entry_points else {}
        self.uninstalled = load_plugins(loading, self.config, plugins, self._blocked())
        self._unused = {name: by for name, by in unused.items() if name not in loading.plugins}
        for name, plugin in self._extra.items():
            source = str(getattr(plugin, "__module__", "") or getattr(plugin, "__name__", ""))
            found = Plugin(name, rank=GIVEN_RANK)
            loading.add(found, lambda plugin=plugin: plugin, source, lambda: "given as an argument")  # type: ignore[misc]
        self._found, self._lost = loading.plugins, loading.lost
        tables = tables_of(loading.claims)
        self._tables, self._contests, self._sources = tables.entries, tables.contests, tables.sources
        self._raise_contests(strict)
        declared = self._tables["prunekit_settings"]
        absent, refused = any(p.blocked or p.error for p in self.plugins()), self.refused("prunekit_settings")
        self._settings = made_settings(self.config, declared, refused, lenient=absent)
        self._tables = handed(self._tables, declared, self._settings, self.config)
        self.op_rules = self._rule_table()
        check_config(self.config, self, lenient=bool(self.broken()))

    def _raise_contests(self, strict: bool) -> None:
        for contest in (contest for hook in HOOKS for contest in self._contests[hook].values()):
            if strict or contest.rivals[0].owner.rank == GIVEN_RANK:
                raise contest.problem()

    def _rule_table(self) -> RuleTable:
        """Makes the table of op rules; the rule of an operation that two plugins claim raises `PluginError`."""
        entries, contests = self._tables["prunekit_op_rules"], self._contests["prunekit_op_rules"]
        rules = {key: entry.value for key, entry in entries.items()}
        rules.update((key, _contested_rule(contest)) for key, contest in contests.items())
        ranks = {key: entry.owner.rank for key, entry in entries.items()}
        ranks.update((key, contest.rivals[0].owner.rank) for key, contest in contests.items())
        return RuleTable(rules, ranks)

    @classmethod
    def from_config(
        cls,
        path: str | os.PathLike[str],
        *,
        search: bool = False,
        block: Iterable[str] = (),
        extra: Mapping[str, object] | None = None,
        plugins: Iterable[str | os.PathLike[str]] = (),
        strict: bool = False,
    ) -> Registry:
        """Makes a registry with the settings of a project; `options` returns them as arguments of ``prune``.

        Args:
            path: A ``pyproject.toml`` with a table ``[tool.prunekit]``, or a TOML file with the settings at its top
                level, such as ``prunekit.toml``.
            search: Take ``path`` as a folder and read the nearest of these files in it or above it; where there is
                none, nothing is set.
            block: Further plugins to leave out.
            extra, plugins, strict: See `Registry`.

        Raises:
            ArgumentError: There is no such file, or it holds a setting that doesn't exist or is wrong.
            PluginError: See `Registry`.
        """
        config = find_config(Path(path)) if search else read_config(Path(path))
        return cls(block=block, extra=extra, config=config, plugins=plugins, strict=strict)

    def _blocked(self) -> dict[str, str]:
        """Names to leave out, with who says so."""
        listed = os.environ.get(BLOCK_VARIABLE, "").replace(",", " ").split()
        file = self.config.path.name if self.config.path else "the configuration"
        return {
            **dict.fromkeys(self.config.block, file),
            **dict.fromkeys(listed, BLOCK_VARIABLE),
            **dict.fromkeys(self._block, "an argument"),
        }

    def options(self, **given: Any) -> dict[str, Any]:
        """Returns the settings of the project as keyword arguments of ``prune``, this registry among them.

        Args:
            given: Arguments that win over the settings; see `Config.under`. The criterion may be a table, as in a file:
                ``{"name": "magnitude", "p": 1}``.

        Raises:
            ArgumentError: The criterion can't be made with its arguments.
        """
        return {"registry": self, **options_of(self.config, self, given)}

    def pruner(self, model: nn.Module, example_inputs: Any, **given: Any) -> Any:
        """Makes the pruner of the project for a model, to prune it in steps.

        Args:
            model: The model.
            example_inputs: See `BasePruner`.
            given: Arguments of pruners that win over the settings, with ``ratio`` for ``pruning_ratio``. What
                ``pruner`` is set to says which class it is: `BasePruner` where it isn't set.

        Raises:
            ArgumentError: An argument or a setting is wrong, or a target is set and no ratio given.
        """
        return pruner_of(self.config, self, model, example_inputs, given)

    def regularizer(self, groups: Callable[[], Iterable[Any]], **given: Any) -> Any:
        """Makes the regularizer that is set for the project.

        Args:
            groups: Lists the groups as they are now, such as ``graph.get_all_groups``.
            given: Arguments of the regularizer that win over the settings.

        Raises:
            ArgumentError: None is set, or it takes no argument of a name.
        """
        return regularizer_of(self.config, self, groups, given)

    def settings(self, name: str) -> Any:
        """Returns the settings of a plugin: its own defaults, and what the project's table ``plugin.NAME`` sets.

        Args:
            name: The name under which the plugin declares them, see `prunekit_settings`.

        Raises:
            ArgumentError: No plugin declares settings of that name.
        """
        self.named("prunekit_settings", name)
        return self._settings[name]

    def extended(self, extra: Mapping[str, object]) -> Registry:
        """Returns another registry with the same plugins and further ones (see ``extra``)."""
        return Registry(
            block=self._block,
            extra={**self._extra, **extra},
            entry_points=self._entry_points,
            config=self.config,
            plugins=self.uninstalled,
            strict=self._strict,
        )

    def rule_origin(self, op: Any) -> RuleOrigin | None:
        """Tells where the rule of a ``torch._ops.OpOverload`` or a `ModuleOp` comes from; None where it has none.

        Raises:
            PluginError: Two plugins claim the operation.
        """
        if isinstance(op, ModuleOp):
            name = op.name.removeprefix("opaque::")
            types = self._tables["prunekit_layer_types"].items()
            entry = next(entry for cls, entry in types if key_text(cls) == name)
            return RuleOrigin(op.name, entry.owner, site_of(entry.value.opaque.rule.ties), entry.overrides)
        keys = self.op_rules.keys(op)
        if not keys:
            return None
        table, contest = self._tables["prunekit_op_rules"], self._contests["prunekit_op_rules"].get(keys[0])
        if contest is not None:
            raise contest.problem()
        entry = table[keys[0]]
        others = [table[key].owner.name for key in keys[1:] if isinstance(key, str) and key in table]
        overridden = dict.fromkeys(name for name in (*others, *entry.overrides) if name != entry.owner.name)
        return RuleOrigin(keys[0], entry.owner, site_of(as_rule(entry.value).ties), tuple(overridden))

    def broken_owner(self, op: Any) -> Plugin | None:
        """Returns the broken plugin that would have brought a rule for an operation; None where none is known."""
        keys = rule_keys(op)
        lost = {claim.key: claim.entry.owner for claim in self._lost if claim.hook == "prunekit_op_rules"}
        return next((lost[key] for key in keys if key in lost), None)

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

    def notes(self) -> list[str]:
        """Says what of plugins that aren't broken is ignored or won't last: of each a line with the plugin's name.

        Optional hooks that this prunekit doesn't have, hooks that a later release removes, rules for operations that
        don't exist, layer types for classes that don't exist. It is computed from what is imported now: of a library
        that isn't, nothing is said.
        """
        said = [
            f"{plugin.title}: {note}" for plugin in self._found.values() if not plugin.error for note in plugin.notes
        ]
        return [*said, *unmatched_keys(self._tables)]

    def contests(self, hook: str) -> Mapping[Any, Contest]:
        """Returns the keys that several plugins of one rank claim, so that nobody gets them."""
        return self._contests[hook]

    def refused(self, hook: str) -> Mapping[Any, PluginError]:
        """Returns the keys that plugins claim and nobody gets, with the error for whoever asks for one.

        Several plugins of one rank claim it, or only a broken one does.
        """
        known = self._tables[hook]
        lost = {claim.key: claim.entry for claim in self._lost if claim.hook == hook and claim.key not in known}
        return {
            **{key: _broken_owner(key, entry) for key, entry in lost.items()},
            **{key: contest.problem() for key, contest in self._contests[hook].items()},
        }

    def plugins(self) -> list[Plugin]:
        """Lists all plugins found, in order of loading: loaded, blocked and broken ones."""
        return list(self._found.values())

    def entries(self, hook: str) -> Mapping[Any, Entry]:
        """Returns everything registered through a hook, with owners."""
        return self._tables[hook]

    def named(self, hook: str, name: str) -> Any:
        """Returns what is registered under a name, or the code that is named (see `HOOKS_WITH_CODE`).

        Raises:
            ArgumentError: Nothing is; the message gives the nearest names, and the plugins that are broken or blocked.
            PluginError: Two plugins claim the name, or only a broken one does.
        """
        table = self._tables[hook]
        if name not in table:
            refused = self.refused(hook).get(name)
            if refused is not None:
                raise refused
            if hook in HOOKS_WITH_CODE and is_code(name):
                return load_code(hook, name)
            noun = hook.removeprefix("prunekit_").replace("_", " ").rstrip("s")
            broken = [f"{plugin.name} could not be loaded: {plugin.error}" for plugin in self.plugins() if plugin.error]
            blocked = [
                f"{plugin.name} is blocked by {plugin.blocked_by}" for plugin in self.plugins() if plugin.blocked
            ]
            raise ArgumentError(
                f"No {noun} is registered as {name!r}.",
                why="; ".join(broken + blocked),
                hint=code_hint(name) or nearest(name, table),
            )
        return table[name].value

    @functools.cached_property
    def owners(self) -> Owners:
        """Who brought what is in use, for the errors that it causes."""
        return Owners(self._tables)

    def make(self, hook: str, name: str, *args: Any, **kwargs: Any) -> Any:
        """Calls the class or function that is registered under a name.

        Raises:
            ArgumentError: Nothing is registered under the name; see `named`.
            PluginError: It raises.
        """
        value = self.named(hook, name)
        entry = self._tables[hook].get(name) or Entry(value, Plugin(name, rank=GIVEN_RANK))
        return self.owners.make(hook, name, entry, *args, **kwargs)

    def allocator(self, name: str) -> Any:
        """Returns the allocator of a name; None where a search for the ratio decides.

        Raises:
            ArgumentError: None is registered under that name.
            PluginError: Two plugins claim the name, or only a broken one does.
        """
        known = self._tables["prunekit_allocators"]
        if name in SEARCHED:
            return None
        if name not in known and name not in self.refused("prunekit_allocators") and not is_code(name):
            hint = nearest(name, (*SEARCHED, *known))
            raise ArgumentError(f"There is no allocation called {name!r}.", hint=hint)
        return self.named("prunekit_allocators", name)

    def weights(self, path: str | os.PathLike[str], model: nn.Module) -> Any:
        """Opens the weights of a model on disk, by the plugin whose name is the suffix of the path.

        Raises:
            ArgumentError: No plugin is registered for files of this kind.
            PluginError: Two plugins claim files of this kind, or only a broken one does; or the plugin raises, or, when
                they are read, returns something else than such weights.
        """
        suffix = Path(path).suffix.removeprefix(".")
        known = {**self._tables["prunekit_weights"], **self.refused("prunekit_weights")}
        name = suffix if suffix in known else WEIGHTS
        opened = self.make("prunekit_weights", name, path, model)
        blame = self.owners.blame("prunekit_weights", self._tables["prunekit_weights"][name].value)
        return opened if blame.built_in else OpenedWeights(opened, blame)

    def layer_type(self, module: nn.Module) -> LayerType | None:
        """Returns the layer type of a module: that of the most specific class registered.

        Raises:
            PluginError: Two plugins claim that class.
        """
        found = self._layer_entry(module)
        return None if found is None else found[1].value

    def layer_owner(self, module: nn.Module) -> str:
        """Names the plugin that brought the layer type of a module; empty where it has none."""
        found = self._layer_entry(module)
        return "" if found is None else found[1].owner.name

    def opaque(self, module: nn.Module) -> tuple[str, Opaque, Blame] | None:
        """Returns what is declared about a module that isn't to be looked into, with the dotted name of its class, and
        whose layer type that is."""
        found = self._layer_entry(module)
        if found is None or found[1].value.opaque is None:
            return None
        blame = self.owners.blame("prunekit_layer_types", found[1].value)
        return key_text(found[0]), found[1].value.opaque, blame

    def same_in_training(self, module: nn.Module) -> bool:
        """Tells whether a module's layer type says that its program ties the same axes in every mode.

        A subclass with a forward of its own is another program, about which the layer type says nothing.
        """
        found = self._layer_entry(module)
        return found is not None and found[1].value.same_in_training and type(module).forward is found[0].forward

    def _layer_entry(self, module: nn.Module) -> tuple[type[nn.Module], Entry] | None:
        table, contests = self._tables["prunekit_layer_types"], self._contests["prunekit_layer_types"]
        for cls in type(module).__mro__:
            name = key_text(cls)
            entry = table.get(cls) or table.get(name)
            if entry is not None:
                return cls, entry
            contest = contests and (contests.get(cls) or contests.get(name))
            if contest:
                raise contest.problem()
        return None

    def replacement(self, module: nn.Module) -> Replacement | None:
        """Returns the replacement for exactly this module's class, if one is registered.

        Raises:
            PluginError: Two plugins have one for this class.
        """
        found = self._sources.get(type(module))
        if isinstance(found, Contest):
            raise found.problem()
        return None if found is None else found.value


def _contested_rule(contest: Contest) -> OpRule:
    """Makes the rule of an operation that two plugins claim."""

    def contested(call: object) -> None:
        raise contest.problem()

    return OpRule(contested)


def _broken_owner(key: object, entry: Entry) -> PluginError:
    """Makes the error for whoever asks for what only a broken plugin would have brought."""
    found = entry.owner.problem()
    return PluginError(
        f"The plugin that brings {key_text(key)!r} is broken.",
        where=found.where,
        why=f"{found.headline} {found.why}".strip(),
        hint=found.hint,
    )


_DEFAULT: dict[str, Registry] = {}


def default_registry() -> Registry:
    """The registry of all installed plugins, made at the first call; it reads no configuration file."""
    # setdefault is atomic: threads that come first together make two, and all of them get the same one
    return _DEFAULT.get("default") or _DEFAULT.setdefault("default", Registry())
