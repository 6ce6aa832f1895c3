"""What plugins registered: entries with their owners, what is wrong with a plugin, and keys that two plugins claim."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.errors import PluginError
from prunekit_core.plugins.layers import LayerType, Replacement
from prunekit_core.program.rules import OpRule

BLOCK_VARIABLE = "PRUNEKIT_BLOCK"
"""Environment variable: plugins to leave out of every registry of this run that loads installed plugins."""
NO_PLUGINS_VARIABLE = "PRUNEKIT_NO_PLUGINS"
"""Environment variable: with any value but ``0`` no third-party plugin is loaded in this run."""

BUILT_IN_RANK, THIRD_PARTY_RANK, GIVEN_RANK = 0, 1, 2
"""Ranks: of the same key, the plugin of the higher rank wins."""


@attrs.frozen
class Defect:
    """What is wrong with a plugin, as it was found when the plugin was loaded.

    Attributes:
        headline: One sentence that says what went wrong.
        site: File and line.
        why: The cause.
        hint: What to do, beyond leaving the plugin out.
    """

    headline: str
    site: str
    why: str
    hint: str = ""


@attrs.frozen
class Plugin:
    """A plugin as it was found.

    Attributes:
        name: ``"distribution:entry point"``, or what ``extra`` called it.
        distribution: The distribution that brought it; empty for an extra.
        version: Its version; empty for an extra.
        rank: Precedence: 0 built in, 1 third party, 2 given as an argument.
        defect: What is wrong with it; None where nothing is. Nothing of a plugin with a defect is used.
        blocked_by: What blocked it: ``"an argument"``, ``"PRUNEKIT_BLOCK"``, ``"PRUNEKIT_NO_PLUGINS"`` or a file; empty
            when it wasn't.
        notes: What was ignored, or is going to be removed in a later release.
        named: Whether it isn't installed, but a module or file that settings or an argument name.
    """

    name: str
    distribution: str = ""
    version: str = ""
    rank: int = THIRD_PARTY_RANK
    defect: Defect | None = None
    blocked_by: str = ""
    notes: tuple[str, ...] = ()
    named: bool = False

    @property
    def leave_out(self) -> str:
        """How it is left out: ``"PRUNEKIT_BLOCK=..."``; empty for a built-in one, and for an object that was given."""
        return f"{BLOCK_VARIABLE}={self.name}" if self.named or self.rank == THIRD_PARTY_RANK else ""

    @property
    def blocked(self) -> bool:
        """Whether it was blocked."""
        return bool(self.blocked_by)

    @property
    def title(self) -> str:
        """Its name with its version: ``"some_distribution:some_plugin 1.2"``."""
        return f"{self.name} {self.version}".strip()

    @property
    def error(self) -> str:
        """Its defect in one line, with name, version, file and line, and what to do; empty where there is none."""
        if self.defect is None:
            return ""
        error = self.problem()
        return f"{error.headline} {error.why} [{error.where}] {error.hint}"

    def problem(self) -> PluginError:
        """Makes the error that says what is wrong with the plugin, which has a defect."""
        assert self.defect is not None
        found = self.defect
        out = f"correct it, or leave the plugin out: {self.leave_out}" if self.leave_out else ""
        return PluginError(
            found.headline,
            where=f"{self.title} ({found.site})",
            why=found.why,
            hint="; ".join(filter(None, (found.hint, out))) or "correct it",
        )


@attrs.frozen
class Entry:
    """One registered thing.

    Attributes:
        value: The thing.
        owner: The plugin that registered it.
        overrides: Names of the plugins whose entry for the same key it overrides.
        site: File and line of the hook that returned it.
    """

    value: Any
    owner: Plugin
    overrides: tuple[str, ...] = ()
    site: str = ""


@attrs.frozen
class Claim:
    """An entry under the hook and the key for which its plugin registered it."""

    hook: str
    key: Any
    entry: Entry


@attrs.frozen
class Contest:
    """A key that several plugins of one rank claim; none of them gets it.

    Attributes:
        hook: The hook.
        key: The key.
        rivals: Their entries, in the order of the plugins' names.
    """

    hook: str
    key: Any
    rivals: tuple[Entry, ...]

    def problem(self) -> PluginError:
        """Makes the error for whoever asks for the key."""
        sites = " and ".join(f"{rival.owner.title} ({rival.site})" for rival in self.rivals)
        ways = [rival.owner.leave_out for rival in self.rivals if rival.owner.leave_out]
        example = f", such as {ways[-1]}" if ways else ""
        return PluginError(
            f"Two plugins claim the same key {key_text(self.key)!r}.",
            where=f"{self.hook}: {sites}",
            hint=f"block one of them{example}",
        )


@attrs.frozen
class RuleOrigin:
    """Where the rule of an operation comes from.

    Attributes:
        key: The key that it was found under: a name with overload, a name, or a tag.
        owner: The plugin that brought it.
        site: File and line of the rule.
        overrides: Plugins whose rule for the operation it overrides, by the same key or by another name of it.
    """

    key: str | torch.Tag
    owner: Plugin
    site: str
    overrides: tuple[str, ...]


def key_text(key: object) -> str:
    """Writes the key of an entry: the dotted name of a class, anything else as it is."""
    return f"{key.__module__}.{key.__qualname__}" if isinstance(key, type) else str(key)


def normal_name(name: str) -> str:
    """Writes the name of a distribution, or of a plugin, as PEP 503 compares them: ``My_Plugin`` is ``my-plugin``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def entry_defects(hook: str, entries: Mapping[Any, Any], site: str) -> list[Defect]:
    """Finds what of a hook's entries has other types than its specification says.

    Args:
        hook: The hook that returned them.
        entries: What it returned.
        site: File and line of the hook.
    """
    key_words, is_key = _KEYS.get(hook, _NAME)
    value_words, is_value = _VALUES.get(hook, ("something that can be called", callable))
    found = []
    for key, value in entries.items():
        if not is_key(key):
            why = f"it must be {key_words}, and is {key!r}"
            found.append(Defect(f"A plugin's {hook} returned a wrong key.", site, why))
        elif not is_value(value):
            why = f"it must be {value_words}, and is {value!r} for {key!r}"
            found.append(Defect(f"A plugin's {hook} returned a wrong value.", site, why))
        elif isinstance(value, Replacement) and value.name != key:
            why = f"{key!r} names a Replacement {value.name!r}"
            found.append(Defect(f"A plugin's {hook} returned a wrong key.", site, why))
    return found


