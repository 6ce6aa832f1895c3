"""Reading the documents: fenced blocks, what they print, and the reasons for which a block isn't run."""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from prunekit_plugins.cli.app import run as run_command

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILE = re.compile(r"<!-- file: (?P<name>[\w.-]+) -->")
SKIP = re.compile(r"<!-- not run: (?P<reason>\S.*\S) -->")
COMPARE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@attrs.frozen
class Block:
    """A fenced block.

    Attributes:
        language: What stands after the fence.
        text: Its lines.
        line: Line of the document that its first line is.
        skipped: The reason for which it isn't run; empty if it is.
        file: The name of the file that it stands for, written into the working directory instead of run; or empty.
        after: The language of the block right before it, with nothing but empty lines between; empty if there is none.
    """

    language: str
    text: str
    line: int
    skipped: str
    file: str
    after: str


def blocks_of(document: str) -> list[Block]:
    found: list[Block] = []
    inside: list[str] | None = None
    language, start, skipped, file, after, last = "", 0, "", "", "", ""
    for number, line in enumerate(document.splitlines(), 1):
        if inside is not None:
            if line.strip() != "```":
                inside.append(line)
                continue
            found.append(Block(language, "\n".join(inside) + "\n", start, skipped, file, after))
            inside, skipped, file, last = None, "", "", "" if skipped or file else language
        elif line.startswith("```"):
            inside, language, start, after = [], line[3:].strip(), number + 1, last
        elif line.strip():
            marked, named = SKIP.fullmatch(line.strip()), FILE.fullmatch(line.strip())
            skipped, file, last = marked["reason"] if marked else "", named["name"] if named else "", ""
    assert inside is None, f"the block at line {start} has no end"
    return found


def run_document(document: str, name: str, names: dict[str, Any] | None = None) -> int:
    """Runs all blocks of a document in order and compares what they print; returns how many were run.

    Python blocks share one namespace; those that stand for a file are written to the working directory. A ``text``
    block right after a Python block is its output; a ``console`` block holds ``$ prunekit ...`` commands, which run in
    this process, and ``$ python FILE``, which runs in a fresh one, each with its output below it. ``...`` stands for
    anything.

    Args:
        document: Its text.
        name: What it is called, for messages.
        names: Gets the names that its Python blocks define; None for a namespace of its own.
    """
    namespace: dict[str, Any] = {} if names is None else names
    namespace["__name__"] = "__main__"
    printed, count = "", 0
    for block in blocks_of(document):
        where = f"{name}, line {block.line}"
        if block.skipped:
            printed = ""
        elif block.file:
            Path(block.file).write_text(block.text)
            printed = ""
            count += 1
        elif block.language == "python":
            printed = _run_python(block, name, namespace)
            count += 1
        elif block.language == "text" and block.after == "python":
            _compare(block.text, printed, where)
        elif block.language == "console":
            for command, expected in _commands(block.text):
                known = re.match(r"prunekit |python [\w.-]+$", command)
                assert known, f"{where}: only prunekit and python FILE are run, not {command!r}"
                run = _run_fresh if command.startswith("python ") else _run_console
                _compare(expected, run(command, where), f"{where}: {command}")
                count += 1
    return count


def _run_python(block: Block, name: str, namespace: dict[str, Any]) -> str:
    code = compile("\n" * (block.line - 1) + block.text, name, "exec")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, namespace)
    return output.getvalue()


def _commands(text: str) -> Iterator[tuple[str, str]]:
    first, *rest = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not first.strip(), f"a console block starts with a command, not with {first!r}"
    for part in rest:
        command, _, expected = part.partition("\n")
        yield command, expected


def _run_console(command: str, where: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as errors:
        code = run_command(shlex.split(command)[1:])
    assert code == 0, f"{where}: {command} ended with {code}: {errors.getvalue()}"
    return output.getvalue()


def _run_fresh(command: str, where: str) -> str:
    """Runs a file in a process of its own, where this library and the working directory can be imported from."""
    paths = os.pathsep.join([str(Path.cwd()), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-W", "error", *shlex.split(command)[1:]],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{where}: {command} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def _compare(expected: str, printed: str, where: str) -> None:
    if expected.strip():
        assert doctest.OutputChecker().check_output(expected, printed, COMPARE), (
            f"{where}: the document says\n{expected}\nwhat was printed is\n{printed}"
        )
