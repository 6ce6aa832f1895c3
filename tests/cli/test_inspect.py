from __future__ import annotations

import pytest
import torch

import prunekit_core as pk
from tests.cli.conftest import Cli


def test_inspect_lists_groups_pins_and_savings(cli: Cli) -> None:
    called = cli("inspect", "tests.cli.toys:blocks", "--input", "1,4", "--json")
    assert (called.code, called.err) == (0, "")
    groups = {group["name"]: group for group in called.data["groups"]}
    assert {name: (g["kind"], g["units"], g["exact"]) for name, g in groups.items()} == {
        "stem#stream": ("stream", 6, False),
        "blocks.0.1": ("neurons", 10, True),
        "blocks.1.1": ("neurons", 10, True),
        "blocks.2.1": ("neurons", 10, True),
    }
    assert groups["stem#stream"]["mixes"][0] == "aten::layer_norm in blocks.0.0"
    assert groups["blocks.1.1"]["members"] == [
        {"parameter": "blocks.1.1.weight", "dim": 0, "role": "out"},
        {"parameter": "blocks.1.1.bias", "dim": 0, "role": "along"},
        {"parameter": "blocks.1.3.weight", "dim": 1, "role": "in"},
    ]
    assert called.data["pinned"]["stem.weight[1]"] == "an input of the model"
    assert called.data["pinned"]["head.weight[0]"] == "an output of the model"
    # by hand: 4*6+6 + 3*(12 + 6*10+10 + 10*6+6) + 6*2+2, and the same with 3 and 5
    assert called.data["params"] == 30 + 3 * 148 + 14
    assert called.data["saving"]["params"]["after"] == 15 + 3 * (6 + 20 + 18) + 8
    assert called.data["saving"]["groups"]["blocks.0.1"] == {"before": 10, "after": 5}


def test_inspect_joins_repeated_blocks_for_people(cli: Cli) -> None:
    text = cli("inspect", "tests.cli.toys:blocks", "--input", "1,4").out
    assert "blocks.{0-2}.1" in text
    assert "blocks.1.1" not in text
    assert "not exact: layer_norm (3 uses)" in text
    whole = cli("inspect", "tests.cli.toys:blocks", "--input", "1,4", "--all").out
    assert "blocks.1.1" in whole


def test_inspect_names_what_pins_a_model_that_cannot_shrink(cli: Cli) -> None:
    called = cli("inspect", "tests.cli.toys:fixed", "--input", "1,4")
    assert called.code == 0
    assert "groups: 0" in called.out
    assert "an output of the model" in called.out
    assert "nothing can be pruned" in called.out


def test_inspect_shows_the_parts_of_a_vision_transformer(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    called = cli("inspect", "torchvision:vit_b_16", "--json")
    assert called.code == 0
    kinds: dict[str, list[int]] = {}
    for group in called.data["groups"]:
        kinds.setdefault(group["kind"], []).append(group["units"])
    assert kinds["heads"] == [12] * 12
    assert set(kinds["head_dim"]) == {64}
    assert kinds["neurons"] == [3072] * 12
    assert kinds["stream"] == [768]
    assert called.data["pinned"]["heads.head.weight[0]"] == "an output of the model"
    assert "one position" in called.data["pinned"]["encoder.pos_embedding[1]"]
    assert called.data["params"] == 86_567_656  # the published number
    assert called.data["saving"]["params"]["after"] < 0.3 * 86_567_656


class Undecided(pk.BasePruner):
    def plan(self) -> pk.Plan:
        raise pk.RehearsalError("It can't be proven.")


def test_inspect_shows_the_groups_even_where_no_plan_can_be_made(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunekit_plugins.cli.inspect.BasePruner", Undecided)
    called = cli("inspect", "tests.cli.toys:perceptron", "--input", "1,4")
    assert called.code == 0
    assert "what could be saved isn't known: It can't be proven." in called.out
    assert "first" in called.out


def test_a_blocked_plugin_is_left_out(cli: Cli) -> None:
    called = cli("inspect", "tests.cli.toys:perceptron", "--input", "1,4", "--block", "ops", "--json")
    assert called.code == 0
    assert any(gap.startswith("aten::") for gap in called.data["not_understood"])


def test_the_random_state_is_left_alone(cli: Cli) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    cli("inspect", "tests.cli.toys:perceptron", "--input", "1,4")
    assert torch.equal(torch.rand(3), expected)
