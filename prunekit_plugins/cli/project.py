"""The registry that a command works with: the settings of the project that the working directory belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunekit.plugin import Registry


def project_registry(block: Sequence[str] | None = None, config: Path | None = None) -> Registry:
    """Makes the registry of a command.

    Args:
        block: Plugins to leave out, on top of those that the project blocks.
        config: The configuration file; None for the nearest one in the working directory or above it.

    Raises:
        ArgumentError: The file isn't there or holds a wrong setting.
        PluginError: See `Registry`.
    """
    if config is None:
        return Registry.from_config(Path.cwd(), search=True, block=block or ())
    return Registry.from_config(config, block=block or ())
