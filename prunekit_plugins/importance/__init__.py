"""Importance criteria: how much each unit of a group matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunekit_core import hookimpl
from prunekit_plugins.importance.chance import RandomImportance
from prunekit_plugins.importance.magnitude import GroupMagnitudeImportance

MagnitudeImportance = GroupMagnitudeImportance

__all__ = ["GroupMagnitudeImportance", "MagnitudeImportance", "RandomImportance"]


@hookimpl
def prunekit_importance() -> Mapping[str, Callable[..., Any]]:
    """Magnitude and random importance."""
    return {"magnitude": GroupMagnitudeImportance, "random": RandomImportance}
