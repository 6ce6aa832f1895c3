"""``prunekit plugins``: everything registered, from where, and what is blocked or broken."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from prunekit.plugin import HOOKS, ArgumentError, Entry, LayerType, Plugin, Registry
from prunekit_plugins.cli import options
from prunekit_plugins.cli.commands.checks import check as check_plugins
from prunekit_plugins.cli.output import Output, Table
from prunekit_plugins.cli.project import registry_and_fault

SHOWN = 12


def plugins(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="With --check: a distribution, a plugin or an entry point.", show_default=False
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check what a plugin registers; without NAME, all but the built-in ones.")
    ] = False,
    block: options.Block = None,
    config: options.Config = None,
    plugin: options.Plugins = None,
    everything: options.All = False,
    as_json: options.Json = False,
) -> None:
    """Show everything registered, from which distribution, what overrides what, what is blocked or broken."""
    if name is not None and not check:
        raise ArgumentError("A NAME goes with --check.", why=f"got {name!r}")
    registry, fault = registry_and_fault(block, config, plugin)
    output = Output(as_json)
    if check and fault is None:
        check_plugins(registry, output, name)
    elif not check:
        show(registry, output, everything)
    if fault is not None:  # as long as it is there, only what works without the project's settings does
        output.line("this is without the settings of the project, which are wrong", good=False)
        raise fault


def show(registry: Registry, output: Output, everything: bool = False) -> None:
    """Shows what a registry holds.

    Args:
        registry: The registry.
        output: Where it goes.
        everything: List every name of a hook with very many.
    """
    found = registry.plugins()
    rows = [(p.name, p.version or "-", state(p)) for p in found]
    output.table(Table(f"plugins: {len(found)}", ("plugin", "version", "state"), rows))
    for name, by in registry.unused_blocks().items():
        output.line(f"{by} blocks {name}, which isn't installed", good=False)
    for problem in (p.problem() for p in found if p.error):
        output.line(f"broken, so nothing of it is used: {problem}", good=False)
    for hook in HOOKS:
        for contest in registry.contests(hook).values():
            output.line(f"nobody gets this: {contest.problem()}", good=False)
    for note in registry.notes():
        output.line(f"note: {note}", good=False)
    lines = [line for hook in HOOKS for line in _hook_lines(hook, registry, everything)]
    output.table(Table("registered", ("hook", "plugin", ">count", "names"), lines))
    overrides = [
        (hook, key_name(key), entry.owner.name, ", ".join(entry.overrides))
        for hook in HOOKS
        for key, entry in registry.entries(hook).items()
        if entry.overrides
    ]
    if overrides:
        output.table(Table("overridden", ("hook", "name", "by", "whose"), overrides))
    output.result(_data(registry))


def state(plugin: Plugin) -> str:
    """Words what became of a plugin."""
    if plugin.blocked:
        return f"blocked by {plugin.blocked_by}"
    return "broken" if plugin.error else "loaded"


def key_name(key: Any) -> str:
    """Writes the key of an entry: a name, an operation, a tag, or a class."""
    if isinstance(key, type):
        return f"{key.__module__}.{key.__qualname__}"
    return str(key)


def is_opaque(entry: Entry) -> bool:
    """Tells whether an entry is the layer type of modules that a recording doesn't look into."""
    return isinstance(entry.value, LayerType) and entry.value.opaque is not None


def _hook_lines(hook: str, registry: Registry, everything: bool) -> list[tuple[str, ...]]:
    owners: dict[str, list[str]] = {}
    for key, entry in registry.entries(hook).items():
        owners.setdefault(entry.owner.name, []).append(key_name(key) + (" (opaque)" if is_opaque(entry) else ""))
    if not owners:
        return [(hook, "-", "0", "")]
    lines: list[tuple[str, ...]] = []
    for owner, names in owners.items():
        shown = names if everything or len(names) <= SHOWN else [*names[:3], f"and {len(names) - 3} more (--all)"]
        lines.append((hook, owner, str(len(names)), ", ".join(shown)))
    return lines


def _entries(hook: str, registry: Registry) -> list[dict[str, Any]]:
    return [
        {
            "name": key_name(key),
            "plugin": entry.owner.name,
            "distribution": entry.owner.distribution,
            "version": entry.owner.version,
            "overrides": list(entry.overrides),
            **({"opaque": True} if is_opaque(entry) else {}),
        }
        for key, entry in registry.entries(hook).items()
    ]


def _data(registry: Registry) -> dict[str, Any]:
    return {
        "plugins": [
            {
                "name": p.name,
                "distribution": p.distribution,
                "version": p.version,
                "state": "blocked" if p.blocked else "broken" if p.error else "loaded",
                "blocked_by": p.blocked_by or None,
                "error": p.error or None,
                "notes": list(p.notes),
            }
            for p in registry.plugins()
        ],
        "unused_blocks": dict(registry.unused_blocks()),
        "notes": registry.notes(),
        "contested": [
            {"hook": hook, "name": key_name(key), "plugins": [rival.owner.name for rival in contest.rivals]}
            for hook in HOOKS
            for key, contest in registry.contests(hook).items()
        ],
        "config": None if registry.config.path is None else str(registry.config.path),
        "hooks": {hook: _entries(hook, registry) for hook in HOOKS},
    }
