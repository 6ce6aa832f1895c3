"""What the settings of a project name, looked up and made: criteria, pruners, regularizers, arguments of ``prune``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prunekit_core.errors import ArgumentError, PluginError, nearest
from prunekit_core.plugins.config import Config, names_in

Find = Callable[[str, str], Any]
"""Hook and name to what is registered, or to the code that is named; it raises `ArgumentError` where there is none."""
Stated = str | Mapping[str, Any]
"""A name, or a table with a ``name`` and arguments."""
HOOKS_OF = {
    "compensation": "prunekit_compensators",
    "allocation": "prunekit_allocators",
    "iterative_pruning_ratio_scheduler": "prunekit_schedules",
}
"""Settings that hold names alone, with the hooks that the names are registered through."""
MADE = {"criterion": "prunekit_importance", "pruner": "prunekit_pruners", "regularizer": "prunekit_regularizers"}
"""What is made of a name and arguments, with the hooks."""
OF_PRUNE = ("target", "allocation", "compensation", "reestimate_batchnorm", "stages")
"""Arguments of ``prune`` that pruners don't take."""


def check_config(config: Config, find: Find, *, lenient: bool) -> None:
    """Raises `ArgumentError` unless everything that settings name is registered, or is code that can be loaded.

    Args:
        config: The settings.
        find: Finds what is registered.
        lenient: Whether a plugin is broken, which may be the one that brings what is missing: whoever uses the setting
            is told then, and everything else still works.
    """
    names = [("prunekit_budgets", name) for name in config.options.get("target", ())]
    names += [(hook, name) for key, hook in HOOKS_OF.items() for name in names_in(config.option(key))]
    checks: list[Callable[[], Any]] = [functools.partial(find, hook, name) for hook, name in names]
    stated = {"criterion": _criterion_of(config), **{n: config.option(n) for n in ("pruner", "regularizer")}}
    checks += [functools.partial(_maker, n, value, find, str(config.path)) for n, value in stated.items() if value]
    for check in checks:
        try:
            check()
        except PluginError:
            continue
        except ArgumentError as error:
            if lenient:
                continue
            error.where = error.where or str(config.path)
            raise


def options_of(config: Config, find: Find, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as arguments of ``prune``; see `Registry.options`."""
    found, own = config.under(given), _criterion_of(config)
    if isinstance(found.get("importance"), Mapping):
        found["importance"] = _criterion(found["importance"], find, "")
    elif own and "importance" not in found:
        found["importance"] = _criterion(own, find, str(config.path))
    return found


def pruner_of(
    config: Config, find: Find, model: Any, example_inputs: Any, given: Mapping[str, Any], registry: Any
) -> Any:
    """Makes the pruner that is set; see `Registry.pruner`."""
    steps = {name: value for name, value in config.stepwise.items() if name.startswith("iterative_")}
    options = {**steps, **options_of(config, find, {n: v for n, v in given.items() if n != "pruner"})}
    if "target" in options:
        raise ArgumentError(
            "A pruner takes a ratio, not a target.",
            where=_where(config),
            why=f"the target is {options['target']!r}",
            hint="give a ratio, which takes its place, or call prune",
        )
    make, arguments = _maker("pruner", given.get("pruner") or config.option("pruner") or "base", find, _where(config))
    options = {name: value for name, value in options.items() if name not in OF_PRUNE}
    if "ratio" in options:
        options["pruning_ratio"] = options.pop("ratio")
    return make(model, example_inputs, **{**options, **arguments, "registry": registry})


def regularizer_of(config: Config, find: Find, groups: Callable[[], Iterable[Any]], given: Mapping[str, Any]) -> Any:
    """Makes the regularizer that is set; see `Registry.regularizer`."""
    stated = config.option("regularizer")
    if stated is None:
        hint = 'for example regularizer = "group_lasso"'
        raise ArgumentError("No regularizer is set.", where=_where(config), hint=hint)
    name, arguments = _parts(stated)
    make, arguments = _maker("regularizer", {"name": name, **arguments, **given}, find, _where(config))
    return make(groups, **arguments)


def _where(config: Config) -> str:
    return str(config.path or "")


def _criterion_of(config: Config) -> Mapping[str, Any] | None:
    return {"name": config.importance, **config.importance_arguments} if config.importance else None


def _parts(stated: Stated) -> tuple[str, dict[str, Any]]:
    arguments = {"name": stated} if isinstance(stated, str) else dict(stated)
    return arguments.pop("name"), arguments


def _maker(noun: str, stated: Stated, find: Find, where: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Looks up what makes a thing; returns it with the stated arguments, all of which it takes."""
    name, arguments = _parts(stated)
    make = find(MADE[noun], name)
    try:
        known = inspect.signature(make).parameters
    except (TypeError, ValueError):  # builtins may have none; making it will tell
        return make, arguments
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        for argument in arguments:
            if argument not in known:
                headline = f"The {noun} {name!r} has no argument {argument!r}."
                raise ArgumentError(headline, where=where, hint=nearest(argument, known))
    return make, arguments


def _criterion(stated: Stated, find: Find, where: str) -> Any:
    """Makes a criterion with the arguments that are stated; without any its name will do."""
    make, arguments = _maker("criterion", stated, find, where)
    name = _parts(stated)[0]
    try:
        return make(**arguments) if arguments else name
    except (TypeError, ValueError) as error:
        headline = f"The criterion {name!r} can't be made with these arguments."
        raise ArgumentError(headline, where=where, why=" ".join(str(error).split())) from error
