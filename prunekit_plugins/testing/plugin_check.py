"""Proving a plugin: every check of the kit on everything that it registers."""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import attrs

from prunekit_core.errors import ArgumentError, PrunekitError, nearest
from prunekit_core.plugins.blame import site_of
from prunekit_core.plugins.entries import Entry, Plugin, key_text, normal_name
from prunekit_core.plugins.hookspecs import HOOKS
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_plugins.testing.allocator_check import check_allocator
from prunekit_plugins.testing.command_check import check_command
from prunekit_plugins.testing.compensator_check import check_compensator
from prunekit_plugins.testing.cost_check import check_cost
from prunekit_plugins.testing.criterion_check import check_criterion
from prunekit_plugins.testing.failure import UnseenError, failing
from prunekit_plugins.testing.pruner_check import check_pruner
from prunekit_plugins.testing.regularizer_check import check_regularizer
from prunekit_plugins.testing.schedule_check import check_schedule
from prunekit_plugins.testing.serving_check import check_serving_profile

CHECKS = "prunekit_checks"
DECLARE = 'say how it is checked: prunekit_checks() returns {("%s", ...): function of a registry}'

PLACE = re.compile(r"\.py:\d+")

Check = Callable[[Any, Registry], Any]
BY_HOOK: Mapping[str, Check] = {
    "prunekit_importance": lambda value, registry: check_criterion(value, registry=registry),
    "prunekit_regularizers": lambda value, registry: check_regularizer(value, registry=registry),
    "prunekit_schedules": lambda value, registry: check_schedule(value),
    "prunekit_pruners": lambda value, registry: check_pruner(value, registry=registry),
    "prunekit_budgets": lambda value, registry: check_cost(value, registry=registry),
    "prunekit_compensators": lambda value, registry: check_compensator(value, registry=registry),
    "prunekit_allocators": lambda value, registry: check_allocator(value),
    "prunekit_commands": lambda value, registry: check_command(value, registry=registry),
    "prunekit_serving_profiles": lambda value, registry: check_serving_profile(value, registry=registry),
    "prunekit_settings": lambda value, registry: _check_defaults(value),
}
"""What is checked as it is. What isn't listed needs a layer, tensors or a file to be tried on."""


class Outcome(enum.Enum):
    """What became of a check."""

    PASSED = "passed"
    FAILED = "failed"
    LEFT = "not checked"


@attrs.frozen
class Checked:
    """One thing that a plugin registers, and what its check says.

    Attributes:
        plugin: Name of the plugin.
        hook: The hook that it is registered through.
        name: Its key, in words.
        outcome: Whether it passed, failed, or couldn't be checked.
        why: What the check says; empty where it passed.
    """

    plugin: str
    hook: str
    name: str
    outcome: Outcome
    why: str = ""


def check_plugin(name: str, *, registry: Registry | None = None) -> tuple[Checked, ...]:
    """Proves everything that a plugin registers, with the checks of the kit and those that it declares itself.

    Args:
        name: A distribution, which may have several plugins, a plugin (``"distribution:entry point"``), an entry
            point, or the name under which a registry was given one.
        registry: Where it is found; None for the default registry.

    Returns:
        What was checked, and what couldn't be.

    Raises:
        ArgumentError: There is no such plugin.
        AssertionError: A check failed, or the plugin is broken; all failures are listed.
    """
    found = tuple(examine(name, registry or default_registry()))
    failures = [f"{one.hook} {one.name}: {one.why}" for one in found if one.outcome is Outcome.FAILED]
    if failures:  # no assert statement, which pytest would add the whole expression to
        raise AssertionError("\n".join(failures))
    return found


def examine(name: str, registry: Registry) -> Iterator[Checked]:
    """Checks everything that a plugin registers, one thing after the other; see `check_plugin`.

    Yields:
        What became of each thing, when it is known.

    Raises:
        ArgumentError: There is no such plugin.
    """
    plugins = _plugins(name, registry)
    for plugin in plugins.values():
        if plugin.error or plugin.blocked:
            why = plugin.error or f"it is blocked by {plugin.blocked_by}"
            yield Checked(plugin.name, "", plugin.name, Outcome.FAILED if plugin.error else Outcome.LEFT, why)
    yield from _contested(plugins, registry)
    own = {_place(*key): entry for key, entry in registry.entries(CHECKS).items()}
    for hook in (hook for hook in HOOKS if hook != CHECKS):
        for key, entry in registry.entries(hook).items():
            declared = own.pop(_place(hook, key), None)
            if entry.owner.name in plugins:
                yield _checked(hook, key, entry, declared, registry)
    contested = {_place(hook, key) for hook in HOOKS for key in registry.contests(hook)}
    for (hook, key), entry in own.items():
        if entry.owner.name in plugins and (hook, key) not in contested:
            yield Checked(entry.owner.name, CHECKS, f"{hook} {key}", Outcome.FAILED, "nothing is registered there")


def _contested(plugins: Collection[str], registry: Registry) -> Iterator[Checked]:
    """Finds the keys of plugins that others claim, too: nobody gets them."""
    for hook in HOOKS:
        for key, contest in registry.contests(hook).items():
            for name in dict.fromkeys(rival.owner.name for rival in contest.rivals):
                if name in plugins:
                    yield Checked(name, hook, key_text(key), Outcome.FAILED, _line(contest.problem()))


def _plugins(name: str, registry: Registry) -> dict[str, Plugin]:
    """Finds the plugins that a name stands for."""
    wanted, found = normal_name(name), {}
    for plugin in registry.plugins():
        point = plugin.name.partition(":")[2]
        if wanted in {normal_name(known) for known in (plugin.name, plugin.distribution, point) if known}:
            found[plugin.name] = plugin
    if not found:
        known = {text for plugin in registry.plugins() for text in (plugin.name, plugin.distribution) if text}
        raise ArgumentError(f"There is no plugin {name!r}.", hint=nearest(name, sorted(known)))
    return found


def _check_defaults(kind: Callable[[], object]) -> None:
    """Proves a class of settings: its defaults are settings that it takes."""
    with failing("the class, called without arguments", kind):
        kind()


def _place(hook: str, key: Any) -> tuple[str, str]:
    return hook, key_text(key)


def _checked(hook: str, key: Any, entry: Entry, declared: Entry | None, registry: Registry) -> Checked:
    report = functools.partial(Checked, entry.owner.name, hook, key_text(key))
    check = BY_HOOK.get(hook)
    try:
        if declared is not None:
            with failing("the check that the plugin declares", declared.value):
                declared.value(registry)
        elif check is None:
            return report(Outcome.LEFT, DECLARE % hook)
        else:
            check(entry.value, registry)
    except UnseenError as error:
        return report(Outcome.LEFT, f"{error}; {DECLARE % hook}")
    except ArgumentError as error:  # as a criterion's that must be prepared first
        outcome = Outcome.LEFT if declared is None else Outcome.FAILED
        return report(outcome, f"{_line(error)}; {DECLARE % hook}" if declared is None else _line(error))
    except (AssertionError, PrunekitError) as error:
        return report(Outcome.FAILED, _placed(_line(error), entry.value))
    return report(Outcome.PASSED)


def _placed(why: str, value: object) -> str:
    """Adds file and line of what failed, unless there is a place in the text already."""
    site = site_of(value)
    return why if PLACE.search(why) or not PLACE.search(site) else f"{why} ({site})"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
