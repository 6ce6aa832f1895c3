"""The command line and the settings of the project around the working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli

ROOT = Path(__file__).resolve().parents[2]
MODEL = ("prune", "tests.cli.toys:blocks", "--input", "1,4", "--json")
SETTINGS = """
importance = { name = "magnitude", p = 1 }
target = { macs = 0.9 }
ignored_layers = ["stem"]
global_pruning = true
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder above the working directory; the toys can be imported from there."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(inner)
    return tmp_path


def after(pruned: dict[str, dict[str, int]]) -> dict[str, int]:
    return {name: sizes["after"] for name, sizes in pruned.items()}


def test_settings_reach_the_pruner(cli: Cli, project: Path) -> None:
    (project / "prunekit.toml").write_text("ratio = 0.3\nround_to = 5\nignored_layers = ['stem']\n")
    data = cli(*MODEL).data
    assert after(data["pruned"]) == {f"blocks.{k}.1": 5 for k in range(3)}
    assert data["left"] == {"stem#stream": "ignored layer stem"}


def test_what_is_typed_wins(cli: Cli, project: Path) -> None:
    (project / "prunekit.toml").write_text(SETTINGS)
    by_file = cli(*MODEL).data
    assert 0.5 < by_file["costs"]["macs"]["after"] / by_file["costs"]["macs"]["before"] <= 0.9
    typed = cli(*MODEL, "--ratio", 0.2, "--local", "--ignore", "blocks.0.1").data
    assert after(typed["pruned"]) == {"blocks.1.1": 8, "blocks.2.1": 8}
    assert set(typed["left"]) == {"stem#stream", "blocks.0.1"}
    (project / "prunekit.toml").write_text("ratio = 0.2\nimportance = { name = 'magnitude', p = -1 }\n")
    refused = cli(*MODEL)
    assert refused.code == 2
    assert "can't be made with these arguments" in refused.err
    by_target = cli(*MODEL, "--importance", "lamp", "--target", "params=0.5").data
    assert by_target["params"]["after"] <= 0.5 * by_target["params"]["before"]
    assert cli(*MODEL, "--importance", "lamb").code == 2


def test_a_file_can_be_named(cli: Cli, project: Path) -> None:
    (project / "prunekit.toml").write_text("ratio = 0.3\n")
    other = project / "other.toml"
    other.write_text("ratio = 0.5\n")
    assert after(cli(*MODEL, "--config", other).data["pruned"])["blocks.0.1"] == 5
    assert after(cli(*MODEL).data["pruned"])["blocks.0.1"] == 7
    absent = cli("plugins", "--config", project / "nosuch.toml")
    assert (absent.code, absent.out) == (2, "")
    assert absent.err.startswith("There is no configuration file 'nosuch.toml'.")


def test_a_wrong_setting_is_told_with_the_nearest_name(cli: Cli, project: Path) -> None:
    (project / "pyproject.toml").write_text("[tool.prunekit]\nignore_layers = []\n")
    called = cli(*MODEL)
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith(
        "There is no setting 'ignore_layers'.\n"
        f"  where: {project / 'pyproject.toml'} [tool.prunekit]\n"
        "  what to do: did you mean 'ignored_layers'"
    )


@pytest.fixture(params=["wrong setting", "wrong plugin"])
def wrong(request: pytest.FixtureRequest, project: Path) -> tuple[int, str]:
    """A project whose settings are wrong: the exit code, and the first line of the error."""
    if request.param == "wrong setting":
        (project / "prunekit.toml").write_text("rato = 1\n")
        return 2, "There is no setting 'rato'."
    (project / "tools").mkdir()
    (project / "tools" / "bad.py").write_text("import nosuchmodule\n")
    (project / "prunekit.toml").write_text('plugins = ["tools/bad.py"]\nblock = ["schedules"]\n')
    return 1, "A plugin can't be loaded."


def test_a_file_that_is_typed_is_read_instead_of_a_wrong_one(cli: Cli, project: Path, wrong: tuple[int, str]) -> None:
    refused = cli(*MODEL)
    assert (refused.code, refused.out, refused.err.splitlines()[0]) == (wrong[0], "", wrong[1])
    other = project / "other.toml"
    other.write_text("ratio = 0.5\n")
    for words in (("--config", other), (f"--config={other}",), ("--config", "no.toml", f"--config={other}")):
        done = cli(*MODEL, *words)
        assert (done.code, done.err) == (0, "")
        assert after(done.data["pruned"])["blocks.0.1"] == 5


