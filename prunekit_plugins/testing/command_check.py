"""Proving a subcommand: it fits the command line, has a help text, and leaves the end of the program to others."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from prunekit_core.errors import PrunekitError
from prunekit_core.plugins.blame import describe_error, module_of
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.testing.failure import failing, require


@runtime_checkable
class Lazy(Protocol):
    """A command that is imported when it is needed."""

    def load(self) -> Callable[..., Any]:
        """Imports the function."""


def check_command(
    command: Callable[..., Any] | Lazy, arguments: Sequence[str] | None = None, *, registry: Registry | None = None
) -> str:
    """Proves a subcommand of the command line; needs the extra ``cli``.

    Its signature must be one that typer understands, its docstring says what it does, ``--help`` prints that, and an
    option that doesn't exist is refused. With arguments the command is run with them: it must return, not raise and not
    end the program.

    Args:
        command: The function, or the `LazyCommand` that stands for it.
        arguments: The words after the command's name; None not to run it.
        registry: What the command finds as ``context.obj``; None for nothing.

    Returns:
        What the command printed.

    Raises:
        AssertionError: One of the above doesn't hold.
    """
    with failing("importing the command", command):
        function = command.load() if isinstance(command, Lazy) else command
    require(callable(function), "check_command", "a function with typer annotations", function)
    summary = (function.__doc__ or "").strip().partition("\n")[0]
    assert summary, "the command has no docstring, which is its help text"
    ended: list[object] = []
    invoke = functools.partial(_invoke, _program(_watched(function, ended)), registry)
    code, printed, _ = invoke(["--help"])
    assert code == 0, f"--help ends with exit code {code}: {printed}"
    assert "".join(summary.split()) in "".join(printed.split()), f"--help doesn't print {summary!r}"
    code, _, _ = invoke(["--no-such-option-of-this-command"])
    assert code == 2, f"an option that doesn't exist ends with exit code {code}, not 2"
    if arguments is None:
        return ""
    code, printed, error = invoke(list(arguments))
    where = " ".join(arguments) or "no arguments"
    assert not ended, f"with {where} the command ends the program itself, with {ended[0]!r}: it must return or raise"
    if isinstance(error, PrunekitError):
        raise AssertionError(f"with {where} the command raises {type(error).__name__}: {error}") from error
    if error is not None and not isinstance(error, SystemExit):
        raise AssertionError(f"with {where} the command raises {describe_error(error, module_of(function))}") from error
    assert code == 0, f"with {where} the command ends with exit code {code}: {printed}"
    return printed


def require_callable_by_name(function: Callable[..., Any]) -> None:
    """Raises `TypeError` for an argument that a command line, which gives texts by name, can't fill."""
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{parameter}: a command gets all its arguments by name; a list is `{name}: list[str]`")
        if isinstance(parameter.annotation, type) and issubclass(parameter.annotation, torch.Tensor | torch.nn.Module):
            raise TypeError(f"{parameter}: no text can be made into one; take a path, or a name")


def _program(function: Callable[..., Any]) -> Any:
    typer = importlib.import_module("typer")  # the kit is used without the extra, too
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    with failing("reading the command's signature", function):
        require_callable_by_name(function)
        program.command("command")(function)
        typer.main.get_command(program)
    return program


def _watched(function: Callable[..., Any], ended: list[object]) -> Callable[..., Any]:
    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SystemExit as end:
            ended.append(end)
            raise

    return watched


def _invoke(program: Any, registry: Registry | None, arguments: Sequence[str]) -> tuple[int, str, BaseException | None]:
    runner = importlib.import_module("typer.testing").CliRunner()
    done = runner.invoke(program, list(arguments), obj=registry)
    return done.exit_code, done.output, done.exception
