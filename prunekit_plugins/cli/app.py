"""The program: every registered command under one name, and exit codes for errors."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import typer

from prunekit.plugin import ArgumentError, Blame, PrunekitError, Registry
from prunekit_plugins.cli.command import LazyCommand
from prunekit_plugins.cli.options.flags import PRUNE, Flags, speaking
from prunekit_plugins.cli.program import program_of
from prunekit_plugins.cli.project import registry_of_commands

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
        words = sys.argv[1:] if arguments is None else list(arguments)
        registry = registry or registry_of_commands(words)
        application = build(registry)
        application(words, prog_name="prunekit", obj=registry)
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
    owners = registry.owners
    prune = entries.get(PRUNE)
    found = {
        name: _usable(name, entry.value, owners.blame("prunekit_commands", entry.value), prune and prune.value)
        for name, entry in entries.items()
    }
    found.update(refused)
    program = program_of(
        {name: function for name, function in found.items() if not isinstance(function, PrunekitError)}
    )
    for name, function in found.items():
        if isinstance(function, PrunekitError):
            program.command(name, context_settings=ANY_ARGUMENTS)(_raising(function))
    return program


def _usable(name: str, command: Any, blame: Blame, prune: Any) -> Callable[..., Any] | PrunekitError:
    """Returns the command's function; the error for whoever calls it where it can't be used: the others still work."""
    try:
        function = _loaded(command)
        if not blame.built_in:
            check = importlib.import_module("prunekit_plugins.testing.command_check")  # nobody else needs the kit here
            check.require_callable_by_name(function)
            trial = typer.Typer()
            trial.command(name)(function)
            typer.main.get_command(trial)
    except (Exception, SystemExit) as error:  # a stranger's may fail in any way; it is told when the command is called
        reason = f"{type(error).__name__}: {error}"
        named = attrs.evolve(blame, thing=None) if isinstance(command, LazyCommand) else blame
        failure = named.error(f"The command {name!r} can't be used.", reason)
        failure.__cause__ = error
        return failure
    return _stoppable(function, blame, functools.cache(lambda: Flags.of(name, function, _loaded(prune))))


def _raising(error: PrunekitError) -> Callable[[], None]:
    """Makes the command that stands for one that can't be used."""

    def broken() -> None:
        raise error

    broken.__doc__ = f"Can't be used: {error.why or error.headline}"
    return broken


def _loaded(command: Any) -> Any:
    return command.load() if isinstance(command, LazyCommand) else command


def _stoppable(function: Callable[..., Any], blame: Blame, flags: Callable[[], Flags]) -> Callable[..., Any]:
    """Makes a command end quietly with Ctrl-C, which typer would take for a failure, and with one message where it
    fails; what goes wrong in a command of prunekit's own is an error of prunekit's, keeps its traceback, and names
    flags where one in Python names arguments.

    Args:
        function: The function of the command.
        blame: Whose it is.
        flags: Reads its flags.
    """

    @functools.wraps(function)
    def stoppable(*args: Any, **kwargs: Any) -> Any:
        try:
            with speaking(flags) if blame.built_in else _blamed(blame):
                return function(*args, **kwargs)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return stoppable


@contextlib.contextmanager
def _blamed(blame: Blame) -> Iterator[None]:
    """Makes what a command raises an error of its plugin, but for the ways in which typer lets it end."""
    ending: BaseException | None = None
    with blame.blamed("A command failed."):
        try:
            yield
        except _ENDINGS as end:
            ending = end
    if ending is not None:
        raise ending


_ENDINGS: tuple[type[BaseException], ...] = (SystemExit, typer.Exit, typer.Abort, *typer.BadParameter.__mro__[1:3])
"""Exit (Python's, which is a command's way to say a code, and typer's), abort, and what click's usage errors derive
from, which typer has in different places."""
