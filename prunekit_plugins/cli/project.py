"""The registry that a command works with: the settings of the project that the working directory belongs to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from prunekit.plugin import ArgumentError, Config, PrunekitError, Registry, find_config
from prunekit_plugins.cli import prunekit_commands
from prunekit_plugins.cli.arguments import search_here

COMMAND_LINE = ("prunekit", "cli", "prunekit:cli")
"""Names of the plugin that brings the built-in commands."""


def project_registry(
    block: Sequence[str] | None = None, config: Path | None = None, plugins: Sequence[str] | None = None
) -> Registry:
    """Makes the registry of a command.

    Args:
        block: Plugins to leave out, on top of those that the project blocks.
        config: The configuration file; None for the nearest one in the working directory or above it.
        plugins: Modules and files that are plugins, on top of those that the project names.

    Raises:
        ArgumentError: The file isn't there or holds a wrong setting.
        PluginError: See `Registry`.
    """
    if plugins:
        search_here()
    place = Path.cwd() if config is None else config
    return Registry.from_config(place, search=config is None, block=block or (), plugins=plugins or ())


def registry_and_fault(
    block: Sequence[str] | None, config: Path | None, plugins: Sequence[str] | None
) -> tuple[Registry, PrunekitError | None]:
    """Makes the registry of a command that finds out what is wrong: without the settings of a project that are wrong.

    Args:
        block, config, plugins: See `project_registry`.

    Returns:
        The registry, and what is wrong with the settings; None where nothing is.

    Raises:
        ArgumentError, PluginError: What is wrong was typed: a file of settings, or a plugin.
    """
    try:
        return project_registry(block, config, plugins), None
    except PrunekitError as error:
        if config is not None or plugins:
            raise
        return _without_settings(block or ()), error


def registry_of_commands(words: Sequence[str]) -> Registry:
    """Makes the registry in which the command line finds its commands.

    What is typed after a built-in command counts before any command is known: which settings it works with
    (``--config``; none beside ``--recipe``), and what it leaves out (``--block``). Commands of others may have options
    of these names.

    Args:
        words: The words after ``prunekit``.

    Raises:
        ArgumentError, PluginError: See `project_registry`. For a help text and for commands that work without the
            settings of a project, the error is printed and the registry made without them.
    """
    command = next((word for word in words if not word.startswith("-")), "")
    typed = words if command in prunekit_commands() else ()
    block = [name for name in _values(typed, "--block") if name not in COMMAND_LINE]
    files = _values(typed, "--config")
    if _values(typed, "--recipe"):
        return Registry(block=block)
    try:
        return project_registry(block, Path(files[-1]) if files else None)
    except PrunekitError as error:
        helps = not command or "--help" in words
        if not helps and command not in ("new-plugin", "plugins"):
            raise
        if helps or command != "plugins":  # which says it itself
            print(error, file=sys.stderr)
        return _without_settings(block)


def _values(words: Sequence[str], option: str) -> list[str]:
    """Lists the values of an option among words that no parser has seen yet."""
    before = words[: words.index("--")] if "--" in words else words
    found: list[str] = []
    for place, word in enumerate(before):
        name, joined, value = word.partition("=")
        if name == option:
            found.extend([value] if joined else before[place + 1 : place + 2])
    return found


def _without_settings(block: Sequence[str]) -> Registry:
    """Makes a registry of what is installed; plugins that the project blocks stay blocked if that can be read."""
    try:
        found = find_config(Path.cwd())
    except ArgumentError:
        found = Config()
    return Registry(block=block, config=Config(found.path, found.block))