def _is_module_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, nn.Module)


def _is_replacement(value: object) -> bool:
    return isinstance(value, Replacement) and _is_module_class(value.source) and callable(value.convert)


def _is_settings(value: object) -> bool:
    if not isinstance(value, type) or not (attrs.has(value) or dataclasses.is_dataclass(value)):
        return False
    return all(p.default is not p.empty for p in inspect.signature(value).parameters.values())


_NAME: tuple[str, Any] = ("a name", lambda key: isinstance(key, str) and bool(key))


_KEYS: dict[str, tuple[str, Any]] = {
    "prunekit_op_rules": (
        'a qualified name such as "aten::add", or a torch.Tag',
        lambda key: isinstance(key, torch.Tag) or (isinstance(key, str) and "::" in key),
    ),
    "prunekit_layer_types": (
        "a module class or its dotted name",
        lambda key: _is_module_class(key) or (isinstance(key, str) and "." in key),
    ),
    "prunekit_checks": (
        'a hook and a key of it, such as ("prunekit_importance", "magnitude")',
        lambda key: isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str),
    ),
}


_VALUES: dict[str, tuple[str, Any]] = {
    "prunekit_op_rules": ("an OpRule or a function", lambda value: isinstance(value, OpRule) or callable(value)),
    "prunekit_layer_types": ("a LayerType", lambda value: isinstance(value, LayerType)),
    "prunekit_pruners": ("a class", lambda value: isinstance(value, type)),
    "prunekit_replacements": (
        "a Replacement of a module class by what a function makes of a module",
        _is_replacement,
    ),
    "prunekit_settings": ("an attrs class or a dataclass whose fields all have defaults", _is_settings),
}
