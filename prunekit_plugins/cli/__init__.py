"""The command line: ``prunekit prune``, ``inspect``, ``apply``, ``export``, ``demo`` and ``plugins``.

This module is the plugin that registers the built-in commands. It is imported with every registry, so it needs neither
typer nor rich; the commands' own modules do, and are imported when the command line runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunekit_core import hookimpl
from prunekit_plugins.cli.command import LazyCommand

__all__ = ["LazyCommand"]


@hookimpl
def prunekit_commands() -> Mapping[str, Callable[..., Any]]:
    """The built-in commands."""
    return {
        "prune": LazyCommand("prunekit_plugins.cli.commands.prune", "prune"),
        "inspect": LazyCommand("prunekit_plugins.cli.commands.inspect", "inspect"),
        "doctor": LazyCommand("prunekit_plugins.cli.commands.doctor", "doctor"),
        "apply": LazyCommand("prunekit_plugins.cli.commands.apply", "apply"),
        "export": LazyCommand("prunekit_plugins.cli.commands.export", "export"),
        "bench": LazyCommand("prunekit_plugins.cli.commands.bench", "bench"),
        "demo": LazyCommand("prunekit_plugins.cli.commands.demo.run", "demo"),
        "plugins": LazyCommand("prunekit_plugins.cli.commands.plugins", "plugins"),
    }
