"""Which rule was used for which operation of a model, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from prunekit.plugin import Analysis, Operation, Registry
from prunekit_plugins.cli.output import Output, Table

COLUMNS = ("operation", ">times", "rule for", "of", "in")


@attrs.frozen
class RuleUse:
    """An operation of a model with its rule.

    Attributes:
        operation: Its qualified name with overload.
        modules: Paths of the modules that it ran in, once for each time.
        key: The key that the rule was found under; empty where there is no rule.
        plugin: The plugin that brought the rule.
        site: File and line of the rule.
        overrides: Plugins whose rule it overrides.
    """

    operation: str
    modules: tuple[str, ...]
    key: str = ""
    plugin: str = ""
    site: str = ""
    overrides: tuple[str, ...] = ()


def rule_uses(analysis: Analysis, registry: Registry) -> list[RuleUse]:
    """Lists the operations of the first recording in the order in which they first ran.

    An operation without a rule that could be taken apart is represented by the operations it is made of.
    """
    found: dict[str, list[Operation]] = {}
    for operation in analysis.recordings[0].trace.operations:
        found.setdefault(operation.name, []).append(operation)
    return list(_uses(found, registry))


def _uses(found: dict[str, list[Operation]], registry: Registry) -> Iterator[RuleUse]:
    for name, operations in found.items():
        modules = tuple(operation.module for operation in operations)
        origin = registry.rule_origin(operations[0].op)
        if origin is None:
            yield RuleUse(name, modules)
        else:
            yield RuleUse(name, modules, str(origin.key), origin.owner.name, origin.site, origin.overrides)


def show_rules(output: Output, uses: list[RuleUse]) -> None:
    """Shows the rules as a table."""
    rows = [
        (use.operation, str(len(use.modules)), use.key or "no rule", _owner(use) or "-", use.site or "-")
        for use in uses
    ]
    output.table(Table(f"rules: {len(uses)} operations", COLUMNS, rows))


def _owner(use: RuleUse) -> str:
    return f"{use.plugin}, overrides {', '.join(use.overrides)}" if use.overrides else use.plugin


def rules_data(uses: list[RuleUse]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "operation": use.operation,
            "modules": list(use.modules),
            "key": use.key or None,
            "plugin": use.plugin or None,
            "site": use.site or None,
            "overrides": list(use.overrides),
        }
        for use in uses
    ]
