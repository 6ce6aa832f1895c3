"""Which plugin decided what: things of a third party are named with their plugin, beside the built-in ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.cli.commands.trace import decisions
from tests.cli.conftest import Cli


class Labelled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.label, self.gain = str(width), nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.label == str(x.shape[-1])
        return x * self.gain


class Free(nn.Module):
    def __init__(self, source: Labelled) -> None:
        super().__init__()
        self.gain = source.gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain


def units(analysis: plugin.Analysis, kept: plugin.Kept) -> float:
    return float(sum(len(kept.get(name, range(group.size))) for name, group in analysis.groups.items()))


def repairs() -> Callable[[plugin.Repair], None]:
    def zero(repair: plugin.Repair) -> None:
        for problem in repair.layers():
            repair.settle(problem, problem.weight, problem.offset, "as it is")

    return zero


def hooks(**entries: Mapping[str, Any]) -> object:
    made = {
        name: plugin.hookimpl(lambda table=table: table, specname=f"prunekit_{name}") for name, table in entries.items()
    }
    return SimpleNamespace(**made)


def test_what_a_third_party_brings_is_named_with_its_plugin() -> None:
    own = hooks(
        importance={"first": lambda: lambda group: -torch.arange(group.size()).float()},
        budgets={"units": units},
        replacements={"free": plugin.Replacement("free", Labelled, Free)},
    )
    registry = pk.Registry(extra={"own": own})
    model = nn.Sequential(nn.Linear(4, 8), Labelled(8), nn.Linear(8, 3))
    result = pk.prune(model, torch.randn(2, 4), target={"units": 4}, importance="first", registry=registry)
    found = {(d.what, d.plugin): d for d in decisions(result, registry)}
    mine = {what: d.names for (what, owner), d in found.items() if owner == "own"}
    assert mine == {
        "criterion": ("first",),
        "target": ("units",),
        "replacement": ("free",),
        "cost model": ("units",),
    }
    assert found["layer type", "prunekit:layers"].names == ("Linear",)
    assert found["rule", "prunekit:ops"].version == metadata.version("prunekit")
    assert "aten::linear" in found["rule", "prunekit:ops"].names


def test_objects_that_nobody_registered_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    result = pk.prune(model, torch.randn(2, 4), importance=lambda group: torch.arange(group.size()).float())
    assert "criterion" not in {d.what for d in decisions(result, pk.default_registry())}


def test_compensators_and_allocators_are_named() -> None:
    registry = pk.Registry(extra={"own": hooks(compensators={"mine": repairs})})
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(32, 4)
    options: dict[str, Any] = {"calibration": [batch], "compensation": "mine", "allocation": "dp"}
    result = pk.prune(model, batch, target={"params": 0.5}, registry=registry, **options)
    found = {(d.what, d.plugin): d.names for d in decisions(result, registry)}
    assert found["allocator", "prunekit:allocators"] == ("dp",)
    assert found["compensator", "own"] == ("mine",)


def test_the_command_shows_it_when_asked(cli: Cli) -> None:
    arguments = ("prune", "tests.cli.toys:perceptron", "--input", "2,4")
    assert "decided by" not in cli(*arguments).out
    text = cli(*arguments, "--trace").out
    rows = [line.split() for line in text[text.index("decided by") :].splitlines()[2:]]
    version = metadata.version("prunekit")
    assert ["criterion", "prunekit:importance", version, "1", "magnitude"] in rows
    data = cli(*arguments, "--trace", "--json").data
    assert {"what": "rule", "names": ["aten::linear", "aten::relu"], "plugin": "prunekit:ops", "version": version} in (
        data["trace"]
    )
    assert "trace" not in cli(*arguments, "--json").data


SCORES = """
class First:
    def __init__(self, scale=1):
        self.scale = scale

    def __call__(self, group):
        return None if self.scale == 0 else -self.scale * group.views()[0].values().flatten(1).abs().sum(1)
"""


@pytest.mark.parametrize("arguments", ["", ",p=1"])
def test_a_criterion_with_arguments_is_named(arguments: str, cli: Cli) -> None:
    called = cli(
        *("prune", "tests.cli.toys:perceptron", "--input", "2,4", "--trace", "--json"),
        *("--importance", f"magnitude{arguments}"),
    )
    rows = [(row["names"], row["plugin"]) for row in called.data["trace"] if row["what"] == "criterion"]
    assert rows == [(["magnitude"], "prunekit:importance")]


@pytest.mark.parametrize("arguments", ["", ",scale=2"])
def test_a_criterion_of_the_project_is_named_with_its_file(arguments: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "scores.py").write_text(SCORES)
    called = cli(
        *("prune", "tests.cli.toys:perceptron", "--input", "2,4", "--trace", "--json"),
        *("--importance", f"{tmp_path / 'scores.py'}:First{arguments}"),
    )
    rows = [(row["names"], row["plugin"]) for row in called.data["trace"] if row["what"] == "criterion"]
    assert rows == [([f"{tmp_path / 'scores.py'}:First"], str(tmp_path / "scores.py"))]


def test_a_criterion_that_is_set_with_arguments_is_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('importance = { name = "magnitude", p = 1 }')
    called = cli(
        *("prune", "tests.cli.toys:perceptron", "--input", "2,4", "--trace", "--json"),
        *("--config", tmp_path / "own.toml"),
    )
    assert [row["names"] for row in called.data["trace"] if row["what"] == "criterion"] == [["magnitude"]]
