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
        "prune": LazyCommand("prunekit_plugins.cli.prune", "prune"),
        "inspect": LazyCommand("prunekit_plugins.cli.inspect", "inspect"),
        "doctor": LazyCommand("prunekit_plugins.cli.doctor", "doctor"),
        "apply": LazyCommand("prunekit_plugins.cli.apply", "apply"),
        "export": LazyCommand("prunekit_plugins.cli.export", "export"),
        "bench": LazyCommand("prunekit_plugins.cli.bench", "bench"),
        "demo": LazyCommand("prunekit_plugins.cli.demo.run", "demo"),
        "plugins": LazyCommand("prunekit_plugins.cli.plugins", "plugins"),
    }
