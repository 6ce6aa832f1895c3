"""Code that is named on the command line, in the settings of a project, and in recipes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prunekit_plugins.cli.arguments import read_criterion
from tests.cli.conftest import Cli

ROOT = Path(__file__).resolve().parents[2]
MODEL = ("prune", "tests.cli.toys:perceptron", "--input", "1,4")
SCORES = """
import torch


class First:
    def __init__(self, sign=-1.0):
        self.sign = sign

    def __call__(self, group):
        return self.sign * torch.arange(group.size()).float()
"""
PLUGIN = """
from pathlib import Path
from prunekit.plugin import hookimpl


@hookimpl
def prunekit_commands():
    return {"hello": hello}


def hello():
    "Say hello."
    print("hello from the project")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with code of its own, and the toys in reach."""
    modules = set(sys.modules)
    (tmp_path / "project_scores.py").write_text(SCORES)
    (tmp_path / "project_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("lamp", {"name": "lamp"}),
        ("magnitude,p=1", {"name": "magnitude", "p": 1}),
        ("m:C,a=x,b=[1, 2],c=true,d=1e-3", {"name": "m:C", "a": "x", "b": [1, 2], "c": True, "d": 0.001}),
        ("m:C,a=x,y,b=", {"name": "m:C", "a": "x,y", "b": ""}),
    ],
)
def test_criteria_are_read_with_arguments(text: str, found: dict[str, Any], project: Path) -> None:
    assert read_criterion(text) == found


def kept(cli: Cli, *words: object) -> Any:
    plan = Path("plan.json")
    called = cli(*words, "--plan", plan, "--json")
    assert (called.code, called.err) == (0, "")
    import prunekit as pk

    return pk.Plan.load(plan).cuts[0].kept


def test_a_criterion_is_code(cli: Cli, project: Path) -> None:
    assert kept(cli, *MODEL, "--importance", "project_scores.py:First") == (0, 1, 2, 3)
    assert kept(cli, *MODEL, "--importance", "project_scores:First,sign=1.0") == (4, 5, 6, 7)
    wrong = cli(*MODEL, "--importance", "project_scores:First,sing=1.0")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.startswith("The criterion 'project_scores:First' has no argument 'sing'.")
    twice = cli(*MODEL, "--importance", "magnitude,p=1,p=2")
    assert (twice.code, twice.err.splitlines()[0]) == (2, "An argument of --importance is given twice.")
    absent = cli(*MODEL, "--importance", "nosuch.py:First")
    assert (absent.code, absent.err) == (2, f"There is no file '{project}/nosuch.py'.\n")
    assert cli(*MODEL, "--importance", "magnitude,p=-1").err.startswith("The criterion 'magnitude' can't be made with")


def test_a_plugin_is_code(cli: Cli, project: Path) -> None:
    for place in ("project_plugin", "project_plugin.py"):
        data = cli("plugins", "--plugin", place, "--json").data
        assert [entry["name"] for entry in data["hooks"]["prunekit_commands"]][-1] == "hello"
        assert data["plugins"][-1]["state"] == "loaded"
    for command in ("inspect", "doctor", "export", "prune"):
        wrong = cli(command, "tests.cli.toys:perceptron", "--out", "x", "--plugin", "nosuch.py")
        assert wrong.code == 2
    (project / "project_broken.py").write_text("\n1 / 0\n")
    broken = cli("plugins", "--plugin", "project_broken.py")
    assert (broken.code, broken.out) == (1, "")
    assert f"ZeroDivisionError: division by zero ({project}/project_broken.py:2)" in broken.err


def test_a_plugin_of_the_project_brings_commands(cli: Cli, project: Path) -> None:
    (project / "prunekit.toml").write_text('plugins = ["project_plugin.py"]\n')
    inner = project / "inner"
    inner.mkdir()
    assert "Say hello." in cli("--help").out
    assert cli("hello").out == "hello from the project\n"


def test_versions_need_no_code(cli: Cli, project: Path) -> None:
    (project / "project_plugin.py").write_text("raise RuntimeError('loaded')\n")
    (project / "prunekit.toml").write_text('plugins = ["project_plugin.py"]\n')
    assert cli("--version").out.startswith("prunekit ")
    assert cli("plugins").code == 1


def test_a_recipe_loads_no_code_by_itself(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = project / "recipe.toml"
    words = ("--importance", "project_scores.py:First,sign=1.0", "--plugin", "project_plugin.py")
    assert kept(cli, *MODEL, *words, "--save-recipe", recipe) == (4, 5, 6, 7)
    text = recipe.read_text()
    assert 'importance = { name = "project_scores.py:First", sign = 1.0 }\n' in text
    assert 'plugins = ["project_plugin.py"]\n' in text
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    refused = cli("prune", "--recipe", recipe)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith(f"The recipe names code.\n  where: {recipe}\n")
    assert "project_scores.py:First" in refused.err
    assert "--allow-code" in refused.err
    assert kept(cli, "prune", "--recipe", recipe, "--allow-code") == (4, 5, 6, 7)
    assert cli("prune", "--recipe", recipe, "--allow-code", "--save-recipe", "again.toml").code == 0
    moved = text.replace('"project_', '"../project_')
    assert Path("again.toml").read_text() == moved != text


def test_a_recipe_works_with_its_code_in_another_place(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "here").mkdir()
    (project / "project_scores.py").rename(project / "here" / "scores.py")
    recipe = project / "here" / "recipe.toml"
    assert kept(cli, *MODEL, "--importance", "here/scores.py:First", "--save-recipe", recipe) == (0, 1, 2, 3)
    (project / "here").rename(project / "there")
    assert kept(cli, "prune", "--recipe", "there/recipe.toml", "--allow-code") == (0, 1, 2, 3)


def test_a_recipe_holds_the_tables_of_plugins(cli: Cli, project: Path) -> None:
    (project / "prunekit.toml").write_text("[plugin.one_cycle]\nalpha = 3.0\n")
    assert cli(*MODEL, "--save-recipe", "r.toml").code == 0
    assert "plugin = { one_cycle = { alpha = 3.0 } }\n" in Path("r.toml").read_text()
    assert cli("prune", "--recipe", "r.toml").code == 0


@pytest.mark.parametrize("name", ["scores.py", "scores.py:", "scores:"])
def test_a_file_alone_is_no_criterion(name: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.py").write_text("")
    place = name.rstrip(":")
    typed = cli("prune", "tests.cli.toys:perceptron", "--input", "2,4", "--importance", name)
    assert (typed.code, f"what to do: name what is in it: {place}:Class" in typed.err) == (2, True), typed.err
    (tmp_path / "prunekit.toml").write_text(f'importance = "{name}"')
    found = cli("prune", "tests.cli.toys:perceptron", "--input", "2,4")
    assert (found.code, f"{place}:Class" in found.err) == (2, True), found.err


@pytest.mark.parametrize("text", ["magnitude,p", "magnitude,", "magnitude,p,power=2"])
def test_an_argument_without_a_value_is_told(text: str, cli: Cli) -> None:
    called = cli("prune", "tests.cli.toys:perceptron", "--input", "2,4", "--importance", text)
    assert (called.code, called.err.splitlines()[0]) == (2, "An argument of --importance has no value.")
    assert "NAME,ARG=VALUE" in called.err
