"""The registry that a command works with: the settings of the project that the working directory belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunekit.plugin import Registry
from prunekit_plugins.cli.arguments import search_here


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
