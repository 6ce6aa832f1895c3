"""What the settings of a project name, looked up and made: criteria, pruners, regularizers, arguments of ``prune``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from prunekit_core.errors import ArgumentError, PluginError, nearest
from prunekit_core.projects.config import Config, names_in


class Source(Protocol):
    """Where what settings name is found: a registry."""

    def named(self, hook: str, name: str) -> Any:
        """Returns what is registered, or the code that is named; raises `ArgumentError` where there is none."""

    def allocator(self, name: str) -> Any:
        """Returns an allocator; None for a name that stands for none."""

    def make(self, hook: str, name: str, *args: Any, **kwargs: Any) -> Any:
        """Calls it; raises `PluginError` where it raises."""


Stated = str | Mapping[str, Any]
"""A name, or a table with a ``name`` and arguments."""
HOOKS_OF = {
    "branch_importance": "prunekit_importance",
    "expert_importance": "prunekit_importance",
    "compensation": "prunekit_compensators",
    "allocation": "prunekit_allocators",
    "iterative_pruning_ratio_scheduler": "prunekit_schedules",
}
"""Settings that hold names alone, with the hooks that the names are registered through."""
MADE = {"criterion": "prunekit_importance", "pruner": "prunekit_pruners", "regularizer": "prunekit_regularizers"}
"""What is made of a name and arguments, with the hooks."""
OF_PRUNE = ("allocation", "compensation", "reestimate_batchnorm", "stages", "serve")
"""Arguments of ``prune`` that pruners don't take."""


def check_config(config: Config, source: Source, *, lenient: bool) -> None:
    """Raises `ArgumentError` unless everything that settings name is registered, or is code that can be loaded.

    Args:
        config: The settings.
        source: Where what they name is found.
        lenient: Whether a plugin is broken, which may be the one that brings what is missing: whoever uses the setting
            is told then, and everything else still works.
    """
    names = [("prunekit_budgets", name) for name in config.options.get("target", ())]
    names += [(hook, name) for key, hook in HOOKS_OF.items() for name in names_in(config.option(key))]
    checks: list[Callable[[], Any]] = [functools.partial(_found, source, hook, name) for hook, name in names]
    stated = {"criterion": _criterion_of(config), **{n: config.option(n) for n in ("pruner", "regularizer")}}
    checks += [functools.partial(_checked, n, value, source, _where(config)) for n, value in stated.items() if value]
    for check in checks:
        try:
            check()
        except PluginError:
            continue
        except ArgumentError as error:
            if lenient:
                continue
            error.where = error.where or _where(config)
            raise


def options_of(config: Config, source: Source, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as arguments of ``prune``; see `Registry.options`."""
    found, own = config.under(given), _criterion_of(config)
    if isinstance(found.get("importance"), Mapping):
        found["importance"] = _criterion(found["importance"], source, "")
    for name in ("branch_importance", "expert_importance"):
        if isinstance(found.get(name), Mapping):
            found[name] = _criterion(found[name], source, _where(config))
    if own and "importance" not in found:
        found["importance"] = _criterion(own, source, _where(config))
    return found


def pruner_of(config: Config, source: Source, model: Any, example_inputs: Any, given: Mapping[str, Any]) -> Any:
    """Makes the pruner that is set; see `Registry.pruner`."""
    steps = {name: value for name, value in config.stepwise.items() if name.startswith("iterative_")}
    options = {**steps, **options_of(config, source, {n: v for n, v in given.items() if n != "pruner"})}
    if "target" in options and options.get("by") != "depth":
        raise ArgumentError(
            "A pruner takes a ratio, not a target.",
            where=_where(config),
            why=f"the target is {options['target']!r}",
            hint='give a ratio, which takes its place, or call prune; by="depth" branches meet it in steps',
        )
    stated = given.get("pruner") or config.option("pruner") or "base"
    name, arguments = _checked("pruner", stated, source, _where(config))
    options = {name: value for name, value in options.items() if name not in OF_PRUNE or name in given}
    if "ratio" in options:
        options["pruning_ratio"] = options.pop("ratio")
    return source.make(MADE["pruner"], name, model, example_inputs, **{**options, **arguments, "registry": source})


def regularizer_of(
    config: Config, source: Source, groups: Callable[[], Iterable[Any]], given: Mapping[str, Any]
) -> Any:
    """Makes the regularizer that is set; see `Registry.regularizer`."""
    stated = config.option("regularizer")
    if stated is None:
        hint = 'for example regularizer = "group_lasso"'
        raise ArgumentError("No regularizer is set.", where=_where(config), hint=hint)
    name, arguments = _parts(stated)
    name, arguments = _checked("regularizer", {"name": name, **arguments, **given}, source, _where(config))
    return source.make(MADE["regularizer"], name, groups, **arguments)


def _where(config: Config) -> str:
    return str(config.path or "")


def _criterion_of(config: Config) -> Mapping[str, Any] | None:
    return {"name": config.importance, **config.importance_arguments} if config.importance else None


def _parts(stated: Stated) -> tuple[str, dict[str, Any]]:
    arguments = {"name": stated} if isinstance(stated, str) else dict(stated)
    return arguments.pop("name"), arguments


def _found(source: Source, hook: str, name: str) -> Any:
    return source.allocator(name) if hook == "prunekit_allocators" else source.named(hook, name)


def _checked(noun: str, stated: Stated, source: Source, where: str) -> tuple[str, dict[str, Any]]:
    """Returns the name of what makes a thing, which there is, and the stated arguments, all of which it takes."""
    name, arguments = _parts(stated)
    make = source.named(MADE[noun], name)
    try:
        known = inspect.signature(make).parameters
    except (TypeError, ValueError):  # builtins may have none; making it will tell
        return name, arguments
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        for argument in arguments:
            if argument not in known:
                headline = f"The {noun} {name!r} has no argument {argument!r}."
                raise ArgumentError(headline, where=where, hint=nearest(argument, known))
    return name, arguments


def _criterion(stated: Stated, source: Source, where: str) -> Any:
    """Makes a criterion with the arguments that are stated; without any its name will do."""
    name, arguments = _checked("criterion", stated, source, where)
    try:
        return source.make(MADE["criterion"], name, **arguments) if arguments else name
    except (ArgumentError, PluginError) as error:
        refused = error if isinstance(error, ArgumentError) else error.__cause__
        if not isinstance(refused, TypeError | ValueError):
            raise
        headline = f"The criterion {name!r} can't be made with these arguments."
        raise ArgumentError(headline, where=where, why=" ".join(str(refused).split())) from refused
