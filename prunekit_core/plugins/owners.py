"""Who brought what: the plugin behind an object that is in use, for the errors that it causes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import CodeType
from typing import Any

from prunekit_core.errors import PluginError
from prunekit_core.plugins.blame import Blame, function_of, module_of
from prunekit_core.plugins.entries import Entry
from prunekit_core.plugins.plugin_settings import PARAMETER

NOUNS = {
    "prunekit_layer_types": "layer type",
    "prunekit_importance": "criterion",
    "prunekit_regularizers": "regularizer",
    "prunekit_schedules": "schedule",
    "prunekit_pruners": "pruner",
    "prunekit_budgets": "cost model",
    "prunekit_compensators": "compensator",
    "prunekit_replacements": "replacement",
    "prunekit_allocators": "allocator",
    "prunekit_weights": "form of weights",
    "prunekit_commands": "command",
    "prunekit_serving_profiles": "serving profile",
}
"""What each hook's values are called in messages. Rules of operations have `Registry.rule_origin`."""

BUILT_IN = "prunekit"

MADE = {noun: f"A {noun} can't be made." for noun in NOUNS.values()}
"""The headlines where what is registered raises when it is called for the object itself."""


class Owners:
    """The plugins behind registered objects, and behind what these make.

    An object is known by its identity; one that a registered class or function made, by its class or code.

    Args:
        tables: Hook to what is registered through it.
    """

    def __init__(self, tables: Mapping[str, Mapping[Any, Entry]]) -> None:
        self._known: dict[tuple[str, int], tuple[Any, Entry, object]] = {}
        self._own: set[str] = set()
        for hook in NOUNS:
            for key, entry in tables.get(hook, {}).items():
                self._note(hook, entry.value, key, entry)
                if callable(entry.value):
                    self._note(hook, _kind(entry.value), key, entry)
                    if entry.owner.rank == 0:
                        self._own.add(_package(entry.value))

    def _note(self, hook: str, identity: object, key: Any, entry: Entry) -> None:
        # holding the object keeps its number from being used again
        self._known.setdefault((hook, id(identity)), (key, entry, identity))

    def blame(self, hook: str, thing: object) -> Blame:
        """Tells whose a registered object is, or one that a registered class or function made.

        Args:
            hook: What it is used as.
            thing: The object; one that no plugin brought is its user's.
        """
        for identity in (thing, _kind(thing)):
            found = self._known.get((hook, id(identity)))
            if found is not None:
                return _blame(hook, found[0], found[1], thing)
        built_in = _package(thing) in self._own
        return Blame(f"{NOUNS[hook]} {_name(thing)}", thing, BUILT_IN if built_in else "", built_in)

    def make(self, hook: str, key: Any, entry: Entry, *args: Any, **kwargs: Any) -> Any:
        """Calls what is registered, and remembers whose the result is.

        Raises:
            PluginError: It raises.
        """
        blame = _blame(hook, key, entry, entry.value)
        try:
            with blame.blamed(MADE[NOUNS[hook]]):
                made = entry.value(*args, **kwargs)
        except PluginError as error:
            cause = error.__cause__
            hint = call_hint(NOUNS[hook], entry.value, args, kwargs) if isinstance(cause, TypeError) else ""
            if not hint:
                raise
            raise blame.error(error.headline, f"TypeError: {cause}", hint=hint) from cause
        kind = _kind(made)
        if getattr(kind, "__module__", "") != "builtins":
            self._note(hook, kind, key, entry)
        return made


def call_hint(noun: str, value: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> str:
    """Says how something is registered that can't be called with what it is called with; empty where it can be.

    Args:
        noun: What it should make.
        value: What is registered.
        args, kwargs: What it is called with.
    """
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # builtins may have none
        return ""
    try:
        signature.bind(*args, **(kwargs or {}))
    except TypeError:
        asked = signature.parameters.get(PARAMETER)
        if asked is not None and asked.default is inspect.Parameter.empty:
            return f"declare settings with prunekit_settings, and take them as a keyword-only argument: *, {PARAMETER}"
        if isinstance(value, type):
            return "give the arguments of its constructor defaults"
        return f"register the class, or a function that returns a {noun}"
    return ""


def _blame(hook: str, key: Any, entry: Entry, thing: object) -> Blame:
    owner = entry.owner
    return Blame(f"{NOUNS[hook]} {key!r}", thing, owner.name, owner.rank == 0, owner.leave_out)


def _kind(thing: object) -> object:
    """What identifies an object that was made: the code of a function, the class of anything else; a class itself."""
    found = function_of(thing)
    code = getattr(found, "__code__", None)
    if isinstance(code, CodeType):
        return code
    return found if isinstance(found, type) else type(found)


def _package(thing: object) -> str:
    return module_of(thing).partition(".")[0]


def _name(thing: object) -> str:
    found = function_of(thing)
    name = getattr(found, "__qualname__", None)
    return name if isinstance(name, str) else type(found).__name__
