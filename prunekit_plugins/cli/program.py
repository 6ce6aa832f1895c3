"""The program: commands under one name, with ``--help`` and ``--version``. Making it imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Annotated, Any

import typer

from prunekit_plugins.cli.output import is_terminal


def program_of(commands: Mapping[str, Callable[..., Any]]) -> typer.Typer:
    """Makes the program from its commands."""
    program = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich" if is_terminal(sys.stdout) and is_terminal(sys.stderr) else None,
    )
    program.callback()(_program)
    for name, command in commands.items():
        program.command(name)(command)
    return program


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"prunekit {metadata.version('prunekit')}")
        raise typer.Exit


def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Structural pruning for PyTorch: whole channels, heads and neurons go, and the rest is proven to be the same."""
