"""Files: safetensors, shards, plans in their metadata, cuts of files on disk, and values read from files."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from safetensors.torch import save_file

from prunekit.plugin import Registry, hookimpl
from prunekit_plugins.checkpoints.checkpoint import load, read_plan, read_protocol, save
from prunekit_plugins.checkpoints.conversion import prune_checkpoint
from prunekit_plugins.checkpoints.provenance import Protocol
from prunekit_plugins.checkpoints.stored_values import StoredValues

__all__ = ["Protocol", "load", "prune_checkpoint", "read_plan", "read_protocol", "save"]


@hookimpl
def prunekit_weights() -> Mapping[str, Callable[..., Any]]:
    """Safetensors: a file, a folder with one or with shards, or the index of shards."""
    return {"safetensors": StoredValues}


@hookimpl
def prunekit_checks() -> Mapping[tuple[str, Any], Callable[..., None]]:
    """What safetensors writes is read back."""

    def check(registry: Registry) -> None:
        importlib.import_module("prunekit.testing").check_weights(
            StoredValues, lambda path, state: save_file(dict(state), path), suffix="safetensors", registry=registry
        )

    return {("prunekit_weights", "safetensors"): check}
