"""``prunekit doctor``: the plan it looks at, what it prints, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli

PERCEPTRON = ("tests.cli.toys:perceptron", "--input", "1,4", "--rounds", 2, "--threads", 1)


def test_a_plan_of_its_own_or_a_file_or_a_folder(cli: Cli, tmp_path: Path) -> None:
    small, plan = tmp_path / "small.safetensors", tmp_path / "plan.json"
    cli("prune", *PERCEPTRON[:3], "--ratio", 0.25, "--out", small, "--plan", plan)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "prunekit_plan.json").write_text(plan.read_text())
    for option, path in (("--weights", small), ("--plan", plan), ("--plan", folder)):
        data = cli("doctor", *PERCEPTRON, option, path, "--json").data
        assert data["macs"] == {"before": 56, "after": 42}
    data = cli("doctor", *PERCEPTRON, "--json").data
    assert data["macs"] == {"before": 56, "after": 28}
    assert set(data["layers"]) == {"", "first", "second"}
    assert data["layers"]["first"]["macs"] == [32, 16]
    assert data["threads"] == 1
    for finding in data["findings"]:
        assert finding["layer"] in data["layers"]
        assert finding["advice"]


def test_as_a_table(cli: Cli) -> None:
    called = cli("doctor", *PERCEPTRON, "--target", "macs=0.6")
    assert called.code == 0
    assert "tests.cli.toys:perceptron, weights as built, input 1,4, on 1 threads" in called.out
    assert "findings: " in called.out or "times less" in called.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--plan", "a", "--target", "macs=0.5"), 2, "Give one of --plan, --weights and --target."),
        (("--plan", "nowhere.json"), 2, "There is no such file."),
        (("--rounds", 0), 2, "must be positive"),
        (("--target", "macs=0.001"), 2, "The target can't be reached."),
    ],
)
def test_what_is_refused(cli: Cli, arguments: tuple[object, ...], code: int, message: str) -> None:
    called = cli("doctor", "tests.cli.toys:perceptron", "--input", "1,4", *arguments)
    assert called.code == code
    assert message in called.err
