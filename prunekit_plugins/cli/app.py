"""The program: every registered command under one name, and exit codes for errors."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from prunekit.plugin import ArgumentError, PluginError, PrunekitError, Registry
from prunekit_plugins.cli.command import LazyCommand
from prunekit_plugins.cli.program import program_of
from prunekit_plugins.cli.project import project_registry

ANY_ARGUMENTS = {"ignore_unknown_options": True, "allow_extra_args": True}
"""Of a command that can't be used: whatever is typed after it, it says why."""


def run(arguments: Sequence[str] | None = None, registry: Registry | None = None) -> int:
    """Runs one command and returns the exit code.

    Args:
        arguments: The words after ``prunekit``; None for those of the process.
        registry: Where commands are found; None for that of the project that the working directory
            belongs to.

    Returns:
        0, 1 (it failed; the reason is on stderr), 2 (wrong usage) or 130 (Ctrl-C).
    """
    try:
        registry = registry or project_registry()
        application = build(registry)
        application(None if arguments is None else list(arguments), prog_name="prunekit", obj=registry)
    except ArgumentError as error:
        print(error, file=sys.stderr)
        return 2
    except PrunekitError as error:
        print(error, file=sys.stderr)
        return 1
    except SystemExit as finished:  # how typer ends, whatever the outcome
        return finished.code if isinstance(finished.code, int) else int(finished.code is not None)
    return 0


def build(registry: Registry) -> typer.Typer:
    """Makes the program from the commands of a registry."""
    entries, refused = registry.entries("prunekit_commands"), registry.refused("prunekit_commands")
    program = program_of({name: _usable(name, entry.value, entry.owner.name) for name, entry in entries.items()})
    for name, error in refused.items():
        program.command(name, context_settings=ANY_ARGUMENTS)(_raising(error))
    return program


def _usable(name: str, command: Any, owner: str) -> Callable[..., Any]:
    """Returns the command's function; one that can't be used is replaced, so that the others still work."""
    try:
        function = command.load() if isinstance(command, LazyCommand) else command
        trial = typer.Typer()
        trial.command(name)(function)
        typer.main.get_command(trial)
    except Exception as error:  # a stranger's command may fail in any way; it is told when the command is called
        reason = f"{type(error).__name__}: {error}"
        return _raising(PluginError(f"The command {name!r} can't be used.", where=owner, why=reason))
    return _stoppable(function)


def _raising(error: PluginError) -> Callable[[], None]:
    """Makes the command that stands for one that can't be used."""

    def broken() -> None:
        raise error

    broken.__doc__ = f"Can't be used: {error.why or error.headline}"
    return broken


def _stoppable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a command end quietly with Ctrl-C; typer would take the interrupt for a failure."""

    @functools.wraps(function)
    def stoppable(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return stoppable
