"""Branches on the command line: listed, removed, in reports, in settings and recipes, and what the doctor says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import prunekit as pk
from prunekit_plugins.doctor.facts import BranchFacts, Disease, Facts, LayerFacts
from prunekit_plugins.doctor.findings import find
from prunekit_plugins.reports import report_data, to_html, to_markdown
from tests.cli import toys
from tests.cli.conftest import Cli

BLOCKS = ("tests.cli.toys:blocks", "--input", "1,4")
NAMES = ["blocks.0", "blocks.1", "blocks.2"]
OWN = 12 + 6 * 10 + 10 + 10 * 6 + 6
"""Parameters of a block: a norm and two layers."""


def test_inspect_lists_branches(cli: Cli) -> None:
    data = cli("inspect", *BLOCKS, "--json").data
    assert data["branches"] == [
        {"name": name, "kind": "residual", "sums": 1, "params": OWN, "macs": 120, "gone": False, "why": ""}
        for name in NAMES
    ]
    text = cli("inspect", *BLOCKS).out
    assert "branches: 3" in text
    assert "blocks.{0-2}" in text
    assert "may go" in text


def test_a_ratio_by_names_and_a_target(cli: Cli, tmp_path: Path) -> None:
    small = tmp_path / "small.safetensors"
    called = cli("prune", *BLOCKS, "--branch-ratio", 0.34, "--out", small, "--check", "--json")
    assert (called.code, called.err) == (0, "")
    (gone,) = called.data["branches"]["gone"]
    assert called.data["params"] == {"before": 30 + 3 * OWN + 14, "after": 30 + 2 * OWN + 14}
    assert called.data["check"]["exact"]
    assert called.data["branches"]["left"] == dict.fromkeys(set(NAMES) - {gone}, "not among the lowest scores")
    data = cli("prune", *BLOCKS, "--branch", "blocks.1", "--json").data
    assert data["branches"]["gone"] == ["blocks.1"]
    data = cli("prune", *BLOCKS, "--target", "params=0.5", "--by", "depth", "--keep-last", 1, "--json").data
    assert data["branches"]["gone"] == NAMES[:2]
    assert data["params"]["after"] == 30 + OWN + 14
    text = cli("prune", *BLOCKS, "--branch-ratio", 0.34).out
    assert "branches gone: 1 of 3" in text
    assert "weak guess" in text


def test_data_choose_branches(cli: Cli) -> None:
    calibration = ("--calibration", "tests.cli.toys:batches")
    first = cli("prune", *BLOCKS, "--branch-ratio", 0.34, *calibration, "--json").data
    assert first["protocol"]["arguments"]["branch_ratio"] == 0.34
    named = cli(
        "prune", *BLOCKS, "--branch-ratio", 0.34, *calibration, "--branch-importance", "output_change", "--json"
    )
    assert first["branches"] == named.data["branches"]
    assert len(first["branches"]["gone"]) == 1
    assert not any("weak guess" in note for note in first["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--branch", "blocks.7"), "did you mean"),
        (("--branch-ratio", "1"), "--branch-ratio must lie in [0, 1)"),
        (("--by", "depth"), "--by depth needs a target"),
        (("--branch-ratio", "0.5", "--branch-importance", "lamp"), "nothing to say about branches"),
        (("--branch-ratio", "0.5", "--branch-importance", "output_change,measure=js"), "no such measure"),
    ],
)
def test_what_is_refused(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    called = cli("prune", *BLOCKS, *arguments)
    assert called.code == 2
    assert message in called.err


def test_settings_and_recipes(cli: Cli, tmp_path: Path) -> None:
    settings = tmp_path / "prunekit.toml"
    settings.write_text(
        'importance = "random"\nbranch_ratio = 0.34\nkeep_first = 1\n'
        'branch_importance = { name = "magnitude", p = 1 }\n'
    )
    recipe = tmp_path / "recipe.toml"
    first = cli("prune", *BLOCKS, "--config", settings, "--save-recipe", recipe, "--json").data
    (gone,) = first["branches"]["gone"]
    assert gone != "blocks.0"
    again = cli("prune", "--recipe", recipe, "--json").data
    assert again["branches"] == first["branches"]
    assert again["params"] == first["params"]
    assert not [line for line in recipe.read_text().splitlines() if line.startswith(("ratio =", "importance ="))]
    typed = cli("prune", *BLOCKS, "--config", settings, "--branch", "blocks.2", "--json")
    assert typed.code == 0
    assert typed.data["branches"]["gone"] == ["blocks.2"]


def test_reports_show_what_became_of_branches(cli: Cli, tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = pk.prune(toys.blocks().eval(), torch.zeros(1, 4), branches=["blocks.1"])
    data = report_data(result, title="toy")
    assert [(row.name, row.gone, row.why, row.params) for row in data.branches] == [
        ("blocks.0", False, "not named", OWN),
        ("blocks.1", True, "", OWN),
        ("blocks.2", False, "not named", OWN),
    ]
    rows = {row.name: row for row in data.layers}
    assert rows["blocks.1.1"].after is None
    assert rows["blocks.1.1"].params == (70, 0)
    assert rows["blocks.1.1"].macs == (60, 0)
    assert rows["blocks.0.1"].macs == (60, 60)
    assert sum(row.macs[1] for row in data.layers) == data.costs["macs"][1]
    assert sum(row.params[1] for row in data.layers) == data.costs["params"][1]
    assert "| blocks.1 | residual | 1 | 148 | 120 | gone |" in to_markdown(data)
    assert "Branches" in to_html(data)
    assert json.loads(json.dumps(data.to_dict()))["branches"][1]["gone"] is True
    plain = report_data(pk.prune(toys.blocks().eval(), torch.zeros(1, 4)))
    assert plain.branches == ()
    assert "## Branches" not in to_markdown(plain)
    page = tmp_path / "page.md"
    cli("inspect", *BLOCKS, "--report", page)
    assert "| residual | 1 | 148 | 120 | may go |" in page.read_text()


def test_the_doctor_counts_what_a_plan_without_branches_leaves(cli: Cli, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    macs = cli("prune", *BLOCKS, "--branch", "blocks.1", "--plan", plan, "--json").data["costs"]["macs"]
    data = cli("doctor", *BLOCKS, "--rounds", 1, "--threads", 1, "--plan", plan, "--json").data
    assert data["macs"] == {"before": macs["before"], "after": macs["after"]}


def facts(seconds_after: float) -> Facts:
    """Half of the multiply-accumulates are gone; two branches do 80 of 100 of them in 80 of 100 seconds."""
    layer = LayerFacts("layer", "Linear", (100.0, seconds_after), (100.0, 50.0), (1.0, 1.0), {}, False, {})
    branches = (BranchFacts("a", 50.0, 40.0), BranchFacts("b", 30.0, 40.0))
    return Facts({"layer": layer}, 8, "said", 0.0, 1e-9, branches)


def test_the_doctor_says_when_depth_would_be_faster() -> None:
    assert facts(90.0).by_depth == pytest.approx(2.0)  # 50 of 80 MACs, so 50 of 80 seconds
    (finding,) = [one for one in find(facts(90.0)) if one.disease is Disease.WIDTH]
    assert finding.text == (
        "with 50% of the MACs it is 1.11 times faster; without branches that do as many it would be about 2.00 times "
        "(2 can go)"
    )
    assert "by depth" in finding.advice
    assert not [one for one in find(facts(51.0)) if one.disease is Disease.WIDTH]
    none = Facts({"layer": facts(90.0).layers["layer"]}, 8, "said", 0.0, 1e-9)
    assert none.by_depth == 0.0
