"""The files about the project say the same: versions, licence, what is supported, which commands are run."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest

from tests.docs.snippets import ROOT

CITATION = (ROOT / "CITATION.cff").read_text()
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
HOOKS = (ROOT / ".pre-commit-config.yaml").read_text()


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    try:
        parser = importlib.import_module("tomllib")
    except ModuleNotFoundError:  # before Python 3.11
        parser = importlib.import_module("tomli")
    data: dict[str, Any] = parser.loads((ROOT / "pyproject.toml").read_text())
    return data


@pytest.fixture(scope="module")
def project(settings: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = settings["project"]
    return data


def cited(key: str) -> str:
    found = re.search(rf"^{key}: (.*)$", CITATION, flags=re.MULTILINE)
    assert found, f"CITATION.cff has no {key}"
    return found[1]


def test_the_citation_is_of_this_version(project: dict[str, Any]) -> None:
    assert (cited("version"), cited("license")) == (project["version"], project["license"])
    assert cited("url") == cited("repository-code") == project["urls"]["Homepage"]
    assert f"- name: {project['authors'][0]['name']}\n" in CITATION


def test_the_changelog_is_by_version(project: dict[str, Any]) -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.*?)\] - (?:unreleased|\d{4}-\d\d-\d\d)$", text, flags=re.MULTILINE)
    assert len(versions) == text.count("\n## ")
    assert versions[0] == project["version"]
    assert all(f"\n[{version}]: {project['urls']['Homepage']}/" in text for version in versions)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, flags=re.MULTILINE)) <= kinds


def test_the_license_is_whole(project: dict[str, Any]) -> None:
    text = (ROOT / "LICENSE").read_text()
    assert project["license-files"] == ["LICENSE"]
    assert [text.count(f"\n   {number}. ") for number in range(1, 10)] == [1] * 9
    assert "Apache License\n" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_address_is_in_one_repository(project: dict[str, Any]) -> None:
    home = project["urls"]["Homepage"]
    assert all(url == home or url.startswith(f"{home}/") for url in project["urls"].values())
    for path in ROOT.glob("*.md"):
        addresses = re.findall(r"https://github\.com/[\w-]+/prunekit", path.read_text())
        assert set(addresses) <= {home}, path.name


def test_the_workflow_runs_what_is_supported(project: dict[str, Any]) -> None:
    listed = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), flags=re.MULTILINE)
    matrix = re.search(r"^        python: \[(.*)\]$", WORKFLOW, flags=re.MULTILINE)
    assert matrix
    assert re.findall(r'"(3\.\d+)"', matrix[1]) == listed
    assert project["requires-python"] == f">={listed[0]}"
    oldest = next(need.removeprefix("torch>=") for need in project["dependencies"] if need.startswith("torch>="))
    assert re.search(rf'python: "{listed[0]}"\n +torch: "torch=={oldest}\.0 ', WORKFLOW)


def test_the_quick_half_is_the_same_everywhere(pytestconfig: pytest.Config) -> None:
    line = re.search(r'pytest (-n 2 -m ".*")', WORKFLOW)
    assert line
    assert line[1].removeprefix("-n 2 ") in (ROOT / "README.md").read_text()
    assert f"`pytest {line[1]}`" in CONTRIBUTING
    markers = set(re.findall(r"not (\w+)", line[1]))
    assert markers <= {text.split(":")[0] for text in pytestconfig.getini("markers")}
    assert "-n" not in pytestconfig.getini("addopts")


def test_coverage_has_a_floor_and_is_of_every_package(settings: dict[str, Any]) -> None:
    tools = settings["tool"]
    assert tools["coverage"]["report"]["fail_under"] >= 95
    assert tools["coverage"]["run"]["source_pkgs"] == tools["mypy"]["packages"]
    command = re.search(r"pytest (-n 2 --cov .*)", WORKFLOW)
    assert command
    assert f"`pytest {command[1]}`" in CONTRIBUTING


def test_every_place_that_contributors_are_sent_to_is_there() -> None:
    places = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|\w+\.(?:md|toml|cff))`", CONTRIBUTING)
    assert len(places) > 20
    assert [place for place in places if not (ROOT / place).exists()] == []
    modules = re.findall(r"`python -m (tests[\w.]+)", CONTRIBUTING)
    assert modules
    assert [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").exists()] == []


@pytest.mark.parametrize("command", ["ruff check", "ruff format", "mypy"])
def test_the_same_checks_run_everywhere(command: str) -> None:
    assert f"entry: {command}" in HOOKS
    assert f"- run: {command}" in WORKFLOW
    assert f".venv/bin/{command}" in (ROOT / ".ci/run").read_text()
