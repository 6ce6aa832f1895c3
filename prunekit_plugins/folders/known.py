"""The libraries whose folders are read and written, by a folder or by a model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from prunekit.plugin import ArgumentError
from prunekit_plugins.folders.library import Library
from prunekit_plugins.folders.of_diffusers import DIFFUSERS
from prunekit_plugins.folders.of_timm import TIMM
from prunekit_plugins.folders.of_transformers import TRANSFORMERS

OTHERS = (DIFFUSERS, TIMM)
"""Libraries besides transformers, which is taken for what isn't one of theirs."""


def library_at(folder: Path) -> Library:
    """Returns the library that a folder was written by."""
    return next((library for library in OTHERS if library.lays_out(folder)), TRANSFORMERS)


def library_of(model: nn.Module) -> Library:
    """Returns the library that a model is of.

    Raises:
        ArgumentError: It is of none of them.
    """
    for library in (TRANSFORMERS, *OTHERS):
        if library.makes(model):
            return library
    raise ArgumentError(
        "The model is not one of transformers', diffusers' or timm's.",
        why=f"got {type(model).__name__}",
        hint="prunekit.save writes any model to a file",
    )
