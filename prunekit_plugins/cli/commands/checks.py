"""``prunekit plugins NAME --check``: every check of the kit on what a plugin registers."""

from __future__ import annotations

from typing import Any

from prunekit.plugin import PrunekitError, Registry
from prunekit_plugins.cli.output import Output, Table
from prunekit_plugins.testing.plugin_check import Checked, Outcome, examine


class ChecksFailedError(PrunekitError, RuntimeError):
    """A plugin doesn't pass the checks of the kit."""


def check(registry: Registry, output: Output, name: str | None) -> None:
    """Checks a plugin, or all that aren't built in, and shows what passed, failed and couldn't be checked.

    Args:
        registry: Where the plugins are found.
        output: Where it goes.
        name: A distribution, a plugin or an entry point; None for all that aren't built in.

    Raises:
        ArgumentError: There is no such plugin.
        ChecksFailedError: A check failed, or a plugin is broken.
    """
    others = [plugin.name for plugin in registry.plugins() if plugin.distribution != "prunekit"]
    with output.working("checking"):
        found = [checked for wanted in ([name] if name else others) for checked in examine(wanted, registry)]
    _show(output, found)
    output.result({"checks": [_data(checked) for checked in found]})
    failed = [f"{checked.plugin} {checked.name}" for checked in found if checked.outcome is Outcome.FAILED]
    if failed:
        raise ChecksFailedError(f"{len(failed)} of {len(found)} checks failed.", where=", ".join(failed))


def _show(output: Output, found: list[Checked]) -> None:
    if not found:
        output.line("nothing to check: no plugin but the built-in ones is there, or it registers nothing")
        return
    counts = {outcome: sum(checked.outcome is outcome for checked in found) for outcome in Outcome}
    title = "checks: " + ", ".join(f"{count} {outcome.value}" for outcome, count in counts.items() if count)
    rows = [(checked.hook or "-", checked.name, checked.plugin, checked.outcome.value) for checked in found]
    output.table(Table(title, ("hook", "name", "plugin", "outcome"), rows))
    said: dict[tuple[str, Outcome], list[str]] = {}
    for checked in found:
        if checked.why:
            said.setdefault((checked.why, checked.outcome), []).append(f"{checked.hook} {checked.name}".strip())
    for (why, outcome), names in said.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        output.line(f"{outcome.value}: {names[0]}{more}: {why}", good=False if outcome is Outcome.FAILED else None)


def _data(checked: Checked) -> dict[str, Any]:
    return {
        "plugin": checked.plugin,
        "hook": checked.hook or None,
        "name": checked.name,
        "outcome": checked.outcome.value,
        "why": checked.why or None,
    }
