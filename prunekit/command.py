"""What authors of subcommands need beside `prunekit.plugin`: the arguments and the output of prunekit's own commands.

A command finds the registry that it was found in as ``context.obj``, if it takes a ``context: typer.Context``. Needs
the extra ``cli``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit_core.door import open_door

if TYPE_CHECKING:
    from prunekit_plugins.cli import LazyCommand as LazyCommand
    from prunekit_plugins.cli.calibrating import read_calibration as read_calibration
    from prunekit_plugins.cli.models import Subject as Subject, read_model as read_model
    from prunekit_plugins.cli.options import (
        All as All,
        BatchSize as BatchSize,
        Block as Block,
        Calibration as Calibration,
        Config as Config,
        Inputs as Inputs,
        Json as Json,
        MaxBatches as MaxBatches,
        Model as Model,
    )
    from prunekit_plugins.cli.output import Output as Output, Table as Table

_HOMES = {
    "prunekit_plugins.cli": "LazyCommand",
    "prunekit_plugins.cli.calibrating": "read_calibration",
    "prunekit_plugins.cli.models": "Subject read_model",
    "prunekit_plugins.cli.options": "All BatchSize Block Calibration Config Inputs Json MaxBatches Model",
    "prunekit_plugins.cli.output": "Output Table",
}
"""Where each name comes from: a package is imported when one of its names is asked for."""

__all__, __getattr__, __dir__ = open_door(__name__, _HOMES)
