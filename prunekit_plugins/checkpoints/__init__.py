"""Files: safetensors, shards, plans in their metadata, cuts of files on disk, and values read from files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunekit.plugin import hookimpl
from prunekit_plugins.checkpoints.checkpoint import load, read_plan, read_protocol, save
from prunekit_plugins.checkpoints.conversion import prune_checkpoint
from prunekit_plugins.checkpoints.provenance import Protocol
from prunekit_plugins.checkpoints.stored_values import StoredValues

__all__ = ["Protocol", "load", "prune_checkpoint", "read_plan", "read_protocol", "save"]


@hookimpl
def prunekit_weights() -> Mapping[str, Callable[..., Any]]:
    """Safetensors: a file, a folder with one or with shards, or the index of shards."""
    return {"safetensors": StoredValues}
