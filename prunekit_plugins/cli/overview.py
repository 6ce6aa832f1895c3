"""What ``prunekit``, ``prunekit --help`` and ``prunekit --version`` print, with no torch and no plugin imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from prunekit.plugin import ArgumentError, find_config
from prunekit_plugins.cli import prunekit_commands
from prunekit_plugins.cli.program import program_of


def overview(words: Sequence[str]) -> int | None:
    """Prints the overview, if the built-in commands are all that there are.

    Args:
        words: What was typed after ``prunekit``.

    Returns:
        The exit code; None where other plugins (installed, or the project's) may bring commands, or some are blocked:
        then only a registry knows. It isn't asked for a version, so that nobody's code is run for that.
    """
    if words != ["--version"] and _others():
        return None
    program = program_of({name: _described(command.summary) for name, command in prunekit_commands().items()})
    try:
        program(list(words), prog_name="prunekit")
    except SystemExit as finished:  # how typer ends, whatever the outcome
        return finished.code if isinstance(finished.code, int) else int(finished.code is not None)
    return 0


def _others() -> bool:
    """Tells whether there may be other commands than the built-in ones."""
    points = metadata.entry_points(group="prunekit")
    try:
        config = find_config(Path.cwd())
    except ArgumentError:  # a registry will say what is wrong with the settings
        return True
    installed = any(point.dist and point.dist.name != "prunekit" for point in points)
    return installed or bool(os.environ.get("PRUNEKIT_BLOCK") or config.block or config.plugins)


def _described(summary: str) -> Callable[[], None]:
    """Makes a command that is only looked at."""

    def command() -> None: ...

    command.__doc__ = summary
    return command
