"""``prunekit shrink``: a recipe in, a folder with the steps and the smaller model out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import prunekit as pk
from tests.cli import toys
from tests.cli.conftest import Cli

RECIPE: dict[str, str] = {
    "format": "1",
    "model": '"tests.cli.toys:blocks"',
    "input": '["1,4"]',
    "steps": "2",
    "settings": '{ target = { macs = 0.5 }, ignored_layers = ["stem"] }',
    "distill": "{ epochs = 4, lr = 0.01, weights = { logits = 1, hidden = 0.5 }, save_every = 1 }",
}


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, str]:
    """The keys of a recipe, with weights and data in files."""
    torch.manual_seed(0)
    safetensors.torch.save_file(toys.blocks().state_dict(), tmp_path / "in.safetensors")
    torch.save(torch.randn(64, 4), tmp_path / "data.pt")
    data = json.dumps(str(tmp_path / "data.pt"))
    return RECIPE | {"calibration": data, "train": data}


def written(folder: Path, keys: dict[str, str]) -> Path:
    path = folder / "recipe.toml"
    path.write_text("".join(f"{key} = {value}\n" for key, value in keys.items()))
    return path


def test_a_recipe_shrinks_a_model_into_a_folder(cli: Cli, recipe: dict[str, str], tmp_path: Path) -> None:
    called = cli("shrink", written(tmp_path, recipe), "--json")
    assert called.code == 0, called.err
    data = called.data
    assert data["folder"] == str(tmp_path / "recipe")
    assert data["out"] == str(tmp_path / "recipe" / "step-2.safetensors")
    small = pk.load(toys.blocks(), data["out"])
    assert small.stem.out_features == 6
    params = sum(parameter.numel() for parameter in small.parameters())
    assert [step["costs"]["params"]["after"] for step in data["steps"]][1] == params
    macs = [step["costs"]["macs"] for step in data["steps"]]
    assert macs[1]["after"] <= macs[0]["before"] / 2 < macs[1]["before"] == macs[0]["after"]
    again = cli("shrink", written(tmp_path, recipe), "--json")
    assert again.data == data


def test_people_get_a_table(cli: Cli, recipe: dict[str, str], tmp_path: Path) -> None:
    called = cli("shrink", written(tmp_path, recipe), "--folder", tmp_path / "run")
    assert called.code == 0, called.err
    lines = called.out.splitlines()
    assert lines[0] == "shrinking"
    assert lines[1].startswith("tests.cli.toys:blocks, ")
    assert lines[2].split() == ["step", "macs", "left", "loss", "after", "cut", "trained"]
    assert [line.split()[0] for line in lines[3:5]] == ["1", "2"]
    assert lines[-1] == f"written to {tmp_path / 'run' / 'step-2.safetensors'}, with all steps in {tmp_path / 'run'}"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stps": "2"}, "A recipe has no key 'stps'."),
        ({"steps": "0"}, "The key 'steps' of a recipe must be a positive whole number."),
        ({"train": '"data.csv"'}, "The calibration data aren't named in a known way."),
        ({"settings": "{}"}, "The target is empty."),
        ({"settings": "{ ratio = 0.5 }"}, "This argument is about a single cut."),
        ({"settings": "{ target = { macs = 0.5 }, pruning_ratio_dict = { stem = 0.5 } }"}, "about a single cut."),
        ({"settings": "{ target = { macs = 0.001 } }"}, "The target can't be reached."),
        ({"distill": "{ lrr = 1.0 }"}, "distill has no argument called 'lrr'."),
        ({"distill": "{ seed = 1 }"}, "shrink gives distill this argument itself."),
        ({"schedule": '"curve"'}, "schedule"),
        ({"settings": '{ target = { macs = 0.5 }, importance = "code.py:Mine" }'}, "The recipe names code."),
    ],
)
def test_what_is_refused(cli: Cli, recipe: dict[str, str], keys: dict[str, str], message: str, tmp_path: Path) -> None:
    called = cli("shrink", written(tmp_path, recipe | keys))
    assert called.code == 2, called.err
    assert message in called.err
    assert not (tmp_path / "recipe").exists()


def test_a_recipe_that_lacks_what_is_trained_on_is_refused(cli: Cli, recipe: dict[str, str], tmp_path: Path) -> None:
    kept: dict[str, Any] = {key: value for key, value in recipe.items() if key != "train"}
    called = cli("shrink", written(tmp_path, kept))
    assert called.code == 2
    assert "A recipe lacks a key." in called.err
    assert "train" in called.err


def test_a_changed_recipe_does_not_go_on_in_the_folder(cli: Cli, recipe: dict[str, str], tmp_path: Path) -> None:
    assert cli("shrink", written(tmp_path, recipe)).code == 0
    called = cli("shrink", written(tmp_path, recipe | {"seed": "1"}))
    assert called.code == 1
    assert "The folder holds another shrinking." in called.err
    assert "seed was 0, and is 1" in called.err
