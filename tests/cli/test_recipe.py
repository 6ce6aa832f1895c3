"""Recipes repeat a call bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

import prunekit as pk
from prunekit_plugins.cli.recipe import Recipe, read_recipe, write_recipe
from tests.cli import toys
from tests.cli.conftest import Cli
from tests.plugins.installing import VERSION, install

BLOCKS = ("prune", "tests.cli.toys:blocks", "--input", "1,4")


def test_a_recipe_repeats_a_call_bit_for_bit(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    safetensors.torch.save_file(toys.blocks().state_dict(), tmp_path / "in.safetensors")
    (tmp_path / "project.toml").write_text(
        'importance = { name = "magnitude", p = 1 }\nignored_layers = ["blocks.0"]\n'
        'pruning_ratio_dict = { "blocks.1" = 0.25 }\nblock = ["prunekit:schedules"]\nmax_pruning_ratio = 0.75\n'
    )
    first, again, recipe = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "recipe.toml"
    called = cli(
        *(*BLOCKS, "--weights", tmp_path / "in.safetensors", "--config", tmp_path / "project.toml"),
        *("--ratio", 0.4, "--round-to", 2, "--global", "--ignore", "stem", "--out", first, "--save-recipe", recipe),
        "--json",
    )
    assert (called.code, called.err) == (0, "")
    # elsewhere, in a project with other settings and another state of the generator
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "prunekit.toml").write_text("ratio = 0.9\nround_to = 3\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.chdir(tmp_path / "other")
    torch.manual_seed(99)
    repeated = cli("prune", "--recipe", recipe, "--out", again, "--json")
    assert (repeated.code, repeated.err) == (0, "")
    assert first.read_bytes() == again.read_bytes()
    assert pk.read_plan(first) == pk.read_plan(again)
    assert {**called.data, "out": ""} == {**repeated.data, "out": ""}
    protocol = called.data["protocol"]
    assert protocol == json.loads((pk.read_protocol(again) or pytest.fail("no protocol")).to_json())
    assert (protocol["source"], protocol["seed"]) == ("tests.cli.toys:blocks", 0)
    assert protocol["arguments"]["importance"]["p"] == 1
    assert protocol["arguments"]["ignored_layers"] == ["blocks.0", "stem"]
    # the recipe of the repetition is the same recipe
    assert cli("prune", "--recipe", recipe, "--save-recipe", tmp_path / "second.toml").code == 0
    assert (tmp_path / "second.toml").read_text() == recipe.read_text()


def test_what_is_typed_wins_over_the_recipe(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    assert cli(*BLOCKS, "--ratio", 0.5, "--ignore", "stem", "--save-recipe", recipe).code == 0
    plain = cli("prune", "--recipe", recipe, "--json").data
    assert {name: sizes["after"] for name, sizes in plain["pruned"].items()} == {f"blocks.{k}.1": 5 for k in range(3)}
    ratio = cli("prune", "--recipe", recipe, "--ratio", 0.2, "--ignore", "blocks.0", "--json").data
    assert {name: sizes["after"] for name, sizes in ratio["pruned"].items()} == {"blocks.1.1": 8, "blocks.2.1": 8}
    target = cli("prune", "--recipe", recipe, "--target", "macs=0.9", "--json").data
    assert target["protocol"]["arguments"]["target"] == {"macs": 0.9}
    other = cli("prune", "tests.cli.toys:perceptron", "--input", "1,4", "--recipe", recipe)
    assert other.code == 2
    assert "has no module named 'stem'" in other.err


def test_a_recipe_is_read_as_it_was_written(tmp_path: Path) -> None:
    recipe = Recipe(
        'odd."name":x',
        ("1,3", "2:int64"),
        {
            "importance": {"name": "magnitude", "p": 1.5, "bias": True},
            "target": {"macs": 1e-05, "params": 0.5},
            "pruning_ratio_dict": {"a.b": 0.25, 'quote " and \\ and ä': 0.0},
            "ignored_layers": ["a", "b\n\x7f"],
            "global_pruning": False,
        },
        "w.safetensors",
        "0" * 64,
        7,
        {"torch": "2.8"},
    )
    write_recipe(tmp_path / "r.toml", recipe)
    found, config = read_recipe(tmp_path / "r.toml")
    assert found == recipe
    assert config.importance_arguments == {"p": 1.5, "bias": True}
    assert [path.name for path in tmp_path.iterdir()] == ["r.toml"]
    assert found.changes() == [f"torch 2.8, now {torch.__version__}"]


GOOD = 'format = 1\nmodel = "tests.cli.toys:perceptron"\ninput = ["1,4"]\n[settings]\nratio = 0.5\n'
WRONG = {
    "format = [": "The recipe can't be read.",
    GOOD.replace("input", "inputs"): "A recipe has no key 'inputs'.",
    GOOD.replace("format = 1", "format = 2"): "The key 'format' of a recipe must be the number 1.",
    GOOD.replace('["1,4"]', '"1,4"'): "The key 'input' of a recipe must be a list of inputs",
    GOOD.replace("format = 1", 'format = 1\nseed = "x"'): "The key 'seed' of a recipe must be a whole number.",
    "format = 1\n[settings]\n": "A recipe lacks a key.",
    GOOD.replace("ratio", "ration"): "There is no setting 'ration'.",
    GOOD.replace("0.5", "5"): "The setting 'ratio' must be a number in [0, 1).",
    GOOD + 'importance = "magnitud"\n': "No importance is registered as 'magnitud'.",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items(), ids=WRONG.values())
def test_wrong_recipes_are_told(text: str, message: str, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    called = cli("prune", "--recipe", path)
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith(message)
    assert str(path) in called.err
    if "inputs" in text:
        assert "did you mean 'input'?" in called.err


def test_a_recipe_and_a_table_of_latencies_exclude_each_other(cli: Cli, tmp_path: Path) -> None:
    table, recipe = tmp_path / "table.json", tmp_path / "recipe.toml"
    table.write_text("{}")
    perceptron = ("tests.cli.toys:perceptron", "--input", "1,4", "--target", "latency=0.5")
    called = cli("prune", *perceptron, "--latency-table", table, "--save-recipe", recipe)
    assert called.code == 2
    assert called.err.startswith("--latency-table doesn't go with recipes.")
    assert not recipe.exists()


def test_other_weights_than_those_of_the_recipe_are_told(cli: Cli, tmp_path: Path) -> None:
    weights, recipe = tmp_path / "in.safetensors", tmp_path / "recipe.toml"
    safetensors.torch.save_file(toys.blocks().state_dict(), weights)
    assert cli(*BLOCKS, "--weights", weights, "--save-recipe", recipe).code == 0
    safetensors.torch.save_file(toys.blocks().state_dict(), weights)
    called = cli("prune", "--recipe", recipe)
    assert called.code == 1
    assert called.err.startswith("The weights are not those of the recipe.")
    assert cli("prune", "--recipe", recipe, "--weights", weights).code == 0
    weights.unlink()
    assert cli("prune", "--recipe", recipe).err.startswith("There is no such file.")
    assert cli("prune", "--recipe", tmp_path / "nosuch.toml").code == 2
    assert cli("prune", "--recipe", recipe, "--config", recipe).err.startswith("Give --recipe or --config, not both.")


PLUGIN = """
    def first():
        return lambda group: -torch.arange(group.size()).float()


    @plugin.hookimpl
    def prunekit_importance():
        return {"noted_first": first, "noted_other": first}
"""


def test_a_recipe_notes_the_version_of_the_plugin_that_brought_the_criterion(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    install(tmp_path / "site", monkeypatch, "noted", PLUGIN)
    recipe = tmp_path / "recipe.toml"
    assert cli(*BLOCKS, "--importance", "noted_first", "--save-recipe", recipe).code == 0
    assert read_recipe(recipe)[0].versions["noted"] == VERSION
    assert "note:" not in cli("prune", "--recipe", recipe).out
    (info,) = (tmp_path / "site").glob("noted-*.dist-info")
    metadata = (info / "METADATA").read_text()
    (info / "METADATA").write_text(metadata.replace(f"Version: {VERSION}", "Version: 99.0"))
    assert f"note: the recipe was written with noted {VERSION}, now 99.0" in cli("prune", "--recipe", recipe).out
    assert cli(*BLOCKS, "--save-recipe", recipe).code == 0
    assert "noted" not in read_recipe(recipe)[0].versions
