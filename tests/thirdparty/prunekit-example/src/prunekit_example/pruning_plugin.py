"""What this package adds to prunekit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunekit.plugin import Replacement, hookimpl
from prunekit_example.checks import CHECKS
from prunekit_example.choosing import EvenPruner, quadratic, widest_first
from prunekit_example.command import example
from prunekit_example.repairing import SCALE, Louder
from prunekit_example.scoring import LargestRow, Shrink, Storage, int8_bytes
from prunekit_example.storing import StateDictFile


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


@hookimpl
def prunekit_schedules() -> Mapping[str, Callable[[float, int], list[float]]]:
    """One schedule."""
    return {"quadratic": quadratic}


@hookimpl
def prunekit_pruners() -> Mapping[str, type[Any]]:
    """One pruner."""
    return {"even": EvenPruner}


@hookimpl
def prunekit_allocators() -> Mapping[str, Callable[..., Any]]:
    """One allocator."""
    return {"widest_first": widest_first}


@hookimpl
def prunekit_compensators() -> Mapping[str, Callable[..., Any]]:
    """One compensator."""
    return {"louder": Louder}


@hookimpl
def prunekit_replacements() -> Mapping[str, Replacement]:
    """One replacement."""
    return {"example_scale": SCALE}


@hookimpl
def prunekit_weights() -> Mapping[str, Callable[..., Any]]:
    """One form of weights on disk."""
    return {"example": StateDictFile}


@hookimpl
def prunekit_settings() -> Mapping[str, type[Any]]:
    """How quantised weights are stored."""
    return {"int8_bytes": Storage}


@hookimpl
def prunekit_checks() -> Mapping[tuple[str, Any], Callable[..., None]]:
    """The checks of everything that needs something to be tried on, of both plugins."""
    return CHECKS
