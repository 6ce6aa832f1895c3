from __future__ import annotations

import ast
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit import plugin
from prunekit.testing import check_command
from prunekit_plugins.cli import LazyCommand, prunekit_commands
from prunekit_plugins.cli.app import run
from prunekit_plugins.cli.overview import overview
from tests.cli.conftest import Cli

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "import sys; from prunekit_plugins.cli.entry import main; sys.exit(main())"]
INSPECT = ["inspect", "tests.cli.toys:perceptron", "--input", "1,4"]


def test_the_console_script_is_registered() -> None:
    scripts = {point.name: point.value for point in metadata.entry_points(group="console_scripts")}
    assert scripts["prunekit"] == "prunekit_plugins.cli.entry:main"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    called = cli("plugins")
    assert called.code == 1
    assert called.out == ""
    assert called.err.startswith(f"The command line needs {missing}.")
    assert 'pip install "prunekit[cli]"' in called.err


@pytest.mark.slow
def test_loading_all_plugins_imports_neither_typer_nor_rich() -> None:
    code = (
        "import sys; sys.modules['typer'] = sys.modules['rich'] = None\n"
        "import prunekit as pk; registry = pk.default_registry()\n"
        "assert not [p for p in registry.plugins() if p.error]\n"
        "print(*registry.entries('prunekit_commands'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert set(done.stdout.split()) == commands_in_the_sources()


def commands_in_the_sources() -> set[str]:
    """The functions named as their file, or as the folder of their files, with hyphens: that is where commands are."""
    folder = ROOT / "prunekit_plugins" / "cli" / "commands"
    return {
        node.name.replace("_", "-")
        for path in folder.glob("**/*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == (path.stem if path.parent == folder else path.parent.name)
    }


def test_help_version_and_unknown_commands(cli: Cli) -> None:
    text = cli("--help").out
    assert {"prune", "inspect", "plugins"} < commands_in_the_sources() <= set(text.split())
    assert cli("--version").out == f"prunekit {metadata.version('prunekit')}\n"
    unknown = cli("prone")
    assert (unknown.code, unknown.out) == (2, "")
    assert "No such command 'prone'" in unknown.err
    assert cli("prune", "--help").code == 0


@pytest.mark.slow
def test_a_pipe_gets_plain_text_and_a_model_from_the_working_directory() -> None:
    done = subprocess.run([*COMMAND, *INSPECT], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert "tests.cli.toys:perceptron, weights as built, input 1,4: 67 parameters, groups: 1" in done.stdout


@pytest.mark.slow
def test_a_terminal_gets_tables_and_colours() -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen([*COMMAND, *INSPECT], stdout=follower, stderr=follower, cwd=ROOT, env=environment)
    os.close(follower)
    pieces = []
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(leader)
    assert process.wait() == 0
    text = b"".join(pieces).decode()
    assert "\x1b[1m" in text
    assert "─" in text
    assert "analysing tests.cli.toys:perceptron" in text


class Commands:
    """A plugin with a good command and two that can't be used."""

    @staticmethod
    @plugin.hookimpl
    def prunekit_commands() -> Mapping[str, Callable[..., Any]]:
        def double(number: int, json: bool = False) -> None:
            """Double a number."""
            print(2 * number)

        def odd(sizes: tuple[list[int], dict[str, int]]) -> None:
            """Typer knows no option of this type."""

        return {"double": double, "odd": odd, "lost": LazyCommand("prunekit_plugins.cli.nosuch", "lost")}


def test_commands_of_plugins_are_found_and_broken_ones_do_no_harm(capsys: pytest.CaptureFixture[str]) -> None:
    registry = pk.Registry(extra={"commands": Commands})
    assert run(["double", "21"], registry) == 0
    assert capsys.readouterr().out == "42\n"
    assert run(["double", "x"], registry) == 2
    capsys.readouterr()
    for name, site in (("odd", rf" \({re.escape(__file__)}:\d+\)"), ("lost", "")):
        assert run([name], registry) == 1
        where = f"command '{name}', from commands{site}"
        assert re.match(f"The command '{name}' can't be used.\n  where: {where}\n  why: ", capsys.readouterr().err)


def unknown_type(number: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Its annotation stands for nothing."""


def with_list(number: int, *more: int) -> None:
    """Typer gives every argument by name."""


def by_place(number: int, /) -> None:
    """Typer gives every argument by name."""


def of_tensors(number: torch.Tensor) -> None:
    """No text is a tensor."""


@pytest.mark.parametrize("words", [[], ["3"], ["--number", "3"], ["3", "-x", "4", "--", "5"]])
@pytest.mark.parametrize(
    ("command", "why"),
    [
        (LazyCommand("prunekit_plugins.cli.nosuch", "lost"), "No module named 'prunekit_plugins.cli.nosuch'"),
        (LazyCommand("tests.cli.exiting", "lost"), "SystemExit: 7"),
        (unknown_type, "name 'Nowhere' is not defined"),
        (with_list, "*more: int: a command gets all its arguments by name"),
        (by_place, "number: int: a command gets all its arguments by name"),
        (of_tensors, "number: torch.Tensor: no text can be made into one"),
    ],
)
def test_a_command_that_cannot_be_used_says_why_whatever_is_typed(
    command: Any, why: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    hook = plugin.hookimpl(lambda: {"hi": command}, specname="prunekit_commands")
    assert run(["hi", *words], pk.Registry(extra={"own": SimpleNamespace(hook=hook)})) == 1
    error = capsys.readouterr().err
    assert error.startswith("The command 'hi' can't be used.\n  where: command 'hi', from own")
    assert why in error


@pytest.mark.parametrize("command", [unknown_type, with_list, by_place, of_tensors])
def test_the_kit_fails_a_command_that_cannot_be_called(command: Any) -> None:
    with pytest.raises(AssertionError, match=r"reading the command's signature raises (Type|Name)Error"):
        check_command(command)


def test_a_lazy_command_calls_its_function() -> None:
    assert LazyCommand("math", "hypot")(3, 4) == 5.0


def test_the_overview_imports_no_torch_and_says_what_the_whole_program_says(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for words in ([], ["--help"], ["--version"]):
        program = (
            "import sys; from prunekit_plugins.cli.entry import main; code = main(); "
            "print([n for n in ('torch', 'prunekit_plugins.ops') if n in sys.modules], code)"
        )
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=ROOT)
        whole = run(words)
        assert done.stdout.splitlines()[-1] == f"[] {whole}"
        assert done.stdout.splitlines()[:-1] == capfd.readouterr().out.splitlines()


def test_the_overview_says_what_the_commands_say() -> None:
    for name, command in prunekit_commands().items():
        assert command.summary == " ".join((command.load().__doc__ or "").split("\n\n")[0].split()), name


def test_where_plugins_are_blocked_or_the_projects_own_only_a_registry_knows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert overview(["--help"]) == 0
    monkeypatch.setenv("PRUNEKIT_BLOCK", "prunekit:cli")
    assert overview(["--help"]) is None
    monkeypatch.delenv("PRUNEKIT_BLOCK")
    for text in ('block = ["prunekit:cli"]', 'plugins = ["own.py"]', "nonsense = 1"):
        Path("prunekit.toml").write_text(text)
        assert overview(["--help"]) is None
        assert overview(["--version"]) == 0
