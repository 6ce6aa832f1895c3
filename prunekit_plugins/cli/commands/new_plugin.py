"""``prunekit new-plugin``: a package with a plugin in it, which installs and passes its own tests."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from prunekit.plugin import ArgumentError, nearest, write_text
from prunekit_plugins.cli import options
from prunekit_plugins.cli.output import Output
from prunekit_plugins.cli.scaffold.kinds import BY_NAME, KINDS, Kind
from prunekit_plugins.cli.scaffold.package import NewPlugin

ALL = "all"
LONGEST = 40


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the distribution, such as my-criteria.")],
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="KINDS",
            help=f"What it brings, with commas between: {', '.join(BY_NAME)}, or all. criterion by default.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where it goes; a folder NAME here.", show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write a package with a plugin in it, which installs and passes its own tests."""
    plugin = NewPlugin(name, package_name(name), chosen(kinds or ["criterion"]))
    folder = out or Path(name)
    files = plugin.files()
    _make_folders(folder, files)
    for path, text in files.items():
        write_text(folder / path, text)
    output = Output(as_json)
    for path in files:
        output.line(f"written: {folder / path}", good=True)
    output.line(f"next: pip install -e {folder} && python -m pytest {folder} && prunekit plugins {name} --check")
    output.result({"name": name, "package": plugin.package, "folder": str(folder), "files": list(files)})


def _make_folders(folder: Path, files: Iterable[str]) -> None:
    """Makes the folder of a plugin and those in it, unless there is something already, or the system refuses."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            headline = "There is something already; nothing was written."
            raise ArgumentError(headline, where=str(folder), hint="--out FOLDER")
        for path in files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise ArgumentError("The folder can't be made.", where=str(folder), why=why, hint="--out FOLDER") from error


def package_name(name: str) -> str:
    """Returns the name of the package that a distribution is imported as.

    Raises:
        ArgumentError: It is no name of a distribution, or can't be imported, or is taken.
    """
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name) or len(name) > LONGEST:
        raise ArgumentError(
            "That can't be the name of a distribution.",
            why=f"got {name!r}",
            hint=f"at most {LONGEST} letters, digits, dots and hyphens, such as my-criteria",
        )
    package = re.sub(r"[-_.]+", "_", name).lower()
    if not package.isidentifier() or keyword.iskeyword(package):
        raise ArgumentError(
            "That can't be the name of a package.",
            why=f"{package!r} can't be imported",
            hint="choose another name: that is a word of Python's" if package.isidentifier() else "start with a letter",
        )
    if package in sys.stdlib_module_names or package == "tests" or importlib.util.find_spec(package) is not None:
        raise ArgumentError(
            "There is a package of that name already.", why=f"`import {package}` finds it", hint="choose another name"
        )
    return package


def chosen(texts: Sequence[str]) -> tuple[Kind, ...]:
    """Reads ``--with``: names of kinds, with commas between them.

    Returns:
        The kinds, each once, in the order of `KINDS`.

    Raises:
        ArgumentError: There is no such kind, or none is named.
    """
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    if not names:
        raise ArgumentError("--with names nothing that a plugin brings.", hint=nearest("", (*BY_NAME, ALL)))
    for name in names:
        if name not in BY_NAME and name != ALL:
            raise ArgumentError(f"A plugin can't bring {name!r}.", hint=nearest(name, (*BY_NAME, ALL)))
    return tuple(kind for kind in KINDS if kind.name in names or ALL in names)