def test_settings_that_are_wrong_are_not_asked_beside_a_recipe(cli: Cli, project: Path, wrong: tuple[int, str]) -> None:
    (project / "other.toml").write_text("ratio = 0.3\n")
    recipe = project / "recipe.toml"
    assert cli(*MODEL, "--config", project / "other.toml", "--save-recipe", recipe).code == 0
    assert after(cli("prune", "--recipe", recipe, "--json").data["pruned"])["blocks.0.1"] == 7


def test_a_wrong_plugin_of_the_project_can_be_left_out_as_its_error_says(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "bad.py").write_text("import nosuchmodule\n")
    (project / "prunekit.toml").write_text('plugins = ["bad.py"]\nratio = 0.5\n')
    assert "what to do: correct it, or leave the plugin out: PRUNEKIT_BLOCK=bad.py\n" in cli(*MODEL).err
    for words in (("--block", "bad.py"), ("--block=bad.py",)):
        assert after(cli(*MODEL, *words).data["pruned"])["blocks.0.1"] == 5
    monkeypatch.setenv("PRUNEKIT_BLOCK", "bad.py")
    assert after(cli(*MODEL).data["pruned"])["blocks.0.1"] == 5


def test_a_file_that_is_not_there_can_be_left_out(cli: Cli, project: Path) -> None:
    (project / "prunekit.toml").write_text('plugins = ["gone.py"]\nratio = 0.5\n')
    assert "what to do: correct the path, or leave the plugin out: PRUNEKIT_BLOCK=gone.py\n" in cli(*MODEL).err
    assert cli(*MODEL, "--block", "gone.py").code == 0


def test_help_and_new_plugins_need_no_right_settings(cli: Cli, project: Path, wrong: tuple[int, str]) -> None:
    for words in (("--help",), ("prune", "--help"), ("plugins", "--help")):
        called = cli(*words)
        assert called.code == 0
        assert "Usage: prunekit" in called.out
        assert called.err.splitlines()[0] == wrong[1]
    called = cli("new-plugin", "my-criteria", "--json")
    assert (called.code, called.data["name"], called.err.splitlines()[0]) == (0, "my-criteria", wrong[1])


def test_the_list_of_plugins_says_what_is_wrong_with_the_settings(
    cli: Cli, project: Path, wrong: tuple[int, str]
) -> None:
    called = cli("plugins", "--json")
    assert (called.code, called.err.splitlines()[0]) == (wrong[0], wrong[1])
    assert called.err.count(wrong[1]) == 1
    states = {p["name"]: p["blocked_by"] for p in called.data["plugins"]}
    assert states["prunekit:importance"] is None
    assert states["prunekit:schedules"] == ("prunekit.toml" if wrong[0] == 1 else None)
    assert "this is without the settings of the project, which are wrong" in cli("plugins").out
    checked = cli("plugins", "--check")
    assert (checked.code, checked.err.splitlines()[0]) == wrong


def test_options_of_other_commands_are_theirs(cli: Cli, project: Path) -> None:
    code = (
        "from prunekit.plugin import hookimpl\n\n\ndef train(config: str) -> None:\n    'Train.'\n    print(config)\n"
    )
    hook = "\n\n@hookimpl\ndef prunekit_commands():\n    return {'train': train}\n"
    (project / "training.py").write_text(code.replace("config: str", "config: str = ''") + hook)
    (project / "prunekit.toml").write_text('plugins = ["training.py"]\n')
    called = cli("train", "--config", "nosuch.yaml")
    assert (called.code, called.out, called.err) == (0, "nosuch.yaml\n", "")


def test_blocked_commands_are_gone(cli: Cli, project: Path) -> None:
    (project / "prunekit.toml").write_text('block = ["ops"]\n')
    called = cli("inspect", "tests.cli.toys:perceptron", "--input", "1,4", "--json")
    assert called.data["groups"] == []
    assert called.data["not_understood"] != []
    (project / "prunekit.toml").write_text('block = ["cli"]\n')
    assert cli("plugins").code == 2
