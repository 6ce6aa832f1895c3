"""New plugins: what is written installs, passes its own tests and every check of the kit, and is clean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunekit.plugin import HOOKS
from prunekit_plugins.cli.scaffold.kinds import KINDS
from tests.cli.conftest import Cli

ROOT = Path(__file__).resolve().parents[2]
NAMES = [kind.name for kind in KINDS]


def python(*arguments: str, cwd: Path, path: tuple[Path, ...]) -> subprocess.CompletedProcess[str]:
    """Runs Python with folders on its path and nothing of this run's settings."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PRUNEKIT", "PYTEST"))}
    places = os.pathsep.join(map(str, (*path, ROOT)))
    environment = {**clean, "PYTHONPATH": places, "MYPYPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def installed(folder: Path, package: str) -> tuple[Path, ...]:
    """What must be on the path for a package to count as installed: its source, and the record of its entry point."""
    record = folder / "record" / f"{package}-0.1.0.dist-info"
    record.mkdir(parents=True)
    name = folder.name
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (record / "entry_points.txt").write_text(f"[prunekit]\nplugin = {package}.plugin\n")
    return folder / "src", record.parent


def run_tests(folder: Path, package: str) -> str:
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder, path=installed(folder, package))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_is_a_kind_for_every_hook() -> None:
    assert {kind.hook for kind in KINDS} == {*HOOKS} - {"prunekit_checks"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_a_plugin_of_one_kind_passes_its_own_tests(kind: str, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "a-plugin"
    data = cli("new-plugin", "a-plugin", "--with", kind, "--out", folder, "--json").data
    assert {f"src/a_plugin/{kind}.py", f"tests/test_{kind}.py"} <= set(data["files"])
    assert sorted(data["files"]) == sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert "passed" in run_tests(folder, "a_plugin")


@pytest.mark.slow
def test_a_plugin_of_all_kinds_passes_its_own_tests_and_the_kit(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "everything"
    assert cli("new-plugin", "everything", "--with", "all", "--out", folder).code == 0
    assert "26 passed" in run_tests(folder, "everything")
    program = "import sys; from prunekit_plugins.cli.entry import main; sys.exit(main(sys.argv[1:]))"
    path = (folder / "src", folder / "record")
    done = python("-c", program, "plugins", "everything", "--check", cwd=tmp_path, path=path)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"checks: {len(KINDS)} passed"), done.stderr


def test_what_is_written_is_clean(cli: Cli, tmp_path: Path) -> None:
    for name, kinds in (("all-of-it", "all"), ("one", "criterion")):
        folder = tmp_path / name
        cli("new-plugin", name, "--with", kinds, "--out", folder)
        for tool in (("ruff", "check", "--select", "E,F,I,W,B,UP,SIM,RUF"), ("ruff", "format", "--check")):
            done = python("-m", *tool, "--no-cache", ".", cwd=folder, path=())
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_what_is_written_has_strict_types(cli: Cli, tmp_path: Path) -> None:
    cli("new-plugin", "typed", "--with", "all", "--out", tmp_path / "typed")
    done = python("-m", "mypy", "--strict", "src", "tests", cwd=tmp_path / "typed", path=())
    assert [line for line in done.stdout.splitlines() if line.startswith(("src", "tests"))] == []
    assert "35 source files" in done.stdout


def test_several_kinds_may_be_named_in_any_way(cli: Cli, tmp_path: Path) -> None:
    data = cli("new-plugin", "two", "--with", "schedule, criterion", "--with", "cost", "--out", tmp_path, "--json").data
    modules = [Path(file).stem for file in data["files"] if file.startswith("src/two/")]
    assert modules == ["__init__", "plugin", "criterion", "schedule", "cost"]


def test_by_default_it_brings_a_criterion_into_a_folder_of_its_name(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    called = cli("new-plugin", "my.Criteria")
    assert called.code == 0
    assert (tmp_path / "my.Criteria/src/my_criteria/criterion.py").is_file()
    assert "next: pip install -e my.Criteria && python -m pytest my.Criteria" in called.out


def test_nothing_is_overwritten(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    called = cli("new-plugin", "acme", "--out", tmp_path)
    assert called.code == 2
    assert called.err.startswith(f"There is something already; nothing was written.\n  where: {tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert cli("new-plugin", "acme", "--out", tmp_path / "mine.txt").code == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my plugin", "That can't be the name of a distribution.\n  why: got 'my plugin'"),
        ("-x", "No such option"),
        ("../up", "That can't be the name of a distribution."),
        ("a" * 41, "That can't be the name of a distribution."),
        ("3d", "That can't be the name of a package.\n  why: '3d' can't be imported"),
        (
            "class",
            "  why: 'class' can't be imported\n  what to do: choose another name: that is a word of Python's",
        ),
        ("torch", "There is a package of that name already.\n  why: `import torch` finds it"),
        ("json", "There is a package of that name already."),
        ("PruneKit", "There is a package of that name already.\n  why: `import prunekit` finds it"),
    ],
)
def test_bad_names_are_told(name: str, message: str, cli: Cli, tmp_path: Path) -> None:
    called = cli("new-plugin", name, "--out", tmp_path / "out")
    assert (called.code, message in called.err) == (2, True), called.err
    assert not (tmp_path / "out").exists()


def test_a_kind_that_there_is_not_is_told(cli: Cli, tmp_path: Path) -> None:
    called = cli("new-plugin", "acme", "--with", "criterion,shedule", "--out", tmp_path / "out")
    assert (called.code, "A plugin can't bring 'shedule'." in called.err, "schedule" in called.err) == (2, True, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kinds", ["", ",", " , "])
def test_no_kind_at_all_is_told(kinds: str, cli: Cli, tmp_path: Path) -> None:
    called = cli("new-plugin", "acme", "--with", kinds, "--out", tmp_path / "out")
    assert (called.code, called.err.splitlines()[0]) == (2, "--with names nothing that a plugin brings.")
    assert "criterion" in called.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_told(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    called = cli("new-plugin", "acme", "--out", tmp_path / "file" / "out")
    assert called.code == 2
    assert called.err.splitlines()[:3] == [
        "The folder can't be made.",
        f"  where: {tmp_path / 'file' / 'out'}",
        "  why: Not a directory",
    ]
