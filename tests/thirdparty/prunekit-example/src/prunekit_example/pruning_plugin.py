"""What this package adds to prunekit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunekit.plugin import hookimpl
from prunekit_example.command import example
from prunekit_example.scoring import LargestRow, Shrink, int8_bytes


@hookimpl
def prunekit_importance() -> Mapping[str, Callable[..., Any]]:
    """One criterion."""
    return {"largest_row": LargestRow}


@hookimpl
def prunekit_regularizers() -> Mapping[str, Callable[..., Any]]:
    """One regularizer."""
    return {"shrink": Shrink}


@hookimpl
def prunekit_budgets() -> Mapping[str, Callable[..., float]]:
    """One cost model."""
    return {"int8_bytes": int8_bytes}


@hookimpl
def prunekit_commands() -> Mapping[str, Callable[..., Any]]:
    """One subcommand."""
    return {"example": example}
