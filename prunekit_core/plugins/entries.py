"""What plugins registered: entries with their owners, and whether they are what a hook asks for."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.errors import PluginError
from prunekit_core.plugins.layers import LayerType, Replacement
from prunekit_core.program.rules import OpRule

BLOCK_VARIABLE = "PRUNEKIT_BLOCK"
"""Environment variable: plugins to leave out of every registry of this run that loads installed plugins."""


@attrs.frozen
class Plugin:
    """A plugin as it was found.

    Attributes:
        name: ``"distribution:entry point"``, or what ``extra`` called it.
        distribution: The distribution that brought it; empty for an extra.
        version: Its version; empty for an extra.
        rank: Precedence: 0 built in, 1 third party, 2 given as an argument.
        error: Why it could not be loaded; empty when it was.
        blocked_by: What blocked it: ``"an argument"``, ``"PRUNEKIT_BLOCK"`` or a file; empty when it wasn't.
    """

    name: str
    distribution: str = ""
    version: str = ""
    rank: int = 1
    error: str = ""
    blocked_by: str = ""

    @property
    def blocked(self) -> bool:
        """Whether it was blocked."""
        return bool(self.blocked_by)


@attrs.frozen
class Entry:
    """One registered thing: its value, who owns it, and whose entry it overrides."""

    value: Any
    owner: Plugin
    overrides: tuple[str, ...] = ()


@attrs.frozen
class RuleOrigin:
    """Where the rule of an operation comes from.

    Attributes:
        key: The key that it was found under: a name with overload, a name, or a tag.
        owner: The plugin that brought it.
        site: File and line of the rule.
        overrides: Plugins whose rule for the same key it overrides.
    """

    key: str | torch.Tag
    owner: Plugin
    site: str
    overrides: tuple[str, ...]


def check_entry(hook: str, key: Any, value: Any, site: str) -> None:
    """Raises `PluginError` unless a hook's entry has the types that its specification says."""
    key_words, is_key = _KEYS.get(hook, _NAME)
    value_words, is_value = _VALUES.get(hook, ("something that can be called", callable))
    for what, words, holds in (("key", key_words, is_key(key)), ("value", value_words, is_value(value))):
        if not holds:
            wrong = repr(key) if what == "key" else f"{value!r} for {key!r}"
            raise PluginError(
                f"A plugin's {hook} returned a wrong {what}.",
                where=site,
                why=f"it must be {words}, and is {wrong}",
                hint=f"until it is corrected, block the plugin: {BLOCK_VARIABLE}={site.split(' ')[0]}",
            )
    if isinstance(value, Replacement) and value.name != key:
        raise PluginError(
            f"A plugin's {hook} returned a wrong key.", where=site, why=f"{key!r} names a Replacement {value.name!r}"
        )


def _is_module_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, nn.Module)


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
}


_VALUES: dict[str, tuple[str, Any]] = {
    "prunekit_op_rules": ("an OpRule or a function", lambda value: isinstance(value, OpRule) or callable(value)),
    "prunekit_layer_types": ("a LayerType", lambda value: isinstance(value, LayerType)),
    "prunekit_pruners": ("a class", lambda value: isinstance(value, type)),
    "prunekit_replacements": ("a Replacement", lambda value: isinstance(value, Replacement)),
}
