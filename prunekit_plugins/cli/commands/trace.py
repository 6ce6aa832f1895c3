"""``prunekit prune --trace``: which plugin brought what decided about a cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from prunekit import PruneResult
from prunekit.plugin import Registry
from prunekit_plugins.cli.output import Output, Table
from prunekit_plugins.cli.rules import rule_uses

SHOWN = 4
SHOWN_COST = "cost model"


@attrs.frozen
class Decision:
    """Things of one kind from one plugin that a cut was made with.

    Attributes:
        what: The kind: ``"criterion"``.
        names: Their names.
        plugin: The plugin that brought them; the file or module of code that a name stands for.
        version: Its version; empty for code.
    """

    what: str
    names: tuple[str, ...]
    plugin: str
    version: str


def decisions(result: PruneResult, registry: Registry, criteria: Mapping[str, str] | None = None) -> list[Decision]:
    """Lists what a cut was made with, by kind and plugin; objects that no plugin registered aren't listed.

    Args:
        result: What was pruned.
        registry: The registry that it was pruned with.
        criteria: ``importance``, ``branch_importance`` and ``expert_importance`` to the names of criteria that were
            made with arguments.
    """
    found: dict[tuple[str, str], dict[str, None]] = {}
    for what, name, plugin in _used(result, registry, criteria or {}):
        found.setdefault((what, plugin), {})[name] = None
    versions = {plugin.name: plugin.version for plugin in registry.plugins()}
    return [Decision(what, tuple(names), plugin, versions.get(plugin, "")) for (what, plugin), names in found.items()]


def distributions(found: Iterable[Decision], registry: Registry) -> list[str]:
    """Lists the distributions whose plugins decided; cost models that are shown don't."""
    deciding = {decision.plugin for decision in found if decision.what != SHOWN_COST}
    return sorted({p.distribution for p in registry.plugins() if p.name in deciding and p.distribution})


def criteria_of(registry: Registry, stated: Mapping[str, Any]) -> dict[str, str]:
    """Returns the names of the criteria that are typed or set, by the names of these settings.

    Args:
        registry: The registry with the settings.
        stated: What was typed: tables with a ``name``; None where the settings decide.
    """
    config = registry.config
    found = {
        "importance": stated.get("importance") or config.importance,
        "branch_importance": stated.get("branch_importance") or config.option("branch_importance"),
        "expert_importance": stated.get("expert_importance") or config.option("expert_importance"),
    }
    return {key: value["name"] if isinstance(value, Mapping) else value for key, value in found.items() if value}


def _used(result: PruneResult, registry: Registry, criteria: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    arguments = {**result.protocol.arguments, **criteria}
    target = arguments.get("target")
    named: list[tuple[str, str, Any]] = [
        ("criterion", "prunekit_importance", arguments.get("importance")),
        ("branch criterion", "prunekit_importance", arguments.get("branch_importance")),
        ("expert criterion", "prunekit_importance", arguments.get("expert_importance")),
        ("allocator", "prunekit_allocators", arguments.get("allocation")),
        *(("target", "prunekit_budgets", name) for name in (target if isinstance(target, Mapping) else ())),
        *(("compensator", "prunekit_compensators", name) for name in _methods(result)),
        *(("replacement", "prunekit_replacements", swap.replacement) for swap in result.plan.swaps),
        *((SHOWN_COST, "prunekit_budgets", name) for name in result.preview.costs),
    ]
    for what, hook, name in named:
        owner = _owner(registry, hook, name)
        if owner:
            yield what, name, owner
    for module in result.graph.model.modules():
        owner_name = registry.layer_owner(module)
        if owner_name:
            yield "layer type", type(module).__name__, owner_name
    for use in rule_uses(result.graph.analysis, registry):
        if use.plugin:
            yield "rule", use.operation, use.plugin


def _methods(result: PruneResult) -> list[str]:
    return [] if result.compensation is None else [repair.method for repair in result.compensation.layers]


def _owner(registry: Registry, hook: str, name: object) -> str:
    """Returns the plugin behind a name, or the file or module in a name for code; empty for anything else."""
    if not isinstance(name, str):
        return ""
    entry = registry.entries(hook).get(name)
    return name.rpartition(":")[0] if entry is None else entry.owner.name


def show_trace(output: Output, found: list[Decision]) -> None:
    """Shows the decisions as a table."""
    rows = [
        (d.what, d.plugin, d.version or "-", str(len(d.names)), ", ".join(d.names[:SHOWN]) + _more(d)) for d in found
    ]
    output.table(Table("decided by", ("what", "plugin", "version", ">count", "names"), rows))


def _more(decision: Decision) -> str:
    hidden = len(decision.names) - SHOWN
    return f" and {hidden} more" if hidden > 0 else ""


def trace_data(found: list[Decision]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [{"what": d.what, "names": list(d.names), "plugin": d.plugin, "version": d.version or None} for d in found]
