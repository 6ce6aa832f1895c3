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
    called = cli("plugins")
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith(
        "There is no setting 'ignore_layers'.\n"
        f"  where: {project / 'pyproject.toml'} [tool.prunekit]\n"
        "  what to do: did you mean 'ignored_layers'"
    )


def test_blocked_commands_are_gone(cli: Cli, project: Path) -> None:
    (project / "prunekit.toml").write_text('block = ["ops"]\n')
    called = cli("inspect", "tests.cli.toys:perceptron", "--input", "1,4", "--json")
    assert called.data["groups"] == []
    assert called.data["not_understood"] != []
    (project / "prunekit.toml").write_text('block = ["cli"]\n')
    assert cli("plugins").code == 2
