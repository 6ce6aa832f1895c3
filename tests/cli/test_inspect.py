from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.cli.output import Output
from prunekit_plugins.cli.rules import rule_uses, show_rules
from tests.cli import toys
from tests.cli.conftest import Cli

BLOCKS = ("tests.cli.toys:blocks", "--input", "1,4")


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


@pytest.mark.slow
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
    monkeypatch.setattr("prunekit_plugins.cli.commands.inspect.BasePruner", Undecided)
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


class OwnRelu:
    @staticmethod
    @plugin.hookimpl
    def prunekit_op_rules() -> Mapping[str, plugin.Rule]:
        return {"aten::relu": lambda call: list(call["self"].axes)}


def test_rules_are_listed_with_their_origin(cli: Cli) -> None:
    rules = {rule["operation"]: rule for rule in cli("inspect", *BLOCKS, "--rules", "--json").data["rules"]}
    assert list(rules) == ["aten::linear", "aten::layer_norm", "aten::relu", "aten::add.Tensor"]
    assert rules["aten::relu"]["modules"] == [f"blocks.{k}.2" for k in range(3)]
    assert (rules["aten::add.Tensor"]["key"], rules["aten::add.Tensor"]["plugin"]) == (
        "aten::add.Tensor",
        "prunekit:ops",
    )
    file, _, line = rules["aten::linear"]["site"].rpartition(":")
    source = Path(file).read_text().splitlines()[int(line) - 1 :]
    assert next(text for text in source if text.startswith("def ")).startswith("def linear(")
    assert "rules" not in cli("inspect", *BLOCKS, "--json").data
    text = cli("inspect", *BLOCKS, "--rules").out
    assert next(line for line in text.splitlines() if "aten::layer_norm " in line).split()[1:4] == [
        "3",
        "aten::layer_norm",
        "prunekit:ops",
    ]


def test_rules_that_override_or_are_missing_show(capsys: pytest.CaptureFixture[str]) -> None:
    registry = pk.Registry(block=["ops"], extra={"own": OwnRelu})
    graph = pk.DependencyGraph(registry).build_dependency(toys.blocks(), torch.randn(1, 4))
    uses = {use.operation: use for use in rule_uses(graph.analysis, registry)}
    assert (uses["aten::relu"].plugin, uses["aten::relu"].overrides) == ("own", ())
    assert all(use.key == "" for name, use in uses.items() if name != "aten::relu")
    registry = pk.Registry(extra={"own": OwnRelu})
    graph = pk.DependencyGraph(registry).build_dependency(toys.blocks(), torch.randn(1, 4))
    show_rules(Output(), rule_uses(graph.analysis, registry))
    line = next(line for line in capsys.readouterr().out.splitlines() if "aten::relu" in line)
    assert "own, overrides prunekit:ops" in line
    assert line.endswith(f"{__file__}:{OwnRelu.prunekit_op_rules.__code__.co_firstlineno + 3}")


def along(call: plugin.OpCall) -> list[plugin.Axis]:
    return list(call["input"].axes)


def test_the_rule_of_an_opaque_layer_shows() -> None:
    kind = plugin.LayerType("relu", opaque=plugin.Opaque(along, fake=lambda module, input: torch.empty_like(input)))

    class Own:
        @staticmethod
        @plugin.hookimpl
        def prunekit_layer_types() -> Mapping[type[torch.nn.Module], plugin.LayerType]:
            return {torch.nn.ReLU: kind}

    registry = pk.Registry(extra={"own": Own})
    graph = pk.DependencyGraph(registry).build_dependency(toys.blocks(), torch.randn(1, 4))
    (use,) = (use for use in rule_uses(graph.analysis, registry) if use.operation.startswith("opaque::"))
    assert use.operation == use.key == "opaque::torch.nn.modules.activation.ReLU"
    assert use.modules == ("blocks.0.2", "blocks.1.2", "blocks.2.2")
    assert (use.plugin, use.site) == ("own", f"{__file__}:{along.__code__.co_firstlineno}")
