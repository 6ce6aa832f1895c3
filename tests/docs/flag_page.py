"""The page of all flags, as the commands declare them.

``python -m tests.docs.flag_page`` writes docs/flags.md; a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import typer

from prunekit_plugins.cli import prunekit_commands
from prunekit_plugins.cli.command import LazyCommand
from tests.docs.snippets import ROOT

PAGE = ROOT / "docs/flags.md"
HEAD = """# Flags

Every command with its arguments and flags; `prunekit COMMAND --help` prints the same. Most flags of `prunekit prune`
are arguments of `prunekit.prune` of the same name, and [settings](configuration.md) of a project.
"""


def page() -> str:
    """Writes the page."""
    return "\n".join([HEAD, *(line for name in sorted(prunekit_commands()) for line in _command(name))])


def _command(name: str) -> Iterator[str]:
    function: Any = prunekit_commands()[name]
    command = _parsed(function.load() if isinstance(function, LazyCommand) else function)
    yield f"## prunekit {name}\n"
    yield f"{' '.join((command.help or '').split())}\n"
    yield "| flag | |\n|---|---|"
    for parameter in command.params:
        if parameter.name != "help":
            flags = [*parameter.opts, *parameter.secondary_opts]
            shown = f"`{parameter.metavar or (parameter.name or '').upper()}`"
            if parameter.param_type_name != "argument":
                shown = ", ".join(f"`{flag}`" for flag in flags)
                shown += f" `{parameter.metavar}`" if parameter.metavar else ""
            yield f"| {shown} | {' '.join((getattr(parameter, 'help', '') or '').split()).replace('|', '/')} |"
    yield ""


def _parsed(function: Callable[..., Any]) -> Any:
    application = typer.Typer(add_completion=False)
    application.command()(function)
    return typer.main.get_command(application)


if __name__ == "__main__":
    PAGE.write_text(page())
